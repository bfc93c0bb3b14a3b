/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * fast_path PORT [MODE [SEED [FILE]]]: a server that makes random system calls on each connection and answers with what they came to.
 *
 * The calls depend on the seed, until the connection is accepted, and then on the first 8 digits of the path (GET /12345678) alone,
 * so two runs give the same answer, however the calls are answered. A timer interrupts them all the time; its handler restarts calls,
 * makes some on descriptors of its own, and leaves no trace. With an odd thousand as the seed there is a second thread, which waits
 * for the first in all ways; what it finds is noted where it does not depend on who was faster.
 *
 * Modes: http (the connection's end is not seen), raw (the client has ended its side: reads come to its end), pieces (the client sends
 * while this runs: what the calls come to depends on that, and is checked against what Linux leaves open), garbage (what the fast
 * path keeps in this program's memory is overwritten, at random places with random bytes, while it is used).
 *
 * After the answer this side is shut down in some way, and more calls are made: what they come to is put at the end of FILE.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <unistd.h>

#define HEAD "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n"
#define CALLS 300
#define CALLS_AFTER 60
/* Longest transfer: more than the fast path is told of at a time. */
#define LONGEST 40000

static const char *mode = "http";
static int listener, waiting_set, sets[3], event_fd, semaphore, client, copy = -1, head_sent;
static const char *file;
static uint64_t state, first_seed = 1;
static char report[1 << 17];
static size_t reported;

static int is(const char *name)
{
    return strcmp(mode, name) == 0;
}

static unsigned dice(unsigned sides)
{
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (unsigned)(state >> 33) % sides;
}

static void note(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    if (reported < sizeof report - 200)
        reported += vsnprintf(report + reported, 200, format, arguments);
    va_end(arguments);
}

static unsigned hash(const void *bytes, size_t length)
{
    unsigned sum = 2166136261u;
    for (size_t index = 0; index < length; index++)
        sum = (sum ^ ((const unsigned char *)bytes)[index]) * 16777619u;
    return sum;
}

/* A result with its errno. */
static void came(const char *name, long result)
{
    note("%s %ld %s\n", name, result, result < 0 ? strerrorname_np(errno) : "");
}

static int some_fd(void)
{
    int choices[] = {client, client, client, client, listener, listener, sets[0], sets[1], 99, -1, event_fd, event_fd, semaphore, copy};
    return choices[dice(14)];
}

/* The handler of the timer. It comes at any moment, between and in the middle of calls, so it has dice of its own. */
static int tick_fd, tick_set;
static volatile sig_atomic_t ticks_wrong, tick_usual, progress;

static void set_timer(unsigned microseconds)
{
    struct itimerval once = {{0, 0}, {0, microseconds}};
    setitimer(ITIMER_REAL, &once, NULL);
}

static void start_ticks(unsigned microseconds)
{
    tick_usual = microseconds;
    set_timer(microseconds);
}

static void tick_must(int condition)
{
    ticks_wrong += !condition;
}

static void on_tick(int signal)
{
    static uint64_t tick_state;
    static int seen, interval;
    struct epoll_event event;
    uint64_t value = 1;
    int saved = errno;
    (void)signal;
    tick_state = tick_state * 6364136223846793005ull + 1442695040888963407ull;
    switch (tick_state >> 33 & 7) {
    case 0:
        /* Edge-triggered: each write reports once. */
        tick_must(write(tick_fd, &value, 8) == 8);
        tick_must(epoll_wait(tick_set, &event, 1, 0) == 1 && event.events == EPOLLIN && event.data.u64 == 4711);
        tick_must(epoll_wait(tick_set, &event, 1, 0) == 0);
        tick_must(read(tick_fd, &value, 8) == 8 && value == 1);
        break;
    case 1:
        tick_must(read(tick_fd, &value, 8) == -1 && errno == EAGAIN);
        break;
    case 2:
        tick_must(syscall(SYS_getpid) == syscall(SYS_gettid));
        break;
    case 3:
        tick_must(client < 0 || fcntl(client, F_GETFL) == -1 || (fcntl(client, F_GETFL) & O_NONBLOCK));
        break;
    default:
        break;
    }
    /* The next one at any moment; later and later where a machine is so slow that nothing happens in between. */
    interval = progress == seen && interval < 100000 ? 2 * interval : tick_usual;
    seen = progress;
    if (tick_usual)
        set_timer(interval / 2 + (tick_state >> 40) % (interval + 1));
    errno = saved;
}

static void call_accept(void)
{
    struct sockaddr_in peer = {0};
    socklen_t length = dice(4) ? sizeof peer : dice(20);
    int flags = (dice(2) ? SOCK_NONBLOCK : 0) | (dice(2) ? SOCK_CLOEXEC : 0) | (dice(20) ? 0 : 1);
    int wants = dice(2), old = dice(3) == 0;
    int fd = dice(10) ? listener : some_fd();
    long got;
    if (fd == client)
        fd = listener;
    if (dice(30) == 0)
        got = accept4(fd, (void *)16, &length, flags);
    else if (old)
        got = accept(fd, wants ? (void *)&peer : NULL, wants ? &length : NULL);
    else
        got = accept4(fd, wants ? (void *)&peer : NULL, wants ? &length : NULL, flags);
    came("accept", got);
    note("  %u %d %x\n", length, peer.sin_family, peer.sin_addr.s_addr);
    if (got >= 0) {
        /* Without O_NONBLOCK a read would wait for ever. */
        if (old || !(flags & SOCK_NONBLOCK))
            fcntl(got, F_SETFL, O_NONBLOCK);
        client = got;
    }
}

static void call_control(void)
{
    static const int operations[] = {EPOLL_CTL_ADD, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL, 7};
    struct epoll_event event = {.events = 0, .data.u64 = dice(1000)};
    static const unsigned bits[] = {EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLET, EPOLLONESHOT, EPOLLRDNORM, EPOLLPRI, EPOLLHUP};
    for (unsigned index = 0; index < 8; index++)
        if (dice(3) == 0)
            event.events |= bits[index];
    if (dice(15) == 0)
        event.events |= EPOLLEXCLUSIVE;
    int fd = some_fd();
    int set = sets[dice(3)];
    came("epoll_ctl", epoll_ctl(dice(20) ? set : fd, operations[dice(5)], fd, dice(20) ? &event : (void *)8));
}

static void call_wait(void)
{
    struct epoll_event events[4];
    memset(events, 0, sizeof events);
    int set = dice(15) ? sets[dice(3)] : some_fd(), most = dice(10) ? 1 + (int)dice(4) : (int)dice(3) - 1;
    struct timespec none = {0, dice(20) ? 0 : -1};
    sigset_t mask;
    sigemptyset(&mask);
    long got;
    void *to = dice(25) ? events : (void *)64;
    switch (dice(4)) {
    case 0:
        got = epoll_pwait(set, to, most, 0, dice(4) ? NULL : &mask);
        break;
    case 1:
        got = syscall(SYS_epoll_pwait2, set, to, most, &none, NULL, 8);
        break;
    default:
        got = epoll_wait(set, to, most, 0);
    }
    came("epoll_wait", got);
    for (int index = 0; index < 4; index++)
        if (events[index].events)
            note("  %x %llu\n", events[index].events, (unsigned long long)events[index].data.u64);
}

static void call_read(void)
{
    static char buffer[LONGEST];
    memset(buffer, '.', sizeof buffer);
    unsigned length = dice(8) ? dice(80) : dice(LONGEST), cut = length ? dice(length) : 0;
    struct iovec segments[3] = {{buffer, cut}, {buffer + cut, 0}, {buffer + cut, length - cut}};
    struct msghdr message = {.msg_iov = segments, .msg_iovlen = 3, .msg_flags = -1};
    int flags = (dice(2) ? MSG_DONTWAIT : 0) | (dice(6) ? 0 : MSG_PEEK) | (dice(30) ? 0 : MSG_OOB) | (dice(30) ? 0 : MSG_TRUNC);
    int fd = dice(12) ? client : 99;
    long got;
    if (dice(25) == 0)
        segments[2].iov_base = (void *)128;
    switch (dice(6)) {
    case 0:
        got = read(fd, dice(25) ? buffer : (void *)128, length);
        break;
    case 1:
        got = recv(fd, buffer, length, flags);
        break;
    case 2:
        got = readv(fd, segments, dice(4));
        break;
    case 3:
        got = recvmsg(fd, &message, flags);
        note("  %x %zu\n", message.msg_flags, message.msg_controllen);
        break;
    default:
        got = recv(fd, buffer, length, 0);
    }
    came("read", got);
    note("  %x\n", hash(buffer, sizeof buffer));
}

static void call_write(void)
{
    static char bytes[LONGEST];
    unsigned length = dice(8) ? 1 + dice(60) : dice(10) ? dice(600) : dice(LONGEST), cut;
    if (!head_sent) {
        length = strlen(HEAD);
        memcpy(bytes, HEAD, length);
        came("head", write(client, bytes, length));
        head_sent = 1;
        return;
    }
    for (unsigned index = 0; index < length; index++)
        bytes[index] = 'a' + dice(26);
    cut = length ? dice(length) : 0;
    struct iovec segments[3] = {{bytes, cut}, {bytes, 0}, {bytes + cut, length - cut}};
    struct msghdr message = {.msg_iov = segments, .msg_iovlen = 3};
    int flags = MSG_NOSIGNAL | (dice(2) ? MSG_DONTWAIT : 0) | (dice(6) ? 0 : MSG_MORE);
    int fd = dice(12) ? client : 99;
    if (dice(25) == 0)
        segments[2].iov_base = (void *)128;
    switch (dice(5)) {
    case 0:
        came("write", write(fd, dice(25) ? bytes : (void *)128, length));
        break;
    case 1:
        came("send", send(fd, bytes, length, flags));
        break;
    case 2:
        came("writev", writev(fd, segments, dice(4)));
        break;
    case 3:
        came("sendmsg", sendmsg(fd, &message, flags));
        break;
    default:
        came("send", send(fd, bytes, length, MSG_NOSIGNAL));
    }
}

static void call_options(void)
{
    static const int options[][2] = {{SOL_SOCKET, SO_KEEPALIVE}, {IPPROTO_TCP, TCP_NODELAY}, {IPPROTO_TCP, TCP_KEEPIDLE},
        {IPPROTO_TCP, TCP_KEEPINTVL}, {IPPROTO_TCP, TCP_KEEPCNT}, {IPPROTO_TCP, TCP_QUICKACK}, {SOL_SOCKET, SO_ERROR}, {SOL_SOCKET, 77}};
    const int *option = options[dice(8)];
    int value = dice(4) ? (int)dice(3) : (int)dice(40000) - 2, got = -1;
    socklen_t length = dice(12) ? 4 : dice(10);
    came("setsockopt", setsockopt(client, option[0], option[1], dice(20) ? &value : (void *)32, length));
    length = dice(12) ? 4 : dice(10);
    came("getsockopt", getsockopt(client, option[0], option[1], &got, &length));
    note("  %d %u\n", got, length);
}

static void call_names(void)
{
    struct sockaddr_in name = {0};
    socklen_t length = dice(5) ? sizeof name : dice(20);
    int fd = dice(8) ? client : some_fd();
    came("name", dice(2) ? getpeername(fd, (void *)&name, &length) : getsockname(fd, (void *)&name, &length));
    note("  %u %d %x\n", length, name.sin_family, name.sin_addr.s_addr);
}

static void call_flags(void)
{
    int on = dice(2);
    switch (dice(6)) {
    case 0:
        came("getfl", fcntl(client, F_GETFL));
        break;
    case 1:
        came("setfl", fcntl(client, F_SETFL, O_NONBLOCK | (dice(2) ? O_APPEND : 0) | (dice(2) ? O_RDWR : 0)));
        break;
    case 2:
        came("getfd", fcntl(client, F_GETFD));
        break;
    case 3:
        came("setfd", fcntl(client, F_SETFD, on));
        break;
    case 4:
        on = 1;
        came("fionbio", ioctl(client, FIONBIO, dice(10) ? &on : (void *)4));
        break;
    default:
        came("fionread", ioctl(client, FIONREAD, &on));
        note("  %d\n", on);
    }
}

static void call_event(void)
{
    uint64_t value = dice(20) ? dice(3) : ~0ull - dice(3);
    int fd = dice(2) ? event_fd : semaphore;
    unsigned length = dice(10) ? 8 : dice(20);
    char buffer[32];
    memset(buffer, '.', sizeof buffer);
    memcpy(buffer, &value, 8);
    if (dice(2)) {
        came("event write", write(fd, dice(20) ? buffer : (void *)128, length));
    } else {
        came("event read", read(fd, dice(20) ? buffer : (void *)128, length));
        note("  %x\n", hash(buffer, sizeof buffer));
    }
}

static void call_poll(void)
{
    struct pollfd entries[4];
    static const short bits[] = {POLLIN, POLLOUT, POLLRDHUP, POLLPRI, POLLRDNORM, POLLERR};
    unsigned count = dice(12) ? dice(5) : dice(4) ? 3 : 5000;
    struct timespec none = {0, 0};
    for (int index = 0; index < 4; index++) {
        entries[index] = (struct pollfd){.fd = dice(10) ? some_fd() : sets[2], .revents = -1};
        for (int bit = 0; bit < 6; bit++)
            if (dice(2))
                entries[index].events |= bits[bit];
    }
    void *at = dice(25) ? entries : (void *)256;
    if (dice(3))
        came("poll", poll(at, count, 0));
    else
        came("ppoll", syscall(SYS_ppoll, at, count, &none, NULL, 8));
    for (int index = 0; index < 4; index++)
        note("  %x\n", entries[index].revents);
}

static void call_others(void)
{
    static int word;
    switch (dice(5)) {
    case 0:
        came("getpid", syscall(SYS_getpid));
        break;
    case 1:
        came("gettid", syscall(SYS_gettid));
        break;
    case 2:
        came("yield", syscall(SYS_sched_yield));
        break;
    case 3:
        came("futex", syscall(SYS_futex, (char *)&word + (dice(10) ? 0 : 1), FUTEX_WAKE | (dice(4) ? FUTEX_PRIVATE_FLAG : 0), dice(5)));
        break;
    default:
        came("futex", syscall(SYS_futex, &word, FUTEX_WAKE_BITSET | FUTEX_PRIVATE_FLAG, 1, NULL, NULL, dice(3)));
    }
}

/* A second descriptor of the connection, or only one again, and not always the first. */
static void call_copy(void)
{
    if (copy < 0) {
        /* Not onto itself: there would be no second one. */
        int number = 20 + 10 * dice(3) + (client % 10 == 0);
        long got;
        switch (dice(4)) {
        case 0:
            got = dup(client);
            break;
        case 1:
            got = fcntl(client, dice(2) ? F_DUPFD : F_DUPFD_CLOEXEC, number);
            break;
        case 2:
            got = dup2(client, number);
            break;
        default:
            got = dup3(client, number, dice(2) ? O_CLOEXEC : 0);
        }
        came("copy", got);
        copy = got;
        return;
    }
    if (dice(2)) {
        int other = client;
        client = copy;
        copy = other;
    }
    came("close", close(copy));
    copy = -1;
}

static int has_helper, helper_waits, helper_order, helper_done, helper_near, helper_kind, helper_word;
static int helper_set, helper_fd, helper_blocking_fd;

/* An end of what is waited for, and something new under its number. */
static void call_reopen(void)
{
    /* The second thread may not have come to its poll yet, and would find no file. */
    int which = helper_waits && helper_kind == 4 ? 2 : dice(4), *fd = which == 0 ? &event_fd : which == 1 ? &semaphore : &sets[dice(3)];
    came("close", close(*fd));
    if (which == 0)
        *fd = eventfd(dice(3), EFD_NONBLOCK);
    else if (which == 1)
        *fd = eventfd(dice(3), EFD_NONBLOCK | EFD_SEMAPHORE);
    else
        *fd = epoll_create1(dice(2) ? EPOLL_CLOEXEC : 0);
    came("open", *fd);
}

/* The second thread. It is given an order, does that, and has ended it when the first says that it may. */
static char helper_text[100];

static void helper_sleep(int *word, int value)
{
    while (__atomic_load_n(word, __ATOMIC_SEQ_CST) == value)
        syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL);
}

static long helper_wake(int *word, int value)
{
    __atomic_store_n(word, value, __ATOMIC_SEQ_CST);
    return syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1);
}

static void helper_wait(void)
{
    struct epoll_event event = {.events = EPOLLIN | (helper_kind == 2 ? EPOLLET : 0), .data.u64 = helper_kind};
    struct pollfd entries[4] = {{.fd = helper_fd, .events = POLLIN}, {.fd = event_fd}, {.fd = semaphore}, {.fd = listener}};
    uint64_t value = 0;
    long got = 0;
    switch (helper_kind) {
    case 0:
        helper_sleep(&helper_word, 0);
        break;
    case 1:
    case 2:
        epoll_ctl(helper_set, EPOLL_CTL_MOD, helper_fd, &event);
        event.events = 0;
        got = epoll_wait(helper_set, &event, 1, -1);
        break;
    case 3:
        got = poll(entries, 1, -1);
        break;
    case 4:
        /* What the first thread uses meanwhile is waited for, too, though nothing is wanted of it. */
        got = poll(entries, 4, -1);
        break;
    default:
        got = read(helper_blocking_fd, &value, 8);
    }
    if (helper_kind > 0 && helper_kind < 5)
        read(helper_fd, &value, 8);
    snprintf(helper_text, sizeof helper_text, "helper %d %ld %x %x %llu\n", helper_kind, got, event.events, entries[0].revents,
             (unsigned long long)value);
}

static void *helper(void *unused)
{
    for (int order = 1;; order++) {
        helper_sleep(&helper_order, order - 1);
        __atomic_store_n(&helper_near, 1, __ATOMIC_SEQ_CST);
        helper_wait();
        helper_wake(&helper_done, order);
    }
    return unused;
}

/* Let it wait, or end its waiting. */
static void call_helper(void)
{
    uint64_t value = 1 + dice(1000);
    if (!has_helper)
        return;
    if (!helper_waits) {
        helper_kind = dice(6);
        helper_word = helper_near = 0;
        helper_wake(&helper_order, helper_order + 1);
        while (!__atomic_load_n(&helper_near, __ATOMIC_SEQ_CST))
            sched_yield();
        /* It sleeps by now, mostly. */
        for (int turn = 0; turn < 3; turn++)
            sched_yield();
        helper_waits = 1;
        return;
    }
    if (helper_kind == 0)
        helper_wake(&helper_word, 1);
    else
        came("order", write(helper_kind == 5 ? helper_blocking_fd : helper_fd, &value, 8));
    helper_sleep(&helper_done, helper_order - 1);
    note("%s", helper_text);
    helper_waits = 0;
}

/* Where the fast path keeps what it knows, if this VM has one. */
static void scribble(void)
{
    static unsigned char *area;
    static size_t length;
    char line[256];
    if (area == NULL) {
        FILE *maps = fopen("/proc/self/maps", "r");
        while (maps && fgets(line, sizeof line, maps)) {
            unsigned long start, end;
            if (strstr(line, "[fast path]") && sscanf(line, "%lx-%lx rw", &start, &end) == 2 && strstr(line, " rw")) {
                area = (void *)start;
                length = end - start;
            }
        }
        if (maps)
            fclose(maps);
    }
    if (area == NULL)
        return;
    /* Mostly what is known and the log, which are in front. */
    size_t at = dice(3) ? dice(1300) : dice(length - 8);
    uint64_t value = dice(4) ? dice(60) : ((uint64_t)dice(0x7fffffff) << 32) | dice(0x7fffffff);
    memcpy(area + at, &value, 1 + dice(8));
}

static void one_call(void)
{
    static void (*const calls[])(void) = {call_control, call_control, call_wait, call_wait, call_wait, call_read, call_read, call_write,
        call_write, call_options, call_names, call_flags, call_others, call_accept, call_event, call_event, call_poll, call_helper,
        call_copy, call_reopen};
    static const unsigned without_client = 1u << 0 | 1u << 1 | 1u << 2 | 1u << 3 | 1u << 4 | 1u << 12 | 1u << 13 | 1u << 14 | 1u << 15 |
        1u << 16 | 1u << 17;
    unsigned chosen = dice(20);
    progress++;
    if (is("garbage") && dice(6) == 0)
        scribble();
    /* Rare, or the connection would have two descriptors most of the time. */
    if (chosen >= 18 && dice(copy < 0 ? 6 : 2))
        chosen = dice(17);
    if (client >= 0 || without_client >> chosen & 1)
        calls[chosen]();
}

static void send_all(const char *bytes, size_t length)
{
    while (length > 0) {
        ssize_t count = write(client, bytes, length);
        if (count < 0 && errno == EAGAIN) {
            struct pollfd out = {.fd = client, .events = POLLOUT};
            poll(&out, 1, -1);
            continue;
        }
        if (count <= 0)
            exit(3);
        bytes += count;
        length -= count;
    }
}

#include "fast_path_pieces.h"

static void put_into_file(void)
{
    int fd = open(file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, report, reported) != (ssize_t)reported)
        exit(5);
    close(fd);
}

/* More calls after the answer, and after one side is shut. */
static void shut_down(void)
{
    static const int sides[] = {7, SHUT_RD, SHUT_RD, SHUT_WR, SHUT_WR};
    reported = 0;
    ticks_wrong = 0;
    /* Both sides would be the end of it all, and so would be that of a response. */
    came("shutdown", shutdown(client, sides[dice(is("http") ? 3 : 5)]));
    for (int call = 0; call < CALLS_AFTER; call++)
        one_call();
    note("ticks %d\n", ticks_wrong);
}

/* The seed is in the path; nothing else of the request matters. */
static void serve(void)
{
    static char nothing[20000];
    client = -1;
    head_sent = 0;
    reported = 0;
    ticks_wrong = 0;
    state = first_seed;
    start_ticks(150);
    for (int call = 0; call < 60 && client < 0; call++)
        one_call();
    if (client < 0)
        client = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    if (is("raw")) {
        /* The client has sent all it will: wait until that is here. */
        struct pollfd end = {.fd = client, .events = POLLRDHUP};
        while (poll(&end, 1, -1) != 1)
            ;
    }
    char start[16] = "";
    while (recv(client, start, 14, MSG_PEEK) < 14)
        ;
    unsigned seed = strtoul(start + 5, NULL, 10);
    state = seed * 2654435761u + 12345;
    start_ticks(80 + dice(500));
    if (is("pieces")) {
        reported = 0;
        serve_pieces(seed);
    } else {
        for (int call = 0; call < CALLS; call++)
            one_call();
    }
    start_ticks(0);
    note("ticks %d\n", ticks_wrong);
    if (!head_sent && !is("pieces"))
        call_write();
    if (reported)
        send_all(report, reported);
    if (file) {
        start_ticks(80 + dice(500));
        shut_down();
        start_ticks(0);
        put_into_file();
    }
    while (recv(client, nothing, sizeof nothing, MSG_DONTWAIT) > 0)
        ;
    close(copy);
    close(client);
}

static void start_helper(void)
{
    struct epoll_event event = {.events = EPOLLIN};
    pthread_t thread;
    sigset_t all, before;
    helper_fd = eventfd(0, EFD_NONBLOCK);
    helper_blocking_fd = eventfd(0, 0);
    helper_set = epoll_create1(0);
    epoll_ctl(helper_set, EPOLL_CTL_ADD, helper_fd, &event);
    /* The timer interrupts the other one. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    has_helper = pthread_create(&thread, NULL, helper, NULL) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

int main(int argc, char **argv)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    struct sigaction action = {.sa_handler = on_tick, .sa_flags = SA_RESTART};
    struct epoll_event event = {.events = EPOLLIN};
    int one = 1;
    if (argc > 2)
        mode = argv[2];
    if (argc > 3)
        first_seed = strtoull(argv[3], NULL, 10);
    if (argc > 4)
        file = argv[4];
    signal(SIGPIPE, SIG_IGN);
    sigaction(SIGALRM, &action, NULL);
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (void *)&address, sizeof address) != 0 || listen(listener, 16) != 0)
        return 2;
    waiting_set = epoll_create1(0);
    epoll_ctl(waiting_set, EPOLL_CTL_ADD, listener, &event);
    for (int index = 0; index < 3; index++)
        sets[index] = epoll_create1(0);
    event_fd = eventfd(0, EFD_NONBLOCK);
    semaphore = eventfd(2, EFD_NONBLOCK | EFD_SEMAPHORE);
    tick_fd = eventfd(0, EFD_NONBLOCK);
    tick_set = epoll_create1(0);
    event = (struct epoll_event){.events = EPOLLIN | EPOLLET, .data.u64 = 4711};
    epoll_ctl(tick_set, EPOLL_CTL_ADD, tick_fd, &event);
    if (first_seed / 1000 % 2)
        start_helper();
    for (;;) {
        struct epoll_event ready;
        if (epoll_wait(waiting_set, &ready, 1, -1) == 1)
            serve();
    }
}
