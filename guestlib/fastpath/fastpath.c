/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * System calls that are answered inside the virtual machine, in user mode, because an exit would cost more than the answer: those
 * that a server makes for the request it is answering.
 *
 * The host says in an area of the guest's memory (fastpath.h) what is known of the client's connection, the listeners and the epoll
 * sets. A call that this settles is answered and logged; the host makes the same call on its own objects at the next exit, before it
 * does anything else. Whatever is not settled goes to the host with all registers as they were.
 *
 * Each answer is committed by one store (`logged`). The host takes back a call that it interrupts before that, and finishes one that it
 * interrupts behind it, without looking at where in here it was; so nothing before `commit` changes what the host has said, and what
 * is changed behind it is only for the calls to come. A pointer that faults is found by the host, too, which then makes the call.
 */
#include "fastpath.h"

extern struct fast_area fast_area __attribute__((visibility("hidden")));

#define AREA "fast_area"
#define SAVED(offset) AREA " + 64 + " #offset "(%rip)"

/* The host reads this first: where things are, from the start of the image. */
__asm__(".section .header, \"a\"\n"
	".globl fast_header\n"
	"fast_header:\n"
	".quad fast_entry - fast_header\n"
	".quad fast_body - fast_header\n"
	".quad fast_exit - fast_header\n"
	".quad fast_image_end - fast_header\n"
	".previous\n");

/* The system-call entry comes here with the address behind the `syscall` in `saved.rcx`; RCX is free and R11 holds the flags. Up to
 * fast_body all other registers are the program's own. */
__asm__(".section .entry, \"ax\"\n"
	".globl fast_entry\n"
	"fast_entry:\n"
	"	mov %r11, " SAVED(8) "\n"
	"	mov %rax, " SAVED(16) "\n"
	"	mov %rbx, " SAVED(24) "\n"
	"	mov %rdx, " SAVED(32) "\n"
	"	mov %rsi, " SAVED(40) "\n"
	"	mov %rdi, " SAVED(48) "\n"
	"	mov %rsp, " SAVED(56) "\n"
	"	mov %rbp, " SAVED(64) "\n"
	"	mov %r8, " SAVED(72) "\n"
	"	mov %r9, " SAVED(80) "\n"
	"	mov %r10, " SAVED(88) "\n"
	"	mov %r12, " SAVED(96) "\n"
	"	mov %r13, " SAVED(104) "\n"
	"	mov %r14, " SAVED(112) "\n"
	"	mov %r15, " SAVED(120) "\n"
	"	mov " AREA " + 200(%rip), %rcx\n"
	"	mov %rcx, " AREA " + 192(%rip)\n"
	"fast_body:\n"
	"	lea " AREA " + 4096(%rip), %rsp\n"
	"	cld\n"
	"	call fast_call\n"
	"	test %eax, %eax\n"
	"	mov " SAVED(32) ", %rdx\n"
	"	mov " SAVED(40) ", %rsi\n"
	"	mov " SAVED(48) ", %rdi\n"
	"	mov " SAVED(72) ", %r8\n"
	"	mov " SAVED(80) ", %r9\n"
	"	mov " SAVED(88) ", %r10\n"
	"	jz 1f\n"
	"	mov " AREA " + 208(%rip), %rax\n"
	"	mov " SAVED(0) ", %rcx\n"
	"	mov " SAVED(8) ", %r11\n"
	"	push %r11\n"
	"	popfq\n"
	"	mov " SAVED(56) ", %rsp\n"
	"	jmp *" SAVED(0) "\n"
	"1:	mov " SAVED(16) ", %rax\n"
	"	mov " SAVED(56) ", %rsp\n"
	"	syscall\n"
	"fast_exit:\n"
	"	ud2\n"
	".previous\n");

enum call {
	CALL_READ = 0,
	CALL_WRITE = 1,
	CALL_POLL = 7,
	CALL_IOCTL = 16,
	CALL_READV = 19,
	CALL_WRITEV = 20,
	CALL_SCHED_YIELD = 24,
	CALL_GETPID = 39,
	CALL_ACCEPT = 43,
	CALL_SENDTO = 44,
	CALL_RECVFROM = 45,
	CALL_SENDMSG = 46,
	CALL_RECVMSG = 47,
	CALL_GETSOCKNAME = 51,
	CALL_GETPEERNAME = 52,
	CALL_SETSOCKOPT = 54,
	CALL_GETSOCKOPT = 55,
	CALL_FCNTL = 72,
	CALL_GETTID = 186,
	CALL_FUTEX = 202,
	CALL_EPOLL_WAIT = 232,
	CALL_EPOLL_CTL = 233,
	CALL_PPOLL = 271,
	CALL_EPOLL_PWAIT = 281,
	CALL_ACCEPT4 = 288,
	CALL_EPOLL_PWAIT2 = 441,
};

enum {
	EAGAIN = 11,
	O_NONBLOCK = 0x800,
	O_CLOEXEC = 0x80000,
	O_RDWR = 2,
	/* What F_SETFL can change: O_APPEND, O_NONBLOCK, O_DIRECT, O_NOATIME. */
	SETTABLE = 0x44c00,
	POLL_IN = 0x41, /* EPOLLIN | EPOLLRDNORM */
	EVENT_IN = 1,
	EVENT_OUT = 4,
	POLL_READING = 0xc3, /* EPOLLIN | EPOLLPRI | EPOLLRDNORM | EPOLLRDBAND */
	POLL_WRITING = 0x304, /* EPOLLOUT | EPOLLWRNORM | EPOLLWRBAND */
	POLL_ALWAYS = 0x18, /* EPOLLERR | EPOLLHUP */
	POLL_EVENTS = 0x23ff,
	MSG_DONTWAIT = 0x40,
	MSG_NOSIGNAL = 0x4000,
	MSG_MORE = 0x8000,
	POLLED = 8,
	IOVECS = 1024,
	/* MAX_RW_COUNT: longer transfers are cut down or refused. */
	LONGEST = 0x7ffff000,
	/* Events that one epoll_wait may ask for. */
	EVENTS = 0x7fffffff / 12,
};
#define EPOLLEXCLUSIVE (1u << 28)
#define EPOLLONESHOT (1u << 30)
#define EPOLLET (1u << 31)

struct iovec64 {
	uint64_t base, length;
};

struct msghdr64 {
	uint64_t name;
	uint32_t name_bytes, padding;
	struct iovec64 *segments;
	uint64_t segment_count;
	uint64_t control, control_bytes;
	uint32_t flags, padding_2;
};

struct pollfd16 {
	int32_t fd;
	uint16_t events, revents;
};

struct event {
	uint32_t events;
	uint64_t data;
} __attribute__((packed));

/* What a call comes to here. */
enum verdict { TO_THE_HOST = 0, ANSWERED = 1 };

static struct fast_area *const area = &fast_area;

/* No loop of a copy may become a call of memcpy: there is none. */
static inline void copy(void *to, const void *from, uint64_t bytes)
{
	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
}

static inline void settled(void)
{
	__asm__ volatile("" : : : "memory");
}

/* The answer counts from here on. */
static void commit_with(int64_t result, uint32_t events, uint64_t data)
{
	uint64_t index = area->began;
	struct fast_logged *entry = &area->log[index];
	entry->number = (uint32_t)area->saved.rax;
	entry->events = events;
	entry->result = result;
	entry->args[0] = area->saved.rdi;
	entry->args[1] = area->saved.rsi;
	entry->args[2] = area->saved.rdx;
	entry->args[3] = area->saved.r10;
	entry->args[4] = area->saved.r8;
	entry->args[5] = area->saved.r9;
	entry->data = data;
	area->result = result;
	settled();
	*(volatile uint64_t *)&area->logged = index + 1;
	settled();
}

static enum verdict answer(int64_t result)
{
	commit_with(result, 0, 0);
	return ANSWERED;
}

static int is_stream(uint64_t fd)
{
	return area->stream.fd >= 0 && (int32_t)fd == area->stream.fd;
}

static const struct fast_listener *find_listener(uint64_t fd)
{
	for (uint32_t index = 0; index < area->listener_count && index < FAST_LISTENERS; index++)
		if (area->listeners[index].fd == (int32_t)fd)
			return &area->listeners[index];
	return 0;
}

static const struct fast_set *find_set(uint64_t fd)
{
	for (uint32_t index = 0; index < area->set_count && index < FAST_SETS; index++)
		if (area->sets[index].fd == (int32_t)fd)
			return &area->sets[index];
	return 0;
}

static struct fast_event *find_event(uint64_t fd)
{
	for (uint32_t index = 0; index < area->event_count && index < FAST_EVENTS; index++)
		if (area->events[index].fd == (int32_t)fd && area->events[index].fd >= 0)
			return &area->events[index];
	return 0;
}

/* Transfers. */

/* How many bytes a read would get, or -1 where the host has to say: it would wait, or there is more than is here. */
static int64_t readable(uint64_t wanted, int dont_wait)
{
	const struct fast_stream *stream = &area->stream;
	uint64_t here = stream->input_end - stream->input_at;
	if (wanted == 0 || (wanted > here && stream->input_more))
		return -1;
	if (here > 0)
		return wanted < here ? wanted : here;
	if (stream->ended)
		return 0;
	return dont_wait || (stream->flags & O_NONBLOCK) ? -EAGAIN : -1;
}

static enum verdict consumed(int64_t count)
{
	commit_with(count, 0, 0);
	if (count > 0)
		area->stream.input_at += count;
	return ANSWERED;
}

static enum verdict receive(uint64_t buffer, uint64_t length, int dont_wait)
{
	if (length > LONGEST)
		return TO_THE_HOST;
	int64_t count = readable(length, dont_wait);
	if (count == -1)
		return TO_THE_HOST;
	if (count > 0)
		copy((void *)buffer, area->input + area->stream.input_at, count);
	return consumed(count);
}

/* Whether two ranges have a byte in common; those that wrap around have all. */
static int overlap(uint64_t first, uint64_t first_bytes, uint64_t second, uint64_t second_bytes)
{
	return first + first_bytes < first || second + second_bytes < second ||
	       (first < second + second_bytes && second < first + first_bytes);
}

/* The bytes that segments name together; ~0 where the host has to say what is wrong with them, or where one of them holds what
 * describes them, the array or `description`: it could not be read a second time. */
static uint64_t total(const volatile struct iovec64 *segments, uint64_t count, const void *description, uint64_t described)
{
	uint64_t sum = 0;
	if (count > IOVECS)
		return ~0ull;
	for (uint64_t index = 0; index < count; index++) {
		uint64_t base = segments[index].base, length = segments[index].length;
		if (length > LONGEST || sum > LONGEST || overlap(base, length, (uint64_t)segments, count * sizeof *segments) ||
		    overlap(base, length, (uint64_t)description, described))
			return ~0ull;
		sum += length;
	}
	return sum;
}

/* Copy `bytes` bytes between the segments and the area, in the direction asked for. */
static void move(const volatile struct iovec64 *segments, uint8_t *at, uint64_t bytes, int to_segments)
{
	for (uint64_t index = 0; bytes > 0 && index < IOVECS; index++) {
		uint64_t base = segments[index].base, length = segments[index].length;
		if (length > bytes)
			length = bytes;
		if (to_segments)
			copy((void *)base, at, length);
		else
			copy(at, (const void *)base, length);
		at += length;
		bytes -= length;
	}
}

static enum verdict receive_segments(const struct iovec64 *segments, uint64_t count, struct msghdr64 *message, int dont_wait)
{
	uint64_t wanted = total(segments, count, message, message ? sizeof *message : 0);
	if (wanted == ~0ull)
		return TO_THE_HOST;
	int64_t got = readable(wanted, dont_wait);
	if (got == -1)
		return TO_THE_HOST;
	if (got > 0)
		move(segments, area->input + area->stream.input_at, got, 1);
	if (message && got >= 0) {
		message->control_bytes = 0;
		message->flags = 0;
	}
	return consumed(got);
}

static int has_room(uint64_t bytes)
{
	const struct fast_stream *stream = &area->stream;
	return bytes > 0 && bytes <= stream->output_end - stream->output_at;
}

static enum verdict sent(uint64_t bytes)
{
	commit_with(bytes, 0, 0);
	area->stream.output_at += bytes;
	return ANSWERED;
}

static enum verdict transmit(uint64_t buffer, uint64_t length)
{
	if (!has_room(length))
		return TO_THE_HOST;
	copy(area->output + area->stream.output_at, (const void *)buffer, length);
	return sent(length);
}

static enum verdict transmit_segments(const struct iovec64 *segments, uint64_t count)
{
	uint64_t bytes = total(segments, count, 0, 0);
	if (bytes == ~0ull || !has_room(bytes))
		return TO_THE_HOST;
	move(segments, area->output + area->stream.output_at, bytes, 0);
	return sent(bytes);
}

static enum verdict transmit_message(const struct msghdr64 *message, uint64_t flags)
{
	if (((uint32_t)flags & ~(MSG_DONTWAIT | MSG_NOSIGNAL | MSG_MORE)) || message->name || (message->control && message->control_bytes))
		return TO_THE_HOST;
	return transmit_segments(message->segments, message->segment_count);
}

static enum verdict receive_message(struct msghdr64 *message, uint64_t flags)
{
	if (((uint32_t)flags & ~MSG_DONTWAIT) || message->name)
		return TO_THE_HOST;
	return receive_segments(message->segments, message->segment_count, message, flags & MSG_DONTWAIT);
}

/* Sockets. */

/* Store an address as accept and its relatives do; false where the host has to say what is wrong. Only where there is room for all of
 * it: the length is also read, and a call that is made again after an interruption has to find in it what leads to the same. */
static int put_address(const uint8_t *address, uint32_t bytes, uint64_t to, uint64_t length)
{
	int32_t room = *(int32_t *)length;
	if (bytes == 0 || room < (int32_t)bytes)
		return 0;
	copy((void *)to, address, bytes);
	*(uint32_t *)length = bytes;
	return 1;
}

static enum verdict accept_stream(uint32_t flags)
{
	struct fast_stream *stream = &area->stream;
	const struct fast_listener *listener = find_listener(area->saved.rdi);
	if (!listener || area->free_fd < 0 || (flags & ~(O_NONBLOCK | O_CLOEXEC)))
		return TO_THE_HOST;
	if (area->pending_file < 0 || (uint32_t)area->pending_file != listener->file)
		return listener->says_again ? answer(-EAGAIN) : TO_THE_HOST;
	if (area->saved.rsi && !put_address(stream->peer, stream->peer_bytes, area->saved.rsi, area->saved.rdx))
		return TO_THE_HOST;
	int32_t fd = area->free_fd;
	commit_with(fd, 0, 0);
	stream->fd = fd;
	stream->flags = O_RDWR | (flags & O_NONBLOCK);
	stream->close_on_exec = (flags & O_CLOEXEC) != 0;
	area->pending_file = -1;
	return ANSWERED;
}

static enum verdict set_option(void)
{
	uint32_t level = area->saved.rsi, option = area->saved.rdx;
	if (!area->stream.is_tcp || (uint32_t)area->saved.r8 != 4)
		return TO_THE_HOST;
	int32_t value = *(const int32_t *)area->saved.r10;
	/* SO_KEEPALIVE, TCP_NODELAY, TCP_CORK, TCP_QUICKACK; TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT. */
	int is_switch = (level == 1 && option == 9) || (level == 6 && (option == 1 || option == 3 || option == 12));
	int is_time = level == 6 && (option == 4 || option == 5) && value >= 1 && value <= 32767;
	int is_count = level == 6 && option == 6 && value >= 1 && value <= 127;
	if (!is_switch && !is_time && !is_count)
		return TO_THE_HOST;
	commit_with(0, 0, (uint32_t)value);
	return ANSWERED;
}

static enum verdict get_option(void)
{
	uint64_t value = area->saved.r10, length = area->saved.r8;
	/* SOL_SOCKET, SO_ERROR: the host speaks of no stream that has an error. */
	if ((uint32_t)area->saved.rsi != 1 || (uint32_t)area->saved.rdx != 4 || *(int32_t *)length < 4)
		return TO_THE_HOST;
	*(uint32_t *)value = 0;
	*(uint32_t *)length = 4;
	return answer(0);
}

static enum verdict file_control(void)
{
	struct fast_stream *stream = &area->stream;
	uint64_t argument = area->saved.rdx;
	switch ((uint32_t)area->saved.rsi) {
	case 1: /* F_GETFD */
		return answer(stream->close_on_exec);
	case 2: /* F_SETFD */
		commit_with(0, 0, 0);
		stream->close_on_exec = argument & 1;
		return ANSWERED;
	case 3: /* F_GETFL */
		return answer(stream->flags);
	case 4: /* F_SETFL */
		commit_with(0, 0, 0);
		stream->flags = (stream->flags & ~SETTABLE) | (argument & SETTABLE);
		return ANSWERED;
	default:
		return TO_THE_HOST;
	}
}

static enum verdict device_control(void)
{
	if ((uint32_t)area->saved.rsi != 0x5421) /* FIONBIO */
		return TO_THE_HOST;
	uint32_t on = *(const uint32_t *)area->saved.rdx != 0;
	commit_with(0, 0, on);
	area->stream.flags = (area->stream.flags & ~O_NONBLOCK) | (on ? O_NONBLOCK : 0);
	return ANSWERED;
}

/* Waiting. */

/* What a descriptor is as the target of a member; false where it is not known here. */
static int find_target(uint64_t fd, uint32_t *target)
{
	const struct fast_listener *listener = find_listener(fd);
	const struct fast_event *event = find_event(fd);
	if (is_stream(fd))
		*target = FAST_STREAM_TARGET;
	else if (listener)
		*target = listener->file + 1;
	else if (event)
		*target = event->file + 1;
	else
		return 0;
	return 1;
}

/* Something has happened to an eventfd: edges that were spent come again. */
static void moved(const struct fast_event *event, uint32_t what)
{
	for (uint32_t index = 0; index < area->member_count && index < FAST_MEMBERS; index++)
		if (area->members[index].target == event->file + 1)
			area->members[index].seen |= what;
}

static enum verdict read_event(struct fast_event *event, uint64_t buffer, uint64_t length)
{
	if (length < 8 || length > LONGEST)
		return TO_THE_HOST;
	if (event->count == 0)
		return event->says_again ? answer(-EAGAIN) : TO_THE_HOST;
	uint64_t value = event->is_semaphore ? 1 : event->count;
	*(uint64_t *)buffer = value;
	commit_with(8, 0, 0);
	event->count -= value;
	moved(event, FAST_ROOM);
	return ANSWERED;
}

static enum verdict write_event(struct fast_event *event, uint64_t buffer, uint64_t length)
{
	if (length < 8 || length > LONGEST)
		return TO_THE_HOST;
	uint64_t value = *(const uint64_t *)buffer;
	if (value > ~0ull - 1 - event->count)
		return TO_THE_HOST;
	commit_with(8, 0, value);
	event->count += value;
	moved(event, FAST_ARRIVALS);
	return ANSWERED;
}

/* What the stream, or the listener or eventfd with this file, is ready for. */
static uint32_t ready(uint32_t target)
{
	const struct fast_stream *stream = &area->stream;
	if (target == FAST_STREAM_TARGET) {
		int waits = stream->input_at < stream->input_end || stream->input_more || stream->ended;
		return stream->events | (waits ? POLL_IN : 0);
	}
	for (uint32_t index = 0; index < area->event_count && index < FAST_EVENTS; index++) {
		const struct fast_event *event = &area->events[index];
		if (event->file + 1 == target)
			return (event->count ? EVENT_IN : 0) | (event->count < ~0ull - 1 ? EVENT_OUT : 0);
	}
	return area->pending_file >= 0 && (uint32_t)area->pending_file + 1 == target ? POLL_IN : 0;
}

static enum verdict poll_some(int patient)
{
	struct pollfd16 *entries = (struct pollfd16 *)area->saved.rdi;
	uint32_t count = area->saved.rsi, found = 0;
	uint16_t answers[POLLED];
	if (count > area->poll_most || count > POLLED)
		return TO_THE_HOST;
	for (uint32_t index = 0; index < count; index++) {
		uint32_t target, events = (entries[index].events & POLL_EVENTS) | POLL_ALWAYS;
		int32_t fd = entries[index].fd;
		answers[index] = 0;
		if (fd < 0)
			continue;
		if (!find_target((uint32_t)fd, &target))
			return TO_THE_HOST;
		answers[index] = ready(target) & events;
		found += answers[index] != 0;
	}
	if (!found && patient)
		return TO_THE_HOST;
	for (uint32_t index = 0; index < count; index++)
		entries[index].revents = answers[index];
	return answer(found);
}

/* The events that a member reports now. */
static uint32_t report(const struct fast_member *member)
{
	uint32_t now = ready(member->target), interest = (member->events & POLL_EVENTS) | POLL_ALWAYS, events = now & interest;
	if (!member->armed || !events)
		return 0;
	if ((member->events & EPOLLET) && (member->seen & FAST_SEEN)) {
		int edge = (now & ~member->seen_events & interest) || (member->seen & FAST_ENDS) ||
			   ((interest & POLL_READING) && (member->seen & FAST_ARRIVALS)) ||
			   ((interest & POLL_WRITING) && (member->seen & FAST_ROOM));
		if (!edge)
			return 0;
	}
	return events;
}

static enum verdict epoll_wait(int patient)
{
	const struct fast_set *set = find_set(area->saved.rdi);
	int32_t most = (int32_t)area->saved.rdx;
	uint64_t to = area->saved.rsi;
	if (!set || !set->may_wait || most <= 0 || most > EVENTS || to > area->space_end || area->space_end - to < (uint64_t)most * 12)
		return TO_THE_HOST;
	uint32_t count = area->member_count, reported = 0, found = 0;
	if (count > FAST_MEMBERS)
		return TO_THE_HOST;
	struct event *event = (struct event *)to;
	for (uint32_t index = 0; index < count && found < (uint32_t)most; index++) {
		const struct fast_member *member = &area->members[index];
		uint32_t events = member->set == set->set ? report(member) : 0;
		if (events) {
			event->events = events;
			event->data = member->data;
			event++;
			found++;
			reported |= 1u << index;
		}
	}
	if (!found && patient)
		return TO_THE_HOST;
	commit_with(found, 0, 0);
	/* The edges are spent, one-shot members disarmed, and the others get their turn first next time. */
	struct fast_member moved[FAST_MEMBERS];
	uint32_t kept = 0, moving = 0;
	for (uint32_t index = 0; index < count; index++) {
		struct fast_member *member = &area->members[index];
		if (reported >> index & 1) {
			member->seen = FAST_SEEN;
			member->seen_events = ready(member->target);
			member->armed = !(member->events & EPOLLONESHOT);
			copy(&moved[moving++], member, sizeof *member);
		} else {
			if (kept != index)
				copy(&area->members[kept], member, sizeof *member);
			kept++;
		}
	}
	copy(&area->members[kept], moved, moving * sizeof *moved);
	return ANSWERED;
}

static enum verdict epoll_wait_until(const int64_t *timeout)
{
	int64_t seconds = timeout[0], nanoseconds = timeout[1];
	if (seconds < 0 || nanoseconds < 0 || nanoseconds > 999999999)
		return TO_THE_HOST;
	return epoll_wait(seconds || nanoseconds);
}

static enum verdict epoll_control(void)
{
	enum { ADD = 1, DELETE = 2, MODIFY = 3 };
	uint32_t operation = area->saved.rsi, count = area->member_count, at = 0;
	int32_t fd = (int32_t)area->saved.rdx;
	const struct fast_set *set = find_set(area->saved.rdi);
	if (!set || count > FAST_MEMBERS)
		return TO_THE_HOST;
	uint32_t target;
	if (!find_target(area->saved.rdx, &target))
		return TO_THE_HOST;
	while (at < count && (area->members[at].set != set->set || area->members[at].fd != fd || area->members[at].target != target))
		at++;
	if (operation == DELETE) {
		if (at == count)
			return TO_THE_HOST;
		commit_with(0, 0, 0);
		for (; at + 1 < count; at++)
			copy(&area->members[at], &area->members[at + 1], sizeof area->members[at]);
		area->member_count = count - 1;
		return ANSWERED;
	}
	struct event asked;
	copy(&asked, (const void *)area->saved.r10, sizeof asked);
	if (asked.events & EPOLLEXCLUSIVE)
		return TO_THE_HOST;
	if (operation == ADD ? at != count || count == FAST_MEMBERS : operation != MODIFY || at == count)
		return TO_THE_HOST;
	if (operation == MODIFY && (area->members[at].events & EPOLLEXCLUSIVE))
		return TO_THE_HOST;
	commit_with(0, asked.events, asked.data);
	struct fast_member *member = &area->members[at];
	member->fd = fd;
	member->set = set->set;
	member->target = target;
	member->events = asked.events;
	member->armed = 1;
	member->data = asked.data;
	member->seen_events = 0;
	member->seen = 0;
	if (operation == ADD)
		area->member_count = count + 1;
	return ANSWERED;
}

/* A wake-up that finds nobody. */
static enum verdict futex_wake(void)
{
	enum { WAKE_PRIVATE = 129, WAKE_BITSET_PRIVATE = 138 };
	uint32_t operation = area->saved.rsi;
	uint64_t address = area->saved.rdi;
	if (operation != WAKE_PRIVATE && (operation != WAKE_BITSET_PRIVATE || (uint32_t)area->saved.r9 == 0))
		return TO_THE_HOST;
	if (!area->futexes_known || (address & 3) || area->space_end < 4 || address > area->space_end - 4)
		return TO_THE_HOST;
	for (uint32_t index = 0; index < area->futex_count && index < FAST_FUTEXES; index++)
		if (area->futexes[index] == address)
			return TO_THE_HOST;
	return answer(0);
}

/* Calls for the stream alone. */
static enum verdict stream_call(void)
{
	struct fast_saved *saved = &area->saved;
	struct fast_stream *stream = &area->stream;
	switch (saved->rax) {
	case CALL_READ:
		return receive(saved->rsi, saved->rdx, 0);
	case CALL_RECVFROM:
		if (((uint32_t)saved->r10 & ~MSG_DONTWAIT) || saved->r8)
			return TO_THE_HOST;
		return receive(saved->rsi, saved->rdx, saved->r10 & MSG_DONTWAIT);
	case CALL_READV:
		return receive_segments((const struct iovec64 *)saved->rsi, saved->rdx, 0, 0);
	case CALL_RECVMSG:
		return receive_message((struct msghdr64 *)saved->rsi, saved->rdx);
	case CALL_WRITE:
		return transmit(saved->rsi, saved->rdx);
	case CALL_SENDTO:
		if (((uint32_t)saved->r10 & ~(MSG_DONTWAIT | MSG_NOSIGNAL | MSG_MORE)) || saved->r8)
			return TO_THE_HOST;
		return transmit(saved->rsi, saved->rdx);
	case CALL_WRITEV:
		return transmit_segments((const struct iovec64 *)saved->rsi, saved->rdx);
	case CALL_SENDMSG:
		return transmit_message((const struct msghdr64 *)saved->rsi, saved->rdx);
	case CALL_GETPEERNAME:
		return put_address(stream->peer, stream->peer_bytes, saved->rsi, saved->rdx) ? answer(0) : TO_THE_HOST;
	case CALL_GETSOCKNAME:
		return put_address(stream->local, stream->local_bytes, saved->rsi, saved->rdx) ? answer(0) : TO_THE_HOST;
	case CALL_SETSOCKOPT:
		return set_option();
	case CALL_GETSOCKOPT:
		return get_option();
	case CALL_FCNTL:
		return file_control();
	case CALL_IOCTL:
		return device_control();
	default:
		return TO_THE_HOST;
	}
}

static enum verdict descriptor_call(void)
{
	struct fast_saved *saved = &area->saved;
	struct fast_event *event = find_event(saved->rdi);
	if (is_stream(saved->rdi))
		return stream_call();
	if (event && saved->rax == CALL_READ)
		return read_event(event, saved->rsi, saved->rdx);
	if (event && saved->rax == CALL_WRITE)
		return write_event(event, saved->rsi, saved->rdx);
	return TO_THE_HOST;
}

__attribute__((used)) enum verdict fast_call(void)
{
	struct fast_saved *saved = &area->saved;
	if (area->began >= FAST_LOG_ENTRIES)
		return TO_THE_HOST;
	switch (saved->rax) {
	case CALL_GETPID:
		return answer(area->pid);
	case CALL_GETTID:
		return answer(area->tid);
	case CALL_SCHED_YIELD:
		return area->alone ? answer(0) : TO_THE_HOST;
	case CALL_FUTEX:
		return futex_wake();
	case CALL_ACCEPT:
		return accept_stream(0);
	case CALL_ACCEPT4:
		return accept_stream(saved->r10);
	case CALL_EPOLL_CTL:
		return epoll_control();
	case CALL_EPOLL_PWAIT:
		/* A mask may let a signal through. */
		if (saved->r8)
			return TO_THE_HOST;
		return epoll_wait((int32_t)saved->r10 != 0);
	case CALL_EPOLL_WAIT:
		return epoll_wait((int32_t)saved->r10 != 0);
	case CALL_EPOLL_PWAIT2:
		if (saved->r8)
			return TO_THE_HOST;
		return saved->r10 ? epoll_wait_until((const int64_t *)saved->r10) : epoll_wait(1);
	case CALL_POLL:
		return poll_some((int32_t)saved->rdx != 0);
	case CALL_PPOLL:
		/* What is left of the timeout would have to be told, and a mask may let a signal through. */
		return saved->rdx || saved->r10 ? TO_THE_HOST : poll_some(1);
	default:
		return descriptor_call();
	}
}
