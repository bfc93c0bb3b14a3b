/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * Claims about signals: handlers, siginfo and ucontext, masks, alternate stacks, restarting, timers, waiting.
 */
#include "tap.h"
#include <pthread.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <ucontext.h>

static volatile sig_atomic_t caught, nested, depth, value_seen, code_seen, sender_seen;
static void *volatile stack_seen;
static int ends[2];

static void count(int number)
{
    (void)number;
    caught++;
}

static void inspect(int number, siginfo_t *info, void *context)
{
    ucontext_t *state = context;
    caught = number;
    value_seen = info->si_value.sival_int;
    code_seen = info->si_code;
    sender_seen = info->si_pid;
    stack_seen = __builtin_frame_address(0);
    depth = state->uc_mcontext.gregs[REG_RIP] != 0 && state->uc_mcontext.gregs[REG_RSP] != 0;
}

static void install(int number, void (*handler)(int), int flags)
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
    sigaction(number, &action, NULL);
}

static void install_info(int number, void (*handler)(int, siginfo_t *, void *), int flags)
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = flags | SA_SIGINFO};
    sigaction(number, &action, NULL);
}

static void mask(int how, int number)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, number);
    sigprocmask(how, &set, NULL);
}

static void actions(void)
{
    struct sigaction old, bad = {.sa_handler = count};
    install(SIGUSR1, count, 0);
    caught = 0;
    CHECK("raise runs the handler", raise(SIGUSR1) == 0 && caught == 1);
    CHECK("kill of oneself too", kill(getpid(), SIGUSR1) == 0 && caught == 2);
    CHECK("sigaction tells the handler", sigaction(SIGUSR1, NULL, &old) == 0 && old.sa_handler == count);
    CHECK_ERRNO("SIGKILL cannot be caught", sigaction(SIGKILL, &bad, NULL), EINVAL);
    CHECK_ERRNO("signal 65", sigaction(65, &bad, NULL), EINVAL);
    CHECK_ERRNO("kill with signal 65", kill(getpid(), 65), EINVAL);
    CHECK("kill with signal 0", kill(getpid(), 0) == 0);
    CHECK_ERRNO("kill of nobody", kill(999999, SIGUSR1), ESRCH);
    CHECK_ERRNO("a mask of a wrong size", syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, NULL, 4), EINVAL);
    CHECK_ERRNO("an action of a wrong size", syscall(SYS_rt_sigaction, SIGUSR1, NULL, NULL, 4), EINVAL);
    signal(SIGUSR1, SIG_IGN);
    CHECK("an ignored signal does nothing", raise(SIGUSR1) == 0 && caught == 2);
    install(SIGUSR1, count, SA_RESETHAND);
    raise(SIGUSR1);
    CHECK("SA_RESETHAND", caught == 3 && sigaction(SIGUSR1, NULL, &old) == 0 && old.sa_handler == SIG_DFL);
    CHECK("SIGCHLD is ignored by default", raise(SIGCHLD) == 0);
    install_info(SIGUSR2, inspect, 0);
    union sigval value = {.sival_int = 4711};
    CHECK("sigqueue carries a value", sigqueue(getpid(), SIGUSR2, value) == 0 && caught == SIGUSR2 && value_seen == 4711);
    CHECK("its code and sender", code_seen == SI_QUEUE && sender_seen == getpid());
    CHECK("the context has the registers", depth == 1);
    kill(getpid(), SIGUSR2);
    CHECK("the code of kill", code_seen == SI_USER && sender_seen == getpid());
    syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGUSR2);
    CHECK("the code of tgkill", code_seen == SI_TKILL);
    CHECK_ERRNO("tgkill of a thread that is not there", syscall(SYS_tgkill, getpid(), 999999, SIGUSR2), ESRCH);
}

static void masks(void)
{
    sigset_t set, pending;
    install(SIGUSR1, count, 0);
    caught = 0;
    mask(SIG_BLOCK, SIGUSR1);
    raise(SIGUSR1), raise(SIGUSR1);
    CHECK("a blocked signal waits", caught == 0 && sigpending(&pending) == 0 && sigismember(&pending, SIGUSR1));
    mask(SIG_UNBLOCK, SIGUSR1);
    CHECK("and comes once when it is let in", caught == 1 && sigpending(&pending) == 0 && !sigismember(&pending, SIGUSR1));
    mask(SIG_BLOCK, SIGRTMIN);
    install(SIGRTMIN, count, 0);
    caught = 0;
    raise(SIGRTMIN), raise(SIGRTMIN), raise(SIGRTMIN);
    mask(SIG_UNBLOCK, SIGRTMIN);
    CHECK("real-time signals queue", caught == 3);
    sigfillset(&set);
    sigprocmask(SIG_SETMASK, &set, &pending);
    sigprocmask(SIG_SETMASK, NULL, &set);
    CHECK("SIGKILL and SIGSTOP cannot be blocked", !sigismember(&set, SIGKILL) && !sigismember(&set, SIGSTOP) && sigismember(&set, SIGTERM));
    sigprocmask(SIG_SETMASK, &pending, NULL);
    mask(SIG_BLOCK, SIGUSR1);
    raise(SIGUSR1);
    sigset_t none;
    sigemptyset(&none);
    caught = 0;
    CHECK_ERRNO("sigsuspend lets it in", sigsuspend(&none), EINTR);
    CHECK("once", caught == 1);
    sigprocmask(SIG_SETMASK, NULL, &set);
    CHECK("and puts the mask back", sigismember(&set, SIGUSR1));
    mask(SIG_UNBLOCK, SIGUSR1);
}

static void inner(int number)
{
    (void)number;
    nested++;
}

static void outer(int number)
{
    (void)number;
    raise(SIGUSR2);
    depth = nested;
    caught++;
}

static void mask_inside(int number)
{
    sigset_t set;
    sigprocmask(SIG_SETMASK, NULL, &set);
    depth = sigismember(&set, number) + 2 * sigismember(&set, SIGUSR2);
}

static void nesting(void)
{
    install(SIGUSR2, inner, 0);
    install(SIGUSR1, outer, 0);
    caught = nested = depth = 0;
    raise(SIGUSR1);
    CHECK("a handler is interrupted by another signal", caught == 1 && nested == 1 && depth == 1);
    struct sigaction action = {.sa_handler = outer};
    sigaddset(&action.sa_mask, SIGUSR2);
    sigaction(SIGUSR1, &action, NULL);
    caught = nested = depth = 0;
    raise(SIGUSR1);
    CHECK("unless sa_mask holds it back", caught == 1 && nested == 1 && depth == 0);
    action.sa_handler = mask_inside;
    sigaction(SIGUSR1, &action, NULL);
    raise(SIGUSR1);
    CHECK("its own signal and sa_mask are blocked inside", depth == 3);
    install(SIGUSR1, mask_inside, SA_NODEFER);
    raise(SIGUSR1);
    CHECK("SA_NODEFER", depth == 0);
}

/* ---- faults ---- */

static void skip_store(int number, siginfo_t *info, void *context)
{
    ucontext_t *state = context;
    caught = number;
    tap_fault_address = info->si_addr;
    tap_fault_code = info->si_code;
    /* RAX holds the address to go on at; RBX is read back to show that a register can be changed. */
    state->uc_mcontext.gregs[REG_RIP] = state->uc_mcontext.gregs[REG_RAX];
    state->uc_mcontext.gregs[REG_RBX] = 0x1234;
}

static void map_missing(int number, siginfo_t *info, void *context)
{
    (void)number, (void)context;
    void *page = (void *)((uintptr_t)info->si_addr & ~4095ul);
    mmap(page, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    caught++;
}

static void faults(void)
{
    long register_b;
    install_info(SIGSEGV, skip_store, 0);
    __asm__ volatile("lea 1f(%%rip), %%rax\n mov $64, %%ecx\n movb $1, (%%rcx)\n ud2\n 1:\n mov %%rbx, %0"
                     : "=r"(register_b) : : "rax", "rbx", "rcx", "memory");
    CHECK("a handler goes on at another RIP", caught == SIGSEGV);
    CHECK("with another register", register_b == 0x1234);
    CHECK("the fault's address and code", tap_fault_address == (void *)64 && tap_fault_code == SEGV_MAPERR);
    install_info(SIGSEGV, map_missing, 0);
    unsigned char *hole = mmap(NULL, 16 * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    caught = 0;
    for (int i = 0; i < 16; i++)
        hole[i * 4096 + 100] = (unsigned char)i;
    CHECK("a handler maps what is missing and the store is repeated", caught == 16 && hole[15 * 4096 + 100] == 15);
    munmap(hole, 16 * 4096);
    volatile int zero = 0;
    volatile long minimum = INT64_MIN, minus_one = -1;
    tap_catch_faults();
    CHECK("division by zero is SIGFPE", FAULT_OF(zero = 100 / zero) == SIGFPE && tap_fault_code == FPE_INTDIV);
    CHECK("an overflow of division is SIGFPE", FAULT_OF(minimum = minimum / minus_one) == SIGFPE);
    CHECK("ud2 is SIGILL", FAULT_OF(({ __asm__ volatile("ud2"); 0; })) == SIGILL);
    CHECK("int3 is SIGTRAP", FAULT_OF(({ __asm__ volatile("int3"); 0; })) == SIGTRAP);
    CHECK("a privileged instruction is SIGSEGV", FAULT_OF(({ __asm__ volatile("hlt"); 0; })) == SIGSEGV);
    CHECK("in is SIGSEGV", FAULT_OF(({ __asm__ volatile("inb $0x60, %%al" : : : "al"); 0; })) == SIGSEGV);
    CHECK("an unaligned movaps is SIGSEGV", FAULT_OF(({
              static char bytes[64] __attribute__((aligned(16)));
              __asm__ volatile("movaps %%xmm0, (%0)" : : "r"(bytes + 1) : "memory");
              0;
          })) == SIGSEGV);
    CHECK("a jump to a non-canonical address is SIGSEGV", FAULT_OF(((void (*)(void))0x8000000000000000)()) == SIGSEGV);
    CHECK("T53 a return to a non-canonical address is SIGSEGV", FAULT_OF(({
              __asm__ volatile("mov $0x8000000000000000, %%rax\n push %%rax\n ret" : : : "rax", "memory");
              0;
          })) == SIGSEGV);
}

/* ---- alternate stacks ---- */

static void alternate_stacks(void)
{
    static char memory[65536];
    stack_t stack = {.ss_sp = memory, .ss_size = sizeof memory}, old;
    CHECK("sigaltstack", sigaltstack(&stack, NULL) == 0);
    CHECK("sigaltstack tells", sigaltstack(NULL, &old) == 0 && old.ss_sp == memory && old.ss_size == sizeof memory && old.ss_flags == 0);
    install_info(SIGUSR1, inspect, SA_ONSTACK);
    raise(SIGUSR1);
    CHECK("SA_ONSTACK runs there", (char *)stack_seen > memory && (char *)stack_seen < memory + sizeof memory);
    install_info(SIGUSR1, inspect, 0);
    raise(SIGUSR1);
    CHECK("without it, on the ordinary stack", !((char *)stack_seen > memory && (char *)stack_seen < memory + sizeof memory));
    stack.ss_size = 100;
    CHECK_ERRNO("a stack that is too small", sigaltstack(&stack, NULL), ENOMEM);
    stack.ss_flags = 0x40;
    CHECK_ERRNO("a stack with bad flags", sigaltstack(&stack, NULL), EINVAL);
    stack.ss_flags = SS_DISABLE;
    CHECK("SS_DISABLE", sigaltstack(&stack, NULL) == 0 && sigaltstack(NULL, &old) == 0 && (old.ss_flags & SS_DISABLE));
}

/* ---- restarting ---- */

static void *interrupt_soon(void *thread)
{
    struct timespec pause = {.tv_nsec = 30000000};
    nanosleep(&pause, NULL);
    pthread_kill(*(pthread_t *)thread, SIGUSR1);
    nanosleep(&pause, NULL);
    if (write(ends[1], "x", 1) != 1)
        perror("write");
    return NULL;
}

static void restarting(void)
{
    pthread_t self = pthread_self(), other;
    char byte = 0;
    if (pipe(ends) != 0)
        return;
    install(SIGUSR1, count, SA_RESTART);
    caught = 0;
    pthread_create(&other, NULL, interrupt_soon, &self);
    CHECK("SA_RESTART: a read goes on", read(ends[0], &byte, 1) == 1 && byte == 'x');
    CHECK("and the handler ran", caught == 1);
    pthread_join(other, NULL);
    install(SIGUSR1, count, 0);
    pthread_create(&other, NULL, interrupt_soon, &self);
    CHECK_ERRNO("without it, EINTR", read(ends[0], &byte, 1), EINTR);
    pthread_join(other, NULL);
    CHECK("the byte comes later", read(ends[0], &byte, 1) == 1);
    install(SIGUSR1, count, SA_RESTART);
    struct timespec pause = {.tv_sec = 5}, left;
    pthread_create(&other, NULL, interrupt_soon, &self);
    CHECK_ERRNO("nanosleep is never restarted", nanosleep(&pause, &left), EINTR);
    CHECK("and tells what was left", left.tv_sec == 4 && left.tv_nsec > 500000000);
    pthread_join(other, NULL);
    close(ends[0]), close(ends[1]);
}

static void timers(void)
{
    struct itimerval interval = {.it_value = {.tv_usec = 20000}}, old;
    install(SIGALRM, count, 0);
    caught = 0;
    CHECK("setitimer", setitimer(ITIMER_REAL, &interval, NULL) == 0);
    CHECK("getitimer", getitimer(ITIMER_REAL, &old) == 0 && old.it_value.tv_sec == 0 && old.it_value.tv_usec <= 20000);
    pause();
    CHECK("SIGALRM ends a pause", caught == 1);
    CHECK("alarm", alarm(100) == 0 && alarm(0) >= 99);
    interval.it_interval.tv_usec = interval.it_value.tv_usec = 5000;
    caught = 0;
    setitimer(ITIMER_REAL, &interval, NULL);
    for (uint64_t end = tap_now_ns(CLOCK_MONOTONIC) + 2000000000u; caught < 5 && tap_now_ns(CLOCK_MONOTONIC) < end;)
        ;
    CHECK("an interval timer interrupts a busy program again and again", caught >= 5);
    memset(&interval, 0, sizeof interval);
    setitimer(ITIMER_REAL, &interval, NULL);
    volatile unsigned long turns = 0;
    caught = 0;
    interval.it_value.tv_usec = 20000;
    setitimer(ITIMER_REAL, &interval, NULL);
    while (caught == 0)
        turns++;
    CHECK("also one that makes no system call", turns > 0);
    interval.it_value.tv_usec = 1000000;
    CHECK_ERRNO("setitimer with a million microseconds", setitimer(ITIMER_REAL, &interval, NULL), EINVAL);
    CHECK_ERRNO("setitimer of an unknown clock", setitimer(9, &old, NULL), EINVAL);
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR2, .sigev_value.sival_int = 99};
    struct itimerspec spec = {.it_value.tv_nsec = 10000000};
    install_info(SIGUSR2, inspect, 0);
    value_seen = 0;
    CHECK("timer_create", timer_create(CLOCK_MONOTONIC, &event, &timer) == 0 && timer_settime(timer, 0, &spec, NULL) == 0);
    pause();
    CHECK("its signal and value", caught == SIGUSR2 && value_seen == 99 && code_seen == SI_TIMER);
    CHECK("timer_delete", timer_delete(timer) == 0);
    CHECK_ERRNO("T7 timer_create of a bad clock", syscall(SYS_timer_create, 77, &event, &timer), EINVAL);
}

static void waiting(void)
{
    sigset_t set;
    siginfo_t info;
    int number;
    struct timespec limit = {.tv_nsec = 10000000};
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    CHECK_ERRNO("sigtimedwait times out", sigtimedwait(&set, &info, &limit), EAGAIN);
    raise(SIGUSR1);
    CHECK("sigwait", sigwait(&set, &number) == 0 && number == SIGUSR1);
    sigqueue(getpid(), SIGUSR1, (union sigval){.sival_int = 5});
    CHECK("sigwaitinfo", sigwaitinfo(&set, &info) == SIGUSR1 && info.si_value.sival_int == 5);
    int fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    struct signalfd_siginfo record;
    CHECK("signalfd", fd >= 0);
    CHECK_ERRNO("an idle signalfd", read(fd, &record, sizeof record), EAGAIN);
    raise(SIGUSR1);
    CHECK("a signal read from it", read(fd, &record, sizeof record) == sizeof record && record.ssi_signo == SIGUSR1);
    close(fd);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    if (pipe(ends) != 0)
        return;
    close(ends[0]);
    CHECK_ERRNO("K25 a write to a broken pipe", write(ends[1], "x", 1), EPIPE);
    install(SIGPIPE, count, 0);
    caught = 0;
    CHECK_ERRNO("K25 raises SIGPIPE", write(ends[1], "x", 1), EPIPE);
    CHECK("K25 once", caught == 1);
    close(ends[1]);
    CHECK_ERRNO("wait without children", wait(NULL), ECHILD);
}

/* ---- vector registers survive a handler ---- */

static void clobber(int number)
{
    (void)number;
    __asm__ volatile("pcmpeqd %%xmm0, %%xmm0\n pcmpeqd %%xmm7, %%xmm7\n pcmpeqd %%xmm15, %%xmm15" : : : "xmm0", "xmm7", "xmm15");
    caught++;
}

static void state(void)
{
    install(SIGALRM, clobber, 0);
    struct itimerval interval = {{0, 2000}, {0, 2000}};
    caught = 0;
    setitimer(ITIMER_REAL, &interval, NULL);
    int right = 1;
    while (caught < 20 && right) {
        unsigned long low = 0x1122334455667788, high = 0, changed = 0;
        __asm__ volatile("movq %[low], %%xmm0\n movq %[low], %%xmm7\n movq %[low], %%xmm15\n mov $20000, %%ecx\n"
                         "1: dec %%ecx\n jnz 1b\n movq %%xmm0, %[high]\n xor %[low], %[high]\n mov %[high], %[changed]\n"
                         "movq %%xmm7, %[high]\n xor %[low], %[high]\n or %[high], %[changed]\n"
                         "movq %%xmm15, %[high]\n xor %[low], %[high]\n or %[high], %[changed]\n"
                         : [high] "+&r"(high), [changed] "+&r"(changed) : [low] "r"(low) : "rcx", "xmm0", "xmm7", "xmm15");
        right = changed == 0;
    }
    memset(&interval, 0, sizeof interval);
    setitimer(ITIMER_REAL, &interval, NULL);
    CHECK("vector registers survive handlers that use them", right);
}

int main(void)
{
    actions();
    masks();
    nesting();
    faults();
    alternate_stacks();
    restarting();
    timers();
    waiting();
    state();
    return tap_failures != 0;
}
