/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * What a program inside kvmserver can ask of it. Link with -lkvmserverguest, or dlopen("libkvmserverguest.so"): inside every
 * guest the library is on the loader's path. Outside, kvmserverguest_available() is 0 and nothing else does anything.
 *
 * Two programs of one tenant meet here. Request VMs forget everything when a request is over; the storage VM keeps its state.
 * A call takes one buffer from a request VM to the storage program and back, and nothing else of either is seen by the other.
 *
 * All functions are safe to call from any thread. None uses errno.
 */
#ifndef KVMSERVERGUEST_H
#define KVMSERVERGUEST_H

#include <stddef.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this interface. */
#define KVMSERVERGUEST_VERSION 1
/* Longest buffer of a call, and size of a request VM's shared memory, bytes. */
#define KVMSERVERGUEST_BUFFER_MAX (16u << 20)

/* The version of the interface that the host speaks (at least 1), or 0 where the program does not run inside kvmserver. Costs a
 * system call the first time and nothing later. */
int kvmserverguest_available(void);

/* In a request VM: let the storage program see buffer[0..len), wait until it has answered, and return its result. The program
 * answers in place: what it stored in the buffer is there afterwards. The whole request VM stands still meanwhile.
 *
 * len is 0 (then buffer does not matter) to KVMSERVERGUEST_BUFFER_MAX; the buffer must be readable and writable. Calls of
 * several request VMs are served one at a time, first come first served.
 *
 * Returns what the storage program gave as its result, or one of these (a program is free to return them as well, and
 * better does not):
 *   -EINVAL     bad buffer or length
 *   -ENOSYS     there is no storage program, or this is not kvmserver
 *   -EDEADLK    called by the storage program
 *   -ETIMEDOUT  no turn within --max-storage-time, or no answer within that time from then on: then the storage program is
 *               started anew
 *   -EPIPE      the storage program died in this call
 *   -EAGAIN     the storage program is being started again
 * After an error the buffer's content is unspecified: it may have been given or not.
 */
ssize_t kvmserverguest_remote_resume(void *buffer, ssize_t len);

/* In the storage program: give `result` to the caller that waits (nobody does the first time: then it is ignored), wait for
 * the next call, store the address of its buffer in *buffer, and return the buffer's length.
 *
 * The buffer may be read and written until this function is called again; it is valid only until then. Whichever thread calls
 * it first after a call was received answers that call. All other threads of the program go on running meanwhile.
 *
 * Returns -EFAULT for a bad pointer (the caller goes on waiting), -EPERM in a request VM, -ENOSYS outside kvmserver.
 */
ssize_t kvmserverguest_storage_wait_paused(void **buffer, ssize_t result);

/* In a request VM: len bytes of zeroed memory that the storage program can reach as well, so that a call whose whole buffer lies
 * in it copies nothing. Page aligned. At most KVMSERVERGUEST_BUFFER_MAX bytes altogether; there is no way to give any back,
 * but what a request took is given back when it is over. What was taken before the snapshot stays taken.
 *
 * The content is zeroed when a request is over and in the snapshot. The storage program can read and write it at any time, also
 * outside calls: copy before you check what must not change.
 *
 * Returns NULL where there is no such memory left, no storage program, or no kvmserver.
 */
void *kvmserverguest_shared_buffer(size_t len);

#ifdef __cplusplus
}
#endif

#endif
