/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * A counter server on select: server_select PORT [MODE]. Modes: select, pselect.
 */
#include "http.h"
#include <signal.h>
#include <sys/select.h>

static struct connection *clients[FD_SETSIZE];

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    const char *mode = argc > 2 ? argv[2] : "select";
    int listener = http_listen(argv[1], SOCK_NONBLOCK), highest = listener;
    fd_set watched, ready;
    FD_ZERO(&watched);
    FD_SET(listener, &watched);
    for (;;) {
        ready = watched;
        int count;
        if (strcmp(mode, "pselect") == 0) {
            sigset_t mask;
            sigemptyset(&mask);
            count = pselect(highest + 1, &ready, NULL, NULL, NULL, &mask);
        } else {
            count = select(highest + 1, &ready, NULL, NULL, NULL);
        }
        if (count < 0) {
            if (errno == EINTR)
                continue;
            fail("select");
        }
        for (int fd = 0; fd <= highest; fd++) {
            if (fd != listener && FD_ISSET(fd, &ready) && http_serve(clients[fd]) == HTTP_CLOSED) {
                FD_CLR(fd, &watched);
                http_forget(clients[fd]);
            }
        }
        struct connection *client;
        while (FD_ISSET(listener, &ready) && (client = http_accept(listener, SOCK_NONBLOCK)) != NULL) {
            clients[client->fd] = client;
            FD_SET(client->fd, &watched);
            if (client->fd > highest)
                highest = client->fd;
        }
    }
}
