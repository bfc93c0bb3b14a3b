/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * A storage program that does what the first word of each call's buffer says, and answers in the buffer. The result is the
 * length of the answer.
 *
 *   count          the number of this call
 *   invert         every byte behind the word inverted
 *   scan           what lies before and behind the buffer: "clean", or the address of a byte that is not zero
 *   ticks          how often its own thread has been awake, every 5 ms
 *   busy / rest    let another thread spin / stop it
 *   sleep MS       answers after that long
 *   call           what a call of its own gives
 * Started with "quiet" it has no thread beside the one that answers, with a number it ends with that status, and with "never"
 * it never waits for a call.
 *
 *   hang, crash, exit, eat     never answer; the last one by using up all memory
 */
#define _GNU_SOURCE
#include "../../guestlib/kvmserverguest.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static atomic_ulong ticks;
static atomic_int busy;
static volatile unsigned long spun;

static void sleep_ms(long ms)
{
    struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    while (nanosleep(&time, &time) != 0 && errno == EINTR)
        ;
}

static void *tick(void *unused)
{
    (void)unused;
    for (;;) {
        sleep_ms(5);
        ticks++;
        while (busy)
            spun++;
    }
    return NULL;
}

/* All memory that can be read around the buffer: it must hold nothing. */
static size_t scan(char *buffer, size_t length)
{
    const size_t window = KVMSERVERGUEST_BUFFER_MAX;
    char *start = (char *)((uintptr_t)buffer & ~(window - 1));
    for (size_t at = 0; at < window; at++) {
        if ((start + at < buffer || start + at >= buffer + length) && start[at] != 0)
            return (size_t)sprintf(buffer, "%p", (void *)(start + at));
    }
    /* Beyond the window there is no page of the caller's: every page that is mapped there is the program's own. */
    return (size_t)sprintf(buffer, "clean");
}

static void eat(void)
{
    for (;;) {
        char *piece = mmap(NULL, 16 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (piece == MAP_FAILED)
            abort();
        memset(piece, 1, 16 << 20);
    }
}

static int is(const char *buffer, size_t length, const char *word)
{
    size_t size = strlen(word);
    return length >= size && memcmp(buffer, word, size) == 0 && (length == size || buffer[size] == ' ' || buffer[size] == '\0');
}

static ssize_t answer(char *buffer, size_t length)
{
    static unsigned long count;
    count++;
    if (is(buffer, length, "count"))
        return sprintf(buffer, "%lu", count);
    if (is(buffer, length, "invert")) {
        for (size_t at = 7; at < length; at++)
            buffer[at] = (char)~buffer[at];
        return (ssize_t)length;
    }
    if (is(buffer, length, "scan"))
        return (ssize_t)scan(buffer, length);
    if (is(buffer, length, "ticks"))
        return sprintf(buffer, "%lu", ticks);
    if (is(buffer, length, "busy"))
        busy = 1;
    if (is(buffer, length, "rest"))
        busy = 0;
    if (is(buffer, length, "sleep"))
        sleep_ms(strtol(buffer + 6, NULL, 10));
    if (is(buffer, length, "call"))
        return sprintf(buffer, "%zd", kvmserverguest_remote_resume(buffer, (ssize_t)length));
    if (is(buffer, length, "crash"))
        raise(SIGSEGV);
    if (is(buffer, length, "exit"))
        exit(3);
    if (is(buffer, length, "eat"))
        eat();
    while (is(buffer, length, "hang"))
        spun++;
    return 0;
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "never") == 0)
        pause();
    int quiet = argc > 1 && strcmp(argv[1], "quiet") == 0;
    if (argc > 1 && !quiet)
        return atoi(argv[1]);
    pthread_t thread;
    if (!quiet && pthread_create(&thread, NULL, tick, NULL) != 0)
        return 1;
    ssize_t result = 0;
    for (;;) {
        void *buffer = NULL;
        ssize_t length = kvmserverguest_storage_wait_paused(&buffer, result);
        if (length < 0) {
            fprintf(stderr, "storage_wait_paused: %zd\n", length);
            return 2;
        }
        result = length > 0 ? answer(buffer, (size_t)length) : 0;
    }
}
