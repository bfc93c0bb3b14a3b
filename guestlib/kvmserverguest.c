/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * libkvmserverguest.so: see kvmserverguest.h. Freestanding, so that it can be loaded beside any C library or none.
 */
#include "kvmserverguest.h"
#include "guest_calls.h"

#include <stdint.h>

enum { CALL_PRCTL = 157, ERROR_ENOSYS = 38 };

#define EXPORT __attribute__((visibility("default")))

/* -1: not asked yet. Racing threads store the same answer. */
static volatile int version = -1;

static long call(long number, long first, long second)
{
	/* prctl(2) wants its unused arguments to be zero. */
	register long r10 __asm__("r10") = 0;
	register long r8 __asm__("r8") = 0;
	long result;
	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "0"(number), "D"(first), "S"(second), "d"(0L), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
	return result;
}

EXPORT int kvmserverguest_available(void)
{
	int known = version;
	if (known < 0) {
		long answer = call(CALL_PRCTL, GUEST_PRCTL_VERSION, 0);
		known = answer > 0 ? (int)answer : 0;
		version = known;
	}
	return known;
}

EXPORT ssize_t kvmserverguest_remote_resume(void *buffer, ssize_t len)
{
	if (!kvmserverguest_available())
		return -ERROR_ENOSYS;
	return call(GUEST_CALL_REMOTE_RESUME, (intptr_t)buffer, len);
}

EXPORT ssize_t kvmserverguest_storage_wait_paused(void **buffer, ssize_t result)
{
	if (!kvmserverguest_available())
		return -ERROR_ENOSYS;
	return call(GUEST_CALL_STORAGE_WAIT_PAUSED, (intptr_t)buffer, result);
}

EXPORT void *kvmserverguest_shared_buffer(size_t len)
{
	long address;
	if (!kvmserverguest_available())
		return NULL;
	address = call(GUEST_CALL_SHARED_BUFFER, (long)len, 0);
	return address > 0 ? (void *)address : NULL;
}
