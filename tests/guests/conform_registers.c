/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * Claims about the processor's state around system calls and thread switches.
 */
#include "tap.h"
#include <cpuid.h>
#include <immintrin.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>

/* Every register but RAX, RCX and R11 survives; RCX is the return address and R11 the flags. */
static int survivors(void)
{
    unsigned long wrong = 1;
    __asm__ volatile(
        "push %%rbp\n push %%rbx\n"
        "mov $0x101, %%rbx\n mov $0x202, %%rdx\n mov $0x303, %%rsi\n mov $0x404, %%rdi\n mov $0x505, %%rbp\n"
        "mov $0x606, %%r8\n mov $0x707, %%r9\n mov $0x808, %%r10\n mov $0x909, %%r12\n mov $0xa0a, %%r13\n"
        "mov $0xb0b, %%r14\n mov $0xc0c, %%r15\n"
        "mov $39, %%eax\n syscall\n 1:\n"
        "pushfq\n pop %%rax\n xor %%r11, %%rax\n and $0x8d5, %%rax\n"
        "xor $0x101, %%rbx\n or %%rbx, %%rax\n xor $0x202, %%rdx\n or %%rdx, %%rax\n xor $0x303, %%rsi\n or %%rsi, %%rax\n"
        "xor $0x404, %%rdi\n or %%rdi, %%rax\n xor $0x505, %%rbp\n or %%rbp, %%rax\n xor $0x606, %%r8\n or %%r8, %%rax\n"
        "xor $0x707, %%r9\n or %%r9, %%rax\n xor $0x808, %%r10\n or %%r10, %%rax\n xor $0x909, %%r12\n or %%r12, %%rax\n"
        "xor $0xa0a, %%r13\n or %%r13, %%rax\n xor $0xb0b, %%r14\n or %%r14, %%rax\n xor $0xc0c, %%r15\n or %%r15, %%rax\n"
        "lea 1b(%%rip), %%rdx\n xor %%rdx, %%rcx\n or %%rcx, %%rax\n"
        "pop %%rbx\n pop %%rbp\n"
        : "=a"(wrong) : : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc");
    return wrong == 0;
}

static long raw(unsigned long number)
{
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "0"(number), "D"(0), "S"(0), "d"(0) : "rcx", "r11", "memory");
    return result;
}

static int red_zone(void)
{
    /* What lies below the stack pointer belongs to the program: a system call leaves it alone. */
    unsigned long low, high;
    __asm__ volatile("movq $0x1111, -8(%%rsp)\n movq $0x2222, -128(%%rsp)\n mov $39, %%eax\n syscall\n"
                     "mov -8(%%rsp), %0\n mov -128(%%rsp), %1\n"
                     : "=&r"(low), "=&r"(high) : : "rax", "rcx", "r11", "memory");
    return low == 0x1111 && high == 0x2222;
}

static int flags(void)
{
    unsigned long before, after;
    __asm__ volatile("std\n stc\n pushfq\n pop %0\n mov $39, %%eax\n syscall\n pushfq\n pop %1\n cld"
                     : "=&r"(before), "=&r"(after) : : "rax", "rcx", "r11", "memory", "cc");
    return ((before ^ after) & 0xcd5) == 0 && (after & 0x3000) == 0;
}

__attribute__((target("avx"))) static int avx_survives(void)
{
    double in[4] = {1.5, -2.5, 1e300, 4}, out[4];
    __asm__ volatile("vmovupd %1, %%ymm9\n mov $39, %%eax\n syscall\n vmovupd %%ymm9, %0" : "=m"(out) : "m"(in) : "rax", "rcx", "r11", "ymm9", "memory");
    return memcmp(in, out, sizeof in) == 0;
}

__attribute__((target("avx512f"))) static int avx512_survives(void)
{
    double in[8] = {1, 2, 3, 4, 5, 6, 7, 8}, out[8];
    __asm__ volatile("vmovupd %1, %%zmm27\n mov $39, %%eax\n syscall\n vmovupd %%zmm27, %0" : "=m"(out) : "m"(in) : "rax", "rcx", "r11", "xmm27", "memory");
    return memcmp(in, out, sizeof in) == 0;
}

static unsigned long long enabled(void)
{
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (unsigned long long)high << 32 | low;
}

static _Atomic int stop;

/* Two threads with different contents in every kind of register, switched by the clock. */
static void *hold(void *argument)
{
    unsigned long mine = (unsigned long)argument * 0x0101010101010101, wrong = 0;
    unsigned mxcsr = 0x1f80 | ((unsigned)(uintptr_t)argument & 3) << 13, now;
    _mm_setcsr(mxcsr);
    while (!atomic_load(&stop)) {
        unsigned long difference;
        __asm__ volatile("movq %1, %%xmm1\n movq %1, %%xmm14\n mov %1, %%r8\n mov %1, %%r15\n mov %1, %%rbx\n push %1\n fildll (%%rsp)\n"
                         "mov $30000, %%ecx\n 1: dec %%ecx\n jnz 1b\n"
                         "fistpll (%%rsp)\n pop %0\n xor %1, %0\n xor %1, %%r8\n or %%r8, %0\n xor %1, %%r15\n or %%r15, %0\n xor %1, %%rbx\n or %%rbx, %0\n"
                         "movq %%xmm1, %%r8\n xor %1, %%r8\n or %%r8, %0\n movq %%xmm14, %%r8\n xor %1, %%r8\n or %%r8, %0\n"
                         : "=&r"(difference) : "r"(mine) : "rcx", "rbx", "r8", "r15", "xmm1", "xmm14", "memory", "cc");
        wrong |= difference;
        now = _mm_getcsr();
        wrong |= (now ^ mxcsr) & 0xffc0;
    }
    _mm_setcsr(0x1f80);
    return (void *)wrong;
}

static void switches(void)
{
    pthread_t threads[3];
    void *result;
    int right = 1;
    for (unsigned long i = 0; i < 3; i++)
        pthread_create(&threads[i], NULL, hold, (void *)(i + 1));
    nanosleep(&(struct timespec){.tv_nsec = 300000000}, NULL);
    atomic_store(&stop, 1);
    for (int i = 0; i < 3; i++)
        right &= pthread_join(threads[i], &result) == 0 && result == NULL;
    CHECK("threads keep their own registers when the clock switches them", right);
}

int main(void)
{
    unsigned long base;
    CHECK("T53 registers survive a system call, RCX and R11 are as documented", survivors());
    CHECK("T29 garbage in the upper half of RAX is an unknown call", raw(0xdeadbeef00000000 | SYS_getpid) == -ENOSYS || raw(0xdeadbeef00000000 | SYS_getpid) == getpid());
    CHECK("T29 a number above 65,535", raw(0x10000 + SYS_getpid) == -ENOSYS);
    CHECK("a number of the x32 table", raw(0x40000000 + SYS_getpid) == -ENOSYS || raw(0x40000000 + SYS_getpid) == getpid());
    CHECK("the red zone is left alone", red_zone());
    CHECK("flags survive a system call", flags());
    CHECK("AVX registers survive a system call, where there are any", (enabled() & 6) != 6 || avx_survives());
    CHECK("AVX-512 registers too", (enabled() & 0xe6) != 0xe6 || avx512_survives());
    CHECK("the control words are as at the start of any program", _mm_getcsr() == 0x1f80 || (_mm_getcsr() & ~0x3fu) == 0x1f80);
    CHECK("arithmetic", sqrt(2.0) > 1.414213 && sqrt(2.0) < 1.414214 && (long double)1 / 3 > 0.333333L);
    __asm__("mov %%fs:0, %0" : "=r"(base));
    CHECK("FS is the thread's base", *(unsigned long *)base == base);
    CHECK("cpuid is consistent with XCR0", (enabled() & 3) == 3);
    unsigned a, b, c, d;
    __cpuid(1, a, b, c, d);
    CHECK("cpuid says SSE2 and OSXSAVE", (d & bit_SSE2) && (c & bit_OSXSAVE));
    switches();
    return tap_failures != 0;
}
