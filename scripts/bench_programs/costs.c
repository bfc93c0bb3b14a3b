/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * What single steps cost in the middle of a request, as JSON in nanoseconds each: costs PORT. GET / measures; GET /write/N
 * writes to N pages that the snapshot has, for the cost of resets.
 */
#include "http.h"
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>

enum { PAGE = 4096, PAGES = 256, CALLS = 256, TRAPS = 64, MOST_PAGES = 2048 };

/* Filled before the first request, so that the snapshot has all of them. */
static char written[PAGES][PAGE], only_read[PAGES][PAGE], many[MOST_PAGES][PAGE];
static volatile char sink;
static int undefined_bytes;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static void on_signal(int number, siginfo_t *info, void *context)
{
    (void)number, (void)info;
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] += undefined_bytes;
}

static double write_first(volatile char *pages)
{
    double start = now();
    for (int page = 0; page < PAGES; page++)
        pages[page * PAGE] = 1;
    return (now() - start) / PAGES;
}

static double read_first(const volatile char *pages)
{
    double start = now();
    for (int page = 0; page < PAGES; page++)
        sink = pages[page * PAGE];
    return (now() - start) / PAGES;
}

static double fresh(void)
{
    char *pages = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED)
        fail("mmap");
    double each = write_first(pages);
    munmap(pages, PAGES * PAGE);
    return each;
}

static double call(void)
{
    double start = now();
    for (int turn = 0; turn < CALLS; turn++)
        syscall(SYS_getppid);
    return (now() - start) / CALLS;
}

/* A signal that a call raises: its frame, its handler and the return from it, and the call. */
static double raised(void)
{
    double start = now();
    undefined_bytes = 0;
    for (int turn = 0; turn < TRAPS; turn++)
        raise(SIGILL);
    return (now() - start) / TRAPS;
}

/* The same, from an exception of the processor. */
static double trapped(void)
{
    double start = now();
    undefined_bytes = 2;
    for (int turn = 0; turn < TRAPS; turn++)
        __asm__ volatile("ud2");
    return (now() - start) / TRAPS;
}

static int answer(int fd, const struct request *request)
{
    char body[512];
    int pages, length;
    if (sscanf(request->path, "/write/%d", &pages) == 1) {
        for (int page = 0; page < pages && page < MOST_PAGES; page++)
            many[page][0]++;
        return http_respond(fd, request, 200, "written\n", 8);
    }
    sink = 0;
    call();
    length = snprintf(body, sizeof body,
                      "{\"call\": %.0f, \"snapshot_page_read\": %.0f, \"snapshot_page_written\": %.0f, "
                      "\"fresh_page_written\": %.0f, \"signal_by_call\": %.0f, \"signal_by_exception\": %.0f}\n",
                      call(), read_first(&only_read[0][0]), write_first(&written[0][0]), fresh(), raised(), trapped());
    return http_respond(fd, request, 200, body, (size_t)length);
}

int main(int argc, char **argv)
{
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};
    if (argc != 2)
        return 2;
    memset(written, 1, sizeof written);
    memset(only_read, 1, sizeof only_read);
    memset(many, 1, sizeof many);
    if (sigaction(SIGILL, &action, NULL) != 0)
        fail("sigaction");
    http_handler = answer;
    http_serve_for_ever(argv[1]);
}
