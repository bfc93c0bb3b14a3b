/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * One line per claim: `ok NAME` or `not ok NAME # why`. A program of claims runs natively first; in a guest it must
 * print the same lines. Exit status 1 if any claim failed. T and N numbers in names are bugs of a peer.
 */
#ifndef KVMSERVER_TESTS_TAP_H
#define KVMSERVER_TESTS_TAP_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static int tap_failures;

/* Not through stdio, so that a claim's line is out before the next one can crash. */
__attribute__((unused)) static void tap(int passed, const char *name, const char *expression, int line, int error)
{
    char text[512];
    int length = passed ? snprintf(text, sizeof text, "ok %s\n", name)
                        : snprintf(text, sizeof text, "not ok %s # line %d: %s (errno %d: %s)\n", name, line, expression, error,
                                   strerror(error));
    if (!passed)
        tap_failures++;
    if (write(1, text, (size_t)length) != length)
        _exit(99);
}

#define CHECK(name, expression)                                    \
    do {                                                           \
        errno = 0;                                                 \
        int passed_ = (expression) ? 1 : 0;                        \
        tap(passed_, name, #expression, __LINE__, errno);          \
    } while (0)

/* The call fails with this errno. */
#define CHECK_ERRNO(name, call, wanted)                            \
    do {                                                           \
        errno = 0;                                                 \
        long result_ = (long)(call);                               \
        int error_ = errno;                                        \
        tap(result_ == -1 && error_ == (wanted), name, #call " fails with " #wanted, __LINE__, result_ == -1 ? error_ : 0); \
    } while (0)

__attribute__((unused)) static uint64_t tap_now_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ---- accesses that may fault ---- */

static sigjmp_buf tap_escape;
static volatile sig_atomic_t tap_signal;
static void *volatile tap_fault_address;
static volatile int tap_fault_code;

__attribute__((unused)) static void tap_on_fault(int number, siginfo_t *info, void *context)
{
    (void)context;
    tap_signal = number;
    tap_fault_address = info->si_addr;
    tap_fault_code = info->si_code;
    siglongjmp(tap_escape, 1);
}

__attribute__((unused)) static void tap_catch_faults(void)
{
    static const int numbers[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    struct sigaction action = {.sa_sigaction = tap_on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        sigaction(numbers[i], &action, NULL);
}

/* The signal that `statement` raises, 0 for none. */
#define FAULT_OF(statement) (sigsetjmp(tap_escape, 1) == 0 ? (tap_signal = 0, (void)(statement), 0) : (int)tap_signal)

/* Is the page readable / writable? Asked of the hardware. */
__attribute__((unused)) static int tap_readable(const void *address)
{
    return FAULT_OF(*(const volatile char *)address) == 0;
}

__attribute__((unused)) static int tap_writable(void *address)
{
    return FAULT_OF(*(volatile char *)address = *(volatile char *)address) == 0;
}

#endif
