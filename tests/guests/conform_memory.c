/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * Claims about memory: mmap, munmap, mprotect, mremap, madvise, brk, and what the hardware then allows.
 */
#include "tap.h"
#include <sys/mman.h>
#include <sys/resource.h>

enum { PAGE = 4096, READ_WRITE = PROT_READ | PROT_WRITE, ANONYMOUS = MAP_PRIVATE | MAP_ANONYMOUS };
#define GIGABYTE (1ul << 30)

static unsigned char *map(size_t length, int protection)
{
    return mmap(NULL, length, protection, ANONYMOUS, -1, 0);
}

static int is_zero(const unsigned char *memory, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if (memory[i] != 0)
            return 0;
    return 1;
}

static void mapping(void)
{
    unsigned char *page = map(PAGE, READ_WRITE), *again;
    CHECK("an anonymous mapping is zero", page != MAP_FAILED && is_zero(page, PAGE));
    CHECK("it is page-aligned", ((uintptr_t)page & (PAGE - 1)) == 0);
    memset(page, 7, PAGE);
    CHECK("munmap", munmap(page, PAGE) == 0);
    CHECK("what is unmapped is gone", !tap_readable(page));
    CHECK("the fault has the address", tap_fault_address == page && tap_fault_code == SEGV_MAPERR);
    CHECK("munmap of nothing succeeds", munmap(page, PAGE) == 0);
    again = mmap(page, PAGE, READ_WRITE, ANONYMOUS | MAP_FIXED, -1, 0);
    CHECK("K5 MAP_FIXED takes the address", again == page);
    CHECK("T32 and the page is zero again", is_zero(page, PAGE));
    memset(page, 8, PAGE);
    CHECK("MAP_FIXED over a mapping replaces it", mmap(page, PAGE, READ_WRITE, ANONYMOUS | MAP_FIXED, -1, 0) == page && is_zero(page, PAGE));
    CHECK_ERRNO("MAP_FIXED_NOREPLACE does not", mmap(page, PAGE, READ_WRITE, ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0), EEXIST);
    munmap(page, PAGE);
    CHECK("MAP_FIXED_NOREPLACE on free memory", mmap(page, PAGE, READ_WRITE, ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == page);
    CHECK_ERRNO("MAP_FIXED at an odd address", mmap(page + 1, PAGE, READ_WRITE, ANONYMOUS | MAP_FIXED, -1, 0), EINVAL);
    CHECK_ERRNO("munmap at an odd address", munmap(page + 1, PAGE), EINVAL);
    CHECK_ERRNO("a mapping of 0 bytes", mmap(NULL, 0, READ_WRITE, ANONYMOUS, -1, 0), EINVAL);
    CHECK_ERRNO("munmap of 0 bytes", munmap(page, 0), EINVAL);
    CHECK_ERRNO("neither shared nor private", mmap(NULL, PAGE, READ_WRITE, MAP_ANONYMOUS, -1, 0), EINVAL);
    CHECK_ERRNO("2^63 bytes", mmap(NULL, 1ul << 63, READ_WRITE, ANONYMOUS, -1, 0), ENOMEM);
    CHECK_ERRNO("2^64 - 1 bytes", mmap(NULL, SIZE_MAX, READ_WRITE, ANONYMOUS, -1, 0), ENOMEM);
    CHECK_ERRNO("T15 munmap that wraps around", munmap(page, SIZE_MAX - PAGE), EINVAL);
    CHECK_ERRNO("MAP_FIXED in the kernel's half", mmap((void *)0xffff800000000000, PAGE, READ_WRITE, ANONYMOUS | MAP_FIXED, -1, 0), ENOMEM);
    munmap(page, PAGE);
    page = mmap(NULL, PAGE, READ_WRITE, ANONYMOUS | MAP_32BIT, -1, 0);
    CHECK("MAP_32BIT is below 2 GiB", page != MAP_FAILED && (uintptr_t)page < 2 * GIGABYTE);
    munmap(page, PAGE);
    page = map(3 * PAGE + 100, READ_WRITE);
    CHECK("a length is rounded up", page != MAP_FAILED && tap_writable(page + 4 * PAGE - 1));
    munmap(page, 3 * PAGE + 100);
    page = map(8 * PAGE, READ_WRITE);
    memset(page, 5, 8 * PAGE);
    CHECK("munmap of the middle", munmap(page + 2 * PAGE, 3 * PAGE) == 0 && page[2 * PAGE - 1] == 5 && page[5 * PAGE] == 5);
    CHECK("leaves a hole", !tap_readable(page + 2 * PAGE) && !tap_readable(page + 5 * PAGE - 1));
    munmap(page, 8 * PAGE);
    page = map(16 * GIGABYTE, PROT_NONE);
    CHECK("a reservation of 16 GiB", page != MAP_FAILED && !tap_readable(page + 9 * GIGABYTE));
    CHECK("a piece of it can be used", mprotect(page + 9 * GIGABYTE, 64 * PAGE, READ_WRITE) == 0 && tap_writable(page + 9 * GIGABYTE));
    CHECK("and no more", !tap_readable(page + 9 * GIGABYTE + 64 * PAGE) && !tap_readable(page + 9 * GIGABYTE - 1));
    munmap(page, 16 * GIGABYTE);
    page = mmap(NULL, PAGE, READ_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK("shared anonymous memory", page != MAP_FAILED && is_zero(page, PAGE) && tap_writable(page));
    munmap(page, PAGE);
    page = mmap(NULL, 64 * PAGE, READ_WRITE, ANONYMOUS | MAP_POPULATE | MAP_NORESERVE | MAP_STACK, -1, 0);
    CHECK("MAP_POPULATE, MAP_NORESERVE, MAP_STACK", page != MAP_FAILED && is_zero(page, 64 * PAGE));
    munmap(page, 64 * PAGE);
    page = mmap((void *)0x200000000000, PAGE, READ_WRITE, ANONYMOUS, -1, 0);
    CHECK("a hint is only a hint", page != MAP_FAILED && tap_writable(page));
    munmap(page, PAGE);
    char path[] = "/tmp/kvmserver-conform-XXXXXX";
    int fd = mkstemp(path);
    CHECK("a file to share", fd >= 0 && unlink(path) == 0 && ftruncate(fd, 2 * PAGE) == 0);
    page = mmap(NULL, 2 * PAGE, READ_WRITE, MAP_SHARED, fd, 0);
    again = mmap(NULL, PAGE, READ_WRITE, MAP_SHARED, fd, PAGE);
    CHECK("two mappings of a file show the same memory", page != MAP_FAILED && again != MAP_FAILED && (again[9] = 77, page[PAGE + 9] == 77));
    munmap(page, 2 * PAGE), munmap(again, PAGE), close(fd);
}

static void protection(void)
{
    unsigned char *page = map(4 * PAGE, READ_WRITE);
    memset(page, 3, 4 * PAGE);
    CHECK("mprotect to read-only", mprotect(page + PAGE, PAGE, PROT_READ) == 0 && tap_readable(page + PAGE) && !tap_writable(page + PAGE));
    CHECK("with SEGV_ACCERR", tap_signal == SIGSEGV && tap_fault_code == SEGV_ACCERR);
    CHECK("its neighbours stay writable", tap_writable(page + PAGE - 1) && tap_writable(page + 2 * PAGE));
    CHECK_ERRNO("a system call cannot write there", read(open("/dev/zero", O_RDONLY), page + PAGE, 1), EFAULT);
    CHECK("a system call that crosses into it is short or refused", read(open("/dev/zero", O_RDONLY), page + PAGE - 1, 2) < 2);
    CHECK("mprotect to nothing", mprotect(page + PAGE, PAGE, PROT_NONE) == 0 && !tap_readable(page + PAGE));
    int ends[2];
    if (pipe(ends) != 0)
        return;
    CHECK_ERRNO("a system call cannot read there", write(ends[1], page + PAGE, 1), EFAULT);
    close(ends[0]), close(ends[1]);
    CHECK("mprotect back: the content is still there", mprotect(page + PAGE, PAGE, READ_WRITE) == 0 && page[PAGE] == 3);
    CHECK_ERRNO("mprotect of unmapped memory", (munmap(page + PAGE, PAGE), mprotect(page, 4 * PAGE, PROT_READ)), ENOMEM);
    CHECK_ERRNO("mprotect at an odd address", mprotect(page + 1, PAGE, PROT_READ), EINVAL);
    CHECK_ERRNO("mprotect with bad rights", mprotect(page, PAGE, 0x40000000), EINVAL);
    CHECK("mprotect of 0 bytes", mprotect(page, 0, PROT_READ) == 0);
    munmap(page, 4 * PAGE);
    page = map(PAGE, READ_WRITE);
    page[0] = 0xc3;
    CHECK("data cannot be executed", FAULT_OF(((void (*)(void))(void *)page)()) == SIGSEGV);
    CHECK("the fault is at the fetch", tap_fault_address == page);
    CHECK("until mprotect allows it", mprotect(page, PAGE, PROT_READ | PROT_EXEC) == 0 && FAULT_OF(((void (*)(void))(void *)page)()) == 0);
    CHECK("and then it cannot be written", !tap_writable(page));
    CHECK("code cannot be written", FAULT_OF(*(volatile char *)(uintptr_t)map = 1) == SIGSEGV);
    CHECK("constants cannot be written", FAULT_OF(*(volatile char *)"constant" = 1) == SIGSEGV);
    CHECK("page 0 is unmapped", FAULT_OF(*(volatile char *)NULL) == SIGSEGV && tap_fault_address == NULL);
    CHECK("the kernel's half is out of reach", FAULT_OF(*(volatile char *)0xffff888000000000) == SIGSEGV);
    CHECK("a non-canonical address is SIGSEGV", FAULT_OF(*(volatile char *)0x8000000000000000) == SIGSEGV);
    munmap(page, PAGE);
}

static void moving(void)
{
    unsigned char *page = map(4 * PAGE, READ_WRITE), *moved;
    for (int i = 0; i < 4; i++)
        page[i * PAGE] = (unsigned char)(i + 1);
    CHECK("T49 mremap shrinks in place", mremap(page, 4 * PAGE, 2 * PAGE, 0) == page && page[PAGE] == 2 && !tap_readable(page + 2 * PAGE));
    moved = mremap(page, 2 * PAGE, 300 * PAGE, MREMAP_MAYMOVE);
    CHECK("mremap grows", moved != MAP_FAILED && moved[0] == 1 && moved[PAGE] == 2 && is_zero(moved + 2 * PAGE, 298 * PAGE));
    CHECK("the old place is free if it moved", moved == page || !tap_readable(page));
    unsigned char *target = map(2 * PAGE, READ_WRITE);
    page = mremap(moved, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target);
    CHECK("MREMAP_FIXED", page == target && page[0] == 1 && page[PAGE] == 2 && !tap_readable(moved) && tap_readable(moved + 2 * PAGE));
    munmap(moved + 2 * PAGE, 298 * PAGE);
    CHECK_ERRNO("mremap of unmapped memory", mremap(moved, PAGE, 2 * PAGE, MREMAP_MAYMOVE), EFAULT);
    CHECK_ERRNO("mremap to 0 bytes", mremap(page, PAGE, 0, MREMAP_MAYMOVE), EINVAL);
    CHECK_ERRNO("mremap at an odd address", mremap(page + 1, PAGE, PAGE, MREMAP_MAYMOVE), EINVAL);
    CHECK_ERRNO("mremap with bad flags", mremap(page, PAGE, PAGE, 0x100), EINVAL);
    munmap(page, 2 * PAGE);
    page = map(3 * PAGE, READ_WRITE);
    mprotect(page + PAGE, PAGE, PROT_READ);
    CHECK_ERRNO("mremap in place with a neighbour", mremap(page, PAGE, 2 * PAGE, 0), ENOMEM);
    munmap(page, 3 * PAGE);
}

static void advice(void)
{
    unsigned char *page = map(64 * PAGE, READ_WRITE);
    memset(page, 9, 64 * PAGE);
    CHECK("MADV_DONTNEED zeroes", madvise(page + PAGE, 2 * PAGE, MADV_DONTNEED) == 0 && is_zero(page + PAGE, 2 * PAGE));
    CHECK("only what was named", page[PAGE - 1] == 9 && page[3 * PAGE] == 9);
    CHECK("MADV_FREE", madvise(page + 8 * PAGE, PAGE, MADV_FREE) == 0 && (page[8 * PAGE] == 9 || page[8 * PAGE] == 0));
    CHECK("other advice is accepted", madvise(page, PAGE, MADV_WILLNEED) == 0 && madvise(page, PAGE, MADV_SEQUENTIAL) == 0 &&
                                          madvise(page, PAGE, MADV_RANDOM) == 0 && madvise(page, PAGE, MADV_NORMAL) == 0 &&
                                          madvise(page, PAGE, MADV_DONTDUMP) == 0 && madvise(page, PAGE, MADV_DONTFORK) == 0 &&
                                          madvise(page, PAGE, MADV_WIPEONFORK) == 0);
    CHECK_ERRNO("unknown advice", madvise(page, PAGE, 9999), EINVAL);
    CHECK_ERRNO("advice at an odd address", madvise(page + 1, PAGE, MADV_DONTNEED), EINVAL);
    munmap(page, 64 * PAGE);
    CHECK_ERRNO("advice on unmapped memory", madvise(page, PAGE, MADV_DONTNEED), ENOMEM);
    uint64_t start = tap_now_ns(CLOCK_MONOTONIC);
    /* At addresses where no Linux puts anything: natively these calls do what they say. */
    CHECK_ERRNO("T5 madvise of 2^44 bytes", madvise((void *)(1ul << 44), 1ul << 44, MADV_DONTNEED), ENOMEM);
    CHECK_ERRNO("T5 madvise of 2^62 bytes", madvise((void *)0x7fffffffe000, 1ul << 62, MADV_DONTNEED), ENOMEM);
    CHECK_ERRNO("T5 madvise of 2^63 bytes", madvise((void *)0x7fffffffe000, 1ul << 63, MADV_DONTNEED), ENOMEM);
    CHECK_ERRNO("T5 madvise of 2^64 - 4096 bytes", madvise(page, (size_t)-4096, MADV_DONTNEED), EINVAL);
    CHECK("T5 at once", tap_now_ns(CLOCK_MONOTONIC) - start < 2000000000u);
}

static void break_line(void)
{
    unsigned char *start = sbrk(0), *grown;
    CHECK("brk grows", (grown = sbrk(100 * PAGE)) == start && is_zero(start, 100 * PAGE));
    memset(start, 6, 100 * PAGE);
    CHECK("brk shrinks", sbrk(-90 * PAGE) != (void *)-1 && start[10 * PAGE - 1] == 6 && sbrk(0) == start + 10 * PAGE);
    CHECK("what it gave up is zero when it comes back", sbrk(90 * PAGE) != (void *)-1 && is_zero(start + 10 * PAGE, 90 * PAGE));
    CHECK("an impossible break leaves it where it was", syscall(SYS_brk, -1l) == (long)(start + 100 * PAGE));
    CHECK("brk(0) asks", syscall(SYS_brk, 0) == (long)(start + 100 * PAGE));
    CHECK("brk back", brk(start) == 0 && sbrk(0) == start);
}

static void large(void)
{
    /* T30, T48: three gigabytes that start one page below an odd gigabyte boundary. */
    unsigned char *space = map(6 * GIGABYTE, PROT_NONE);
    unsigned char *start = (unsigned char *)(((uintptr_t)space + 2 * GIGABYTE) / GIGABYTE * GIGABYTE + 34 * (1 << 20)) - PAGE;
    unsigned char *memory = mmap(start, 3 * GIGABYTE, READ_WRITE, ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    int right = 1;
    CHECK("T48 a mapping of 3 GiB at an odd address", memory == start);
    for (size_t at = 0; at < 3 * GIGABYTE; at += 61 * 16 * PAGE)
        *(size_t *)(void *)(memory + at) = at * 3 + 1;
    for (size_t at = 0; at < 3 * GIGABYTE; at += 61 * 16 * PAGE)
        right &= *(size_t *)(void *)(memory + at) == at * 3 + 1;
    CHECK("T48 every page keeps its own content", right);
    CHECK("T30 its first and last bytes", tap_writable(memory) && tap_writable(memory + 3 * GIGABYTE - 1));
    CHECK("T30 nothing before and after", !tap_readable(memory - 1) && !tap_readable(memory + 3 * GIGABYTE));
    munmap(space, 6 * GIGABYTE);
}

static void system_calls_across_pages(void)
{
    /* T22: the kernel writes where the program has just read, on one page and on two. */
    unsigned char *page = map(4 * PAGE, READ_WRITE);
    int zero = open("/dev/zero", O_RDONLY), ends[2], right = 1;
    if (pipe(ends) != 0)
        return;
    for (int round = 0; round < 100; round++) {
        unsigned char *buffer = page + PAGE - 4;
        memset(buffer, 0xaa, 8);
        right &= buffer[0] == 0xaa && buffer[7] == 0xaa;
        right &= write(ends[1], "12345678", 8) == 8 && read(ends[0], buffer, 8) == 8;
        right &= memcmp(buffer, "12345678", 8) == 0;
        right &= read(zero, buffer, 8) == 8 && buffer[0] == 0 && buffer[7] == 0;
    }
    CHECK("T22 what a system call writes is seen at once", right);
    unsigned char *fresh = map(16 * PAGE, READ_WRITE);
    CHECK("T31 a system call can fill memory that was never touched", write(ends[1], page, 3 * PAGE) == 3 * PAGE &&
                                                                          read(ends[0], fresh + 100, 3 * PAGE) == 3 * PAGE);
    munmap(page, 4 * PAGE), munmap(fresh, 16 * PAGE);
    close(zero), close(ends[0]), close(ends[1]);
}

static unsigned long random_state = 88172645463325252;

static unsigned long random_below(unsigned long limit)
{
    random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
    return random_state % limit;
}

static void model(void)
{
    /* T49: random calls on 64 pages inside a reservation, against an array that says what each page must be. */
    enum { PAGES = 64, NONE = -1 };
    static int content[PAGES], rights[PAGES];
    unsigned char *base = map(PAGES * PAGE, PROT_NONE);
    int right = 1;
    for (int i = 0; i < PAGES; i++)
        content[i] = 0, rights[i] = PROT_NONE;
    for (int round = 1; round < 3000 && right; round++) {
        unsigned long first = random_below(PAGES), count = 1 + random_below(8);
        if (first + count > PAGES)
            count = PAGES - first;
        unsigned char *at = base + first * PAGE;
        switch (random_below(5)) {
        case 0:
            right &= mmap(at, count * PAGE, READ_WRITE, ANONYMOUS | MAP_FIXED, -1, 0) == at;
            for (unsigned long i = first; i < first + count; i++)
                content[i] = 0, rights[i] = READ_WRITE;
            break;
        case 1:
            right &= munmap(at, count * PAGE) == 0;
            for (unsigned long i = first; i < first + count; i++)
                rights[i] = NONE;
            break;
        case 2: {
            int wanted = random_below(2) ? PROT_READ : READ_WRITE, whole = 1;
            for (unsigned long i = first; i < first + count; i++)
                whole &= rights[i] != NONE;
            if (!whole)
                break;
            right &= mprotect(at, count * PAGE, wanted) == 0;
            for (unsigned long i = first; i < first + count; i++)
                rights[i] = wanted;
            break;
        }
        case 3:
            for (unsigned long i = first; i < first + count; i++)
                if (rights[i] == READ_WRITE)
                    memset(base + i * PAGE, content[i] = round & 127, PAGE);
            break;
        default:
            for (unsigned long i = first; i < first + count; i++)
                if (rights[i] != NONE && madvise(base + i * PAGE, PAGE, MADV_DONTNEED) == 0)
                    content[i] = 0;
        }
        if (round % 50 != 0)
            continue;
        for (int i = 0; i < PAGES; i++) {
            int readable = tap_readable(base + i * PAGE);
            right &= readable == (rights[i] > 0);
            if (readable)
                right &= base[i * PAGE + 5] == content[i] && base[(i + 1) * PAGE - 1] == content[i];
        }
    }
    CHECK("T49 random mmap, munmap, mprotect and madvise agree with a model", right);
    munmap(base, PAGES * PAGE);
}

__attribute__((noinline)) static int deep(int depth)
{
    volatile char frame[4000];
    frame[0] = (char)depth;
    return depth == 0 ? 0 : deep(depth - 1) + frame[0] * 0 + 1;
}

static void others(void)
{
    unsigned char resident[4], *page = map(4 * PAGE, READ_WRITE);
    struct rlimit limit;
    page[0] = 1;
    CHECK("the stack grows to 4 MiB", deep(1000) == 1000);
    CHECK("T42 RLIMIT_STACK is what it says", getrlimit(RLIMIT_STACK, &limit) == 0 && limit.rlim_cur >= 1 << 20 && limit.rlim_cur <= limit.rlim_max);
    CHECK("mlock or its refusal", mlock(page, PAGE) == 0 || errno == EPERM || errno == ENOMEM);
    CHECK("munlock", munlock(page, PAGE) == 0);
    CHECK("mincore", mincore(page, 4 * PAGE, resident) == 0 && (resident[0] & 1));
    CHECK_ERRNO("mincore of unmapped memory", (munmap(page + PAGE, PAGE), mincore(page, 4 * PAGE, resident)), ENOMEM);
    CHECK_ERRNO("msync with contradictory flags", msync(page, PAGE, MS_ASYNC | MS_SYNC), EINVAL);
    CHECK_ERRNO("msync of unmapped memory", msync(page, 4 * PAGE, MS_ASYNC), ENOMEM);
    munmap(page, 4 * PAGE);
    char *first = malloc(100 << 20);
    CHECK("malloc of 100 MiB", first != NULL && (first[99 << 20] = 1));
    free(first);
    void *blocks[200];
    int right = 1;
    for (int i = 0; i < 200; i++)
        memset(blocks[i] = malloc(1000u + (unsigned)i * 997), i, 1000);
    for (int i = 0; i < 200; i++)
        right &= ((unsigned char *)blocks[i])[999] == i, free(blocks[i]);
    CHECK("malloc and free of many sizes", right);
}

int main(void)
{
    tap_catch_faults();
    mapping();
    protection();
    moving();
    advice();
    break_line();
    large();
    system_calls_across_pages();
    model();
    others();
    return tap_failures != 0;
}
