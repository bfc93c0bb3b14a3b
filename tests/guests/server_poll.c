/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * A counter server on poll: server_poll PORT [MODE [PORT2]]. Modes: poll, ppoll, two (also listens on PORT2).
 */
#include "http.h"
#include <signal.h>
#include <time.h>

#define CLIENTS 256

static struct pollfd watched[CLIENTS + 2];
static struct connection *clients[CLIENTS + 2];

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    const char *mode = argc > 2 ? argv[2] : "poll";
    nfds_t first = 1, count;
    watched[0] = (struct pollfd){.fd = http_listen(argv[1], SOCK_NONBLOCK), .events = POLLIN};
    if (strcmp(mode, "two") == 0 && argc > 3)
        watched[first++] = (struct pollfd){.fd = http_listen(argv[3], SOCK_NONBLOCK), .events = POLLIN};
    count = first;
    for (;;) {
        int ready;
        if (strcmp(mode, "ppoll") == 0) {
            struct timespec limit = {.tv_sec = 3600};
            sigset_t mask;
            sigemptyset(&mask);
            ready = ppoll(watched, count, &limit, &mask);
        } else {
            ready = poll(watched, count, -1);
        }
        if (ready < 0 && errno != EINTR)
            fail("poll");
        nfds_t known = count;
        for (nfds_t i = 0; i < first; i++) {
            struct connection *client;
            while ((watched[i].revents & POLLIN) && count < CLIENTS && (client = http_accept(watched[i].fd, SOCK_NONBLOCK))) {
                clients[count] = client;
                watched[count++] = (struct pollfd){.fd = client->fd, .events = POLLIN};
            }
        }
        for (nfds_t i = known; i-- > first;) {
            if (watched[i].revents && http_serve(clients[i]) == HTTP_CLOSED) {
                http_forget(clients[i]);
                count--;
                clients[i] = clients[count];
                watched[i] = watched[count];
            }
        }
    }
}
