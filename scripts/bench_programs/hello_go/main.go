// The Go program: net/http answering hello. hello PORT
package main

import (
	"io"
	"log"
	"net/http"
	"os"
)

func main() {
	http.HandleFunc("/", func(writer http.ResponseWriter, _ *http.Request) {
		io.WriteString(writer, "hello")
	})
	log.Fatal(http.ListenAndServe(":"+os.Args[1], nil))
}
