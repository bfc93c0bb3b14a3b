/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * A counter server that waits in a blocking accept: server_accept PORT [MODE].
 *
 * Modes: accept (blocking accept and blocking reads), accept4 (accept4 with SOCK_NONBLOCK on the blocking listener,
 * the clients polled one at a time), thread (one thread per connection, the first one keeps accepting).
 */
#include "http.h"
#include <pthread.h>

static const char *mode = "accept";

static void *converse(void *argument)
{
    struct connection *client = argument;
    for (;;) {
        struct pollfd readable = {.fd = client->fd, .events = POLLIN};
        if (strcmp(mode, "accept4") == 0 && poll(&readable, 1, -1) < 0 && errno != EINTR)
            fail("poll");
        if (http_serve(client) == HTTP_CLOSED)
            break;
    }
    http_forget(client);
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    if (argc > 2)
        mode = argv[2];
    int listener = http_listen(argv[1], 0);
    int flags = strcmp(mode, "accept4") == 0 ? SOCK_NONBLOCK | SOCK_CLOEXEC : 0;
    for (;;) {
        struct connection *client = http_accept(listener, flags);
        if (!client)
            fail("accept");
        if (strcmp(mode, "thread") != 0) {
            converse(client);
            continue;
        }
        pthread_t thread;
        if (pthread_create(&thread, NULL, converse, client) != 0)
            fail("pthread_create");
        pthread_detach(thread);
    }
}
