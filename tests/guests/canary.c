/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * A server in which every request hides a secret wherever it can, and looks for the secrets of earlier ones.
 *
 * canary PORT FILE. A request `GET /plant?needle=HEX&value=HEX` carries two 64-bit numbers. The secret of the request
 * is 128 bits: a tag that all requests of one test share, and `value`, which is its own. The needle is the tag times
 * an odd constant: the server searches for words w with w * constant == needle, so that neither the request nor the
 * search puts the tag itself anywhere. First everything is searched, then the secret is planted, and the answer is
 * sent with the secret still in the registers. The answer is `clean`, or one `leak KIND` line per place where an
 * earlier secret, or any change that an earlier request made, was found. Natively all kinds of leak are found from the
 * second request on; after a reset none may be.
 *
 * Any other path answers `clean` without planting (for the warm-up, whose traces may stay).
 */
#include "http.h"
#include <asm/prctl.h>
#include <cpuid.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <time.h>

static const uint64_t FACTOR = 0x9e3779b97f4a7c15, INVERSE = 0xf1de83e19937733d;
enum { STATE_SIZE = 16384, REPORT_SIZE = 8192, BSS_SIZE = 65536 };

struct secret {
    uint64_t tag, value;
};

/* What the processor held when the wait of the event loop returned. */
static struct {
    uint64_t general[16];
    uint64_t gs_base;
    unsigned char extended[STATE_SIZE] __attribute__((aligned(64)));
} captured;

static int set, listener, file, event, timer, pipe_ends[2], descriptors_at_start;
static char report[REPORT_SIZE];
static size_t report_length;
static uint64_t extended_mask;
static __thread uint64_t thread_local_area[64];
static unsigned char bss_area[BSS_SIZE];
static uint64_t data_area[8] = {1, 2, 3, 4, 5, 6, 7, 8};
static unsigned char *old_mapping, *shared_mapping;
static char *old_heap;
static void *start_break;

__attribute__((format(printf, 1, 2))) static void leak(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    if (report_length < REPORT_SIZE - 128) {
        report_length += (size_t)snprintf(report + report_length, 8, "leak ");
        report_length += (size_t)vsnprintf(report + report_length, 100, format, arguments);
        report[report_length++] = '\n';
    }
    va_end(arguments);
}

/* ---- the search ---- */

static int has_tag(const volatile unsigned char *memory, size_t length, uint64_t needle)
{
    for (size_t i = 0; i + 8 <= length; i++) {
        uint64_t word;
        memcpy(&word, (const void *)(memory + i), 8);
        if (word * FACTOR == needle)
            return 1;
    }
    return 0;
}

static void search_memory(uint64_t needle)
{
    static char maps[1 << 18];
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    size_t used = 0;
    ssize_t got;
    while (fd >= 0 && (got = read(fd, maps + used, sizeof maps - 1 - used)) > 0)
        used += (size_t)got;
    if (fd < 0 || used == 0) {
        leak("unknown: /proc/self/maps is unreadable");
        return;
    }
    close(fd);
    maps[used] = '\0';
    for (char *line = strtok(maps, "\n"); line; line = strtok(NULL, "\n")) {
        unsigned long start, end;
        char rights[8], name[256] = "anonymous";
        if (sscanf(line, "%lx-%lx %7s %*s %*s %*s %255s", &start, &end, rights, name) < 3 || rights[0] != 'r')
            continue;
        if (strstr(name, "[v") == name)
            continue; /* vvar and vdso: the kernel's own pages */
        if (has_tag((const unsigned char *)start, end - start, needle))
            leak("memory %s", name);
    }
}

static void search_registers(uint64_t needle)
{
    for (size_t i = 0; i < sizeof captured.general / 8; i++)
        if (captured.general[i] * FACTOR == needle)
            leak("register general %zu", i);
    static const struct {
        const char *name;
        size_t start, length;
    } parts[] = {{"x87", 32, 128}, {"xmm", 160, 256}, {"ymm", 576, 256}, {"mask-and-zmm", 832, STATE_SIZE - 832}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (has_tag(captured.extended + parts[i].start, parts[i].length, needle))
            leak("register %s", parts[i].name);
    uint16_t control;
    uint32_t mxcsr;
    memcpy(&control, captured.extended, 2);
    memcpy(&mxcsr, captured.extended + 24, 4);
    if (control != 0x37f)
        leak("register x87-control %x", control);
    if ((mxcsr & ~0x3fu) != 0x1f80)
        leak("register mxcsr %x", mxcsr);
    if (captured.gs_base != 0)
        leak("register gs-base");
}

static void search_fresh_memory(uint64_t needle)
{
    static const size_t sizes[] = {4096, 65536, 1 << 20, 4 << 20};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        unsigned char *fresh = mmap(NULL, sizes[i], PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (fresh == MAP_FAILED) {
            leak("unknown: mmap fails");
            continue;
        }
        for (size_t at = 0; at < sizes[i]; at++) {
            if (fresh[at] != 0) {
                leak("fresh mapping of %zu bytes is not zero", sizes[i]);
                break;
            }
        }
        munmap(fresh, sizes[i]);
    }
    if (has_tag((unsigned char *)__builtin_frame_address(0) - 4096, 4096, needle))
        leak("stack below the stack pointer");
}

static int count_descriptors(void)
{
    int count = 0;
    for (int fd = 0; fd < 256; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static void search_kernel(uint64_t needle, int client)
{
    struct sigaction action;
    stack_t stack;
    sigset_t mask;
    struct itimerval interval;
    struct rlimit limit;
    char name[16], directory[256], bytes[64];
    uint64_t number = 0;
    int expected = descriptors_at_start + (client > 2);
    if (count_descriptors() != expected)
        leak("descriptor count %d, not %d", count_descriptors(), expected);
    if (lseek(file, 0, SEEK_CUR) != 0)
        leak("file offset");
    if ((fcntl(file, F_GETFL) & (O_APPEND | O_NONBLOCK)) != 0)
        leak("file status flags");
    if (fcntl(file, F_GETFD) != FD_CLOEXEC)
        leak("descriptor flags");
    if (read(event, &number, 8) == 8)
        leak("eventfd content");
    if (read(pipe_ends[0], bytes, sizeof bytes) > 0)
        leak("pipe content");
    struct itimerspec spec;
    if (timerfd_gettime(timer, &spec) == 0 && (spec.it_value.tv_sec || spec.it_interval.tv_sec))
        leak("timerfd setting");
    if (sigaction(SIGUSR2, NULL, &action) == 0 && action.sa_handler != SIG_DFL)
        leak("signal handler");
    if (sigaltstack(NULL, &stack) == 0 && !(stack.ss_flags & SS_DISABLE))
        leak("signal alternate stack");
    if (sigprocmask(SIG_SETMASK, NULL, &mask) == 0 && sigismember(&mask, SIGUSR2))
        leak("signal mask");
    sigset_t pending;
    if (sigpending(&pending) == 0 && sigismember(&pending, SIGUSR2))
        leak("signal pending");
    if (getitimer(ITIMER_REAL, &interval) == 0 && (interval.it_value.tv_sec || interval.it_interval.tv_sec))
        leak("interval timer");
    if (getrlimit(RLIMIT_CORE, &limit) == 0 && limit.rlim_cur == (needle & 0xffff))
        leak("resource limit");
    if (prctl(PR_GET_NAME, name) == 0 && strcmp(name, "canary") != 0)
        leak("thread name");
    if (getcwd(directory, sizeof directory) && strcmp(directory, "/") != 0)
        leak("working directory");
    mode_t mode = umask(022);
    umask(mode);
    if (mode != 022)
        leak("umask");
    if (getenv("CANARY"))
        leak("environment");
    if (sbrk(0) != start_break)
        leak("program break");
    if (http_counter != 0)
        leak("global counter");
    /* The kernel writes the old mask there, or says EFAULT. */
    if (syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, shared_mapping + 4096, 8) != 0)
        leak("unmapped page of a mapping");
}

/* ---- the planting ---- */

static void fill(void *memory, size_t length, const struct secret *secret)
{
    for (size_t at = 0; at + sizeof *secret <= length; at += sizeof *secret)
        memcpy((char *)memory + at, secret, sizeof *secret);
}

static void *plant_on_thread(void *argument)
{
    uint64_t local[512];
    fill(local, sizeof local, argument);
    fill(thread_local_area, sizeof thread_local_area, argument);
    __asm__ volatile("" : : "r"(local), "r"(thread_local_area) : "memory");
    return NULL;
}

__attribute__((noinline)) static void plant_on_stack(const struct secret *secret)
{
    uint64_t local[8192];
    fill(local, sizeof local, secret);
    __asm__ volatile("" : : "r"(local) : "memory");
}

static void plant_in_memory(const struct secret *secret)
{
    pthread_t thread;
    plant_on_stack(secret);
    fill(thread_local_area, sizeof thread_local_area, secret);
    fill(bss_area, sizeof bss_area, secret);
    fill(data_area, sizeof data_area, secret);
    fill(old_mapping, 65536, secret);
    fill(shared_mapping, 4096, secret);
    fill(old_heap, 4096, secret);
    for (size_t size = 64; size < 1 << 21; size *= 4) {
        char *block = malloc(size); /* small ones leak on purpose, large ones are given back */
        fill(block, size, secret);
        if (size > 4096)
            free(block);
    }
    char *grown = sbrk(65536);
    if (grown != (void *)-1)
        fill(grown, 65536, secret);
    unsigned char *mapping = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping != MAP_FAILED) {
        fill(mapping, 1 << 20, secret);
        madvise(mapping, 65536, MADV_DONTNEED);
        madvise(mapping + 65536, 65536, MADV_FREE);
        munmap(mapping + (1 << 19), 1 << 18);
        mremap(mapping, 65536, 131072, MREMAP_MAYMOVE);
    }
    munmap(shared_mapping + 4096, 4096);
    if (pthread_create(&thread, NULL, plant_on_thread, (void *)secret) == 0)
        pthread_join(thread, NULL);
}

static void handler(int number)
{
    (void)number;
}

static void plant_in_kernel(const struct secret *secret)
{
    static char altstack[65536];
    char text[17] = "";
    struct sigaction action = {.sa_handler = handler};
    stack_t stack = {.ss_sp = altstack, .ss_size = sizeof altstack};
    sigset_t mask;
    struct itimerval interval = {{100000, 0}, {100000, 0}};
    struct itimerspec spec = {{100000, 0}, {100000, 0}};
    struct rlimit limit = {.rlim_cur = secret->tag * FACTOR & 0xffff, .rlim_max = RLIM_INFINITY};
    uint64_t number = secret->tag >> 1;
    fill(altstack, sizeof altstack, secret);
    sigaltstack(&stack, NULL);
    sigaction(SIGUSR2, &action, NULL);
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR2);
    sigprocmask(SIG_BLOCK, &mask, NULL);
    raise(SIGUSR2);
    setitimer(ITIMER_REAL, &interval, NULL);
    timerfd_settime(timer, 0, &spec, NULL);
    setrlimit(RLIMIT_CORE, &limit);
    lseek(file, (off_t)(secret->value & 0xffffff), SEEK_SET);
    fcntl(file, F_SETFL, O_APPEND | O_NONBLOCK);
    fcntl(file, F_SETFD, 0);
    if (write(event, &number, 8) != 8 || write(pipe_ends[1], secret, sizeof *secret) != sizeof *secret)
        perror("write");
    if (dup(file) < 0 || socket(AF_INET, SOCK_STREAM, 0) < 0 || epoll_create1(0) < 0)
        perror("descriptors");
    if (chdir("/proc") != 0)
        perror("chdir");
    umask(077);
    snprintf(text, sizeof text, "%016lx", secret->value);
    setenv("CANARY", text, 1);
    /* The tag's bytes as a string, cut at a zero byte if there is one: what a real secret would look like. */
    memcpy(text, secret, sizeof *secret);
    text[sizeof *secret] = '\0';
    setenv("CANARY_BYTES", text, 1);
    prctl(PR_SET_NAME, text);
    http_counter++;
}

__attribute__((target("general-regs-only"))) static long call4(long number, long a, long b, long c, long d)
{
    register long r10 __asm__("r10") = d;
    __asm__ volatile("syscall" : "+a"(number) : "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
    return number;
}

static int has_avx, has_avx512;

/* Fills the vector and x87 registers; no compiler-made instruction touches them until the next wait has returned. */
__attribute__((target("general-regs-only"))) static void plant_in_registers(const struct secret *secret)
{
    static uint32_t mxcsr = 0x1fc0 | 0x6000; /* denormals are zero, round towards zero */
    static uint16_t control = 0xf7f;
    static unsigned char extended[16] = {[7] = 0x80, [8] = 0x3f, [9] = 0x40};
    memcpy(extended, &secret->tag, 8);
    if (has_avx512) {
        __asm__ volatile(
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
            "vbroadcasti32x4 (%0), %%zmm\\n\n"
            ".endr\n"
            ".irp n, 1,2,3,4,5,6,7\n"
            "kmovq (%0), %%k\\n\n"
            ".endr\n" : : "r"(secret));
    } else if (has_avx) {
        __asm__ volatile(
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
            "vbroadcastf128 (%0), %%ymm\\n\n"
            ".endr\n" : : "r"(secret));
    } else {
        __asm__ volatile(
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
            "movdqu (%0), %%xmm\\n\n"
            ".endr\n" : : "r"(secret));
    }
    __asm__ volatile("fninit\n.rept 8\nfldt (%0)\n.endr\nfldcw (%1)\nldmxcsr (%2)"
                     : : "r"(extended), "r"(&control), "r"(&mxcsr));
    call4(SYS_arch_prctl, ARCH_SET_GS, (long)(secret->tag >> 18), 0, 0);
}

/* Sends the answer and waits, with the secret in the registers, then keeps what the wait returned with. */
__attribute__((target("general-regs-only"), noinline)) static long answer_and_wait(int client, const char *answer, size_t length,
                                                                                   struct epoll_event *events,
                                                                                   const struct secret *secret)
{
    if (secret)
        plant_in_registers(secret);
    if (client >= 0) {
        call4(SYS_write, client, (long)answer, (long)length, 0);
        call4(SYS_close, client, 0, 0, 0);
    }
    uint64_t tag = secret ? secret->tag : 0;
    long result;
    __asm__ volatile("mov %[tag], %%r12\n mov %[tag], %%r13\n mov %[tag], %%r14\n mov %[tag], %%r15\n"
                     "mov %[tag], %%r8\n mov %[tag], %%r9\n mov $-1, %%r10\n"
                     "push %%rbx\n mov %[tag], %%rbx\n"
                     "syscall\n"
                     "push %%rax\n lea %[general], %%rcx\n pop %%rax\n"
                     "mov %%rbx, (%%rcx)\n mov %%r8, 8(%%rcx)\n mov %%r9, 16(%%rcx)\n mov %%r12, 24(%%rcx)\n"
                     "mov %%r13, 32(%%rcx)\n mov %%r14, 40(%%rcx)\n mov %%r15, 48(%%rcx)\n"
                     "pop %%rbx\n"
                     : "=a"(result)
                     : "0"(SYS_epoll_wait), "D"((long)set), "S"(events), "d"(1L), [tag] "rm"(tag), [general] "m"(captured.general)
                     : "rcx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory");
    __asm__ volatile("xsave64 %0" : "+m"(captured.extended) : "a"((uint32_t)extended_mask), "d"((uint32_t)(extended_mask >> 32)) : "memory");
    /* Native runs go on with the planted control words; put them right for the compiler's own code. */
    static const uint32_t mxcsr = 0x1f80;
    __asm__ volatile("fninit\n ldmxcsr %0" : : "m"(mxcsr));
    call4(SYS_arch_prctl, ARCH_GET_GS, (long)&captured.gs_base, 0, 0);
    return result;
}

/* ---- the server ---- */

static int read_request(int client, struct request *request)
{
    static struct connection connection;
    connection.fd = client;
    connection.used = 0;
    while (http_parse(&connection, request) == 0) {
        ssize_t got = read(client, connection.buffer + connection.used, sizeof connection.buffer - 1 - connection.used);
        if (got <= 0)
            return -1;
        connection.used += (size_t)got;
    }
    memset(connection.buffer, 0, connection.used);
    return 0;
}

static void look_up_processor(void)
{
    unsigned a, b, c, d;
    if (__get_cpuid(1, &a, &b, &c, &d) && (c & bit_OSXSAVE)) {
        unsigned low, high;
        __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        extended_mask = (uint64_t)high << 32 | low;
        has_avx = (extended_mask & 6) == 6;
        __get_cpuid_count(7, 0, &a, &b, &c, &d);
        has_avx512 = (extended_mask & 0xe6) == 0xe6 && (b & bit_AVX512F) && (b & bit_AVX512BW);
    }
}

static void set_up(const char *port, const char *path)
{
    signal(SIGPIPE, SIG_IGN);
    umask(022);
    prctl(PR_SET_NAME, "canary");
    look_up_processor();
    old_mapping = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    shared_mapping = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    old_heap = malloc(4096);
    file = open(path, O_RDONLY | O_CLOEXEC);
    event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (file < 0 || event < 0 || timer < 0 || pipe2(pipe_ends, O_CLOEXEC | O_NONBLOCK) != 0)
        fail("set-up with file %s", path);
    if (old_mapping == MAP_FAILED || shared_mapping == MAP_FAILED || !old_heap || chdir("/") != 0)
        fail("set-up");
    free(malloc(4000)); /* the allocator's own first growth is not a leak */
    listener = http_listen(port, 0);
    set = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event watched = {.events = EPOLLIN};
    if (set < 0 || epoll_ctl(set, EPOLL_CTL_ADD, listener, &watched) != 0)
        fail("epoll");
    descriptors_at_start = count_descriptors();
    start_break = sbrk(0);
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    set_up(argv[1], argv[2]);
    char answer[REPORT_SIZE + 256];
    size_t length = 0;
    int client = -1;
    struct secret secret = {0, 0}, *planted = NULL;
    for (;;) {
        struct epoll_event happened;
        long ready = answer_and_wait(client, answer, length, &happened, planted);
        client = -1;
        planted = NULL;
        if (ready < 0 && ready != -EINTR)
            return 1;
        if (ready <= 0 || (client = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) < 0)
            continue;
        struct request request;
        uint64_t needle, value;
        report_length = 0;
        if (read_request(client, &request) == 0 &&
            sscanf(request.path, "/plant?needle=%lx&value=%lx", &needle, &value) == 2) {
            search_registers(needle);
            search_kernel(needle, client);
            search_memory(needle);
            search_fresh_memory(needle);
            secret = (struct secret){needle * INVERSE, value};
            planted = &secret;
            plant_in_memory(planted);
            plant_in_kernel(planted);
        }
        if (report_length == 0)
            report_length = (size_t)snprintf(report, sizeof report, "clean\n");
        length = (size_t)snprintf(answer, sizeof answer, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n%.*s",
                                  report_length, (int)report_length, report);
    }
}
