/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * The memory through which the host and the fast path speak with one another (vmm/src/fast_path/layout.rs says the same in Rust). All of
 * it is the guest's to write: the host believes nothing in it.
 */
#ifndef KVMSERVER_FASTPATH_H
#define KVMSERVER_FASTPATH_H

#include <stdint.h>

enum {
	FAST_LOG_ENTRIES = 56,
	FAST_LISTENERS = 8,
	FAST_SETS = 8,
	FAST_MEMBERS = 16,
	FAST_FUTEXES = 16,
	FAST_EVENTS = 16,
	FAST_ADDRESS_BYTES = 32,
	FAST_INPUT_BYTES = 16384,
	FAST_OUTPUT_BYTES = 16384,
	FAST_PAGE = 4096,
};

/* What the registers were when the program made the call; in this order, as the entry stores them. */
struct fast_saved {
	uint64_t rcx, r11, rax, rbx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r12, r13, r14, r15;
};

/* A call that was answered here, for the host to repeat. */
struct fast_logged {
	uint32_t number;
	/* epoll_ctl: the events asked for. */
	uint32_t events;
	int64_t result;
	uint64_t args[6];
	/* epoll_ctl: the data; setsockopt, ioctl: the value. */
	uint64_t data;
};

/* The client's connection. */
struct fast_stream {
	/* -1 before it is accepted. */
	int32_t fd;
	/* F_GETFL and F_GETFD. */
	uint32_t flags;
	uint32_t close_on_exec;
	/* Whether options of TCP may be set. */
	uint32_t is_tcp;
	/* What it is ready for, whether or not bytes wait. */
	uint32_t events;
	/* The client sends nothing more. */
	uint32_t ended;
	uint32_t input_at;
	uint32_t input_end;
	/* The host has more than fitted into the input area. */
	uint32_t input_more;
	uint32_t output_at;
	uint32_t output_end;
	uint32_t peer_bytes;
	uint32_t local_bytes;
	uint32_t padding;
	uint8_t peer[FAST_ADDRESS_BYTES];
	uint8_t local[FAST_ADDRESS_BYTES];
};

/* A descriptor of a listening socket. */
struct fast_listener {
	int32_t fd;
	uint32_t file;
	/* Nothing waits, and accept says so instead of waiting. */
	uint32_t says_again;
	uint32_t padding;
};

/* A descriptor of an epoll set. */
struct fast_set {
	int32_t fd;
	uint32_t set;
	/* No member but those below can be ready. */
	uint32_t may_wait;
	uint32_t padding;
};

enum { FAST_STREAM_TARGET = 0 };
enum { FAST_SEEN = 1, FAST_ARRIVALS = 2, FAST_ROOM = 4, FAST_ENDS = 8 };

/* A member of an epoll set that watches the stream, a listener or an eventfd; those of one set are in the order in which it reports. */
struct fast_member {
	int32_t fd;
	uint16_t set;
	/* FAST_STREAM_TARGET, or 1 and the file of a listener or eventfd. */
	uint16_t target;
	/* As epoll_ctl was told, with what is always reported. */
	uint32_t events;
	/* A report of a one-shot member has disarmed it. */
	uint32_t armed;
	uint64_t data;
	/* What it was ready for at its last report, and what has happened since (FAST_SEEN and so on). */
	uint32_t seen_events;
	uint32_t seen;
};

/* An eventfd with one descriptor. */
struct fast_event {
	/* -1 where reads and writes are the host's: they may wake another thread. */
	int32_t fd;
	uint32_t file;
	uint64_t count;
	/* A read takes one of it. */
	uint32_t is_semaphore;
	/* O_NONBLOCK. */
	uint32_t says_again;
};

struct fast_area {
	/* Page 0. The system calls that are answered here, a bit a number; all clear: none. */
	uint64_t answered[8];
	struct fast_saved saved;
	/* `logged` when the current call began: once it has moved, the call is over. */
	uint64_t began;
	/* Calls in the log: adding one here commits an answer. */
	uint64_t logged;
	int64_t result;
	uint64_t space_end;
	struct fast_stream stream;
	struct fast_listener listeners[FAST_LISTENERS];
	struct fast_set sets[FAST_SETS];
	struct fast_member members[FAST_MEMBERS];
	struct fast_event events[FAST_EVENTS];
	/* Where threads wait on private futexes. */
	uint64_t futexes[FAST_FUTEXES];
	uint32_t listener_count;
	uint32_t set_count;
	uint32_t member_count;
	uint32_t futex_count;
	/* The listener that the stream waits at; -1 once it is accepted. */
	int32_t pending_file;
	int32_t free_fd;
	int32_t pid;
	int32_t tid;
	/* No other thread can run. */
	uint32_t alone;
	/* All futexes that are waited on are listed. */
	uint32_t futexes_known;
	uint32_t event_count;
	/* Descriptors that one poll may name, of those that are answered here. */
	uint32_t poll_most;
	uint8_t stack[FAST_PAGE - 1672];
	/* Page 1. */
	struct fast_logged log[FAST_LOG_ENTRIES];
	uint8_t unused[FAST_PAGE - FAST_LOG_ENTRIES * sizeof(struct fast_logged)];
	/* Pages 2 to 5: what the client has sent. Pages 6 to 9: what it is to get. */
	uint8_t input[FAST_INPUT_BYTES];
	uint8_t output[FAST_OUTPUT_BYTES];
};

_Static_assert(sizeof(struct fast_saved) == 128, "the host knows this layout");
_Static_assert(sizeof(struct fast_logged) == 72, "the host knows this layout");
_Static_assert(sizeof(struct fast_stream) == 120, "the host knows this layout");
_Static_assert(sizeof(struct fast_member) == 32, "the host knows this layout");
_Static_assert(__builtin_offsetof(struct fast_area, saved) == 64, "the host knows this layout");
_Static_assert(__builtin_offsetof(struct fast_area, began) == 192, "the host knows this layout");
_Static_assert(__builtin_offsetof(struct fast_area, logged) == 200, "the host knows this layout");
_Static_assert(__builtin_offsetof(struct fast_area, log) == FAST_PAGE, "the host knows this layout");
_Static_assert(__builtin_offsetof(struct fast_area, input) == 2 * FAST_PAGE, "the host knows this layout");
_Static_assert(sizeof(struct fast_area) == 10 * FAST_PAGE, "the host knows this layout");

#endif
