/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * Hostile use of the memory calls: attack_memory PORT DIRECTORY.
 *
 * Each path makes a few calls and answers what they returned (errno names, signals), to be compared with a native run.
 * `/check` looks whether the memory that the program prepared before the first request is as it was.
 */
#include "http.h"
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#define PAGE 4096ul
#define PAGES 64ul

static char text[8192];
static size_t used;
static const char *directory;
static sigjmp_buf back;
static volatile int raised;

/* Prepared before the snapshot: written, then made read-only, inaccessible, or left with holes. */
static char *writable, *constant, *hidden, *sparse, *secret_file;

static void say(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    used += (size_t)vsnprintf(text + used, sizeof text - used, format, arguments);
    va_end(arguments);
}

static void said(const char *name, long result)
{
    say("%s=%s ", name, result == -1 ? strerrorname_np(errno) : "ok");
}

static void on_signal(int number)
{
    raised = number;
    siglongjmp(back, 1);
}

/* The signal that reading a byte raises, or 0. */
static int touch(const volatile char *byte)
{
    raised = 0;
    if (sigsetjmp(back, 1) == 0)
        (void)*byte;
    return raised;
}

static int poke(volatile char *byte)
{
    raised = 0;
    if (sigsetjmp(back, 1) == 0)
        *byte = 1;
    return raised;
}

static char *fresh(size_t pages, int protection)
{
    return mmap(NULL, pages * PAGE, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void edges(void)
{
    /* Only ends that are wrong in any address space, Linux's 128 TiB and ours. */
    static const unsigned long starts[] = {0, 0x10000, 0x7fffffffe000, 1ul << 63, -PAGE};
    static const unsigned long lengths[] = {0, 0x7fffffffe000, 0x7ffffffff000, 1ul << 47, 1ul << 63, -PAGE, ~0ul};
    for (size_t i = 0; i < sizeof starts / sizeof *starts; i++) {
        for (size_t j = 0; j < sizeof lengths / sizeof *lengths; j++) {
            void *at = (void *)starts[i];
            unsigned long length = lengths[j];
            said("mremap from", syscall(SYS_mremap, at, length, PAGE, MREMAP_MAYMOVE, 0));
            said("mremap to", syscall(SYS_mremap, writable, PAGE, length, 0, 0));
            said("madvise", syscall(SYS_madvise, (unsigned long)at + 1, length, MADV_DONTNEED));
            if (length == 0 || starts[i] == 0)
                continue;
            said("mmap", syscall(SYS_mmap, at, length, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
            said("munmap", syscall(SYS_munmap, at, length));
        }
    }
    said("brk", syscall(SYS_brk, ~0ul) == syscall(SYS_brk, 0) ? 0 : -1);
}

static void remap(void)
{
    char *block = fresh(4 * PAGES, PROT_READ | PROT_WRITE);
    mprotect(block + PAGES * PAGE, PAGE, PROT_READ);
    said("several", (long)mremap(block, 4 * PAGES * PAGE, 8 * PAGES * PAGE, MREMAP_MAYMOVE) == -1 ? -1 : 0);
    said("overlap", (long)mremap(writable, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, writable + PAGE));
    said("fixed only", (long)mremap(writable, PAGE, PAGE, MREMAP_FIXED, block));
    said("unaligned", (long)mremap(writable + 1, PAGE, PAGE, 0));
    said("to nothing", (long)mremap(writable, PAGE, 0, 0));
    char *moved = mremap(sparse, PAGES * PAGE, 3 * PAGES * PAGE, MREMAP_MAYMOVE);
    say("moved %d %d ", moved[0], moved[7 * PAGE]);
    memset(moved, 3, 3 * PAGES * PAGE);
    said("old", touch(sparse) ? 0 : 0);
    char *back_again = mremap(moved, 3 * PAGES * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, block);
    say("back %d %d gone %d ", back_again == block, block[PAGE], touch(moved));
    char *file = mremap(secret_file, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, block + 8 * PAGE);
    say("file %d '%.6s' '%.6s' ", file == block + 8 * PAGE, file, file + PAGE);
    char *constant_moved = mremap(constant, PAGES * PAGE, PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, block + 2 * PAGES * PAGE);
    say("constant %d %d ", constant_moved[0], constant_moved[PAGE]);
    char *shrunk = mremap(writable, PAGES * PAGE, PAGE, 0);
    say("shrunk %d %d %d ", shrunk == writable, writable[0], touch(writable + PAGE));
    char *grown = mremap(writable, PAGE, PAGES * PAGE, 0);
    say("grown %d %d ", grown == writable, grown == writable ? writable[PAGE] : -1);
}

static void discard(void)
{
    said("read-only", madvise(constant, PAGES * PAGE, MADV_DONTNEED));
    say("%d ", constant[0]);
    said("hidden", madvise(hidden, PAGES * PAGE, MADV_DONTNEED));
    mprotect(hidden, PAGES * PAGE, PROT_READ);
    say("%d ", hidden[0]);
    said("writable", madvise(writable, PAGES * PAGE, MADV_DONTNEED));
    say("%d ", writable[PAGE]);
    said("file", madvise(secret_file, 2 * PAGE, MADV_DONTNEED));
    say("'%.6s' ", secret_file);
    said("hole", madvise(fresh(1, PROT_READ) + PAGE * (1ul << 20), PAGE, MADV_DONTNEED));
    char *again = mmap(writable, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    say("mapped %d ", again[0]);
}

static void fragments(void)
{
    /* As many mappings as there may be; then everything else must fail politely. */
    size_t count = 40000;
    char *block = mmap(NULL, count * 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    long last = 0;
    size_t made = 0;
    for (; made < count && last == 0; made++)
        last = mprotect(block + made * 2 * PAGE, PAGE, PROT_READ | PROT_WRITE);
    say("many %d limit %d ", made > 500, last == -1 ? errno == ENOMEM : -1);
    munmap(block, count * 2 * PAGE);
    said("after", (long)fresh(1, PROT_READ) == -1 ? -1 : 0);
}

/* Fragments of the host that are none of the guest: pages first touched apart, then joined. */
static void hidden_fragments(void)
{
    for (size_t round = 0; round < 20; round++) {
        size_t count = 1500;
        char *block = mmap(NULL, count * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (block == MAP_FAILED)
            break;
        for (size_t odd = 0; odd < 2; odd++) {
            for (size_t i = odd; i < count; i += 2) {
                if (mprotect(block + i * PAGE, PAGE, PROT_READ | PROT_WRITE) == 0)
                    block[i * PAGE] = 1;
            }
        }
    }
    say("done ");
}

static void toggles(void)
{
    for (size_t i = 0; i < 20000; i++)
        mprotect(writable + i * 17 % PAGES * PAGE, PAGE, i & 1 ? PROT_READ : PROT_READ | PROT_WRITE);
    say("done ");
}

static void truncated(void)
{
    char path[512];
    snprintf(path, sizeof path, "%s/truncated", directory);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    ftruncate(fd, 4 * PAGE);
    char *map = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    char *private = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    private[0] = 1;
    map[0] = 'x';
    ftruncate(fd, 0);
    said("write", write(fd, map, 1));
    said("open", open(map, O_RDONLY));
    said("stat", syscall(SYS_stat, ".", map));
    said("stat private", syscall(SYS_stat, ".", private + PAGE));
    said("getrandom", syscall(SYS_getrandom, map, 1, 0));
    struct iovec pieces[2] = {{text, 1}, {map + PAGE, 1}};
    said("writev", writev(fd, pieces, 2));
    said("array", readv(fd, (struct iovec *)(void *)(map + 2 * PAGE), 1));
    said("futex", syscall(SYS_futex, map + PAGE, 0, 0, NULL, NULL, 0));
    say("%d %d ", touch(map + PAGE), touch(private + PAGE));
    said("move", (long)mremap(private, 4 * PAGE, 8 * PAGE, MREMAP_MAYMOVE) == -1 ? -1 : 0);
    close(fd);
}

static void unreadable(void)
{
    char *none = fresh(1, PROT_NONE);
    static const int calls[] = {SYS_read, SYS_write, SYS_stat, SYS_lstat, SYS_poll, SYS_pipe, SYS_uname, SYS_getcwd,
                                SYS_gettimeofday, SYS_nanosleep, SYS_getrlimit, SYS_getrusage, SYS_sysinfo, SYS_times,
                                SYS_sigaltstack, SYS_getrandom, SYS_clock_gettime, SYS_access, SYS_chdir, SYS_readlink, SYS_open,
                                SYS_unlink, SYS_rename, SYS_mkdir, SYS_execve, SYS_statfs};
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        long first = calls[i] == SYS_read || calls[i] == SYS_write ? open("/dev/zero", O_RDWR) : (long)none;
        long second = calls[i] == SYS_open || calls[i] == SYS_access ? 0 : (long)none;
        if (calls[i] == SYS_clock_gettime || calls[i] == SYS_getrlimit || calls[i] == SYS_getrusage)
            first = 0;
        long result = syscall(calls[i], first, second, calls[i] == SYS_poll ? 0 : 16, 0);
        if (calls[i] != SYS_poll && calls[i] != SYS_write)
            said("call", result);
    }
}

static void wipe(void)
{
    said("file", madvise(secret_file, PAGE, MADV_WIPEONFORK));
    said("memory", madvise(writable, PAGE, MADV_WIPEONFORK));
    said("keep", madvise(writable, PAGE, MADV_KEEPONFORK));
    said("unaligned", madvise(writable + 1, PAGE, MADV_WIPEONFORK));
}

static void stack_edge(void)
{
    char *pages = fresh(2, PROT_READ | PROT_WRITE);
    munmap(pages + PAGE, PAGE);
    strcpy(pages + PAGE - 5, "/dev");
    said("access", access(pages + PAGE - 5, F_OK));
    pages[PAGE - 1] = 'x';
    said("unterminated", access(pages + PAGE - 5, F_OK));
}

static void everything_away(void)
{
    munmap(writable, PAGES * PAGE);
    munmap(constant, PAGES * PAGE);
    munmap(hidden, PAGES * PAGE);
    munmap(sparse, PAGES * PAGE);
    munmap(secret_file, 2 * PAGE);
    sbrk(1 << 20);
    memset(fresh(PAGES * 4, PROT_READ | PROT_WRITE), 0x77, PAGES * 4 * PAGE);
    say("done ");
}

static void check(void)
{
    say("%d %d %d %d ", writable[0], writable[(PAGES - 1) * PAGE], constant[0], constant[PAGE]);
    say("%d %d ", sparse[0], sparse[7 * PAGE]);
    for (size_t i = 1; i < PAGES; i++) {
        if (i != 7 && sparse[i * PAGE])
            say("leak %zu ", i);
    }
    say("%d %d %d '%.6s' ", touch(hidden), poke(constant), poke(writable + 5), secret_file);
    mprotect(hidden, PAGE, PROT_READ);
    say("%d ", hidden[0]);
    char *block = fresh(4 * PAGES, PROT_READ | PROT_WRITE);
    for (size_t i = 0; i < 4 * PAGES * PAGE; i += 512) {
        if (block[i])
            say("stale %zu ", i);
    }
}

static void big_write(size_t bytes)
{
    /* Host-side writes into fresh memory. */
    int zero = open("/dev/zero", O_RDONLY);
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    for (size_t at = 0; memory != MAP_FAILED && at < bytes;) {
        ssize_t got = read(zero, memory + at, bytes - at);
        if (got <= 0)
            break;
        at += (size_t)got;
    }
    say("read ");
}

static void big_file(size_t bytes)
{
    char path[512];
    snprintf(path, sizeof path, "%s/big", directory);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    ftruncate(fd, (off_t)bytes);
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    pread(fd, memory, bytes, 0);
    unlink(path);
    say("read ");
}

static void dirty(size_t pages)
{
    char *memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    for (size_t i = 0; memory != MAP_FAILED && i < pages; i++)
        memory[i * PAGE] = 1;
    say("dirty ");
}

static void wide(void)
{
    /* Much address space that costs the host page tables and slots, but no written page. */
    for (size_t i = 0; i < 40; i++) {
        volatile char *block = mmap(NULL, 1ul << 30, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (block == MAP_FAILED)
            break;
        for (size_t at = 0; at < 1ul << 30; at += 32ul << 20)
            (void)block[at];
    }
    say("wide ");
}

static const struct {
    const char *path;
    void (*act)(void);
} acts[] = {
    {"/edges", edges},
    {"/remap", remap},
    {"/discard", discard},
    {"/fragments", fragments},
    {"/hidden-fragments", hidden_fragments},
    {"/toggles", toggles},
    {"/truncated", truncated},
    {"/unreadable", unreadable},
    {"/wipe", wipe},
    {"/stack-edge", stack_edge},
    {"/everything-away", everything_away},
    {"/check", check},
};

static int handle(int fd, const struct request *request)
{
    unsigned long number = 0;
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_NODEFER};
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    used = 0;
    for (size_t i = 0; i < sizeof acts / sizeof *acts; i++) {
        if (strcmp(request->path, acts[i].path) == 0)
            acts[i].act();
    }
    if (sscanf(request->path, "/big-write/%lu", &number) == 1)
        big_write(number << 20);
    if (sscanf(request->path, "/big-file/%lu", &number) == 1)
        big_file(number << 20);
    if (sscanf(request->path, "/dirty/%lu", &number) == 1)
        dirty(number);
    if (strcmp(request->path, "/wide/") == 0)
        wide();
    return http_respond(fd, request, 200, text, used);
}

static void prepare(void)
{
    char path[512];
    snprintf(path, sizeof path, "%s/secret-%d", directory, getpid());
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    for (size_t i = 0; i < 2 * PAGE / 8; i++) {
        if (write(fd, "on-disk ", 8) != 8)
            fail("write");
    }
    writable = fresh(PAGES, PROT_READ | PROT_WRITE);
    fresh(1, PROT_NONE);
    constant = fresh(PAGES, PROT_READ | PROT_WRITE);
    fresh(1, PROT_NONE);
    hidden = fresh(PAGES, PROT_READ | PROT_WRITE);
    fresh(1, PROT_NONE);
    sparse = fresh(PAGES, PROT_READ | PROT_WRITE);
    fresh(1, PROT_NONE);
    secret_file = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    close(fd);
    unlink(path);
    memset(writable, 1, PAGES * PAGE);
    memset(constant, 2, PAGES * PAGE);
    memset(hidden, 4, PAGES * PAGE);
    sparse[0] = 5;
    sparse[7 * PAGE] = 6;
    memcpy(secret_file, "memory", 6);
    mprotect(constant, PAGES * PAGE, PROT_READ);
    mprotect(hidden, PAGES * PAGE, PROT_NONE);
    mprotect(secret_file, 2 * PAGE, PROT_READ);
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    directory = argv[2];
    prepare();
    http_handler = handle;
    http_serve_for_ever(argv[1]);
}
