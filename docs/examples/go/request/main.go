// A server that answers every request with the storage program's next number: request PORT
package main

import (
	"log"
	"net/http"
	"os"

	"kvmserverguest"
)

func answer(response http.ResponseWriter, _ *http.Request) {
	number, err := kvmserverguest.Call([]byte("count"), 64)
	if err != nil {
		http.Error(response, err.Error(), http.StatusServiceUnavailable)
		return
	}
	if _, err := response.Write(number); err != nil {
		log.Print(err)
	}
}

func main() {
	if kvmserverguest.Available() == 0 {
		log.Fatal("not inside kvmserver")
	}
	http.HandleFunc("/", answer)
	log.Fatal(http.ListenAndServe(":"+os.Args[1], nil))
}
