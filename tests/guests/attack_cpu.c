/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * Instructions that no program should run: attack_cpu PORT.
 *
 * Each path runs one of them and answers `signal code` of what it raised (0 0 for nothing), to be compared with a native
 * run. `/segments` answers the data segment registers, `/leave` changes them, `/tell` looks for what `/leave` left.
 */
#include "http.h"
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>

/* Where the VMM keeps its own pages with the default address space: behind its 120 GiB; a native run has nothing there. */
#define AREA 0x1e00000000ul

static sigjmp_buf back;
static volatile int raised_signal, raised_code;

static void on_signal(int number, siginfo_t *info, void *context)
{
    (void)context;
    raised_signal = number;
    raised_code = info->si_code;
    /* A flag that traps again would end the program in here. */
    __asm__ volatile("pushf; andq $~0x44100, (%%rsp); popf; cld" : : : "memory", "cc");
    siglongjmp(back, 1);
}

static void jump(unsigned long where, unsigned long rcx)
{
    __asm__ volatile("mov $39, %%eax; jmp *%0" : : "r"(where), "c"(rcx) : "rax", "memory");
}

static void out_20(void) { __asm__ volatile("outb %%al, $0x20" : : "a"(1)); }
static void out_21(void) { __asm__ volatile("outb %%al, $0x21" : : "a"(1)); }
static void out_22(void) { __asm__ volatile("outl %%eax, $0x22" : : "a"(1)); }
static void in_20(void)
{
    unsigned value = 0x77;
    __asm__ volatile("inb $0x20, %%al" : "+a"(value));
}
static void in_long(void)
{
    unsigned value = 0x77;
    __asm__ volatile("inl $0x20, %%eax" : "+a"(value));
}
static void in_string(void)
{
    static char buffer[1 << 16];
    void *to = buffer;
    unsigned long count = sizeof buffer;
    __asm__ volatile("rep insb" : "+D"(to), "+c"(count) : "d"(0x20) : "memory");
}
static void out_string(void)
{
    static char buffer[1 << 16];
    void *from = buffer;
    unsigned long count = ~0ul;
    __asm__ volatile("rep outsb" : "+S"(from), "+c"(count) : "d"(0x20) : "memory");
}
static void hlt(void) { __asm__ volatile("hlt"); }
static void cli(void) { __asm__ volatile("cli"); }
static void wrmsr(void) { __asm__ volatile("wrmsr" : : "a"(0), "d"(0), "c"(0xc0000082)); }
static void mov_cr3(void)
{
    unsigned long value;
    __asm__ volatile("mov %%cr3, %0" : "=r"(value));
}
static void swapgs(void) { __asm__ volatile("swapgs"); }
static void lgdt(void)
{
    static char table[16];
    __asm__ volatile("lgdt %0" : : "m"(table));
}
static void invlpg(void) { __asm__ volatile("invlpg (%0)" : : "r"(0x40000000ul) : "memory"); }
static void far_jump(void)
{
    struct {
        unsigned offset;
        unsigned short selector;
    } __attribute__((packed)) target = {0x1000, 0x10};
    __asm__ volatile("ljmp *%0" : : "m"(target));
}
static void far_return_supervisor(void)
{
    __asm__ volatile("pushq $0x10; lea 1f(%%rip), %%rax; push %%rax; lretq; 1:" : : : "rax", "memory");
}
static void stack_segment(void) { __asm__ volatile("mov %0, %%ss" : : "r"((unsigned short)0x18)); }
static void data_segment(void) { __asm__ volatile("mov %0, %%ds" : : "r"((unsigned short)0x40)); }
static void non_canonical_jump(void) { jump(1ul << 63, 0); }
static void non_canonical_call(void) { __asm__ volatile("call *%0" : : "r"(0x0000800000000000ul) : "memory"); }
static void high_jump(void) { jump(0xffffffff81000000ul, 0); }
static void non_canonical_read(void) { (void)*(volatile char *)0x8000000000001000ul; }
static void non_canonical_stack(void)
{
    __asm__ volatile("mov %%rsp, %%rbx; mov %0, %%rsp; push %%rax; mov %%rbx, %%rsp" : : "r"(1ul << 62) : "rbx", "memory");
}
static void fs_base(void)
{
    __asm__ volatile("wrfsbase %0" : : "r"(1ul << 63));
}
static void area_read(void) { (void)*(volatile char *)AREA; }
static void area_write(void) { *(volatile char *)(AREA + 0x10000) = 1; }
static void entry_write(void) { *(volatile char *)(AREA + 0x5000) = 1; }
static void entry_tables(void) { jump(AREA + 0x6000, 0); }
static void handler_jump(void) { jump(AREA + 0x4000, 0); }
static void single_step(void) { __asm__ volatile("pushf; orq $0x100, (%%rsp); popf; nop; nop" : : : "memory", "cc"); }
static void single_step_call(void)
{
    long number = 39;
    __asm__ volatile("pushf; orq $0x100, (%%rsp); popf; syscall; nop" : "+a"(number) : : "rcx", "r11", "memory", "cc");
}
static void alignment(void)
{
    static char bytes[16];
    int value;
    __asm__ volatile("pushf; orq $0x40000, (%%rsp); popf; movl 1(%1), %0; pushf; andq $~0x40000, (%%rsp); popf"
                     : "=r"(value)
                     : "r"(bytes)
                     : "memory", "cc");
}
static void nested_task(void)
{
    __asm__ volatile("pushf; orq $0x4000, (%%rsp); popf; pushf; andq $~0x4000, (%%rsp); popf" : : : "memory", "cc");
}
static void flags_over_a_call(void)
{
    /* The direction flag and a random R11: a call must not care. */
    long number = 39;
    __asm__ volatile("std; syscall; cld" : "+a"(number) : : "rcx", "r11", "memory", "cc");
}
static void sse_divide(void)
{
    unsigned control = 0x1f80 & ~(1u << 9), fresh = 0x1f80;
    __asm__ volatile("ldmxcsr %0; xorps %%xmm0, %%xmm0; mov $1, %%eax; cvtsi2ss %%eax, %%xmm1; divss %%xmm0, %%xmm1; ldmxcsr %1"
                     :
                     : "m"(control), "m"(fresh)
                     : "rax", "xmm0", "xmm1");
}
static void x87_divide(void)
{
    unsigned short control = 0x37b;
    __asm__ volatile("fninit; fldcw %0; fld1; fldz; fdivrp; fwait; fninit" : : "m"(control));
}
/* In several: a C library's string functions use one or the other (strcmp for AVX2 clears XMM15), depending on the processor. */
static void vector_register(void)
{
    __asm__ volatile("pcmpeqd %%xmm11, %%xmm11; pcmpeqd %%xmm12, %%xmm12; pcmpeqd %%xmm13, %%xmm13; pcmpeqd %%xmm14, %%xmm14"
                     :
                     :
                     : "xmm11", "xmm12", "xmm13", "xmm14");
}
static void gather(void)
{
    char *page = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    __asm__ volatile("vpcmpeqd %%ymm1, %%ymm1, %%ymm1; vpxor %%ymm2, %%ymm2, %%ymm2; vpgatherdd %%ymm1, 16(%0, %%ymm2, 4), %%ymm0"
                     :
                     : "r"(page)
                     : "xmm0", "xmm1", "xmm2");
}
static void copy_over_the_edge(void)
{
    char *pages = mmap(NULL, 4 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(pages + (3 << 20), 4096, PROT_NONE);
    void *to = pages;
    unsigned long count = 4 << 20;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(count) : "a"(1) : "memory");
}
static void run_data(void)
{
    char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    page[0] = (char)0xc3;
    ((void (*)(void))(void *)page)();
}
static void run_off_a_mapping(void)
{
    char *pages = mmap(NULL, 8192, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(pages + 4096, 4096, PROT_NONE);
    memset(pages, 0x90, 4096);
    ((void (*)(void))(void *)pages)();
}
static void run_across_a_mapping(void)
{
    /* An instruction whose last byte is on a page that is not there. */
    char *pages = mmap(NULL, 8192, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(pages, 0x90, 4096);
    pages[4095] = (char)0xb8;
    munmap(pages + 4096, 4096);
    ((void (*)(void))(void *)pages)();
}
static void patch_itself(void)
{
    unsigned char *code = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    /* movb $0xc3, 0(%rip); ud2: the store turns the ud2 into a ret. */
    memcpy(code, "\xc6\x05\x00\x00\x00\x00\xc3\x0f\x0b", 9);
    ((void (*)(void))(void *)code)();
}

static const struct {
    const char *path;
    void (*act)(void);
} acts[] = {
    {"/out-20", out_20},
    {"/out-21", out_21},
    {"/out-22", out_22},
    {"/in-20", in_20},
    {"/in-long", in_long},
    {"/in-string", in_string},
    {"/out-string", out_string},
    {"/hlt", hlt},
    {"/cli", cli},
    {"/wrmsr", wrmsr},
    {"/mov-cr3", mov_cr3},
    {"/swapgs", swapgs},
    {"/lgdt", lgdt},
    {"/invlpg", invlpg},
    {"/far-jump", far_jump},
    {"/far-return-supervisor", far_return_supervisor},
    {"/stack-segment", stack_segment},
    {"/data-segment", data_segment},
    {"/non-canonical-jump", non_canonical_jump},
    {"/non-canonical-call", non_canonical_call},
    {"/high-jump", high_jump},
    {"/non-canonical-read", non_canonical_read},
    {"/non-canonical-stack", non_canonical_stack},
    {"/fs-base", fs_base},
    {"/area-read", area_read},
    {"/area-write", area_write},
    {"/entry-write", entry_write},
    {"/entry-tables", entry_tables},
    {"/handler-jump", handler_jump},
    {"/single-step", single_step},
    {"/single-step-call", single_step_call},
    {"/alignment", alignment},
    {"/nested-task", nested_task},
    {"/flags-over-a-call", flags_over_a_call},
    {"/sse-divide", sse_divide},
    {"/x87-divide", x87_divide},
    {"/vector-register", vector_register},
    {"/gather", gather},
    {"/copy-over-the-edge", copy_over_the_edge},
    {"/run-data", run_data},
    {"/run-off-a-mapping", run_off_a_mapping},
    {"/run-across-a-mapping", run_across_a_mapping},
    {"/patch-itself", patch_itself},
};

static int answer_segments(int fd, const struct request *request)
{
    unsigned short ds, es, fs, gs;
    char body[64];
    __asm__ volatile("mov %%ds, %0; mov %%es, %1; mov %%fs, %2; mov %%gs, %3" : "=r"(ds), "=r"(es), "=r"(fs), "=r"(gs));
    if (strcmp(request->path, "/leave") == 0) {
        unsigned short stack;
        __asm__ volatile("mov %%ss, %0; mov %0, %%ds; mov %0, %%es; mov %0, %%gs" : "=r"(stack));
    }
    int length = snprintf(body, sizeof body, "%x %x %x %x\n", ds, es, fs, gs);
    return http_respond(fd, request, 200, body, (size_t)length);
}

/* The address space's size is the VMM's business; a guest that knows it may jump to the entry page with what it likes. */
static void enter(const char *path)
{
    unsigned long offset = 0, rcx = 0;
    if (sscanf(path, "/enter/%lx/%lx", &offset, &rcx) == 2)
        jump(AREA + offset, rcx);
}

static int handle(int fd, const struct request *request)
{
    static const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE};
    static char stack[65536];
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
    char body[64];
    if (strcmp(request->path, "/segments") == 0 || strcmp(request->path, "/leave") == 0)
        return answer_segments(fd, request);
    sigaltstack(&alternate, NULL);
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        sigaction(signals[i], &action, NULL);
    raised_signal = raised_code = 0;
    if (sigsetjmp(back, 1) == 0) {
        for (size_t i = 0; i < sizeof acts / sizeof *acts; i++) {
            if (strcmp(request->path, acts[i].path) == 0)
                acts[i].act();
        }
        enter(request->path);
    }
    int length = snprintf(body, sizeof body, "%d %d\n", raised_signal, raised_code);
    return http_respond(fd, request, 200, body, (size_t)length);
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    http_handler = handle;
    http_serve_for_ever(argv[1]);
}
