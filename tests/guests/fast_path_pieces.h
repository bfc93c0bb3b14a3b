/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * The mode "pieces" of fast_path.c: reading while the client sends. A part of that file, by itself because it is an idea of its own:
 * here the results are not noted, but checked.
 */
/* What the client sends in pieces, `at` bytes behind the path: tests/functional/test_fast_path.py has the same. */
static char sent_at(unsigned seed, unsigned at)
{
    return 'a' + (at * 7 + at / 251 + seed) % 23;
}

static int wrong;

static void must(int condition, const char *what)
{
    if (!condition && wrong++ < 5)
        note("wrong: %s\n", what);
}

/* Read while more arrives. Each call may come to several things; all have to fit together, and with what was sent. */
static void serve_pieces(unsigned seed)
{
    static char buffer[LONGEST];
    unsigned total = 3000 + seed * 7919 % 60000, edge = dice(2) ? EPOLLET : 0, one_shot = dice(3) ? 0 : EPOLLONESHOT;
    /* How many bytes were read, how many are known to wait, whether the last read found none, and how often it was waited. */
    unsigned at = 0, here = 0, drained = 0, waits = 0;
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | edge | one_shot, .data.u64 = seed};
    int set = sets[dice(3)], ended = 0, available;
    recv(client, buffer, 14, 0);
    wrong = 0;
    must(epoll_ctl(set, EPOLL_CTL_ADD, client, &event) == 0, "added");
    while (!ended) {
        unsigned length = dice(3) ? 1 + dice(400) : 1 + dice(LONGEST - 1);
        struct pollfd in = {.fd = client, .events = POLLIN};
        struct epoll_event found = {.events = 0};
        long got;
        progress++;
        switch (dice(7)) {
        case 0:
            /* One that was reported has to be armed again; an edge is owed only after all was read. */
            if (one_shot)
                must(epoll_ctl(set, EPOLL_CTL_MOD, client, &event) == 0, "armed");
            else if (edge && !drained && waits > 0)
                break;
            do
                got = epoll_wait(set, &found, 1, -1);
            while (got < 0 && errno == EINTR);
            must(got == 1, "one event");
            must((found.events & EPOLLIN) && found.data.u64 == seed, "its bits and data");
            here = here ? here : 1;
            drained = 0;
            waits++;
            break;
        case 1:
            do
                got = poll(&in, 1, -1);
            while (got < 0 && errno == EINTR);
            must(got == 1 && (in.revents & POLLIN), "poll");
            here = here ? here : 1;
            break;
        case 2:
            got = poll(&in, 1, 0);
            must(got == 0 ? !here : got == 1, "poll that does not wait");
            here = got == 1 && !here ? 1 : here;
            break;
        case 3:
            must(ioctl(client, FIONREAD, &available) == 0 && available >= 0 && (unsigned)available <= total - at, "FIONREAD");
            here = (unsigned)available > here ? (unsigned)available : here;
            break;
        case 4:
            got = recv(client, buffer, length, MSG_PEEK);
            must(got < 0 ? errno == EAGAIN && !here : (unsigned)got >= (here < length ? here : length) || at + got == total, "peek");
            for (long index = 0; index < got; index++)
                must(buffer[index] == sent_at(seed, at + index), "peeked bytes");
            here = got > (long)here ? (unsigned)got : here;
            break;
        default:
            do {
                got = dice(2) ? read(client, buffer, length) : recv(client, buffer, length, dice(2) ? MSG_DONTWAIT : 0);
                must(got >= 0 || (errno == EAGAIN && !here), "read");
                must(got < 0 || (unsigned)got >= (here < length ? here : length) || at + got == total, "as much as there is");
                must(got != 0 || at == total, "the end");
                for (long index = 0; index < got; index++)
                    must(buffer[index] == sent_at(seed, at + index), "bytes");
                at += got > 0 ? (unsigned)got : 0;
                here = got > 0 && (unsigned)got < here ? here - (unsigned)got : 0;
                ended = got == 0;
                drained = got < 0;
            } while (edge && !one_shot && got > 0);
        }
        if (dice(20) == 0)
            must(send(client, "w", 1, MSG_NOSIGNAL) == 1, "write");
        if (dice(30) == 0)
            call_helper();
        if (drained && dice(4) == 0)
            poll(NULL, 0, 1);
    }
    note("pieces %u of %u, %d wrong\n", at, total, wrong);
}
