// SPDX-License-Identifier: Apache-2.0 OR MIT

// Package kvmserverguest is what a program inside kvmserver can ask of it: calls from request VMs to the storage program.
//
// Copy this directory; it needs cgo. In a request VM:
//
//	answer, err := kvmserverguest.Call([]byte("count"), 4096)
//
// and in the storage program:
//
//	err := kvmserverguest.Serve(func(request []byte) ([]byte, error) {
//		count++
//		return strconv.AppendInt(nil, count, 10), nil
//	})
//
// The meaning is that of kvmserverguest.h. Every failure wraps the [syscall.Errno] listed there, as errors.Is and errors.As
// can tell; outside kvmserver it is [ErrNotAvailable].
//
// [Call] and [Serve] exchange messages: a request is what stands in the buffer before the zero bytes at its end, the result
// is the length of the answer. [RemoteResume] and [WaitPaused] exchange the bare buffer.
package kvmserverguest

/*
#cgo LDFLAGS: -ldl
#include <dlfcn.h>
#include <stddef.h>
#include <sys/types.h>

static int (*available)(void);
static ssize_t (*remote_resume)(void *, ssize_t);
static ssize_t (*storage_wait_paused)(void **, ssize_t);
static void *(*shared_buffer)(size_t);

static void guest_load(void)
{
	void *library = dlopen("libkvmserverguest.so", RTLD_NOW);
	if (!library)
		return;
	*(void **)&remote_resume = dlsym(library, "kvmserverguest_remote_resume");
	*(void **)&storage_wait_paused = dlsym(library, "kvmserverguest_storage_wait_paused");
	*(void **)&shared_buffer = dlsym(library, "kvmserverguest_shared_buffer");
	*(void **)&available = dlsym(library, "kvmserverguest_available");
}

static int guest_available(void)
{
	return available && remote_resume && storage_wait_paused && shared_buffer ? available() : 0;
}

static ssize_t guest_remote_resume(void *buffer, ssize_t len) { return remote_resume(buffer, len); }
static ssize_t guest_storage_wait_paused(void **buffer, ssize_t result) { return storage_wait_paused(buffer, result); }
static void *guest_shared_buffer(size_t len) { return shared_buffer(len); }
*/
import "C"

import (
	"bytes"
	"fmt"
	"os"
	"syscall"
	"unsafe"
)

// BufferMax is the longest buffer of a call in bytes.
const BufferMax = 16 << 20

// ErrNotAvailable is the failure of everything outside kvmserver.
var ErrNotAvailable = fmt.Errorf("not inside kvmserver: %w", syscall.ENOSYS)

var version = load()

func load() int {
	C.guest_load()
	return int(C.guest_available())
}

// Available returns the version of the host's interface (at least 1), or 0 outside kvmserver.
func Available() int {
	return version
}

func checked(what string, result C.ssize_t) (int, error) {
	if result < 0 {
		return 0, fmt.Errorf("%s: %w", what, syscall.Errno(-result))
	}
	return int(result), nil
}

// Call is for request VMs: what the storage program's [Serve] answers to a message of at most capacity bytes either way (a
// longer request is its own capacity). The whole request VM stands still meanwhile.
//
// A request that ends in a zero byte is EINVAL, a longer answer EMSGSIZE, a failure of the handler EIO; else as [RemoteResume].
func Call(request []byte, capacity int) ([]byte, error) {
	if bytes.HasSuffix(request, []byte{0}) {
		return nil, fmt.Errorf("a request cannot end in a zero byte: %w", syscall.EINVAL)
	}
	if capacity < len(request) {
		capacity = len(request)
	}
	buffer := make([]byte, capacity)
	copy(buffer, request)
	length, err := RemoteResume(buffer)
	if err != nil {
		return nil, err
	}
	if length > len(buffer) {
		return nil, fmt.Errorf("the storage program's result is no length of an answer: %w", syscall.EBADMSG)
	}
	return buffer[:length], nil
}

// RemoteResume is for request VMs: let the storage program see and change the buffer, and return its result. After an error
// the buffer's content is unspecified.
func RemoteResume(buffer []byte) (int, error) {
	if version == 0 {
		return 0, ErrNotAvailable
	}
	var start unsafe.Pointer
	if len(buffer) > 0 {
		start = unsafe.Pointer(&buffer[0])
	}
	return checked("call to the storage program", C.guest_remote_resume(start, C.ssize_t(len(buffer))))
}

// Serve is for the storage program: answer every message with what the handler returns, one at a time, for ever. A request is
// valid only until the handler returns. An error of the handler is printed and given to the caller as EIO.
//
// It returns where there is nothing to wait for: EPERM in a request VM, [ErrNotAvailable] outside kvmserver.
func Serve(handler func(request []byte) ([]byte, error)) error {
	result := 0
	for {
		buffer, err := WaitPaused(result)
		if err != nil {
			return err
		}
		answer, err := handler(bytes.TrimRight(buffer, "\x00"))
		switch {
		case err != nil:
			fmt.Fprintln(os.Stderr, "kvmserverguest:", err)
			result = -int(syscall.EIO)
		case len(answer) > len(buffer):
			result = -int(syscall.EMSGSIZE)
		default:
			result = copy(buffer, answer)
		}
	}
}

// WaitPaused is for the storage program: give the result to the caller that waits (ignored the first time), and return the
// buffer of the next call. It can be read and written until the next wait, and must not be touched later. Other goroutines
// go on meanwhile.
func WaitPaused(result int) ([]byte, error) {
	if version == 0 {
		return nil, ErrNotAvailable
	}
	var buffer unsafe.Pointer
	length, err := checked("wait for a call", C.guest_storage_wait_paused(&buffer, C.ssize_t(result)))
	if err != nil || length == 0 || buffer == nil {
		return nil, err
	}
	return unsafe.Slice((*byte)(buffer), length), nil
}

// SharedBuffer is for request VMs: zeroed memory that the storage program can reach too, so that calls with it copy nothing. The
// storage program may read and write it at any time. ENOMEM where none is left.
func SharedBuffer(length int) ([]byte, error) {
	if version == 0 {
		return nil, ErrNotAvailable
	}
	buffer := C.guest_shared_buffer(C.size_t(length))
	if buffer == nil {
		return nil, fmt.Errorf("shared buffer: %w", syscall.ENOMEM)
	}
	return unsafe.Slice((*byte)(buffer), length), nil
}
