/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * The page from which vdso.c computes the time, as both sides see it: the host writes it (vmm/src/loader/vdso.rs mirrors the
 * struct and asserts the same size), the guest only reads it. It lies directly below the vDSO image.
 *
 *     nanoseconds(clock) = base(clock) + ((tsc - tsc_base) * mult >> shift)
 *
 * up to valid_ticks after tsc_base. Host clocks are disciplined all the time, so that the relation holds for about a second; the
 * system call that is made behind it is also the host's opportunity to write the page anew. The product has 96 bits. Writers make `sequence` odd, change the fields, and make it even again; a reader that saw an odd
 * number or two different ones starts over. In practice the host writes while the virtual processor stands still, but a
 * thread may have been stopped in the middle of reading.
 */
#ifndef KVMSERVER_CLOCK_PAGE_H
#define KVMSERVER_CLOCK_PAGE_H

#include <stddef.h>
#include <stdint.h>

#define CLOCK_PAGE_BYTES 4096

/* Bit of `flags`: the fields below are valid and the guest's time stamp counter is the host's. Without it every clock is
 * asked by system call. */
#define CLOCK_PAGE_TSC 1u

struct clock_page {
	uint32_t sequence;
	uint32_t flags;
	uint64_t tsc_base;     /* time stamp counter at the instant of the two clock values */
	uint64_t monotonic_ns; /* CLOCK_MONOTONIC (and CLOCK_BOOTTIME) of the guest then */
	uint64_t realtime_ns;  /* CLOCK_REALTIME then, since the epoch */
	uint32_t mult;         /* nanoseconds a tick, times two to the power of shift */
	uint32_t shift;        /* at most 63 */
	uint64_t valid_ticks;  /* so many ticks after tsc_base the page is out of date: ask by system call */
	uint64_t reserved[2];
};

_Static_assert(sizeof(struct clock_page) == 64, "shared with vmm/src/loader/vdso.rs");
_Static_assert(offsetof(struct clock_page, tsc_base) == 8, "shared with vmm/src/loader/vdso.rs");
_Static_assert(offsetof(struct clock_page, valid_ticks) == 40, "shared with vmm/src/loader/vdso.rs");
_Static_assert(offsetof(struct clock_page, mult) == 32, "shared with vmm/src/loader/vdso.rs");

#endif
