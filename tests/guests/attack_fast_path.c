/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * Jumps into the code of the in-guest fast path, at any byte of it, with garbage in what it keeps and in the registers.
 *
 * attack_fast_path PORT: `/` answers a counter, `/size` how many bytes the code has (0 where there is none). `/jump/OFFSET/SEED` jumps
 * there, and answers what came of it: `signal NUMBER`, or `returned` where the code came back to the program. A timer ends what would
 * go on for ever; it also interrupts the code at moments of its own, so that its registers have to be made up from the garbage.
 */
#include "http.h"
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <sys/time.h>

enum {
    SAVED = 64,
    STATE = 192,
    STATE_BYTES = 1480,
    LOG = 4096,
    LOG_BYTES = 4032,
    REGISTERS = 15,
};

static unsigned char *area;
static unsigned long code, code_bytes;
static sigjmp_buf back;
static volatile int raised;
static uint64_t state;
/* What is loaded before the jump: RAX RBX RCX RDX RSI RDI RBP R8 to R15, then RSP and the target. */
uint64_t garbage[REGISTERS], garbage_stack, garbage_target;

static uint64_t dice(uint64_t sides)
{
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (state >> 33) % sides;
}

static void on_signal(int number)
{
    raised = number;
    /* Flags that trap again would end the program in here. */
    __asm__ volatile("pushf; andq $~0x44100, (%%rsp); popf; cld" : : : "memory", "cc");
    siglongjmp(back, 1);
}

/* The fast path comes back here where `saved` says so; nothing of the program's is in the registers. */
void come_back(void);
__attribute__((used, noreturn)) static void came_back(void)
{
    on_signal(0);
    __builtin_unreachable();
}
__asm__(".globl come_back\ncome_back: lea stack_top(%rip), %rsp; call came_back; ud2");
char stack_bottom[65536] __attribute__((aligned(64)));
__asm__(".set stack_top, stack_bottom + 65536");

static void find_it(void)
{
    char line[256];
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof line, maps)) {
        unsigned long start, end;
        if (!strstr(line, "[fast path]") || sscanf(line, "%lx-%lx", &start, &end) != 2)
            continue;
        if (strstr(line, " rw"))
            area = (unsigned char *)start;
        else
            code = start;
    }
    if (maps)
        fclose(maps);
    /* The header's last word is the length. */
    if (code)
        code_bytes = ((uint64_t *)code)[3];
}

/* A word that might be taken for something: small, an address of anything here, a place in the fast path or its memory, anything. */
static uint64_t word(void)
{
    static char buffer[4096];
    switch (dice(9)) {
    case 0:
        return dice(64);
    case 1:
        return (uint64_t)buffer + dice(sizeof buffer);
    case 2:
        return code + dice(code_bytes);
    case 3:
        return (uint64_t)area + dice(40960);
    case 4:
        return (uint64_t)come_back;
    case 5:
        /* The host's own pages are behind the code; the entry is in them. */
        return code + 0x200000 + (dice(2) ? 0x5000 + dice(80) : dice(0x10000));
    case 6:
        return 0ull - dice(4096);
    case 7:
        return 1ull << dice(64);
    default:
        return dice(0x7fffffff) << 33 ^ dice(0x7fffffff);
    }
}

static void prepare(void)
{
    uint64_t *saved = (uint64_t *)(area + SAVED);
    for (int index = 0; index < 16; index++)
        saved[index] = word();
    /* Where the fast path returns to, the flags it returns with, and the number of the call that it is asked. */
    if (dice(2))
        saved[0] = (uint64_t)come_back;
    if (dice(2))
        saved[1] = 0x202;
    saved[2] = dice(460);
    for (uint64_t count = dice(3) ? 0 : dice(40); count > 0; count--)
        *(uint64_t *)(area + STATE + dice(STATE_BYTES / 8) * 8) = word();
    for (uint64_t count = dice(3) ? 0 : dice(40); count > 0; count--)
        *(uint64_t *)(area + LOG + dice(LOG_BYTES / 8) * 8) = word();
    for (int index = 0; index < REGISTERS; index++)
        garbage[index] = word();
    garbage_stack = dice(2) ? (uint64_t)stack_bottom + 32768 + dice(4096) : word();
}

static void jump(void)
{
    __asm__ volatile("lea garbage(%%rip), %%rax\n"
                     "mov 8(%%rax), %%rbx\n"
                     "mov 16(%%rax), %%rcx\n"
                     "mov 24(%%rax), %%rdx\n"
                     "mov 32(%%rax), %%rsi\n"
                     "mov 40(%%rax), %%rdi\n"
                     "mov 48(%%rax), %%rbp\n"
                     "mov 56(%%rax), %%r8\n"
                     "mov 64(%%rax), %%r9\n"
                     "mov 72(%%rax), %%r10\n"
                     "mov 80(%%rax), %%r11\n"
                     "mov 88(%%rax), %%r12\n"
                     "mov 96(%%rax), %%r13\n"
                     "mov 104(%%rax), %%r14\n"
                     "mov 112(%%rax), %%r15\n"
                     "mov (%%rax), %%rax\n"
                     "mov garbage_stack(%%rip), %%rsp\n"
                     "jmp *garbage_target(%%rip)\n"
                     :
                     :
                     : "memory", "cc");
    __builtin_unreachable();
}

static int attack(int fd, const struct request *request, unsigned long offset, unsigned long seed)
{
    static const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE, SIGALRM, SIGSYS, SIGPIPE};
    static char stack[65536];
    static volatile struct itimerval often = {{0, 700}, {0, 700}}, never;
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_NODEFER | SA_ONSTACK};
    char body[64];
    sigaltstack(&alternate, NULL);
    for (size_t index = 0; index < sizeof signals / sizeof *signals; index++)
        sigaction(signals[index], &action, NULL);
    state = seed * 2654435761u + offset * 40503u + 12345;
    raised = -1;
    if (sigsetjmp(back, 1) == 0) {
        setitimer(ITIMER_REAL, (struct itimerval *)&often, NULL);
        prepare();
        garbage_target = code + offset;
        jump();
    }
    int came = raised;
    /* A tick may come here once more, and then the same again. */
    setitimer(ITIMER_REAL, (struct itimerval *)&never, NULL);
    int length = came ? snprintf(body, sizeof body, "signal %d\n", came) : snprintf(body, sizeof body, "returned\n");
    return http_respond(fd, request, 200, body, (size_t)length);
}

static int handle(int fd, const struct request *request)
{
    unsigned long offset, seed;
    char body[64];
    if (sscanf(request->path, "/jump/%lu/%lu", &offset, &seed) == 2 && offset < code_bytes)
        return attack(fd, request, offset, seed);
    if (strcmp(request->path, "/size") != 0)
        return http_count(fd, request);
    int length = snprintf(body, sizeof body, "%lu\n", code_bytes);
    return http_respond(fd, request, 200, body, (size_t)length);
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    find_it();
    http_handler = handle;
    http_serve_for_ever(argv[1]);
}
