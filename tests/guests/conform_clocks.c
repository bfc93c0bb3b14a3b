/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * Claims about time.
 */
#include "tap.h"
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/times.h>

static int took(uint64_t start, uint64_t least_ns)
{
    uint64_t time = tap_now_ns(CLOCK_MONOTONIC) - start;
    return time >= least_ns && time < least_ns + 2000000000u;
}

int main(void)
{
    static const struct {
        const char *name;
        clockid_t clock;
    } clocks[] = {{"CLOCK_REALTIME", CLOCK_REALTIME}, {"CLOCK_MONOTONIC", CLOCK_MONOTONIC}, {"CLOCK_BOOTTIME", CLOCK_BOOTTIME},
                  {"CLOCK_MONOTONIC_RAW", CLOCK_MONOTONIC_RAW}, {"CLOCK_REALTIME_COARSE", CLOCK_REALTIME_COARSE},
                  {"CLOCK_MONOTONIC_COARSE", CLOCK_MONOTONIC_COARSE}, {"CLOCK_PROCESS_CPUTIME_ID", CLOCK_PROCESS_CPUTIME_ID},
                  {"CLOCK_THREAD_CPUTIME_ID", CLOCK_THREAD_CPUTIME_ID}, {"CLOCK_TAI", CLOCK_TAI}};
    struct timespec now, later, pause = {.tv_nsec = 20000000};
    struct timeval day;
    struct rusage usage;
    struct tms times_now;
    char name[128];
    for (size_t i = 0; i < sizeof clocks / sizeof *clocks; i++) {
        snprintf(name, sizeof name, "%s", clocks[i].name);
        CHECK(name, clock_gettime(clocks[i].clock, &now) == 0 && now.tv_nsec >= 0 && now.tv_nsec < 1000000000);
        snprintf(name, sizeof name, "%s has a resolution", clocks[i].name);
        CHECK(name, clock_getres(clocks[i].clock, &now) == 0 && now.tv_sec == 0 && now.tv_nsec > 0);
        snprintf(name, sizeof name, "%s by system call", clocks[i].name);
        CHECK(name, syscall(SYS_clock_gettime, clocks[i].clock, &now) == 0);
    }
    CHECK_ERRNO("T7 a bad clock", clock_gettime(77, &now), EINVAL);
    CHECK_ERRNO("T7 a bad clock by system call", syscall(SYS_clock_gettime, 77, &now), EINVAL);
    CHECK_ERRNO("N6 a clock to a bad address", syscall(SYS_clock_gettime, CLOCK_REALTIME, (void *)8), EFAULT);
    CHECK("time and clock_gettime agree", clock_gettime(CLOCK_REALTIME, &now) == 0 && labs(time(NULL) - now.tv_sec) <= 1);
    CHECK("gettimeofday agrees", gettimeofday(&day, NULL) == 0 && labs(day.tv_sec - now.tv_sec) <= 1 && day.tv_usec < 1000000);
    CHECK("it is after 2025", now.tv_sec > 1735689600);
    int right = 1;
    uint64_t last = 0;
    for (int i = 0; i < 100000; i++) {
        uint64_t this = tap_now_ns(CLOCK_MONOTONIC);
        right &= this >= last;
        last = this;
    }
    CHECK("CLOCK_MONOTONIC never goes back", right);
    for (int i = 0; i < 1000; i++) {
        uint64_t before = tap_now_ns(CLOCK_MONOTONIC);
        syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
        uint64_t between = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
        right &= before <= between && between <= tap_now_ns(CLOCK_MONOTONIC);
    }
    CHECK("the system call and the vDSO agree", right);
    uint64_t start = tap_now_ns(CLOCK_MONOTONIC), real = tap_now_ns(CLOCK_REALTIME);
    CHECK("nanosleep", nanosleep(&pause, NULL) == 0 && took(start, 20000000));
    uint64_t moved = tap_now_ns(CLOCK_REALTIME) - real;
    CHECK("CLOCK_REALTIME moves as fast", moved > 15000000 && moved < 2000000000);
    start = tap_now_ns(CLOCK_MONOTONIC);
    CHECK("N3 clock_nanosleep", clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL) == 0 && took(start, 20000000));
    clock_gettime(CLOCK_MONOTONIC, &later);
    start = tap_now_ns(CLOCK_MONOTONIC);
    later.tv_nsec += 20000000;
    later.tv_sec += later.tv_nsec / 1000000000, later.tv_nsec %= 1000000000;
    CHECK("until an absolute time", clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &later, NULL) == 0 && took(start, 19000000));
    CHECK("which is over", clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &later, NULL) == 0);
    CHECK("N3 a bad clock is told", clock_nanosleep(77, 0, &pause, NULL) == EINVAL);
    pause.tv_nsec = 1000000000;
    CHECK_ERRNO("a billion nanoseconds", nanosleep(&pause, NULL), EINVAL);
    pause = (struct timespec){.tv_sec = -1};
    CHECK_ERRNO("a negative time", nanosleep(&pause, NULL), EINVAL);
    CHECK_ERRNO("a time at a bad address", syscall(SYS_nanosleep, (void *)8, NULL), EFAULT);
    start = tap_now_ns(CLOCK_MONOTONIC);
    CHECK("usleep", usleep(1000) == 0 && took(start, 1000000));
    start = tap_now_ns(CLOCK_THREAD_CPUTIME_ID);
    for (volatile int i = 0; i < 20000000; i++)
        ;
    CHECK("CPU time passes while a program computes", tap_now_ns(CLOCK_THREAD_CPUTIME_ID) > start + 1000000);
    start = tap_now_ns(CLOCK_PROCESS_CPUTIME_ID);
    usleep(100000);
    CHECK("and not while it sleeps", tap_now_ns(CLOCK_PROCESS_CPUTIME_ID) < start + 50000000);
    CHECK("getrusage", getrusage(RUSAGE_SELF, &usage) == 0 && usage.ru_maxrss > 0);
    CHECK_ERRNO("getrusage of nobody", getrusage(77, &usage), EINVAL);
    CHECK("times", times(&times_now) != (clock_t)-1);
    struct tm broken;
    time_t fixed = 1000000000;
    gmtime_r(&fixed, &broken);
    CHECK("gmtime", broken.tm_year == 101 && broken.tm_mon == 8 && broken.tm_mday == 9);
    CHECK("localtime", localtime_r(&fixed, &broken) != NULL);
    return tap_failures != 0;
}
