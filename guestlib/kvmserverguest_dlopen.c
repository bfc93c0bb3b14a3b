/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * The functions of kvmserverguest.h for a program that is to run outside kvmserver as well, where there may be no
 * libkvmserverguest.so: compile this file into it instead of linking with -lkvmserverguest. The library is looked for at the
 * first call; without it the functions do what they do outside kvmserver.
 */
#include "kvmserverguest.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>

static int (*available)(void);
static ssize_t (*remote_resume)(void *, ssize_t);
static ssize_t (*storage_wait_paused)(void **, ssize_t);
static void *(*shared_buffer)(size_t);

static void load(void)
{
	void *library = dlopen("libkvmserverguest.so", RTLD_NOW);
	if (!library)
		return;
	*(void **)&remote_resume = dlsym(library, "kvmserverguest_remote_resume");
	*(void **)&storage_wait_paused = dlsym(library, "kvmserverguest_storage_wait_paused");
	*(void **)&shared_buffer = dlsym(library, "kvmserverguest_shared_buffer");
	*(void **)&available = dlsym(library, "kvmserverguest_available");
}

int kvmserverguest_available(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	pthread_once(&once, load);
	return available && remote_resume && storage_wait_paused && shared_buffer ? available() : 0;
}

ssize_t kvmserverguest_remote_resume(void *buffer, ssize_t len)
{
	return kvmserverguest_available() ? remote_resume(buffer, len) : -ENOSYS;
}

ssize_t kvmserverguest_storage_wait_paused(void **buffer, ssize_t result)
{
	return kvmserverguest_available() ? storage_wait_paused(buffer, result) : -ENOSYS;
}

void *kvmserverguest_shared_buffer(size_t len)
{
	return kvmserverguest_available() ? shared_buffer(len) : NULL;
}
