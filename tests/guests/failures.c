/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * A counter server that fails on request: failures PORT [MODE].
 *
 * `/` answers the counter; each other path of the table below ends the run in its own way. Modes for the start:
 * serve (default), exit-early (ends with status 3 before it listens), hang-early (never listens), crash-early (dies
 * of SIGSEGV before it listens), hang-on-request and error-on-request (listens, but never answers / answers 500).
 */
#include "http.h"
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

static volatile int zero;
static int *volatile nowhere;

static void crash(void)
{
    *nowhere = 1;
}

static void jump_nowhere(void)
{
    void (*volatile target)(void) = NULL;
    target();
}

static void jump_to_data(void)
{
    /* Anonymous memory: the .data of a small program shares a 2 MiB block with its text, and blocks are executable as a whole. */
    unsigned char *data = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    data[0] = 0xc3;
    void (*volatile target)(void) = (void (*)(void))(void *)data;
    target();
}

static void overflow_stack(void)
{
    /* Called through a pointer, so that no compiler sees (and ends) the recursion. */
    static void (*volatile again)(void) = overflow_stack;
    volatile char frame[4096];
    frame[0] = 1;
    again();
    frame[4095] = frame[0];
}

static void loop(void)
{
    for (volatile unsigned long turns = 0;; turns++)
        ;
}

static void loop_with_system_calls(void)
{
    for (;;)
        syscall(SYS_getppid);
}

static void sleep_for_ever(void)
{
    for (;;)
        pause();
}

static void hog(void)
{
    for (;;) {
        char *memory = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED)
            abort();
        memset(memory, 0x5a, 1 << 20);
    }
}

static void illegal_instruction(void)
{
    __asm__ volatile("ud2");
}

static void divide_by_zero(void)
{
    zero = INT_MAX / zero;
}

static void privileged_instruction(void)
{
    __asm__ volatile("hlt");
}

static void port_access(void)
{
    /* Any port: user mode without I/O privilege gets a general protection fault, so SIGSEGV. */
    for (unsigned port = 0; port < 0x10000; port++)
        __asm__ volatile("outb %b0, %w1" : : "a"(0), "d"(port));
}

static void breakpoint(void)
{
    __asm__ volatile("int3");
}

static void unknown_interrupt(void)
{
    __asm__ volatile("int $0x42");
}

static void non_canonical(void)
{
    *(volatile char *)0x8000000000001000ul = 1;
}

static void read_bus_error(void)
{
    /* A mapped page past the end of its file: SIGBUS. */
    char *page = mmap(NULL, 8192, PROT_READ, MAP_PRIVATE, open("/proc/self/exe", O_RDONLY), 1 << 30);
    if (page != MAP_FAILED)
        zero = page[4096];
    raise(SIGBUS);
}

static void exit_seven(void)
{
    exit(7);
}

static void *exit_from_thread_body(void *unused)
{
    exit(7);
    return unused;
}

static void *crash_thread_body(void *unused)
{
    crash();
    return unused;
}

static void in_thread(void *(*body)(void *))
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, body, NULL) == 0)
        pthread_join(thread, NULL);
}

static void exit_from_thread(void)
{
    in_thread(exit_from_thread_body);
}

static void crash_in_thread(void)
{
    in_thread(crash_thread_body);
}

static void *sleeper(void *unused)
{
    sleep_for_ever();
    return unused;
}

static void clone_bomb(void)
{
    pthread_t thread;
    while (pthread_create(&thread, NULL, sleeper, NULL) == 0)
        ;
    abort();
}

static void deadlock(void)
{
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&mutex);
    pthread_mutex_lock(&mutex);
}

static void kill_self(void)
{
    kill(getpid(), SIGKILL);
}

static void leave_nothing_open(void)
{
    for (int fd = 3; fd < 64; fd++)
        close(fd);
    sleep_for_ever();
}

static void descriptor_bomb(void)
{
    while (dup(1) >= 0)
        ;
    abort();
}

static void smash_everything(void)
{
    /* Unmaps its own address space piece by piece; the next instruction fetch has to fail. */
    for (unsigned long page = 0; page < 1ul << 47; page += 1ul << 32)
        munmap((void *)page, 1ul << 32);
    abort();
}

static void nothing(void) {}

static const struct {
    const char *path;
    const char *first; /* what is sent before it happens */
    void (*act)(void);
} acts[] = {
    {"/segv", "", crash},
    {"/segv-thread", "", crash_in_thread},
    {"/call-null", "", jump_nowhere},
    {"/call-data", "", jump_to_data},
    {"/non-canonical", "", non_canonical},
    {"/bus", "", read_bus_error},
    {"/abort", "", abort},
    {"/exit", "", exit_seven},
    {"/exit-thread", "", exit_from_thread},
    {"/kill", "", kill_self},
    {"/stack", "", overflow_stack},
    {"/ud2", "", illegal_instruction},
    {"/divide", "", divide_by_zero},
    {"/hlt", "", privileged_instruction},
    {"/port", "", port_access},
    {"/int3", "", breakpoint},
    {"/int42", "", unknown_interrupt},
    {"/hog", "", hog},
    {"/clone-bomb", "", clone_bomb},
    {"/descriptor-bomb", "", descriptor_bomb},
    {"/unmap", "", smash_everything},
    {"/deadlock", "", deadlock},
    {"/loop", "", loop},
    {"/loop-calls", "", loop_with_system_calls},
    {"/sleep", "", sleep_for_ever},
    {"/close-all", "", leave_nothing_open},
    {"/no-answer", "", nothing},
    {"/half-head", "HTTP/1.1 200 OK\r\nContent-Le", nothing},
    {"/half-segv", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", crash},
    {"/half-loop", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", loop},
    {"/half-exit", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", exit_seven},
    {"/nonsense", "this is not HTTP\r\n\r\n", nothing},
};

static void *spinner(void *unused)
{
    loop();
    return unused;
}

/* `/big/N` answers N bytes of a pattern, `/busy/N` the same while another thread computes for ever, `/slow/N` the counter after N
 * milliseconds, `/echo` the request's body. */
static int special(int fd, const struct request *request)
{
    unsigned long number = 0;
    if (strcmp(request->path, "/echo") == 0)
        return http_respond(fd, request, 200, request->body, request->body_length);
    if (strcmp(request->path, "/status/500") == 0)
        return http_respond(fd, request, 500, "wanted\n", 7);
    if (sscanf(request->path, "/slow/%lu", &number) == 1) {
        struct timespec pause = {(time_t)(number / 1000), (long)(number % 1000) * 1000000};
        nanosleep(&pause, NULL);
        return http_count(fd, request);
    }
    int busy = sscanf(request->path, "/busy/%lu", &number) == 1;
    pthread_t thread;
    if (busy && pthread_create(&thread, NULL, spinner, NULL) != 0)
        return -1;
    if (busy || sscanf(request->path, "/big/%lu", &number) == 1) {
        char *body = malloc(number ? number : 1);
        for (unsigned long i = 0; body && i < number; i++)
            body[i] = (char)('a' + i * 7 / 5 % 26);
        int result = body ? http_respond(fd, request, 200, body, number) : -1;
        free(body);
        return result;
    }
    return http_count(fd, request);
}

static int handle(int fd, const struct request *request)
{
    for (size_t i = 0; i < sizeof acts / sizeof *acts; i++) {
        if (strcmp(request->path, acts[i].path) == 0) {
            http_send(fd, acts[i].first, strlen(acts[i].first));
            acts[i].act();
            return -1;
        }
    }
    return special(fd, request);
}

static int never(int fd, const struct request *request)
{
    (void)fd, (void)request;
    sleep_for_ever();
    return -1;
}

static int always_500(int fd, const struct request *request)
{
    return http_respond(fd, request, 500, "broken\n", 7);
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    const char *mode = argc > 2 ? argv[2] : "serve";
    http_handler = handle;
    if (strcmp(mode, "exit-early") == 0)
        return 3;
    if (strcmp(mode, "hang-early") == 0)
        loop();
    if (strcmp(mode, "crash-early") == 0)
        crash();
    if (strcmp(mode, "hang-on-request") == 0)
        http_handler = never;
    if (strcmp(mode, "error-on-request") == 0)
        http_handler = always_500;
    http_serve_for_ever(argv[1]);
}
