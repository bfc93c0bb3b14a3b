/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * A storage program that does what the first word of each call's buffer says, and answers in the buffer. The result is the
 * length of the answer.
 *
 *   count          the number of this call
 *   number         a name of this life of the program and the number of this kind of call
 *   invert         every byte behind the word inverted
 *   sleep MS       nothing, after that long
 *   echo MS TEXT   TEXT, after that long
 *   scan           the rest of the window, and all memory outside the buffers: "clean", or the address of a byte that is not zero
 *   hunt HEX       how often the inverted bytes are found in the whole memory of this program
 *   moves          what changes to the mapping of its own window give
 *   ticks          how often its own thread has been awake, every 5 ms
 *   busy / rest    let another thread spin / stop it
 *   later MS       write to where this buffer is after that long, from another thread
 *   beyond BYTES   write that many bytes behind the buffer, too
 *   cut PATH       truncate that file
 *   call           what a call of its own gives
 *   hang, crash, exit, eat     never answer; the last one by using up all memory
 *
 *   storage_service [quiet]          quiet: without a thread of its own
 *   storage_service STATUS           ends at once
 *   storage_service die              crashes at once
 *   storage_service never            never waits for calls
 *   storage_service while FILE WORD  as WORD says (a status, die or never) while the file is there, else as usual
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
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

static atomic_ulong ticks;
static atomic_int busy;
static volatile unsigned long spun;
static unsigned long life;

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

struct later {
    char *at;
    long ms;
};

static void *write_later(void *argument)
{
    struct later *later = argument;
    sleep_ms(later->ms);
    memset(later->at, 0x77, 4096);
    free(later);
    return NULL;
}

static int start_thread(void *(*routine)(void *), void *argument)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, routine, argument) != 0)
        return -1;
    return pthread_detach(thread);
}

struct range {
    char *start, *end;
    char name[64];
};

/* The readable memory of this program; how many ranges. */
static int ranges_of(struct range *ranges, int room)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512];
    int count = 0;
    while (maps && count < room && fgets(line, sizeof line, maps)) {
        struct range *range = &ranges[count];
        char mode[8];
        range->name[0] = '\0';
        if (sscanf(line, "%p-%p %7s %*s %*s %*s %63[^\n]", (void **)&range->start, (void **)&range->end, mode, range->name) >= 3 && mode[0] == 'r')
            count++;
    }
    if (maps)
        fclose(maps);
    return count;
}

enum { RANGES = 512 };
static struct range ranges[RANGES];

/* All of the window outside the buffer: it must hold nothing. */
static size_t scan(char *buffer, size_t length)
{
    int count = ranges_of(ranges, RANGES), windows = 0;
    for (int index = 0; index < count; index++) {
        if (strcmp(ranges[index].name, "[storage window]") != 0)
            continue;
        windows++;
        for (char *at = ranges[index].start; at < ranges[index].end; at++) {
            if ((at < buffer || at >= buffer + length) && *at != 0)
                return (size_t)sprintf(buffer, "%p", (void *)at);
        }
    }
    return (size_t)sprintf(buffer, windows == 1 ? "clean" : "no window");
}

/* How often the bytes that the text inverts are anywhere in this program. */
static size_t hunt(char *buffer, const char *hex)
{
    unsigned char inverted[64];
    size_t size = 0, found = 0;
    for (; size < sizeof inverted && hex[0] && hex[1] && sscanf(hex, "%2hhx", &inverted[size]) == 1; hex += 2)
        size++;
    int count = ranges_of(ranges, RANGES);
    for (int index = 0; index < count && size > 0; index++) {
        if (ranges[index].name[0] == '[' && strcmp(ranges[index].name, "[vvar]") == 0)
            continue;
        const unsigned char *at = (unsigned char *)ranges[index].start, *end = (unsigned char *)ranges[index].end;
        const unsigned char first = (unsigned char)~inverted[0];
        while ((at = memchr(at, first, (size_t)(end - at))) && (size_t)(end - at) >= size) {
            size_t same = 1;
            while (same < size && at[same] == (unsigned char)~inverted[same])
                same++;
            found += same == size;
            at++;
        }
    }
    return (size_t)sprintf(buffer, "%zu of %d", found, count > 3);
}

/* The window is where it is for as long as the program lives. */
static size_t moves(char *buffer)
{
    char *end = (char *)((uintptr_t)buffer & ~4095ul);
    int results[] = {
        munmap(end, 4096) == 0 ? 0 : errno,
        munmap(end - (4 << 20), 8 << 20) == 0 ? 0 : errno,
        mprotect(end, 4096, PROT_NONE) == 0 ? 0 : errno,
        mmap(end, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED ? errno : 0,
        mremap(end, 4096, 8192, MREMAP_MAYMOVE) == MAP_FAILED ? errno : 0,
    };
    size_t used = 0;
    for (size_t index = 0; index < sizeof results / sizeof *results; index++)
        used += (size_t)sprintf(buffer + used, "%s ", results[index] ? "refused" : "done");
    return used;
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

static size_t echo(char *buffer)
{
    char *words, text[256];
    long ms = strtol(buffer + 5, &words, 10);
    /* What is answered was asked before, whatever happens to the buffer meanwhile. */
    snprintf(text, sizeof text, "%s", words + (*words == ' '));
    sleep_ms(ms);
    return (size_t)sprintf(buffer, "%s", text);
}

static size_t later(char *buffer)
{
    struct later *later = malloc(sizeof *later);
    if (!later)
        abort();
    *later = (struct later){.at = buffer, .ms = strtol(buffer + 6, NULL, 10)};
    return start_thread(write_later, later) == 0;
}

static ssize_t answer(char *buffer, size_t length)
{
    static unsigned long count, numbers;
    count++;
    if (is(buffer, length, "count"))
        return sprintf(buffer, "%lu", count);
    if (is(buffer, length, "number"))
        return sprintf(buffer, "%lx %lu", life, ++numbers);
    if (is(buffer, length, "invert")) {
        for (size_t at = 7; at < length; at++)
            buffer[at] = (char)~buffer[at];
        return (ssize_t)length;
    }
    if (is(buffer, length, "sleep"))
        sleep_ms(strtol(buffer + 6, NULL, 10));
    if (is(buffer, length, "echo"))
        return (ssize_t)echo(buffer);
    if (is(buffer, length, "scan"))
        return (ssize_t)scan(buffer, length);
    if (is(buffer, length, "hunt"))
        return (ssize_t)hunt(buffer, buffer + 5);
    if (is(buffer, length, "moves"))
        return (ssize_t)moves(buffer);
    if (is(buffer, length, "ticks"))
        return sprintf(buffer, "%lu", ticks);
    if (is(buffer, length, "busy"))
        busy = 1;
    if (is(buffer, length, "rest"))
        busy = 0;
    if (is(buffer, length, "later"))
        return (ssize_t)later(buffer);
    if (is(buffer, length, "beyond"))
        memset(buffer + length, 0x33, strtoul(buffer + 7, NULL, 10));
    if (is(buffer, length, "cut"))
        return truncate(buffer + 4, 0) == 0 ? 0 : -errno;
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

/* Whether the program serves; some words make it fail instead. */
static void begin(const char *word)
{
    if (strcmp(word, "never") == 0) {
        for (;;)
            pause();
    }
    if (strcmp(word, "die") == 0)
        raise(SIGSEGV);
    if (*word >= '0' && *word <= '9')
        exit(atoi(word));
}

int main(int argc, char **argv)
{
    const char *word = argc > 1 ? argv[1] : "";
    if (strcmp(word, "while") != 0)
        begin(word);
    else if (argc > 3 && access(argv[2], F_OK) == 0)
        begin(argv[3]);
    if (getrandom(&life, sizeof life, 0) != sizeof life)
        return 1;
    if (strcmp(word, "quiet") != 0 && start_thread(tick, NULL) != 0)
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
