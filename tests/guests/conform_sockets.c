/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * Claims about sockets: conform_sockets DIRECTORY TCP-PORT UDP-PORT.
 *
 * At 127.0.0.1 on these ports a TCP and a UDP peer echo what they get; a unix peer does at DIRECTORY/echo. The TCP
 * peer closes when the client shuts down its side.
 */
#include "tap.h"
#include <arpa/inet.h>
#include <ifaddrs.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>

static struct sockaddr_in tcp_peer, udp_peer;

static int call_peer(int flags)
{
    int fd = socket(AF_INET, SOCK_STREAM | flags, 0);
    if (connect(fd, (struct sockaddr *)&tcp_peer, sizeof tcp_peer) != 0 && errno != EINPROGRESS) {
        close(fd);
        return -1;
    }
    return fd;
}

static void creating(void)
{
    int fd;
    CHECK("a TCP socket", (fd = socket(AF_INET, SOCK_STREAM, 0)) >= 0 && close(fd) == 0);
    CHECK("SOCK_CLOEXEC and SOCK_NONBLOCK", (fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)) >= 0 &&
                                                fcntl(fd, F_GETFD) == FD_CLOEXEC && (fcntl(fd, F_GETFL) & O_NONBLOCK) && close(fd) == 0);
    CHECK("an IPv6 socket or its refusal", (fd = socket(AF_INET6, SOCK_STREAM, 0)) >= 0 ? close(fd) == 0 : errno == EAFNOSUPPORT);
    CHECK_ERRNO("an unknown family", socket(250, SOCK_STREAM, 0), EAFNOSUPPORT);
    CHECK_ERRNO("an unknown type", socket(AF_INET, 9, 0), ESOCKTNOSUPPORT);
    CHECK_ERRNO("an impossible type", socket(AF_INET, 15, 0), EINVAL);
    CHECK_ERRNO("a protocol that does not fit", socket(AF_INET, SOCK_STREAM, IPPROTO_UDP), EPROTONOSUPPORT);
    CHECK_ERRNO("T9 getsockname of a file", getsockname(open("/dev/null", O_RDONLY), (void *)&tcp_peer, &(socklen_t){16}), ENOTSOCK);
    CHECK_ERRNO("a bad descriptor", connect(999, (void *)&tcp_peer, sizeof tcp_peer), EBADF);
    CHECK_ERRNO("connect to a file", connect(open("/dev/null", O_RDONLY), (void *)&tcp_peer, sizeof tcp_peer), ENOTSOCK);
}

static void tcp(void)
{
    int fd = call_peer(0), value;
    char text[64], big[100000], back[100000];
    struct sockaddr_in address;
    socklen_t length = sizeof address;
    CHECK("connect", fd >= 0);
    CHECK("an echo", write(fd, "hello", 5) == 5 && recv(fd, text, 5, MSG_WAITALL) == 5 && memcmp(text, "hello", 5) == 0);
    CHECK("getpeername", getpeername(fd, (void *)&address, &length) == 0 && length == sizeof address && address.sin_port == tcp_peer.sin_port);
    CHECK("getsockname", getsockname(fd, (void *)&address, &length) == 0 && address.sin_family == AF_INET && address.sin_port != 0);
    length = 4;
    CHECK("an address is cut to the room there is", getpeername(fd, (void *)&address, &length) == 0 && length == sizeof address);
    char odd[32];
    memset(odd, 0, sizeof odd);
    odd[1] = sizeof address;
    CHECK("T9 a length at an odd address", getpeername(fd, (void *)(odd + 8), (void *)(odd + 1)) == 0 && odd[1] == sizeof address);
    length = sizeof value;
    CHECK("SO_TYPE", getsockopt(fd, SOL_SOCKET, SO_TYPE, &value, &length) == 0 && value == SOCK_STREAM);
    CHECK("SO_ERROR", getsockopt(fd, SOL_SOCKET, SO_ERROR, &value, &length) == 0 && value == 0);
    value = 1;
    CHECK("TCP_NODELAY", setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &value, sizeof value) == 0);
    value = 0;
    CHECK("TCP_NODELAY is kept", getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &value, &length) == 0 && value != 0);
    CHECK("SO_KEEPALIVE", setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &value, sizeof value) == 0);
    CHECK_ERRNO("an unknown option", setsockopt(fd, SOL_SOCKET, 9999, &value, sizeof value), ENOPROTOOPT);
    CHECK_ERRNO("an option that is too short", setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &value, 1), EINVAL);
    for (size_t i = 0; i < sizeof big; i++)
        big[i] = (char)(i * 13 / 5);
    size_t sent = 0, got = 0;
    while (got < sizeof big) {
        ssize_t moved = sent < sizeof big ? send(fd, big + sent, sizeof big - sent > 8192 ? 8192 : sizeof big - sent, MSG_NOSIGNAL) : 0;
        sent += moved > 0 ? (size_t)moved : 0;
        moved = recv(fd, back + got, sizeof back - got, sent < sizeof big ? MSG_DONTWAIT : 0);
        if (moved == 0 || (moved < 0 && errno != EAGAIN))
            break;
        got += moved > 0 ? (size_t)moved : 0;
    }
    CHECK("100,000 bytes there and back", got == sizeof big && memcmp(big, back, sizeof big) == 0);
    struct iovec parts[2] = {{"ab", 2}, {"cde", 3}};
    CHECK("writev", writev(fd, parts, 2) == 5);
    parts[0] = (struct iovec){text, 1}, parts[1] = (struct iovec){text + 10, 4};
    struct pollfd waiting = {.fd = fd, .events = POLLIN};
    CHECK("poll and readv", poll(&waiting, 1, 5000) == 1 && readv(fd, parts, 2) >= 1 && text[0] == 'a');
    CHECK("the rest", recv(fd, text, 64, MSG_DONTWAIT) <= 4);
    CHECK("shutdown is answered by the end", shutdown(fd, SHUT_WR) == 0 && (recv(fd, text, 64, 0) == 0 || recv(fd, text, 64, 0) == 0));
    CHECK_ERRNO("sending after shutdown", send(fd, "x", 1, MSG_NOSIGNAL), EPIPE);
    close(fd);
    fd = call_peer(SOCK_NONBLOCK);
    waiting = (struct pollfd){.fd = fd, .events = POLLOUT};
    CHECK("a non-blocking connect", poll(&waiting, 1, 5000) == 1 && waiting.revents == POLLOUT);
    CHECK("SO_ERROR tells that it worked", (length = 4, getsockopt(fd, SOL_SOCKET, SO_ERROR, &value, &length) == 0 && value == 0));
    CHECK_ERRNO("nothing to read yet", recv(fd, text, 1, 0), EAGAIN);
    close(fd);
    fd = call_peer(0);
    CHECK_ERRNO("connecting twice", connect(fd, (void *)&tcp_peer, sizeof tcp_peer), EISCONN);
    close(fd);
    struct sockaddr_in nobody = tcp_peer;
    nobody.sin_port = htons(1);
    fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK_ERRNO("nobody listens", connect(fd, (void *)&nobody, sizeof nobody), ECONNREFUSED);
    CHECK_ERRNO("an address that is too short", connect(fd, (void *)&tcp_peer, 3), EINVAL);
    CHECK_ERRNO("an address at a bad place", connect(fd, (void *)8, sizeof tcp_peer), EFAULT);
    close(fd);
    fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK_ERRNO("reading before connecting", recv(fd, text, 1, 0), ENOTCONN);
    CHECK_ERRNO("getpeername before connecting", getpeername(fd, (void *)&address, &length), ENOTCONN);
    CHECK_ERRNO("accept on a socket that does not listen", accept(fd, NULL, NULL), EINVAL);
    struct timeval limit = {.tv_usec = 20000};
    close(fd);
    fd = call_peer(0);
    CHECK("SO_RCVTIMEO", setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0);
    CHECK_ERRNO("a read that times out", recv(fd, text, 1, 0), EAGAIN);
    close(fd);
}

static void udp(void)
{
    struct sockaddr_in from;
    struct sockaddr_storage large;
    socklen_t length = sizeof from;
    char text[64];
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    CHECK("T39 sendto", sendto(fd, "datagram", 8, 0, (void *)&udp_peer, sizeof udp_peer) == 8);
    CHECK("T39 recvfrom tells the sender", recvfrom(fd, text, 64, 0, (void *)&from, &length) == 8 && length == sizeof from && from.sin_port == udp_peer.sin_port && from.sin_addr.s_addr == udp_peer.sin_addr.s_addr);
    struct iovec part = {"by message", 10};
    struct msghdr message = {.msg_name = &udp_peer, .msg_namelen = sizeof udp_peer, .msg_iov = &part, .msg_iovlen = 1};
    CHECK("T39 sendmsg", sendmsg(fd, &message, 0) == 10);
    part = (struct iovec){text, 4};
    message.msg_name = &large, message.msg_namelen = sizeof large;
    CHECK("T39 recvmsg cuts and says so", recvmsg(fd, &message, 0) == 4 && (message.msg_flags & MSG_TRUNC) && message.msg_namelen == sizeof from);
    part = (struct iovec){"x", 1};
    char huge_name[4096] = {0};
    memcpy(huge_name, &udp_peer, sizeof udp_peer);
    message = (struct msghdr){.msg_name = huge_name, .msg_namelen = 4000, .msg_iov = &part, .msg_iovlen = 1};
    ssize_t result = sendmsg(fd, &message, 0);
    CHECK("T3 sendmsg with a name of 4,000 bytes does no harm", result == 1 || (result == -1 && errno == EINVAL));
    if (result == 1)
        recv(fd, text, 64, 0);
    message.msg_namelen = (socklen_t)-1;
    CHECK_ERRNO("T3 sendmsg with a name of -1 bytes", sendmsg(fd, &message, 0), EINVAL);
    message = (struct msghdr){.msg_name = &udp_peer, .msg_namelen = sizeof udp_peer, .msg_iov = &part, .msg_iovlen = 1025};
    CHECK_ERRNO("sendmsg of 1,025 vectors", sendmsg(fd, &message, 0), EMSGSIZE);
    CHECK_ERRNO("recvmsg to a bad address", recvmsg(fd, (void *)8, 0), EFAULT);
    static struct mmsghdr several[3];
    struct iovec parts[3] = {{"a", 1}, {"bb", 2}, {"ccc", 3}};
    for (int i = 0; i < 3; i++)
        several[i].msg_hdr = (struct msghdr){.msg_name = &udp_peer, .msg_namelen = sizeof udp_peer, .msg_iov = &parts[i], .msg_iovlen = 1};
    CHECK("sendmmsg", sendmmsg(fd, several, 3, 0) == 3 && several[2].msg_len == 3);
    int sum = 0;
    for (int i = 0; i < 3; i++)
        sum += (int)recv(fd, text, 64, 0);
    CHECK("three datagrams come back", sum == 6);
    CHECK_ERRNO("T4 sendmmsg of 2^31 - 1 messages at a bad address", sendmmsg(fd, (void *)8, INT_MAX, 0), EFAULT);
    CHECK("T4 recvmmsg of none", recvmmsg(fd, several, 0, MSG_DONTWAIT, NULL) == 0);
    CHECK("connect on UDP", connect(fd, (void *)&udp_peer, sizeof udp_peer) == 0 && send(fd, "plain", 5, 0) == 5 && recv(fd, text, 64, 0) == 5);
    CHECK("an empty datagram", send(fd, "", 0, 0) == 0 && recv(fd, text, 64, 0) == 0);
    CHECK_ERRNO("nothing more", recv(fd, text, 64, MSG_DONTWAIT), EAGAIN);
    struct sockaddr none = {.sa_family = AF_UNSPEC};
    CHECK("K15 AF_UNSPEC dissolves it", connect(fd, &none, sizeof none) == 0);
    CHECK_ERRNO("K15 then there is no peer", send(fd, "x", 1, 0), EDESTADDRREQ);
    CHECK_ERRNO("a datagram that is too long", sendto(fd, huge_name, 70000, 0, (void *)&udp_peer, sizeof udp_peer), EMSGSIZE);
    close(fd);
}

static void unix_socket(const char *directory)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char text[64];
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    snprintf(address.sun_path, sizeof address.sun_path, "%s/echo", directory);
    CHECK("a unix socket", connect(fd, (void *)&address, sizeof address) == 0);
    CHECK("echoes", write(fd, "unix", 4) == 4 && recv(fd, text, 4, MSG_WAITALL) == 4 && memcmp(text, "unix", 4) == 0);
    close(fd);
    snprintf(address.sun_path, sizeof address.sun_path, "%s/missing", directory);
    fd = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK_ERRNO("a unix socket that is not there", connect(fd, (void *)&address, sizeof address), ENOENT);
    close(fd);
}

static void loopback(void)
{
    /* A listener and its client in one program, as test suites and runtimes make them. */
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0), value = 1;
    CHECK("SO_REUSEADDR", setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &value, sizeof value) == 0);
    CHECK("bind to port 0", bind(listener, (void *)&address, sizeof address) == 0);
    CHECK_ERRNO("bind twice", bind(listener, (void *)&address, sizeof address), EINVAL);
    CHECK("listen", listen(listener, 10) == 0);
    CHECK("the port that was chosen", getsockname(listener, (void *)&address, &length) == 0 && address.sin_port != 0);
    length = sizeof value;
    CHECK("SO_ACCEPTCONN", getsockopt(listener, SOL_SOCKET, SO_ACCEPTCONN, &value, &length) == 0 && value == 1);
    CHECK("fcntl O_NONBLOCK", fcntl(listener, F_SETFL, O_NONBLOCK) == 0);
    CHECK_ERRNO("nobody calls", accept(listener, NULL, NULL), EAGAIN);
    CHECK_ERRNO("accept4 with bad flags", accept4(listener, NULL, NULL, 1), EINVAL);
    CHECK_ERRNO("reading a listener", read(listener, &value, 4), ENOTCONN);
    int callers[2], calls[2];
    char byte = 0;
    for (int i = 0; i < 2; i++) {
        callers[i] = socket(AF_INET, SOCK_STREAM, 0);
        CHECK("T35 a call to oneself", connect(callers[i], (void *)&address, sizeof address) == 0);
    }
    for (int i = 0; i < 2; i++) {
        struct pollfd waiting = {.fd = listener, .events = POLLIN};
        CHECK("T35 accept", poll(&waiting, 1, 5000) == 1 && (calls[i] = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) >= 0);
    }
    CHECK("T35 two accepts in a row give two sockets", calls[0] != calls[1]);
    CHECK("K12 the listener's O_NONBLOCK is not theirs", (fcntl(calls[0], F_GETFL) & O_NONBLOCK) == 0 && (fcntl(calls[1], F_GETFL) & O_NONBLOCK) == 0);
    CHECK("T35 the second is used first", write(callers[1], "b", 1) == 1 && read(calls[1], &byte, 1) == 1 && byte == 'b');
    CHECK("T35 then the first", write(callers[0], "a", 1) == 1 && read(calls[0], &byte, 1) == 1 && byte == 'a');
    CHECK("T35 and back", write(calls[0], "A", 1) == 1 && write(calls[1], "B", 1) == 1 && read(callers[1], &byte, 1) == 1 && byte == 'B' && read(callers[0], &byte, 1) == 1 && byte == 'A');
    CHECK("T33 each is a socket, and its file another", close(calls[0]) == 0 && open("/dev/null", O_RDONLY) == calls[0] && read(calls[0], &byte, 1) == 0 && write(callers[1], "c", 1) == 1 && read(calls[1], &byte, 1) == 1);
    close(calls[0]), close(calls[1]), close(callers[0]), close(callers[1]);
    close(listener);
}

static void names(void)
{
    struct addrinfo *list = NULL, hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV};
    char host[256];
    CHECK("getaddrinfo of a number", getaddrinfo("127.0.0.1", "80", &hints, &list) == 0 && list->ai_addr->sa_family == AF_INET);
    if (list)
        freeaddrinfo(list);
    CHECK("gethostname", gethostname(host, sizeof host) == 0 && host[0] != '\0');
}

int main(int argc, char **argv)
{
    if (argc < 4)
        return 2;
    tcp_peer = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[2])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    udp_peer = tcp_peer;
    udp_peer.sin_port = htons((uint16_t)atoi(argv[3]));
    creating();
    tcp();
    udp();
    unix_socket(argv[1]);
    loopback();
    names();
    return tap_failures != 0;
}
