// Keeps a counter: every call adds one, and its answer is the number.
package main

import (
	"log"
	"strconv"

	"kvmserverguest"
)

func main() {
	count := int64(0)
	log.Fatal(kvmserverguest.Serve(func([]byte) ([]byte, error) {
		count++
		return strconv.AppendInt(nil, count, 10), nil
	}))
}
