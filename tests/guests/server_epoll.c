/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * A counter server on epoll: server_epoll PORT [MODE].
 *
 * Modes: lt (level-triggered), et (edge-triggered), nested (the listener's epoll set is itself watched by a
 * second one), pwait2 (epoll_pwait2), noctldel (a client's descriptor is duplicated, so that closing it leaves a
 * registration behind until the duplicate goes), two (listener and clients in two sets that are waited for in turn,
 * by a poll over both), thread (the loop runs in a second thread, the first one joins it).
 */
#include "http.h"
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <time.h>

static const char *mode = "lt";
static int listener, set, client_set;

static int is(const char *name)
{
    return strcmp(mode, name) == 0;
}

static void watch(int epoll, int fd, unsigned events, void *data)
{
    struct epoll_event event = {.events = events, .data.ptr = data};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0)
        fail("epoll_ctl");
}

static void accept_all(void)
{
    struct connection *client;
    while ((client = http_accept(listener, SOCK_NONBLOCK | SOCK_CLOEXEC)) != NULL)
        watch(client_set, client->fd, EPOLLIN | EPOLLRDHUP | (is("et") ? EPOLLET : 0), client);
    if (errno != EAGAIN)
        fail("accept4");
}

static void drop(struct connection *client)
{
    if (is("noctldel")) {
        /* The open file stays registered under the old number until its last descriptor is closed. */
        int duplicate = dup(client->fd);
        shutdown(client->fd, SHUT_WR);
        http_forget(client);
        close(duplicate);
        return;
    }
    http_forget(client);
}

static void serve(struct connection *client)
{
    if (!is("et")) {
        if (http_serve(client) == HTTP_CLOSED)
            drop(client);
        return;
    }
    /* Edge-triggered: the edge is spent, so read until nothing is left. */
    for (;;) {
        char probe;
        if (http_serve(client) == HTTP_CLOSED) {
            drop(client);
            return;
        }
        if (recv(client->fd, &probe, 1, MSG_PEEK) < 0 && errno == EAGAIN)
            return;
    }
}

static int wait_for(int epoll, struct epoll_event *events, int count, int timeout)
{
    if (is("pwait2")) {
        struct timespec limit = {.tv_sec = 3600};
        sigset_t mask;
        sigemptyset(&mask);
        /* By number: not every C library has it. The kernel's mask has 8 bytes. */
        return (int)syscall(441, epoll, events, count, timeout < 0 ? NULL : &limit, &mask, 8);
    }
    return epoll_wait(epoll, events, count, timeout);
}

static void handle(int epoll, int timeout)
{
    struct epoll_event events[16];
    int count = wait_for(epoll, events, 16, timeout);
    if (count < 0 && errno != EINTR)
        fail("epoll_wait");
    for (int i = 0; i < count; i++) {
        if (events[i].data.ptr == NULL)
            accept_all();
        else if (events[i].data.ptr == &set)
            handle(set, 0);
        else
            serve(events[i].data.ptr);
    }
}

static void *loop(void *unused)
{
    (void)unused;
    int outer = set;
    if (is("nested")) {
        outer = epoll_create1(EPOLL_CLOEXEC);
        watch(outer, set, EPOLLIN, &set);
    }
    if (is("two")) {
        for (;;) {
            struct pollfd both[2] = {{.fd = set, .events = POLLIN}, {.fd = client_set, .events = POLLIN}};
            if (poll(both, 2, -1) < 0 && errno != EINTR)
                fail("poll");
            if (both[0].revents)
                handle(set, 0);
            if (both[1].revents)
                handle(client_set, 0);
        }
    }
    for (;;)
        handle(outer, -1);
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    if (argc > 2)
        mode = argv[2];
    listener = http_listen(argv[1], SOCK_NONBLOCK);
    set = epoll_create1(EPOLL_CLOEXEC);
    client_set = is("two") ? epoll_create1(EPOLL_CLOEXEC) : set;
    if (set < 0 || client_set < 0)
        fail("epoll_create1");
    watch(set, listener, EPOLLIN | (is("et") ? EPOLLET : 0), NULL);
    if (is("thread")) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, loop, NULL) != 0)
            fail("pthread_create");
        pthread_join(thread, NULL);
    }
    loop(NULL);
}
