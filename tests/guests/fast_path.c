/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * fast_path PORT [MODE [SEED]]: a server that makes random system calls on each connection and answers with what they came to.
 *
 * The calls depend on the seed, until the connection is accepted, and then on the first 8 digits of the path (GET /12345678) alone,
 * so two runs give the same answer, however the calls are answered. A timer interrupts them all the time; its handler restarts calls and leaves no trace.
 *
 * Modes: http (the connection's end is not seen), raw (the client has ended its side: reads come to its end), garbage (what the fast
 * path keeps in this program's memory is overwritten, at random places with random bytes, while it is used).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
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

static const char *mode = "http";
static int listener, waiting_set, sets[3], event_fd, semaphore, client, served, head_sent;
static uint64_t state, first_seed = 1;
static char report[1 << 17];
static size_t reported;
static volatile sig_atomic_t ticks;

static int is(const char *name)
{
    return strcmp(mode, name) == 0;
}

static unsigned dice(unsigned sides)
{
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (unsigned)(state >> 33) % sides;
}

static void on_tick(int signal)
{
    (void)signal;
    ticks++;
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
    int choices[] = {client, client, client, client, listener, listener, sets[0], sets[1], 99, -1, event_fd, event_fd, semaphore};
    return choices[dice(13)];
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
        client = got;
        /* Without O_NONBLOCK a read would wait for ever. */
        if (old || !(flags & SOCK_NONBLOCK))
            fcntl(client, F_SETFL, O_NONBLOCK);
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
    char buffer[300];
    memset(buffer, '.', sizeof buffer);
    unsigned length = dice(8) ? dice(80) : dice(300), cut = length ? dice(length) : 0;
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
    char bytes[600];
    unsigned length = dice(8) ? 1 + dice(60) : dice(600), cut;
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
        call_write, call_options, call_names, call_flags, call_others, call_accept, call_event, call_event, call_poll};
    void (*chosen)(void) = calls[dice(17)];
    if (is("garbage") && dice(6) == 0)
        scribble();
    if (client >= 0 || chosen == call_control || chosen == call_wait || chosen == call_others || chosen == call_accept ||
        chosen == call_event || chosen == call_poll)
        chosen();
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

/* The seed is in the path; nothing else of the request matters. */
static void serve(void)
{
    static char nothing[20000];
    struct itimerval often = {{0, 150}, {0, 150}}, never = {{0, 0}, {0, 0}};
    client = -1;
    head_sent = 0;
    reported = 0;
    state = first_seed;
    setitimer(ITIMER_REAL, &often, NULL);
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
    if (recv(client, start, sizeof start - 1, MSG_PEEK) < 13)
        exit(4);
    state = strtoull(start + 5, NULL, 10) * 2654435761u + 12345;
    for (int call = 0; call < CALLS; call++)
        one_call();
    setitimer(ITIMER_REAL, &never, NULL);
    if (!head_sent)
        call_write();
    while (recv(client, nothing, sizeof nothing, MSG_DONTWAIT) > 0)
        ;
    if (reported)
        send_all(report, reported);
    served++;
    close(client);
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
    for (;;) {
        struct epoll_event ready;
        if (epoll_wait(waiting_set, &ready, 1, -1) == 1)
            serve();
    }
}
