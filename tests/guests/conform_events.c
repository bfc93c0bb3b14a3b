/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * Claims about waiting: pipe, eventfd, timerfd, socketpair, epoll, poll, select.
 */
#include "tap.h"
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

static uint64_t start;

static void stopwatch(void)
{
    start = tap_now_ns(CLOCK_MONOTONIC);
}

/* At least this long, and not absurdly longer (machines may be busy). */
static int took_ms(unsigned milliseconds)
{
    uint64_t time = tap_now_ns(CLOCK_MONOTONIC) - start;
    return time >= milliseconds * 1000000ul && time < milliseconds * 1000000ul + 2000000000ul;
}

static void *write_later(void *fd)
{
    nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    if (write((int)(intptr_t)fd, "12345678", 8) != 8)
        perror("write");
    return NULL;
}

static void later(int fd, pthread_t *thread)
{
    pthread_create(thread, NULL, write_later, (void *)(intptr_t)fd);
}

static void pipes(void)
{
    static char big[1 << 20];
    int ends[2], count = 0, available;
    char text[32];
    pthread_t thread;
    CHECK("T16 pipe2 keeps both flags", pipe2(ends, O_NONBLOCK | O_CLOEXEC) == 0 && fcntl(ends[0], F_GETFD) == FD_CLOEXEC && (fcntl(ends[1], F_GETFL) & O_NONBLOCK));
    CHECK_ERRNO("an empty pipe", read(ends[0], text, 1), EAGAIN);
    CHECK_ERRNO("reading the writing end", read(ends[1], text, 1), EBADF);
    CHECK_ERRNO("writing the reading end", write(ends[0], text, 1), EBADF);
    CHECK_ERRNO("lseek on a pipe", lseek(ends[0], 0, SEEK_SET), ESPIPE);
    CHECK_ERRNO("pread on a pipe", pread(ends[0], text, 1, 0), ESPIPE);
    CHECK_ERRNO("pipe2 with bad flags", pipe2(ends, 0x1), EINVAL);
    while (write(ends[1], big, 4096) == 4096)
        count++;
    CHECK_ERRNO("N2 a full pipe", write(ends[1], big, 4096), EAGAIN);
    CHECK("it holds 64 KiB", count == 16);
    CHECK("FIONREAD", ioctl(ends[0], FIONREAD, &available) == 0 && available == 65536);
    while (read(ends[0], big, sizeof big) > 0)
        ;
    CHECK("F_GETPIPE_SZ", fcntl(ends[0], F_GETPIPE_SZ) >= 4096);
    CHECK("a short read", write(ends[1], "hello", 5) == 5 && read(ends[0], text, 32) == 5 && memcmp(text, "hello", 5) == 0);
    close(ends[1]);
    CHECK("a closed pipe reads as its end", read(ends[0], text, 1) == 0);
    close(ends[0]);
    CHECK("pipe", pipe(ends) == 0);
    later(ends[1], &thread);
    CHECK("a blocking read waits", read(ends[0], text, 32) == 8);
    pthread_join(thread, NULL);
    close(ends[0]), close(ends[1]);
}

static void eventfds(void)
{
    uint64_t value = 0;
    pthread_t thread;
    int fd = eventfd(3, EFD_NONBLOCK);
    CHECK("eventfd", read(fd, &value, 8) == 8 && value == 3);
    CHECK_ERRNO("an eventfd of 0", read(fd, &value, 8), EAGAIN);
    value = 5;
    CHECK("writes add up", write(fd, &value, 8) == 8 && write(fd, &value, 8) == 8 && read(fd, &value, 8) == 8 && value == 10);
    value = UINT64_MAX;
    CHECK_ERRNO("an eventfd cannot hold 2^64 - 1", write(fd, &value, 8), EINVAL);
    value = UINT64_MAX - 1;
    CHECK("but one less", write(fd, &value, 8) == 8);
    value = 1;
    CHECK_ERRNO("and then it is full", write(fd, &value, 8), EAGAIN);
    CHECK_ERRNO("an eventfd reads 8 bytes", read(fd, &value, 7), EINVAL);
    CHECK_ERRNO("T7 eventfd with bad flags", eventfd(0, 0x40), EINVAL);
    close(fd);
    fd = eventfd(2, EFD_SEMAPHORE);
    CHECK("EFD_SEMAPHORE", read(fd, &value, 8) == 8 && value == 1 && read(fd, &value, 8) == 8 && value == 1);
    later(fd, &thread);
    CHECK("a blocking eventfd waits", read(fd, &value, 8) == 8 && value == 1);
    pthread_join(thread, NULL);
    close(fd);
}

static void timerfds(void)
{
    struct itimerspec spec = {.it_value.tv_nsec = 20000000}, old;
    struct timespec now;
    uint64_t count = 0;
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    CHECK("timerfd_create", fd >= 0);
    stopwatch();
    CHECK("timerfd_settime", timerfd_settime(fd, 0, &spec, NULL) == 0);
    CHECK("timerfd_gettime", timerfd_gettime(fd, &old) == 0 && old.it_value.tv_nsec > 0 && old.it_value.tv_nsec <= 20000000);
    CHECK("a read waits for the timer", read(fd, &count, 8) == 8 && count == 1 && took_ms(19));
    spec.it_interval.tv_nsec = spec.it_value.tv_nsec = 5000000;
    timerfd_settime(fd, 0, &spec, NULL);
    nanosleep(&(struct timespec){.tv_nsec = 30000000}, NULL);
    CHECK("an interval counts", read(fd, &count, 8) == 8 && count >= 4);
    clock_gettime(CLOCK_MONOTONIC, &now);
    spec = (struct itimerspec){.it_value = now};
    spec.it_value.tv_sec--;
    CHECK("an absolute time that is over", timerfd_settime(fd, TFD_TIMER_ABSTIME, &spec, &old) == 0 && read(fd, &count, 8) == 8 && count == 1);
    CHECK("the old setting was told", old.it_interval.tv_nsec == 5000000);
    memset(&spec, 0, sizeof spec);
    CHECK("0 stops it", timerfd_settime(fd, 0, &spec, NULL) == 0 && fcntl(fd, F_SETFL, O_NONBLOCK) == 0);
    CHECK_ERRNO("a stopped timer", read(fd, &count, 8), EAGAIN);
    spec.it_value.tv_nsec = 1000000000;
    CHECK_ERRNO("a billion nanoseconds", timerfd_settime(fd, 0, &spec, NULL), EINVAL);
    CHECK_ERRNO("T7 a bad clock", timerfd_create(77, 0), EINVAL);
    CHECK_ERRNO("T7 bad flags", timerfd_create(CLOCK_MONOTONIC, 1), EINVAL);
    CHECK_ERRNO("a timerfd cannot be written", write(fd, &count, 8), EINVAL);
    close(fd);
}

static void pairs(void)
{
    int ends[2], available;
    char text[32];
    struct msghdr message = {0};
    struct iovec part = {text, sizeof text};
    CHECK("socketpair", socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    CHECK("both ways", write(ends[0], "to", 2) == 2 && write(ends[1], "back", 4) == 4 && read(ends[1], text, 32) == 2 && read(ends[0], text, 32) == 4);
    CHECK("MSG_PEEK leaves it", send(ends[0], "peek", 4, 0) == 4 && recv(ends[1], text, 32, MSG_PEEK) == 4 && recv(ends[1], text, 32, 0) == 4);
    CHECK_ERRNO("MSG_DONTWAIT", recv(ends[1], text, 32, MSG_DONTWAIT), EAGAIN);
    CHECK("sendmsg and recvmsg", send(ends[0], "msg", 3, 0) == 3 && (message.msg_iov = &part, message.msg_iovlen = 1, recvmsg(ends[1], &message, 0) == 3));
    CHECK("MSG_WAITALL", write(ends[0], "12345", 5) == 5 && recv(ends[1], text, 5, MSG_WAITALL) == 5);
    CHECK("FIONREAD", write(ends[0], "abc", 3) == 3 && ioctl(ends[1], FIONREAD, &available) == 0 && available == 3 && read(ends[1], text, 32) == 3);
    CHECK("shutdown", shutdown(ends[0], SHUT_WR) == 0 && read(ends[1], text, 1) == 0);
    CHECK("the other way still works", write(ends[1], "x", 1) == 1 && read(ends[0], text, 1) == 1);
    CHECK_ERRNO("writing after shutdown", send(ends[0], "x", 1, MSG_NOSIGNAL), EPIPE);
    close(ends[0]);
    CHECK_ERRNO("writing to a closed end", send(ends[1], "x", 1, MSG_NOSIGNAL), EPIPE);
    close(ends[1]);
    CHECK("datagram pair", socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) == 0);
    CHECK("keeps boundaries", write(ends[0], "one", 3) == 3 && write(ends[0], "three", 5) == 5 && read(ends[1], text, 32) == 3 && read(ends[1], text, 32) == 5);
    CHECK("and cuts", write(ends[0], "long message", 12) == 12 && read(ends[1], text, 4) == 4 && recv(ends[1], text, 4, MSG_DONTWAIT) == -1);
    close(ends[0]), close(ends[1]);
    CHECK_ERRNO("an internet socketpair", socketpair(AF_INET, SOCK_STREAM, 0, ends), EOPNOTSUPP);
    CHECK_ERRNO("an unknown family", socketpair(250, SOCK_STREAM, 0, ends), EAFNOSUPPORT);
}

static int wait_now(int set, struct epoll_event *events)
{
    return epoll_wait(set, events, 8, 0);
}

static void epolls(void)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 0x123456789abcdef0}, events[8];
    int ends[2], set = epoll_create1(EPOLL_CLOEXEC), inner = epoll_create1(0), copy;
    char text[64];
    pthread_t thread;
    CHECK("socketpair for epoll", socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) == 0);
    CHECK("EPOLL_CTL_ADD", epoll_ctl(set, EPOLL_CTL_ADD, ends[0], &event) == 0);
    CHECK_ERRNO("twice", epoll_ctl(set, EPOLL_CTL_ADD, ends[0], &event), EEXIST);
    CHECK_ERRNO("EPOLL_CTL_MOD of a stranger", epoll_ctl(set, EPOLL_CTL_MOD, ends[1], &event), ENOENT);
    CHECK_ERRNO("EPOLL_CTL_DEL of a stranger", epoll_ctl(set, EPOLL_CTL_DEL, ends[1], NULL), ENOENT);
    CHECK_ERRNO("a set in itself", epoll_ctl(set, EPOLL_CTL_ADD, set, &event), EINVAL);
    CHECK_ERRNO("a bad descriptor", epoll_ctl(set, EPOLL_CTL_ADD, 999, &event), EBADF);
    CHECK_ERRNO("not a set", epoll_ctl(ends[0], EPOLL_CTL_ADD, ends[1], &event), EINVAL);
    CHECK_ERRNO("a bad operation", epoll_ctl(set, 77, ends[0], &event), EINVAL);
    int file = open("/proc/self/exe", O_RDONLY);
    CHECK_ERRNO("a regular file", epoll_ctl(set, EPOLL_CTL_ADD, file, &event), EPERM);
    close(file);
    CHECK("nothing is ready", wait_now(set, events) == 0);
    stopwatch();
    CHECK("a timeout", epoll_wait(set, events, 8, 20) == 0 && took_ms(19));
    CHECK_ERRNO("room for no event", epoll_wait(set, events, 0, 0), EINVAL);
    CHECK_ERRNO("events to a bad address", (write(ends[1], "x", 1), epoll_wait(set, (void *)8, 8, 0)), EFAULT);
    CHECK("level-triggered: again and again", wait_now(set, events) == 1 && wait_now(set, events) == 1 && events[0].data.u64 == 0x123456789abcdef0 && events[0].events == EPOLLIN);
    event.events = EPOLLIN | EPOLLET;
    CHECK("EPOLL_CTL_MOD to edge-triggered reports once more", epoll_ctl(set, EPOLL_CTL_MOD, ends[0], &event) == 0 && wait_now(set, events) == 1);
    CHECK("and then not", wait_now(set, events) == 0);
    CHECK("until something new comes", write(ends[1], "y", 1) == 1 && wait_now(set, events) == 1 && wait_now(set, events) == 0);
    event.events = EPOLLIN | EPOLLOUT | EPOLLONESHOT;
    CHECK("EPOLLONESHOT reports once", epoll_ctl(set, EPOLL_CTL_MOD, ends[0], &event) == 0 && wait_now(set, events) == 1 && events[0].events == (EPOLLIN | EPOLLOUT) && wait_now(set, events) == 0);
    CHECK("until it is armed again", epoll_ctl(set, EPOLL_CTL_MOD, ends[0], &event) == 0 && wait_now(set, events) == 1);
    event.events = EPOLLIN | EPOLLRDHUP;
    epoll_ctl(set, EPOLL_CTL_MOD, ends[0], &event);
    while (read(ends[0], text, sizeof text) > 0)
        ;
    CHECK("what was read is not ready", wait_now(set, events) == 0);
    later(ends[1], &thread);
    CHECK("a wait is woken", epoll_wait(set, events, 8, 5000) == 1);
    pthread_join(thread, NULL);
    while (read(ends[0], text, sizeof text) > 0)
        ;
    event.data.u64 = 7;
    CHECK("a nested set", epoll_ctl(inner, EPOLL_CTL_ADD, set, &event) == 0 && wait_now(inner, events) == 0);
    CHECK_ERRNO("a loop of sets", epoll_ctl(set, EPOLL_CTL_ADD, inner, &event), ELOOP);
    CHECK("is ready when its member is", write(ends[1], "z", 1) == 1 && wait_now(inner, events) == 1 && events[0].data.u64 == 7 && wait_now(set, events) == 1);
    shutdown(ends[1], SHUT_WR);
    CHECK("EPOLLRDHUP", wait_now(set, events) == 1 && events[0].events == (EPOLLIN | EPOLLRDHUP));
    close(ends[1]);
    CHECK("EPOLLHUP", wait_now(set, events) == 1 && (events[0].events & EPOLLHUP));
    copy = dup(ends[0]);
    close(ends[0]);
    CHECK("a closed number whose file lives on is still reported", wait_now(set, events) == 1);
    close(copy);
    CHECK("the last close takes it out", wait_now(set, events) == 0);
    close(set), close(inner);
    set = epoll_create1(0);
    int many[10];
    for (int i = 0; i < 10; i++) {
        event = (struct epoll_event){.events = EPOLLIN, .data.fd = many[i] = eventfd(1, 0)};
        epoll_ctl(set, EPOLL_CTL_ADD, many[i], &event);
    }
    int seen = 0;
    for (int round = 0; round < 5; round++) {
        int count = epoll_wait(set, events, 3, 0);
        for (int i = 0; i < count; i++)
            for (int k = 0; k < 10; k++)
                seen |= events[i].data.fd == many[k] ? 1 << k : 0;
    }
    CHECK("more ready than room: all get their turn", seen == 0x3ff);
    CHECK_ERRNO("epoll_create of nothing", epoll_create(0), EINVAL);
    CHECK_ERRNO("epoll_create1 with bad flags", epoll_create1(1), EINVAL);
    for (int i = 0; i < 10; i++)
        close(many[i]);
    close(set);
}

static void polls(void)
{
    static struct pollfd many[600];
    struct pollfd one;
    struct timespec limit = {.tv_nsec = 10000000};
    int ends[2];
    pthread_t thread;
    pipe(ends);
    one = (struct pollfd){.fd = ends[0], .events = POLLIN};
    stopwatch();
    CHECK("poll times out", poll(&one, 1, 20) == 0 && took_ms(19));
    later(ends[1], &thread);
    CHECK("poll is woken", poll(&one, 1, 5000) == 1 && one.revents == POLLIN);
    pthread_join(thread, NULL);
    one = (struct pollfd){.fd = 999, .events = POLLIN};
    CHECK("a bad descriptor is POLLNVAL", poll(&one, 1, 0) == 1 && one.revents == POLLNVAL);
    one.fd = -1;
    CHECK("a negative one is skipped", poll(&one, 1, 0) == 0 && one.revents == 0);
    CHECK("poll of nothing sleeps", poll(NULL, 0, 1) == 0);
    struct pollfd three[3] = {{ends[1], POLLOUT, 77}, {-1, POLLIN, 77}, {ends[0], POLLIN, 77}};
    CHECK("N1 revents of every entry are written", poll(three, 3, 0) == 2 && three[0].revents == POLLOUT && three[1].revents == 0 && three[2].revents == POLLIN);
    for (int i = 0; i < 600; i++)
        many[i] = (struct pollfd){.fd = i == 599 ? ends[0] : ends[1], .events = i == 599 ? POLLIN : 0};
    CHECK("T19 poll of 600 entries", poll(many, 600, 0) == 1 && many[599].revents == POLLIN);
    CHECK_ERRNO("T19 poll of more entries than descriptors allowed", poll(many, 1u << 30, 0), EINVAL);
    CHECK_ERRNO("poll at a bad address", poll((void *)8, 2, 0), EFAULT);
    one = (struct pollfd){.fd = ends[1], .events = POLLIN};
    CHECK("ppoll", ppoll(&one, 1, &limit, NULL) == 0);
    limit = (struct timespec){.tv_sec = -1};
    CHECK_ERRNO("T8 ppoll with a negative time", ppoll(&one, 1, &limit, NULL), EINVAL);
    limit = (struct timespec){.tv_nsec = 1000000000};
    CHECK_ERRNO("T8 ppoll with a billion nanoseconds", ppoll(&one, 1, &limit, NULL), EINVAL);
    limit = (struct timespec){.tv_sec = 1l << 62};
    one = (struct pollfd){.fd = ends[0], .events = POLLIN};
    CHECK("T8 ppoll with 2^62 seconds", ppoll(&one, 1, &limit, NULL) == 1);
    close(ends[1]);
    char text[16];
    while (read(ends[0], text, 16) > 0)
        ;
    CHECK("POLLHUP", poll(&one, 1, 0) == 1 && one.revents == POLLHUP);
    close(ends[0]);
    pipe(ends);
    close(ends[0]);
    one = (struct pollfd){.fd = ends[1], .events = POLLOUT};
    CHECK("POLLERR of a pipe without a reader", poll(&one, 1, 0) == 1 && (one.revents & POLLERR));
    close(ends[1]);
    one = (struct pollfd){.fd = open("/dev/null", O_RDWR), .events = POLLIN | POLLOUT};
    CHECK("/dev/null is always ready", poll(&one, 1, 0) == 1 && one.revents == (POLLIN | POLLOUT));
    close(one.fd);
}

static void selects(void)
{
    int ends[2];
    fd_set reading, writing;
    struct timeval limit = {.tv_usec = 20000};
    struct timespec precise = {.tv_nsec = 20000000};
    pipe(ends);
    FD_ZERO(&reading);
    FD_ZERO(&writing);
    FD_SET(ends[0], &reading);
    stopwatch();
    CHECK("select times out", select(ends[1] + 1, &reading, NULL, NULL, &limit) == 0 && took_ms(19) && !FD_ISSET(ends[0], &reading));
    CHECK("and tells the time left", limit.tv_sec == 0 && limit.tv_usec == 0);
    FD_SET(ends[0], &reading);
    FD_SET(ends[1], &writing);
    CHECK("select for writing", select(ends[1] + 1, &reading, &writing, NULL, NULL) == 1 && FD_ISSET(ends[1], &writing) && !FD_ISSET(ends[0], &reading));
    FD_SET(ends[0], &reading);
    CHECK("both", write(ends[1], "x", 1) == 1 && select(ends[1] + 1, &reading, &writing, NULL, NULL) == 2);
    CHECK("pselect", pselect(ends[1] + 1, &reading, NULL, NULL, &precise, NULL) == 1);
    FD_ZERO(&reading);
    FD_SET(63, &reading);
    CHECK_ERRNO("select of a bad descriptor", select(64, &reading, NULL, NULL, &limit), EBADF);
    CHECK_ERRNO("select of -1 descriptors", select(-1, NULL, NULL, NULL, &limit), EINVAL);
    limit = (struct timeval){.tv_sec = -1};
    CHECK_ERRNO("select with a negative time", select(0, NULL, NULL, NULL, &limit), EINVAL);
    limit = (struct timeval){.tv_usec = 1000};
    CHECK("select as a sleep", select(0, NULL, NULL, NULL, &limit) == 0);
    close(ends[0]), close(ends[1]);
}

static void limits(void)
{
    struct rlimit limit, small;
    int last = -1, fd, count = 0;
    getrlimit(RLIMIT_NOFILE, &limit);
    small = (struct rlimit){64, limit.rlim_max};
    CHECK("setrlimit of descriptors", setrlimit(RLIMIT_NOFILE, &small) == 0);
    while ((fd = eventfd(0, 0)) >= 0)
        last = fd, count++;
    int error = errno;
    CHECK("then EMFILE", error == EMFILE && last == 63);
    CHECK_ERRNO("for dup2 it is EBADF", dup2(1, 64), EBADF);
    CHECK_ERRNO("for F_DUPFD EINVAL", fcntl(1, F_DUPFD, 64), EINVAL);
    while (count-- > 0)
        close(last--);
    CHECK("the limit is put back", setrlimit(RLIMIT_NOFILE, &limit) == 0);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    pipes();
    eventfds();
    timerfds();
    pairs();
    epolls();
    polls();
    selects();
    limits();
    return tap_failures != 0;
}
