/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * How libkvmserverguest.so reaches the host: system calls with numbers that Linux will not use. vmm/src/linux/syscalls/guest_api.rs
 * answers them and has the same numbers.
 */
#ifndef KVMSERVER_GUEST_CALLS_H
#define KVMSERVER_GUEST_CALLS_H

/* prctl(2) with this option is how a program asks whether it runs inside kvmserver: everywhere else that is EINVAL, under any
 * seccomp filter that lets programs live. The answer is the version of the interface. */
#define GUEST_PRCTL_VERSION 0x4b564d53

#define GUEST_CALL_REMOTE_RESUME 0x4b560001
#define GUEST_CALL_STORAGE_WAIT_PAUSED 0x4b560002
#define GUEST_CALL_SHARED_BUFFER 0x4b560003

#endif
