/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * Baseline: starts a program for every connection, which is its standard input and output, as inetd does:
 * process_per_request PORT PROGRAM [ARGS...].
 */
#include "http.h"
#include <signal.h>
#include <spawn.h>

extern char **environ;

int main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    signal(SIGCHLD, SIG_IGN);
    int listener = http_listen(argv[1], 0);
    for (;;) {
        posix_spawn_file_actions_t actions;
        pid_t child;
        int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (client < 0)
            fail("accept");
        posix_spawn_file_actions_init(&actions);
        posix_spawn_file_actions_adddup2(&actions, client, 0);
        posix_spawn_file_actions_adddup2(&actions, client, 1);
        if (posix_spawn(&child, argv[2], &actions, NULL, argv + 2, environ) != 0)
            fail("cannot start %s", argv[2]);
        posix_spawn_file_actions_destroy(&actions);
        close(client);
    }
}
