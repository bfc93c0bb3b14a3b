/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * Open-loop load: constant_rate PORT RATE SECONDS CONNECTIONS keep|new
 *
 * Request i is due at start + i/RATE, whatever became of the ones before it, and its latency counts from that instant:
 * the time that it waited for a free connection is in it. (A closed loop, as wrk's, sends less while the server is
 * slow, and so never sees what its users would have waited: "coordinated omission".) Prints one line of JSON.
 *
 * One thread and one epoll set, so that as little as possible is taken from the server that is measured.
 */
#include "http.h"
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <time.h>

enum { HEAD_BYTES = 16384, CONNECTIONS_MAX = 4096 };
static const int64_t SECOND = 1000000000, GRACE = 2000000000;

/* Where an exchange is: the connection is not up yet, or the response is in its head, in a body of known length, in a
 * chunked one. */
enum stage { IDLE, CONNECTING, HEAD, LENGTH, CHUNKED };

struct exchange {
    int fd;
    enum stage stage;
    int64_t due;      /* of the request that it carries */
    size_t used;      /* bytes of the head; bytes of `tail` */
    uint64_t missing; /* bytes of a body of known length */
    char head[HEAD_BYTES];
    char tail[8]; /* the last bytes of a chunked body */
};

static struct sockaddr_in server;
static struct exchange *exchanges;
static int epoll, keep;
static char request[256];
static uint32_t *latencies; /* microseconds */
static uint64_t total, sent, completed, errors;

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * SECOND + time.tv_nsec;
}

static int connect_to_server(struct exchange *client)
{
    int one = 1;
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (client->fd < 0)
        fail("socket");
    setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(client->fd, (struct sockaddr *)&server, sizeof server) != 0 && errno != EINPROGRESS)
        return -1;
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = client};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, client->fd, &event) != 0)
        fail("epoll_ctl");
    return 0;
}

static void disconnect(struct exchange *client)
{
    if (client->fd >= 0)
        close(client->fd);
    client->fd = -1;
    client->stage = IDLE;
}

static void failed(struct exchange *client)
{
    errors++;
    disconnect(client);
}

/* A short request fits into an empty socket; it has to wait only while the server's backlog is full. */
static void send_request(struct exchange *client)
{
    ssize_t length = (ssize_t)strlen(request), done = send(client->fd, request, (size_t)length, MSG_NOSIGNAL);
    if (done == length)
        client->stage = HEAD;
    else if (done >= 0 || errno != EAGAIN)
        failed(client);
}

static void begin(struct exchange *client, int64_t due)
{
    client->due = due;
    client->used = 0;
    client->stage = CONNECTING;
    if (client->fd < 0 && connect_to_server(client) != 0)
        failed(client);
    else
        send_request(client);
}

static void note_latency(const struct exchange *client, uint64_t index, int64_t at)
{
    int64_t microseconds = (at - client->due) / 1000;
    latencies[index] = microseconds > UINT32_MAX ? UINT32_MAX : (uint32_t)microseconds;
}

static void answered(struct exchange *client, int64_t at)
{
    note_latency(client, completed++, at);
    client->stage = IDLE;
    if (!keep)
        disconnect(client);
}

/* Takes body bytes; whether the response is complete. */
static int take_body(struct exchange *client, const char *data, size_t length)
{
    if (client->stage == LENGTH) {
        client->missing -= length < client->missing ? length : client->missing;
        return client->missing == 0;
    }
    /* None of the measured programs sends trailers, and a chunk's content with this ending would be noticed by the
     * next response not beginning with a status line. */
    static const char last[7] = {'\r', '\n', '0', '\r', '\n', '\r', '\n'};
    char window[sizeof client->tail + 7];
    size_t fresh = length < sizeof last ? length : sizeof last;
    memcpy(window, client->tail, client->used);
    memcpy(window + client->used, data + length - fresh, fresh);
    size_t have = client->used + fresh, kept = have < sizeof last ? have : sizeof last;
    memmove(client->tail, window + have - kept, kept);
    client->used = kept;
    return kept == sizeof last && memcmp(client->tail, last, sizeof last) == 0;
}

/* Takes bytes of a response; 1 when it is complete, 0 when more has to come, -1 when it is none, or no success. */
static int take(struct exchange *client, const char *data, size_t length)
{
    if (client->stage != HEAD)
        return take_body(client, data, length);
    if (client->used + length >= HEAD_BYTES) {
        /* A large body behind the head: only the head has to fit. */
        size_t part = HEAD_BYTES - 1 - client->used;
        int result = take(client, data, part);
        return result != 0 || client->stage == HEAD ? (result ? result : -1) : take(client, data + part, length - part);
    }
    memcpy(client->head + client->used, data, length);
    client->used += length;
    client->head[client->used] = '\0';
    char *end = strstr(client->head, "\r\n\r\n");
    if (!end)
        return 0;
    size_t body = (size_t)(client->head + client->used - (end + 4));
    end[2] = '\0';
    if (strncmp(client->head, "HTTP/1.1 200", 12) != 0)
        return -1;
    const char *size = http_header(client->head, "Content-Length"), *coding = http_header(client->head, "Transfer-Encoding");
    if (!size && !(coding && strncasecmp(coding, "chunked", 7) == 0))
        return -1;
    client->stage = size ? LENGTH : CHUNKED;
    client->missing = size ? strtoull(size, NULL, 10) : 0;
    client->used = 0;
    if (client->stage == LENGTH && client->missing == 0)
        return 1;
    return body > 0 ? take_body(client, end + 4, body) : 0;
}

static void receive(struct exchange *client)
{
    static char buffer[262144];
    while (client->fd >= 0) {
        ssize_t got = recv(client->fd, buffer, sizeof buffer, 0);
        if (got < 0 && errno == EAGAIN)
            return;
        if (got <= 0 || client->stage == IDLE) {
            /* A server may close a kept connection that carries nothing; anything else is an error. */
            if (got == 0 && client->stage == IDLE)
                disconnect(client);
            else
                failed(client);
            return;
        }
        int result = take(client, buffer, (size_t)got);
        if (result < 0)
            failed(client);
        else if (result > 0)
            answered(client, now());
    }
}

static struct exchange *find_idle(int count)
{
    static int next;
    for (int i = 0; i < count; i++) {
        struct exchange *client = &exchanges[(next + i) % count];
        if (client->stage == IDLE) {
            next = (next + i + 1) % count;
            return client;
        }
    }
    return NULL;
}

static void wait_until(int64_t instant)
{
    int64_t left = instant - now();
    struct timespec limit = {.tv_sec = left > 0 ? left / SECOND : 0, .tv_nsec = left > 0 ? left % SECOND : 0};
    struct epoll_event events[64];
    int count = epoll_pwait2(epoll, events, 64, &limit, NULL);
    if (count < 0 && errno != EINTR)
        fail("epoll_pwait2");
    for (int i = 0; i < count; i++) {
        struct exchange *client = events[i].data.ptr;
        if (client->stage == CONNECTING)
            send_request(client);
        receive(client);
    }
}

/* Who has no answer by now has waited this long, at least: the number of latencies, with theirs. */
static uint64_t add_unfinished(int64_t start, double interval, int count)
{
    uint64_t known = completed;
    int64_t at = now();
    for (int i = 0; i < count; i++)
        if (exchanges[i].stage != IDLE)
            note_latency(&exchanges[i], known++, at);
    for (uint64_t i = sent; i < total; i++) {
        struct exchange unsent = {.due = start + (int64_t)((double)i * interval)};
        note_latency(&unsent, known++, at);
    }
    return known;
}

/* The number of latencies. */
static uint64_t run(double rate, int count)
{
    double interval = 1e9 / rate;
    int64_t start = now(), end = start + (int64_t)((double)total * interval) + GRACE;
    while (completed + errors < total && now() < end) {
        struct exchange *client;
        int64_t due = start + (int64_t)((double)sent * interval);
        while (sent < total && due <= now() && (client = find_idle(count)) != NULL) {
            begin(client, due);
            sent++;
            due = start + (int64_t)((double)sent * interval);
        }
        /* Without a free connection, an answer is what to wait for. */
        wait_until(sent < total && find_idle(count) ? due : end);
    }
    return add_unfinished(start, interval, count);
}

static int compare(const void *left, const void *right)
{
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return (a > b) - (a < b);
}

int main(int argc, char **argv)
{
    if (argc != 6)
        return 2;
    double rate = atof(argv[2]), seconds = atof(argv[3]);
    int count = atoi(argv[4]);
    keep = strcmp(argv[5], "keep") == 0;
    total = (uint64_t)(rate * seconds);
    if (rate <= 0 || total == 0 || total > 100000000 || count < 1 || count > CONNECTIONS_MAX)
        return 2;
    server = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    snprintf(request, sizeof request, "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n%s\r\n", keep ? "" : "Connection: close\r\n");
    prctl(PR_SET_TIMERSLACK, 1); /* nanoseconds: by default a timer may be 50 us late */
    epoll = epoll_create1(EPOLL_CLOEXEC);
    exchanges = calloc((size_t)count, sizeof *exchanges);
    latencies = calloc(total, sizeof *latencies);
    if (epoll < 0 || !exchanges || !latencies)
        fail("start");
    for (int i = 0; i < count; i++) {
        exchanges[i].fd = -1;
        if (keep && connect_to_server(&exchanges[i]) != 0)
            fail("connect");
    }
    int64_t begin_ns = now();
    uint64_t known = run(rate, count);
    double took = (double)(now() - begin_ns) / 1e9;
    qsort(latencies, known, sizeof *latencies, compare);
#define AT(share) (known ? latencies[(uint64_t)((double)(known - 1) * (share))] : 0)
    printf("{\"rate\": %.0f, \"requests\": %llu, \"seconds\": %.6f, \"errors\": %llu, \"unfinished\": %llu, "
           "\"p50_us\": %u, \"p90_us\": %u, \"p99_us\": %u, \"p999_us\": %u, \"max_us\": %u}\n",
           rate, (unsigned long long)completed, took, (unsigned long long)errors,
           (unsigned long long)(total - completed - errors), AT(0.5), AT(0.9), AT(0.99), AT(0.999), AT(1.0));
    return 0;
}
