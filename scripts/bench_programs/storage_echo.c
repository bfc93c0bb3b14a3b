/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * A storage program that answers every call at once and leaves its buffer as it is: storage_echo [busy]. With `busy`, a thread
 * of its own never stops computing, so that every call has to interrupt it.
 */
#include "../../guestlib/kvmserverguest.h"
#include <pthread.h>
#include <stdio.h>

static volatile unsigned long spun;

static void *spin(void *unused)
{
    for (;;)
        spun++;
    return unused;
}

int main(int argc, char **argv)
{
    (void)argv;
    pthread_t thread;
    if (argc > 1 && pthread_create(&thread, NULL, spin, NULL) != 0)
        return 1;
    ssize_t result = 0;
    for (;;) {
        void *buffer;
        result = kvmserverguest_storage_wait_paused(&buffer, result);
        if (result < 0) {
            fprintf(stderr, "storage_wait_paused: %zd\n", result);
            return 1;
        }
    }
}
