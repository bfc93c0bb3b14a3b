/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * Machine code made at run time: run_time_code PORT (a server) or run_time_code once (prints and ends).
 *
 * Each request, in the first thread and in a new one: maps a page, writes a function, makes it executable, calls it,
 * rewrites it in place and calls it again; then the same on a page that is writable and executable at once, with code
 * patched while it is mapped, and with pages that are unmapped and mapped again at the same address. `/speed` answers
 * how many nanoseconds a generated loop of 2^28 turns takes, and the same loop compiled by the C compiler.
 */
#include "http.h"
#include <pthread.h>
#include <stdint.h>
#include <sys/mman.h>
#include <time.h>

enum { PAGE = 4096, TURNS = 1 << 28 };

typedef uint32_t (*function)(uint32_t);

/* lea eax, [rdi + constant]; ret */
static void write_adder(unsigned char *where, uint32_t constant)
{
    where[0] = 0x8d, where[1] = 0x87;
    memcpy(where + 2, &constant, 4);
    where[6] = 0xc3;
}

static const char *separate_pages(uint32_t seed)
{
    unsigned char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return "mmap";
    for (uint32_t round = 0; round < 4; round++) {
        if (mprotect(page, PAGE, PROT_READ | PROT_WRITE) != 0)
            return "mprotect to writable";
        write_adder(page + round * 16, seed + round);
        write_adder(page + 128, seed * 3 + round);
        if (mprotect(page, PAGE, PROT_READ | PROT_EXEC) != 0)
            return "mprotect to executable";
        if (((function)(void *)(page + round * 16))(7) != seed + round + 7)
            return "new code";
        if (((function)(void *)(page + 128))(7) != seed * 3 + round + 7)
            return "rewritten code";
    }
    return munmap(page, PAGE) == 0 ? NULL : "munmap";
}

static const char *writable_and_executable(uint32_t seed)
{
    unsigned char *page = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return "mmap with all rights";
    for (uint32_t round = 0; round < 64; round++) {
        /* Across the page boundary, so that both pages matter. */
        write_adder(page + PAGE - 3, seed + round);
        if (((function)(void *)(page + PAGE - 3))(1) != seed + round + 1)
            return "patched code";
    }
    return munmap(page, 4 * PAGE) == 0 ? NULL : "munmap";
}

static const char *mapped_again(uint32_t seed)
{
    unsigned char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (uint32_t round = 0; round < 4; round++) {
        if (page == MAP_FAILED || page[0] != 0)
            return "fresh page";
        write_adder(page, seed ^ round);
        if (mprotect(page, PAGE, PROT_EXEC | PROT_READ) != 0)
            return "mprotect";
        if (((function)(void *)page)(0) != (seed ^ round))
            return "code at a reused address";
        if (munmap(page, PAGE) != 0)
            return "munmap";
        page = mmap(page, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    }
    return munmap(page, PAGE) == 0 ? NULL : "munmap";
}

/* Code written once at the start and patched by every request: a reset has to bring the first version back. */
static unsigned char *persistent;

static const char *patched_for_good(uint32_t seed)
{
    if (((function)(void *)persistent)(5) != 1005)
        return "code of an earlier request";
    write_adder(persistent, seed);
    if (((function)(void *)persistent)(5) != seed + 5)
        return "code patched for good";
    return NULL;
}

static const char *all(uint32_t seed)
{
    const char *problem = separate_pages(seed);
    problem = problem ? problem : writable_and_executable(seed);
    return problem ? problem : mapped_again(seed);
}

static void *in_thread(void *seed)
{
    return (void *)(uintptr_t)all((uint32_t)(uintptr_t)seed);
}

static const char *check(void)
{
    void *problem = NULL;
    uint32_t seed = (uint32_t)time(NULL) * 2654435761u;
    pthread_t thread;
    const char *first = all(seed);
    if (first)
        return first;
    if (pthread_create(&thread, NULL, in_thread, (void *)(uintptr_t)(seed + 1)) != 0)
        return "pthread_create";
    pthread_join(thread, &problem);
    return problem;
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* mov ecx, TURNS; xor eax, eax; 1: lea rax, [rax*4+rax+1]; dec ecx; jnz 1b; ret */
static const unsigned char loop_code[] = {0xb9, 0, 0, 0, 0x10, 0x31, 0xc0, 0x48, 0x8d, 0x44, 0x80, 0x01, 0xff, 0xc9, 0x75, 0xf7, 0xc3};

static uint64_t generated_loop(void)
{
    unsigned char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        fail("mmap");
    memcpy(page, loop_code, sizeof loop_code);
    if (mprotect(page, PAGE, PROT_READ | PROT_EXEC) != 0)
        fail("mprotect");
    uint64_t start = now_ns();
    uint64_t result = ((uint64_t(*)(void))(void *)page)();
    uint64_t time = now_ns() - start;
    munmap(page, PAGE);
    return result == 0 ? 0 : time;
}

static uint64_t compiled_loop(void)
{
    uint64_t start = now_ns(), result = 0;
    for (int turn = TURNS; turn > 0; turn--) {
        result = result * 5 + 1;
        __asm__ volatile("" : "+r"(result));
    }
    return now_ns() - start;
}

static int handle(int fd, const struct request *request)
{
    char body[128];
    int size;
    if (strcmp(request->path, "/speed") == 0) {
        size = snprintf(body, sizeof body, "generated %lu compiled %lu\n", generated_loop(), compiled_loop());
        return http_respond(fd, request, 200, body, (size_t)size);
    }
    const char *problem = check();
    /* Only the requests that a reset follows may patch for good. */
    if (!problem && strcmp(request->path, "/patch") == 0)
        problem = patched_for_good((uint32_t)now_ns());
    size = snprintf(body, sizeof body, "%lu %s\n", ++http_counter, problem ? problem : "ok");
    return http_respond(fd, request, problem ? 500 : 200, body, (size_t)size);
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    persistent = mmap(NULL, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (persistent == MAP_FAILED)
        fail("mmap");
    write_adder(persistent, 1000);
    if (strcmp(argv[1], "once") == 0) {
        const char *problem = check();
        problem = problem ? problem : patched_for_good(77);
        printf("run-time code: %s\n", problem ? problem : "ok");
        printf("generated %lu compiled %lu\n", generated_loop(), compiled_loop());
        return problem != NULL;
    }
    http_handler = handle;
    http_serve_for_ever(argv[1]);
}
