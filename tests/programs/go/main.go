// A counter on net/http: counter PORT. `/garbage` makes the collector work, `/goroutines` answers from 50 of them.
package main

import (
	"fmt"
	"net/http"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

var count atomic.Int64

func main() {
	http.HandleFunc("/", func(answer http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(answer, "%d\n", count.Add(1))
	})
	http.HandleFunc("/garbage", func(answer http.ResponseWriter, _ *http.Request) {
		total := 0
		for round := 0; round < 200; round++ {
			total += len(make([]byte, 64<<10))
		}
		runtime.GC()
		fmt.Fprintf(answer, "%d %d\n", count.Add(1), total)
	})
	http.HandleFunc("/goroutines", func(answer http.ResponseWriter, _ *http.Request) {
		var group sync.WaitGroup
		var sum atomic.Int64
		for number := int64(1); number <= 50; number++ {
			group.Add(1)
			go func(number int64) {
				defer group.Done()
				time.Sleep(time.Millisecond)
				sum.Add(number)
			}(number)
		}
		group.Wait()
		fmt.Fprintf(answer, "%d %d\n", count.Add(1), sum.Load())
	})
	if err := http.ListenAndServe(":"+os.Args[1], nil); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
