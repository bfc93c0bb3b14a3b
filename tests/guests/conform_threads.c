/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * Claims about threads: creation, futexes, locks, conditions, thread-local state, scheduling, ends.
 */
#include "tap.h"
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/resource.h>

static long futex(_Atomic uint32_t *word, int operation, uint32_t value, const void *timeout, void *second, uint32_t third)
{
    return syscall(SYS_futex, word, operation, value, timeout, second, third);
}

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static _Atomic uint32_t word, woken, started;
static __thread int local = 42;
static long total;

/* ---- creation ---- */

static void *own_local(void *argument)
{
    int fresh = local == 42;
    local = (int)(intptr_t)argument;
    sched_yield();
    return (void *)(intptr_t)(fresh && local == (int)(intptr_t)argument);
}

static void *add(void *argument)
{
    for (int i = 0; i < 20000; i++) {
        pthread_mutex_lock(&mutex);
        total++;
        pthread_mutex_unlock(&mutex);
    }
    return argument;
}

static void *identity(void *unused)
{
    (void)unused;
    return (void *)(intptr_t)syscall(SYS_gettid);
}

static void *spin(void *flag)
{
    while (!atomic_load((_Atomic int *)flag))
        ;
    return NULL;
}

static void *use_stack(void *unused)
{
    volatile char large[6 << 20];
    for (size_t i = 0; i < sizeof large; i += 4096)
        large[i] = (char)(i >> 12);
    return (void *)(intptr_t)(large[4096] == 1 ? 1 : (intptr_t)unused);
}

static void creation(void)
{
    pthread_t threads[16];
    void *result;
    int right = 1;
    for (intptr_t i = 0; i < 16; i++)
        right &= pthread_create(&threads[i], NULL, own_local, (void *)i) == 0;
    for (int i = 0; i < 16; i++)
        right &= pthread_join(threads[i], &result) == 0 && result == (void *)1;
    CHECK("16 threads, each with its own thread-local variable", right && local == 42);
    for (int i = 0; i < 8; i++)
        pthread_create(&threads[i], NULL, add, NULL);
    for (int i = 0; i < 8; i++)
        pthread_join(threads[i], NULL);
    CHECK("8 threads add under a mutex", total == 160000);
    pthread_create(&threads[0], NULL, identity, NULL);
    pthread_join(threads[0], &result);
    CHECK("a thread has its own gettid", (intptr_t)result != syscall(SYS_gettid) && (intptr_t)result > 0);
    CHECK("the first thread's gettid is getpid", syscall(SYS_gettid) == getpid());
    right = 1;
    for (int i = 0; i < 500; i++)
        right &= pthread_create(&threads[0], NULL, identity, NULL) == 0 && pthread_join(threads[0], NULL) == 0;
    CHECK("500 threads, one after another", right);
    _Atomic int flag = 0;
    pthread_create(&threads[0], NULL, spin, &flag);
    struct timespec pause = {.tv_nsec = 20000000};
    nanosleep(&pause, NULL);
    atomic_store(&flag, 1);
    CHECK("T41 a thread that spins is preempted", pthread_join(threads[0], NULL) == 0);
    pthread_attr_t attributes;
    size_t size = 0;
    pthread_attr_init(&attributes);
    CHECK("T42 the default stack size is sane", pthread_attr_getstacksize(&attributes, &size) == 0 && size >= 1 << 20 && size <= 1 << 30);
    pthread_create(&threads[0], NULL, use_stack, NULL);
    pthread_join(threads[0], &result);
    CHECK("T42 6 MiB of a default stack can be used", result == (void *)1);
    CHECK_ERRNO("clone with bad flags", syscall(SYS_clone, CLONE_THREAD, 0, 0, 0, 0), EINVAL);
    CHECK_ERRNO("clone3 of a wrong size", syscall(SYS_clone3, &pause, 8), EINVAL);
}

/* ---- T18: a clone bomb ---- */

static _Atomic int gate;

static void *wait_at_gate(void *unused)
{
    while (!atomic_load(&gate))
        futex((_Atomic uint32_t *)&gate, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
    return unused;
}

static void bomb(void)
{
    static pthread_t threads[100000];
    pthread_attr_t attributes;
    struct rlimit limit = {300, 300}, old;
    int count = 0, error = 0;
    getrlimit(RLIMIT_NPROC, &old);
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 65536);
    /* As root no limit holds natively, so stop there; a guest without a limit would go on to the end of the array. */
    int most = getenv("NATIVE") ? 400 : 100000;
    setrlimit(RLIMIT_NPROC, &limit);
    while (count < most && (error = pthread_create(&threads[count], &attributes, wait_at_gate, NULL)) == 0)
        count++;
    CHECK("T18 a clone bomb ends with EAGAIN", error == EAGAIN || (most == 400 && count == 400));
    CHECK("T18 not before 200 threads", count >= 200);
    atomic_store(&gate, 1);
    futex((_Atomic uint32_t *)&gate, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
    for (int i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    setrlimit(RLIMIT_NPROC, &old);
    CHECK("T18 afterwards a thread can be made", pthread_create(&threads[0], NULL, wait_at_gate, NULL) == 0 && pthread_join(threads[0], NULL) == 0);
}

/* ---- futexes ---- */

static void *wait_for_word(void *argument)
{
    atomic_fetch_add(&started, 1);
    long result = futex(&word, FUTEX_WAIT_BITSET_PRIVATE, 0, NULL, NULL, (uint32_t)(uintptr_t)argument);
    if (result == 0)
        atomic_fetch_add(&woken, 1);
    return NULL;
}

static void until(_Atomic uint32_t *value, uint32_t wanted)
{
    struct timespec pause = {.tv_nsec = 1000000};
    for (int i = 0; i < 5000 && atomic_load(value) < wanted; i++)
        nanosleep(&pause, NULL);
    nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
}

static void futexes(void)
{
    struct timespec short_time = {.tv_nsec = 5000000}, past = {.tv_sec = 1}, bad = {.tv_nsec = 1000000000};
    _Atomic uint32_t other = 0;
    pthread_t threads[4];
    CHECK_ERRNO("a wait for another value", futex(&word, FUTEX_WAIT_PRIVATE, 5, NULL, NULL, 0), EAGAIN);
    CHECK_ERRNO("a wait with a timeout", futex(&word, FUTEX_WAIT_PRIVATE, 0, &short_time, NULL, 0), ETIMEDOUT);
    CHECK_ERRNO("a wait until a time that is over", futex(&word, FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME, 0, &past, NULL, ~0u), ETIMEDOUT);
    CHECK_ERRNO("a wait with a bad timeout", futex(&word, FUTEX_WAIT_PRIVATE, 0, &bad, NULL, 0), EINVAL);
    CHECK_ERRNO("a wait without bits", futex(&word, FUTEX_WAIT_BITSET_PRIVATE, 0, NULL, NULL, 0), EINVAL);
    CHECK_ERRNO("a futex at an odd address", futex((_Atomic uint32_t *)((char *)&word + 1), FUTEX_WAIT_PRIVATE, 0, &short_time, NULL, 0), EINVAL);
    CHECK_ERRNO("a futex at a bad address", futex((_Atomic uint32_t *)4096, FUTEX_WAIT_PRIVATE, 0, &short_time, NULL, 0), EFAULT);
    CHECK_ERRNO("an unknown operation", futex(&word, 100, 0, NULL, NULL, 0), ENOSYS);
    CHECK("a wake of nobody", futex(&word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0) == 0);
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, wait_for_word, (void *)(uintptr_t)(1u << i));
    until(&started, 4);
    CHECK("a wake by bits", futex(&word, FUTEX_WAKE_BITSET_PRIVATE, 10, NULL, NULL, 4) == 1);
    until(&woken, 1);
    CHECK("wakes one", atomic_load(&woken) == 1);
    CHECK_ERRNO("CMP_REQUEUE with another value", futex(&word, FUTEX_CMP_REQUEUE_PRIVATE, 1, (void *)1, &other, 7), EAGAIN);
    CHECK("CMP_REQUEUE wakes one and moves two", futex(&word, FUTEX_CMP_REQUEUE_PRIVATE, 1, (void *)2, &other, 0) == 3);
    until(&woken, 2);
    CHECK("nobody is left", futex(&word, FUTEX_WAKE_PRIVATE, 10, NULL, NULL, 0) == 0);
    CHECK("WAKE_OP changes the second word and wakes there",
          futex(&word, FUTEX_WAKE_OP_PRIVATE, 1, (void *)10, &other, FUTEX_OP(FUTEX_OP_ADD, 9, FUTEX_OP_CMP_EQ, 0)) == 2);
    CHECK("its arithmetic", atomic_load(&other) == 9);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    CHECK("all were woken", atomic_load(&woken) == 4);
}

/* ---- T44: lost wake-ups ---- */

static int turn;

static void *ping(void *side)
{
    for (int round = 0; round < 20000; round++) {
        pthread_mutex_lock(&mutex);
        while (turn != (int)(intptr_t)side)
            pthread_cond_wait(&condition, &mutex);
        turn = !turn;
        pthread_cond_broadcast(&condition);
        pthread_mutex_unlock(&mutex);
    }
    return NULL;
}

static sem_t full, empty;
static long received;

static void *consume(void *unused)
{
    for (int i = 0; i < 5000; i++) {
        sem_wait(&full);
        __atomic_add_fetch(&received, 1, __ATOMIC_RELAXED);
        sem_post(&empty);
    }
    return unused;
}

static void *produce(void *unused)
{
    for (int i = 0; i < 5000; i++) {
        sem_wait(&empty);
        sem_post(&full);
    }
    return unused;
}

static void *die_with_lock(void *robust)
{
    pthread_mutex_lock(robust);
    return NULL;
}

static pthread_barrier_t barrier;
static _Atomic int serial;

static void *meet(void *unused)
{
    for (int i = 0; i < 1000; i++)
        if (pthread_barrier_wait(&barrier) == PTHREAD_BARRIER_SERIAL_THREAD)
            atomic_fetch_add(&serial, 1);
    return unused;
}

static void *set_once(void *unused)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    extern void run_once(void);
    pthread_once(&once, run_once);
    return unused;
}

static int once_count;

void run_once(void)
{
    once_count++;
}

static void locks(void)
{
    pthread_t threads[8];
    pthread_create(&threads[0], NULL, ping, (void *)0);
    pthread_create(&threads[1], NULL, ping, (void *)1);
    CHECK("T44 mutex and condition ping-pong, 40,000 turns", pthread_join(threads[0], NULL) == 0 && pthread_join(threads[1], NULL) == 0);
    sem_init(&full, 0, 0), sem_init(&empty, 0, 3);
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, consume, NULL), pthread_create(&threads[i + 4], NULL, produce, NULL);
    for (int i = 0; i < 8; i++)
        pthread_join(threads[i], NULL);
    CHECK("T44 semaphores, 4 producers and 4 consumers", received == 20000);
    pthread_mutexattr_t attributes;
    pthread_mutex_t robust;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&robust, &attributes);
    pthread_create(&threads[0], NULL, die_with_lock, &robust);
    pthread_join(threads[0], NULL);
    CHECK("a robust mutex tells that its owner died", pthread_mutex_lock(&robust) == EOWNERDEAD && pthread_mutex_consistent(&robust) == 0);
    CHECK("and can be used again", pthread_mutex_unlock(&robust) == 0 && pthread_mutex_lock(&robust) == 0 && pthread_mutex_unlock(&robust) == 0);
    pthread_mutex_t inheriting;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT);
    CHECK("a priority-inheriting mutex", pthread_mutex_init(&inheriting, &attributes) == 0 && pthread_mutex_lock(&inheriting) == 0 && pthread_mutex_unlock(&inheriting) == 0);
    struct timespec limit;
    clock_gettime(CLOCK_REALTIME, &limit);
    limit.tv_nsec += 10000000;
    limit.tv_sec += limit.tv_nsec / 1000000000, limit.tv_nsec %= 1000000000;
    pthread_mutex_lock(&mutex);
    CHECK("a condition times out", pthread_cond_timedwait(&condition, &mutex, &limit) == ETIMEDOUT);
    CHECK("a mutex times out", pthread_mutex_timedlock(&mutex, &limit) == ETIMEDOUT);
    pthread_mutex_unlock(&mutex);
    pthread_barrier_init(&barrier, NULL, 4);
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, meet, NULL);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    CHECK("4 threads meet at a barrier 1,000 times", atomic_load(&serial) == 1000);
    for (int i = 0; i < 8; i++)
        pthread_create(&threads[i], NULL, set_once, NULL);
    for (int i = 0; i < 8; i++)
        pthread_join(threads[i], NULL);
    CHECK("pthread_once", once_count == 1);
}

/* ---- scheduling and ends ---- */

static _Atomic int cleaned;

static void clean(void *unused)
{
    (void)unused;
    atomic_fetch_add(&cleaned, 1);
}

static void *cancelled(void *unused)
{
    pthread_cleanup_push(clean, NULL);
    for (;;)
        pause();
    pthread_cleanup_pop(0);
    return unused;
}

static void *signal_mask(void *unused)
{
    sigset_t set;
    pthread_sigmask(SIG_SETMASK, NULL, &set);
    return (void *)(intptr_t)(sigismember(&set, SIGUSR1) && unused == NULL);
}

static void ends(void)
{
    pthread_t thread;
    void *result;
    cpu_set_t set;
    sigset_t signals;
    pthread_create(&thread, NULL, cancelled, NULL);
    nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    pthread_cancel(thread);
    pthread_join(thread, &result);
    CHECK("a cancelled thread cleans up", result == PTHREAD_CANCELED && atomic_load(&cleaned) == 1);
    sigemptyset(&signals), sigaddset(&signals, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    pthread_create(&thread, NULL, signal_mask, NULL);
    pthread_join(thread, &result);
    pthread_sigmask(SIG_UNBLOCK, &signals, NULL);
    CHECK("a thread inherits its signal mask", result == (void *)1);
    CHECK("T49 sched_getaffinity names at least one processor", sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) >= 1);
    CHECK("T49 the raw call returns a number of bytes", syscall(SYS_sched_getaffinity, 0, sizeof set, &set) > 0);
    CHECK_ERRNO("T49 into too few bytes", syscall(SYS_sched_getaffinity, 0, 1, &set), EINVAL);
    CHECK("sched_getcpu", sched_getcpu() >= 0);
    CHECK("sched_yield", sched_yield() == 0);
    CHECK("sched_getscheduler", sched_getscheduler(0) == SCHED_OTHER);
    CHECK("getpriority", (errno = 0, getpriority(PRIO_PROCESS, 0) >= -20 && errno == 0));
    void *head;
    size_t length;
    CHECK("get_robust_list", syscall(SYS_get_robust_list, 0, &head, &length) == 0 && length == 24 && head != NULL);
    CHECK("set_tid_address gives gettid", syscall(SYS_set_tid_address, &head) == syscall(SYS_gettid));
}

int main(void)
{
    creation();
    bomb();
    futexes();
    locks();
    ends();
    return tap_failures != 0;
}
