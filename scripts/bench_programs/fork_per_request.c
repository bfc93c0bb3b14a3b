/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * Baseline: a warm C server that forks a child for every connection, fork_per_request PORT. What an operating system
 * offers for isolation without a VM.
 */
#include "http.h"
#include <signal.h>

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    signal(SIGCHLD, SIG_IGN); /* children are reaped by the kernel */
    int listener = http_listen(argv[1], 0);
    for (;;) {
        struct connection *client = http_accept(listener, 0);
        if (!client)
            fail("accept");
        pid_t child = fork();
        if (child < 0)
            fail("fork");
        if (child == 0) {
            close(listener);
            while (http_serve(client) == HTTP_WAIT)
                ;
            _exit(0);
        }
        http_forget(client);
    }
}
