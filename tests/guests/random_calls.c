/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * A server that describes its whole state, then ruins it: random_calls PORT DIRECTORY. Only ever run in a VM.
 *
 * Every request is answered with the state in which it found the program: a digest of each mapping, of the vector
 * registers, and every setting the kernel tells. Then `/ruin?seed=N&count=M` makes M random system calls and memory
 * writes. After a reset the next answer must be the same text, whatever the calls were and however the run ended.
 * The description is made before the request is read, so that nothing in memory depends on it yet.
 */
#include "http.h"
#include <cpuid.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/auxv.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>

enum { AREA = 1 << 20, PAGE = 4096 };

/* Not part of the digest: what the description itself and the request are written to. */
static struct {
    unsigned char extended[16384] __attribute__((aligned(PAGE)));
    char text[1 << 18], maps[1 << 18];
    struct connection client;
    struct epoll_event event;
    size_t length;
} own __attribute__((aligned(PAGE)));

static int set, listener, event, timer, pipe_ends[2], file;
static unsigned char *area;
static uint64_t extended_mask, random_state;
static const char *directory;

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    if (own.length < sizeof own.text - 512)
        own.length += (size_t)vsnprintf(own.text + own.length, 500, format, arguments);
    va_end(arguments);
}

/* ---- the description ---- */

static uint64_t digest(const unsigned char *memory, size_t length)
{
    const unsigned char *random = (const unsigned char *)getauxval(AT_RANDOM);
    uint64_t hash = 0xcbf29ce484222325;
    for (size_t at = 0; at + 8 <= length; at += 8) {
        uint64_t word;
        memcpy(&word, memory + at, 8);
        /* Every VM has its own bytes there: the two words that hold them do not count. */
        if (memory + at + 8 > random && memory + at < random + 16)
            word = 0;
        hash = (hash ^ word) * 0x100000001b3;
        hash ^= hash >> 29;
    }
    return hash;
}

static void describe_range(unsigned long start, unsigned long end, const char *rights, const char *name)
{
    unsigned long hole = (unsigned long)&own, after = hole + sizeof own;
    /* The frames of this very description are the same each time, but the part below them is scratch. */
    if (strcmp(name, "[stack]") == 0)
        start = (unsigned long)__builtin_frame_address(0) & ~7ul;
    if (start < after && hole < end) {
        say("memory %lx %s %lx %lx\n", start, rights, digest((void *)start, hole - start), digest((void *)after, end - after));
        return;
    }
    say("memory %lx-%lx %s %lx\n", start, end, rights, rights[0] == 'r' ? digest((void *)start, end - start) : 0);
}

static void describe_memory(void)
{
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    size_t used = 0;
    for (ssize_t got; fd >= 0 && (got = read(fd, own.maps + used, sizeof own.maps - 1 - used)) > 0;)
        used += (size_t)got;
    close(fd);
    own.maps[used] = '\0';
    for (char *line = own.maps, *next; *line; line = next) {
        unsigned long start, end;
        char rights[8] = "", name[64] = "";
        next = strchr(line, '\n');
        next = next ? (*next = '\0', next + 1) : line + strlen(line);
        int shown = sscanf(line, "%lx-%lx %7s %*s %*s %*s %63s", &start, &end, rights, name) >= 3;
        /* Not the kernel's own pages, and not what the fast path knows of this client, whose port is another each time. */
        if (shown && strncmp(name, "[v", 2) != 0 && strcmp(name, "[fast") != 0)
            describe_range(start, end, rights, name);
    }
}

static void describe_descriptors(int client)
{
    for (int fd = 0; fd < 128; fd++) {
        struct stat status;
        int flags = fcntl(fd, F_GETFD);
        if (flags < 0 || fd == client || fstat(fd, &status) != 0)
            continue;
        say("descriptor %d %d %x %o", fd, flags, fcntl(fd, F_GETFL), status.st_mode);
        /* The standard streams belong to whoever started us. */
        say(" %ld\n", fd > 2 ? (long)lseek(fd, 0, SEEK_CUR) : 0);
    }
    uint64_t number = 0;
    struct itimerspec spec;
    timerfd_gettime(timer, &spec);
    ssize_t got = read(event, &number, 8);
    say("event %zd %lu timer %d pipe %zd\n", got, number, spec.it_value.tv_sec != 0, read(pipe_ends[0], own.maps, 4096));
}

static void describe_settings(void)
{
    for (int number = 1; number < 65; number++) {
        struct {
            void *handler;
            unsigned long flags;
            void *restorer;
            uint64_t mask;
        } action = {0};
        if (syscall(SYS_rt_sigaction, number, NULL, &action, 8) == 0 && (action.handler || action.flags))
            say("signal %d %p %lx %lx\n", number, action.handler, action.flags, action.mask);
    }
    uint64_t mask = 0, pending = 0;
    stack_t stack = {0};
    struct itimerval interval = {0};
    struct rlimit limit;
    char name[17] = "", here[512] = "";
    mode_t mode = umask(0);
    void *head = NULL;
    size_t length = 0;
    umask(mode);
    syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &mask, 8);
    syscall(SYS_rt_sigpending, &pending, 8);
    sigaltstack(NULL, &stack);
    say("mask %lx pending %lx stack %p %d %zu\n", mask, pending, stack.ss_sp, stack.ss_flags, stack.ss_size);
    for (int which = 0; which < 3; which++) {
        getitimer((__itimer_which_t)which, &interval);
        say("interval %d %d\n", which, interval.it_value.tv_sec || interval.it_value.tv_usec);
    }
    for (int resource = 0; resource < RLIM_NLIMITS; resource++)
        if (getrlimit((__rlimit_resource_t)resource, &limit) == 0)
            say("limit %d %lx %lx\n", resource, limit.rlim_cur, limit.rlim_max);
    prctl(PR_GET_NAME, name);
    if (!getcwd(here, sizeof here))
        here[0] = '?';
    syscall(SYS_get_robust_list, 0, &head, &length);
    say("name %s directory %s umask %o robust %p\n", name, here, mode, head);
    say("break %p nice %d policy %d dumpable %d keepcaps %d\n", sbrk(0), getpriority(PRIO_PROCESS, 0), sched_getscheduler(0),
        prctl(PR_GET_DUMPABLE), prctl(PR_GET_KEEPCAPS));
    say("identity %d %d %d %d %d\n", getpid() > 0, getuid() == geteuid(), getpgrp() > 0, (int)syscall(SYS_gettid) == getpid(),
        prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
}

/* ---- the ruin ---- */

static uint64_t random_number(void)
{
    random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
    return random_state * 0x2545f4914f6cdd1d >> 5;
}

/* Calls that end the run at once or wait; everything else may be called with anything. */
static int is_harmless_to_time(long number)
{
    static const long never[] = {
        SYS_exit, SYS_exit_group, SYS_kill, SYS_tkill, SYS_tgkill, SYS_rt_sigqueueinfo, SYS_rt_tgsigqueueinfo,
        SYS_rt_sigreturn, SYS_pause, SYS_rt_sigsuspend, SYS_rt_sigtimedwait, SYS_nanosleep, SYS_clock_nanosleep,
        SYS_poll, SYS_ppoll, SYS_select, SYS_pselect6, SYS_epoll_wait, SYS_epoll_pwait, SYS_epoll_pwait2, SYS_futex,
        SYS_wait4, SYS_waitid, SYS_accept, SYS_accept4, SYS_fork, SYS_vfork, SYS_clone, SYS_clone3, SYS_execve,
        SYS_execveat, SYS_flock, SYS_arch_prctl, SYS_recvfrom, SYS_recvmsg, SYS_connect,
    };
    for (size_t i = 0; i < sizeof never / sizeof *never; i++)
        if (number == never[i])
            return 0;
    return 1;
}

static uint64_t random_argument(void)
{
    static const uint64_t edges[] = {0, 1, 2, 3, 7, 8, 4095, 4096, 4097, 65536, 1ul << 31, 1ul << 32, 1ul << 47, 1ul << 63, ~0ul, ~4095ul};
    uint64_t kind = random_number() % 10;
    if (kind < 3)
        return random_number() % 24; /* a descriptor, a small number, flags */
    if (kind < 5)
        return edges[random_number() % (sizeof edges / sizeof *edges)];
    if (kind < 8)
        return (uint64_t)area + random_number() % AREA;
    if (kind < 9)
        return ((uint64_t)area + random_number() % AREA) & ~4095ul;
    return 1ul << random_number() % 64;
}

static void random_write(void)
{
    unsigned char *at = area + random_number() % (AREA - PAGE);
    size_t length = random_number() % PAGE;
    static const char *const names[] = {"a", "b", "../a", "/proc/self/maps", "/dev/zero", "/dev/null", ".", "a/b", ""};
    if (random_number() % 2)
        strcpy((char *)at, names[random_number() % (sizeof names / sizeof *names)]);
    else
        memset(at, (int)random_number(), length);
}

static void ruin(uint64_t seed, unsigned long count)
{
    random_state = seed * 0x9e3779b97f4a7c15 | 1;
    for (unsigned long turn = 0; turn < count; turn++) {
        uint64_t arguments[6];
        long number = (long)(random_number() % 452);
        for (int i = 0; i < 6; i++)
            arguments[i] = random_argument();
        if (random_number() % 4 == 0)
            random_write();
        else if (is_harmless_to_time(number))
            syscall(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]);
    }
}

/* ---- the server ---- */

__attribute__((target("general-regs-only"))) static long call4(long number, long a, long b, long c, long d)
{
    register long r10 __asm__("r10") = d;
    __asm__ volatile("syscall" : "+a"(number) : "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
    return number;
}

__attribute__((target("general-regs-only"), noinline)) static long wait_and_capture(void)
{
    long result = call4(SYS_epoll_wait, set, (long)&own.event, 1, -1);
    __asm__ volatile("xsave64 %0" : "+m"(own.extended) : "a"((uint32_t)extended_mask), "d"((uint32_t)(extended_mask >> 32)) : "memory");
    return result;
}

static void set_up(const char *port)
{
    unsigned a, b, c, d, low, high;
    if (__get_cpuid(1, &a, &b, &c, &d) && (c & bit_OSXSAVE)) {
        __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        extended_mask = (uint64_t)high << 32 | low;
    }
    area = mmap(NULL, AREA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    event = eventfd(0, EFD_NONBLOCK), timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    file = open("/proc/self/exe", O_RDONLY);
    if (area == MAP_FAILED || event < 0 || timer < 0 || file < 0 || pipe2(pipe_ends, O_NONBLOCK) != 0 || chdir(directory) != 0)
        fail("set-up in %s", directory);
    memset(area, 1, AREA / 2);
    listener = http_listen(port, SOCK_NONBLOCK);
    set = epoll_create1(0);
    struct epoll_event watched = {.events = EPOLLIN};
    if (set < 0 || epoll_ctl(set, EPOLL_CTL_ADD, listener, &watched) != 0)
        fail("epoll");
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    directory = argv[2];
    set_up(argv[1]);
    for (;;) {
        struct request request;
        unsigned long seed, count = 0;
        memset(own.extended, 0, sizeof own.extended);
        wait_and_capture();
        int client = accept4(listener, NULL, NULL, 0);
        if (client < 0)
            continue;
        own.length = 0;
        /* XSTATE_BV may call a component that is all zero used or unused: only contents count. */
        say("vectors %lx %lx\n", digest(own.extended, 512), digest(own.extended + 576, sizeof own.extended - 576));
        describe_memory();
        describe_descriptors(client);
        describe_settings();
        own.client.fd = client;
        own.client.used = 0;
        while (http_parse(&own.client, &request) == 0) {
            ssize_t got = read(client, own.client.buffer + own.client.used, sizeof own.client.buffer - 1 - own.client.used);
            if (got <= 0)
                break;
            own.client.used += (size_t)got;
        }
        http_counter++;
        if (sscanf(request.path, "/ruin?seed=%lu&count=%lu", &seed, &count) == 2) {
            request.keep_alive = 0;
            http_respond(client, &request, 200, own.text, own.length);
            ruin(seed, count);
            close(client);
            continue;
        }
        request.keep_alive = 0;
        http_respond(client, &request, 200, own.text, own.length);
        close(client);
    }
}
