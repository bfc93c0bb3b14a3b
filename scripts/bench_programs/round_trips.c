/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * Measures round trips from a program to where its state is kept.
 *
 *   round_trips serve PORT                           a server: GET /KIND/SIZE/COUNT/PAUSE/PEER makes that many round trips
 *   round_trips once KIND SIZE COUNT PAUSE PEER      makes them natively
 *   round_trips echo PATH                            the other end of KIND unix: a server that sends back what it gets
 *
 * KIND is one of
 *   call    a call of kvmserver's storage program with SIZE bytes
 *   shared  the same in memory that both programs share
 *   unix    SIZE bytes to `round_trips echo` and back, over one connection; PEER is its number in /tmp/round-trips-PEER
 *   kept    GET of Redis with a value of SIZE bytes over one connection; PEER is its port
 *   new     the same with a new connection each time
 *   copy    no round trip: SIZE bytes copied elsewhere in memory and back, what copying costs at least
 *
 * PAUSE is the time before each round trip, microseconds. The answer is the time of each round trip, nanoseconds, as 32-bit
 * numbers in the machine's byte order. The first hundredth of them, and at least ten, are made but not reported.
 */
#include "../../tests/guests/http.h"
#include "../../guestlib/kvmserverguest.h"
#include <stdint.h>
#include <sys/un.h>
#include <time.h>

enum { SIZE_MAX_BYTES = 16 << 20, COUNT_MAX = 1 << 20 };

struct plan {
    char kind[16];
    size_t size;
    unsigned count;
    unsigned pause_us;
    int peer;
};

struct peer {
    const struct plan *plan;
    char *buffer;
    int fd;
};

static uint64_t now_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void must(int good, const char *what)
{
    if (!good)
        fail("%s", what);
}

static int connect_redis(int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    must(fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0, "connect to Redis");
    must(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) == 0, "setsockopt TCP_NODELAY");
    return fd;
}

static int connect_unix(int number)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    snprintf(address.sun_path, sizeof address.sun_path, "/tmp/round-trips-%d", number);
    must(fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0, "connect to the echo server");
    return fd;
}

static void receive(int fd, char *buffer, size_t length)
{
    for (size_t done = 0; done < length;) {
        ssize_t got = recv(fd, buffer + done, length - done, 0);
        must(got > 0, "recv");
        done += (size_t)got;
    }
}

/* There and back in pieces that fit into a socket's buffer, so that neither side waits for the other to read. */
static void exchange(const struct peer *peer)
{
    const size_t piece = 64 << 10, size = peer->plan->size ? peer->plan->size : 1;
    for (size_t done = 0; done < size; done += piece) {
        size_t length = size - done < piece ? size - done : piece;
        must(http_send(peer->fd, peer->buffer + done, length) == 0, "send");
        receive(peer->fd, peer->buffer + done, length);
    }
}

static void get(const struct peer *peer)
{
    char request[64], key[32], head[32];
    int digits = snprintf(key, sizeof key, "value:%zu", peer->plan->size);
    int length = snprintf(request, sizeof request, "*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n", digits, key);
    must(http_send(peer->fd, request, (size_t)length) == 0, "send to Redis");
    /* "$SIZE\r\n", the value, "\r\n" */
    size_t whole = (size_t)snprintf(head, sizeof head, "$%zu\r\n", peer->plan->size);
    receive(peer->fd, peer->buffer, whole + peer->plan->size + 2);
    must(memcmp(peer->buffer, head, whole) == 0, "GET of a value of that size");
}

static void copy(const struct peer *peer)
{
    static char elsewhere[SIZE_MAX_BYTES] __attribute__((aligned(4096)));
    memcpy(elsewhere, peer->buffer, peer->plan->size);
    /* Neither copy may be left out. */
    __asm__ volatile("" : : "r"(elsewhere) : "memory");
    memcpy(peer->buffer, elsewhere, peer->plan->size);
    __asm__ volatile("" : : "r"(peer->buffer) : "memory");
}

static void call(const struct peer *peer)
{
    ssize_t result = kvmserverguest_remote_resume(peer->buffer, (ssize_t)peer->plan->size);
    if (result != (ssize_t)peer->plan->size) {
        errno = result < 0 ? (int)-result : 0;
        fail("call of the storage program");
    }
}

static void get_anew(const struct peer *peer)
{
    /* Resets the connection when it is closed: no port waits for a minute. */
    const struct linger at_once = {.l_onoff = 1};
    struct peer fresh = *peer;
    fresh.fd = connect_redis(peer->plan->peer);
    get(&fresh);
    must(setsockopt(fresh.fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once) == 0, "setsockopt SO_LINGER");
    close(fresh.fd);
}

static void rest(unsigned microseconds)
{
    struct timespec time = {.tv_sec = microseconds / 1000000, .tv_nsec = microseconds % 1000000 * 1000};
    if (microseconds)
        nanosleep(&time, NULL);
}

/* The times of the plan's round trips, to be freed. */
static uint32_t *measure(const struct plan *plan)
{
    unsigned first = plan->count / 100 < 10 ? 10 : plan->count / 100;
    uint32_t *times = malloc(sizeof *times * plan->count);
    struct peer peer = {.plan = plan, .fd = -1};
    void (*round_trip)(const struct peer *) = NULL;
    must(times != NULL, "malloc");
    if (strcmp(plan->kind, "shared") == 0)
        peer.buffer = kvmserverguest_shared_buffer(plan->size ? plan->size : 1);
    else
        peer.buffer = malloc(plan->size + 64);
    must(peer.buffer != NULL, "get a buffer");
    memset(peer.buffer, 'x', plan->size);
    if (strcmp(plan->kind, "call") == 0 || strcmp(plan->kind, "shared") == 0)
        round_trip = call;
    if (strcmp(plan->kind, "unix") == 0)
        round_trip = exchange, peer.fd = connect_unix(plan->peer);
    if (strcmp(plan->kind, "kept") == 0)
        round_trip = get, peer.fd = connect_redis(plan->peer);
    if (strcmp(plan->kind, "new") == 0)
        round_trip = get_anew;
    if (strcmp(plan->kind, "copy") == 0)
        round_trip = copy;
    must(round_trip != NULL, "find that kind");
    for (unsigned number = 0; number < first + plan->count; number++) {
        rest(plan->pause_us);
        uint64_t start = now_ns();
        round_trip(&peer);
        uint64_t took = now_ns() - start;
        if (number >= first)
            times[number - first] = took > UINT32_MAX ? UINT32_MAX : (uint32_t)took;
    }
    if (peer.fd >= 0)
        close(peer.fd);
    if (strcmp(plan->kind, "shared") != 0)
        free(peer.buffer);
    return times;
}

static int is_possible(const struct plan *plan)
{
    return plan->size <= SIZE_MAX_BYTES && plan->count >= 1 && plan->count <= COUNT_MAX;
}

static int answer(int fd, const struct request *request)
{
    struct plan plan;
    if (sscanf(request->path, "/%15[a-z]/%zu/%u/%u/%d", plan.kind, &plan.size, &plan.count, &plan.pause_us, &plan.peer) != 5)
        return http_respond(fd, request, 200, "ready", 5);
    if (!is_possible(&plan))
        return http_respond(fd, request, 400, "impossible", 10);
    uint32_t *times = measure(&plan);
    int result = http_respond(fd, request, 200, (char *)times, sizeof *times * plan.count);
    free(times);
    return result;
}

/* One client after another. */
static void echo(const char *path)
{
    static char buffer[64 << 10];
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    must(listener >= 0 && bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 8) == 0, "listen");
    for (;;) {
        int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        must(client >= 0, "accept");
        ssize_t got;
        while ((got = recv(client, buffer, sizeof buffer, 0)) > 0 && http_send(client, buffer, (size_t)got) == 0)
            ;
        close(client);
    }
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "serve") == 0) {
        http_handler = answer;
        http_serve_for_ever(argv[2]);
    }
    if (argc == 3 && strcmp(argv[1], "echo") == 0)
        echo(argv[2]);
    if (argc != 7 || strcmp(argv[1], "once") != 0)
        return 2;
    struct plan plan = {.size = strtoul(argv[3], NULL, 10), .count = (unsigned)atoi(argv[4]), .pause_us = (unsigned)atoi(argv[5]), .peer = atoi(argv[6])};
    snprintf(plan.kind, sizeof plan.kind, "%s", argv[2]);
    if (!is_possible(&plan))
        return 2;
    return fwrite(measure(&plan), sizeof(uint32_t), plan.count, stdout) == plan.count ? 0 : 1;
}
