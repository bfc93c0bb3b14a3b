/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * The HTTP/1.1 half that all test servers share: a listener, request framing, and one answer.
 *
 * A server owns one `struct connection` per client and calls http_serve() whenever the client may have sent
 * something. By default every request is answered with the next number of one counter; a program may set
 * `http_handler` to answer otherwise. Requests may be pipelined, bodies are framed by Content-Length.
 */
#ifndef KVMSERVER_TESTS_HTTP_H
#define KVMSERVER_TESTS_HTTP_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

enum { HTTP_WAIT, HTTP_CLOSED };

struct connection {
    int fd;
    size_t used;
    char buffer[65536];
};

struct request {
    char method[16];
    char path[1024];
    const char *body;
    size_t body_length;
    int keep_alive;
};

static unsigned long http_counter;

__attribute__((noreturn, format(printf, 1, 2), unused)) static void fail(const char *format, ...)
{
    int saved = errno;
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, ": %s\n", strerror(saved));
    exit(1);
}

/* Writes everything, waiting where the socket is non-blocking; -1 when the client is gone. */
__attribute__((unused)) static int http_send(int fd, const char *data, size_t length)
{
    while (length > 0) {
        ssize_t sent = send(fd, data, length, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && errno == EAGAIN) {
            struct pollfd writable = {.fd = fd, .events = POLLOUT};
            poll(&writable, 1, -1);
            continue;
        }
        if (sent < 0)
            return -1;
        data += sent;
        length -= (size_t)sent;
    }
    return 0;
}

__attribute__((unused)) static int http_respond(int fd, const struct request *request, int status, const char *body, size_t length)
{
    static const char *const phrases[] = {[2] = "OK", [4] = "Client Error", [5] = "Server Error"};
    char head[256];
    int size = snprintf(head, sizeof head,
                        "HTTP/1.1 %d %s\r\nContent-Type: text/plain\r\nContent-Length: %zu\r\n%s\r\n", status,
                        phrases[status / 100], length, request->keep_alive ? "" : "Connection: close\r\n");
    /* Head and a short body leave in one segment, so that a client never waits for a delayed acknowledgement. */
    char whole[4096];
    if (length <= sizeof whole - (size_t)size) {
        memcpy(whole, head, (size_t)size);
        memcpy(whole + size, body, length);
        return http_send(fd, whole, (size_t)size + length);
    }
    return http_send(fd, head, (size_t)size) == 0 ? http_send(fd, body, length) : -1;
}

/* Answers the number of this request; the one thing a reset must take back. */
__attribute__((unused)) static int http_count(int fd, const struct request *request)
{
    char body[32];
    unsigned long count = __atomic_add_fetch(&http_counter, 1, __ATOMIC_RELAXED);
    int length = snprintf(body, sizeof body, "%lu\n", count);
    return http_respond(fd, request, 200, body, (size_t)length);
}

static int (*http_handler)(int fd, const struct request *request) = http_count;

static const char *http_header(const char *head, const char *name)
{
    size_t length = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line; line = strstr(line, "\r\n")) {
        line += 2;
        if (strncasecmp(line, name, length) == 0 && line[length] == ':')
            return line + length + 1 + strspn(line + length + 1, " \t");
    }
    return NULL;
}

/* Bytes of the first complete request in the buffer, 0 when it is incomplete, -1 when it is no request. */
static long http_parse(struct connection *client, struct request *request)
{
    client->buffer[client->used] = '\0';
    char *end = strstr(client->buffer, "\r\n\r\n");
    if (!end)
        return client->used + 1 < sizeof client->buffer ? 0 : -1;
    char version[16];
    end[2] = '\0';
    if (sscanf(client->buffer, "%15s %1023s %15s", request->method, request->path, version) != 3)
        return -1;
    const char *length = http_header(client->buffer, "Content-Length");
    const char *linger = http_header(client->buffer, "Connection");
    request->body_length = length ? strtoul(length, NULL, 10) : 0;
    request->keep_alive = strcmp(version, "HTTP/1.0") != 0 && !(linger && strncasecmp(linger, "close", 5) == 0);
    request->body = end + 4;
    end[2] = '\r';
    size_t whole = (size_t)(end + 4 - client->buffer) + request->body_length;
    if (whole >= sizeof client->buffer)
        return -1;
    return whole <= client->used ? (long)whole : 0;
}

/* Reads once and answers every complete request; a blocking socket blocks in the read. */
__attribute__((unused)) static int http_serve(struct connection *client)
{
    ssize_t got = recv(client->fd, client->buffer + client->used, sizeof client->buffer - 1 - client->used, 0);
    if (got < 0)
        return errno == EAGAIN || errno == EINTR ? HTTP_WAIT : HTTP_CLOSED;
    if (got == 0)
        return HTTP_CLOSED;
    client->used += (size_t)got;
    for (;;) {
        struct request request;
        long size = http_parse(client, &request);
        if (size < 0)
            return HTTP_CLOSED;
        if (size == 0)
            return HTTP_WAIT;
        if (http_handler(client->fd, &request) < 0 || !request.keep_alive)
            return HTTP_CLOSED;
        client->used -= (size_t)size;
        memmove(client->buffer, client->buffer + size, client->used);
    }
}

__attribute__((unused)) static struct connection *http_accept(int listener, int flags)
{
    int fd = accept4(listener, NULL, NULL, flags);
    if (fd < 0)
        return NULL;
    struct connection *client = malloc(sizeof *client);
    if (!client)
        fail("malloc");
    client->fd = fd;
    client->used = 0;
    return client;
}

__attribute__((unused)) static void http_forget(struct connection *client)
{
    close(client->fd);
    free(client);
}

__attribute__((unused)) static int http_listen(const char *port, int flags)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(port))};
    int one = 1;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
    if (listener < 0)
        fail("socket");
    if (setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) != 0)
        fail("setsockopt");
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0)
        fail("bind to port %s", port);
    if (listen(listener, 128) != 0)
        fail("listen");
    return listener;
}

/* The server that needs no events: one client after another, each until it is gone. */
__attribute__((noreturn, unused)) static void http_serve_for_ever(const char *port)
{
    int listener = http_listen(port, 0);
    for (;;) {
        struct connection *client = http_accept(listener, 0);
        if (!client)
            fail("accept");
        while (http_serve(client) == HTTP_WAIT)
            ;
        http_forget(client);
    }
}

#endif
