/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * The vDSO of a guest: clocks without a system call, which would cost an exit of the virtual machine (vdso(7)).
 *
 * Freestanding, position independent, without relocations and without writable data: the image is copied into a guest as it
 * is. It reads one page of the host's, at a fixed distance below its own start (clock_page.h). Whatever it cannot answer goes
 * to the system call, with the same arguments and the same result.
 */
#include "clock_page.h"

#define NS_PER_SECOND 1000000000ull

enum clock {
	REALTIME = 0,
	MONOTONIC = 1,
	REALTIME_COARSE = 5,
	MONOTONIC_COARSE = 6,
	BOOTTIME = 7,
};

enum system_call { CALL_GETTIMEOFDAY = 96, CALL_TIME = 201, CALL_CLOCK_GETTIME = 228, CALL_CLOCK_GETRES = 229 };

struct timespec64 {
	int64_t seconds;
	int64_t nanoseconds;
};

struct timeval64 {
	int64_t seconds;
	int64_t microseconds;
};

struct timezone32 {
	int32_t minutes_west;
	int32_t summer_time;
};

/* Provided by the linker: the first byte of the image. */
extern const char __ehdr_start[] __attribute__((visibility("hidden")));

#define EXPORT __attribute__((visibility("default"), used))
#define ALIAS(name) __attribute__((visibility("default"), weak, alias(#name)))

static inline const volatile struct clock_page *clock_page(void)
{
	const char *start = __ehdr_start;
	/* The page is outside the object the compiler knows; it must not reason from that object's bounds. */
	__asm__("" : "+r"(start));
	return (const volatile struct clock_page *)(start - CLOCK_PAGE_BYTES);
}

static inline long system_call(long number, long first, long second)
{
	long result;
	__asm__ volatile("syscall" : "=a"(result) : "0"(number), "D"(first), "S"(second) : "rcx", "r11", "memory");
	return result;
}

/* The counter, read after everything before it (Intel SDM volume 2, RDTSC: LFENCE orders it). */
static inline uint64_t time_stamp(void)
{
	uint32_t low, high;
	__asm__ volatile("lfence\n\trdtsc" : "=a"(low), "=d"(high) : : "memory");
	return (uint64_t)high << 32 | low;
}

/* The time of the realtime or the monotonic clock; 0 where the page does not give it. */
static inline int read_clock(int realtime, uint64_t *nanoseconds)
{
	const volatile struct clock_page *page = clock_page();
	for (;;) {
		uint32_t sequence = page->sequence;
		__asm__ volatile("" : : : "memory");
		if (sequence & 1) {
			__asm__ volatile("pause");
			continue;
		}
		if (!(page->flags & CLOCK_PAGE_TSC))
			return 0;
		uint64_t base = realtime ? page->realtime_ns : page->monotonic_ns;
		uint64_t ticks = time_stamp() - page->tsc_base;
		/* Another processor's counter may be a few ticks behind the one that wrote the page. */
		if ((int64_t)ticks < 0)
			ticks = 0;
		if (ticks > page->valid_ticks)
			return 0;
		unsigned __int128 scaled = (unsigned __int128)ticks * page->mult;
		*nanoseconds = base + (uint64_t)(scaled >> (page->shift & 63));
		__asm__ volatile("" : : : "memory");
		if (page->sequence == sequence)
			return 1;
	}
}

EXPORT int __vdso_clock_gettime(int clock, struct timespec64 *time)
{
	uint64_t now;
	int realtime = clock == REALTIME || clock == REALTIME_COARSE;
	int known = realtime || clock == MONOTONIC || clock == MONOTONIC_COARSE || clock == BOOTTIME;
	if (!known || !read_clock(realtime, &now))
		return (int)system_call(CALL_CLOCK_GETTIME, clock, (long)time);
	time->seconds = (int64_t)(now / NS_PER_SECOND);
	time->nanoseconds = (int64_t)(now % NS_PER_SECOND);
	return 0;
}

EXPORT int __vdso_gettimeofday(struct timeval64 *time, struct timezone32 *zone)
{
	uint64_t now;
	if (!read_clock(1, &now))
		return (int)system_call(CALL_GETTIMEOFDAY, (long)time, (long)zone);
	if (time) {
		time->seconds = (int64_t)(now / NS_PER_SECOND);
		time->microseconds = (int64_t)(now % NS_PER_SECOND / 1000);
	}
	if (zone)
		*zone = (struct timezone32){0, 0};
	return 0;
}

EXPORT long __vdso_time(long *time)
{
	uint64_t now;
	if (!read_clock(1, &now))
		return system_call(CALL_TIME, (long)time, 0);
	long seconds = (long)(now / NS_PER_SECOND);
	if (time)
		*time = seconds;
	return seconds;
}

/* Resolutions never change, but only our Linux knows those of the other clocks; nobody asks often. */
EXPORT int __vdso_clock_getres(int clock, struct timespec64 *resolution)
{
	return (int)system_call(CALL_CLOCK_GETRES, clock, (long)resolution);
}

/* A guest has one processor. */
EXPORT long __vdso_getcpu(unsigned *cpu, unsigned *node, void *unused)
{
	(void)unused;
	if (cpu)
		*cpu = 0;
	if (node)
		*node = 0;
	return 0;
}

ALIAS(__vdso_clock_gettime) int clock_gettime(int clock, struct timespec64 *time);
ALIAS(__vdso_gettimeofday) int gettimeofday(struct timeval64 *time, struct timezone32 *zone);
ALIAS(__vdso_time) long time(long *time);
ALIAS(__vdso_clock_getres) int clock_getres(int clock, struct timespec64 *resolution);
ALIAS(__vdso_getcpu) long getcpu(unsigned *cpu, unsigned *node, void *unused);
