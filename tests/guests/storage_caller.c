/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * A server whose requests call the storage program: storage_caller PORT.
 *
 *   /                    the counter of this program
 *   /call/WORDS          a call with these words (+ is a space) in 4,096 bytes: the result and the answer
 *   /size/N              a call of N bytes that are to be inverted: "N ok"
 *   /shared/N            as /size/N in the shared buffer
 *   /many/N              N empty calls: how many had the result 0
 *   /within/WORDS        as /call/ in the shared buffer
 *   /leave/N             write N bytes into shared memory and leave them there
 *   /take/N              whether N bytes of shared memory are still to be had: "taken" or "none left"
 *   /find                what a fresh shared buffer holds: "clean" or "dirty"
 *   /watch/MS            as /find, looked at for that long
 *   /until/MS            as /within/later+MS: "written" when that was seen
 *   /receive/BODY        the shared buffer filled by read(2) from a pipe, and a MiB of it with noise
 *   /secret              whether the storage program finds a secret that is not in the buffer, and one that is
 *   /connect/PORT        what connecting to that port of this machine gives
 *   /registers           whether a call leaves the registers alone that it has to
 *
 * storage_caller PORT keep: takes and fills 1 MiB of shared memory before it listens.
 */
#include "http.h"
#include "../../guestlib/kvmserverguest.h"
#include <sys/mman.h>
#include <time.h>

static char page[4096] __attribute__((aligned(4096)));
static char *kept;

static int respond(int fd, const struct request *request, const char *body)
{
    return http_respond(fd, request, 200, body, strlen(body));
}

static int invert(int fd, const struct request *request, char *buffer, size_t length)
{
    char body[64];
    if (!buffer)
        return respond(fd, request, "no buffer");
    memcpy(buffer, "invert ", length < 7 ? length : 7);
    for (size_t at = 7; at < length; at++)
        buffer[at] = (char)(at * 31);
    ssize_t result = kvmserverguest_remote_resume(buffer, (ssize_t)length);
    if (result < 0) {
        snprintf(body, sizeof body, "%zd", result);
        return respond(fd, request, body);
    }
    size_t wrong = 0;
    for (size_t at = 7; at < length; at++)
        wrong += buffer[at] != (char)~(at * 31);
    snprintf(body, sizeof body, "%zd %s", result, wrong ? "wrong" : "ok");
    return respond(fd, request, body);
}

/* The words of a path, in a buffer of 4,096 bytes. */
static void words(char *buffer, const char *path)
{
    snprintf(buffer, 4096, "%s", path);
    for (char *at = buffer; *at; at++)
        *at = *at == '+' ? ' ' : *at;
}

static int ask(int fd, const struct request *request, char *buffer, const char *path)
{
    char body[4200];
    if (!buffer)
        return respond(fd, request, "no buffer");
    words(buffer, path);
    ssize_t result = kvmserverguest_remote_resume(buffer, 4096);
    snprintf(body, sizeof body, "%zd %.4095s", result, buffer);
    return respond(fd, request, body);
}

static int many(int fd, const struct request *request, unsigned long count)
{
    char body[32];
    unsigned long good = 0;
    for (unsigned long number = 0; number < count; number++)
        good += kvmserverguest_remote_resume(NULL, 0) == 0;
    snprintf(body, sizeof body, "%lu", good);
    return respond(fd, request, body);
}

static int is_zero(const volatile char *buffer, size_t length)
{
    for (size_t at = 0; at < length; at++)
        if (buffer[at] != 0)
            return 0;
    return 1;
}

static unsigned long now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (unsigned long)now.tv_sec * 1000 + (unsigned long)now.tv_nsec / 1000000;
}

/* Whether shared memory is zero for that long. */
static int stays_zero(const char *buffer, size_t length, unsigned long ms)
{
    unsigned long end = now_ms() + ms;
    do {
        if (!is_zero(buffer, length))
            return 0;
    } while (now_ms() < end);
    return 1;
}

/* What the host writes into the shared memory for this program. */
static int receive(int fd, const struct request *request, const char *text)
{
    const size_t length = 1 << 20;
    size_t got = 0;
    int ends[2];
    char *buffer = kvmserverguest_shared_buffer(length);
    if (!buffer || pipe(ends) != 0 || write(ends[1], text, strlen(text)) < 0)
        return respond(fd, request, "failed");
    got = (size_t)read(ends[0], buffer, strlen(text));
    int random = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    if (random < 0 || read(random, buffer + 4096, length - 4096) <= 0)
        return respond(fd, request, "failed");
    return http_respond(fd, request, 200, buffer, got);
}

/* The storage program looks for 32 bytes that only this program knows, first here alone and then in the shared buffer. */
static int secret(int fd, const struct request *request)
{
    static unsigned char here[32], beside[4096] __attribute__((aligned(4096)));
    char first[32], second[32], hex[128] = "hunt ", *shared = kvmserverguest_shared_buffer(4096);
    int random = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    if (!shared || random < 0 || read(random, here, sizeof here) != sizeof here)
        return respond(fd, request, "failed");
    memcpy(beside + 100, here, sizeof here);
    for (size_t at = 0; at < sizeof here; at++)
        sprintf(hex + 5 + 2 * at, "%02x", (unsigned char)~here[at]);
    /* The buffer lies between two copies of the secret. */
    struct {
        unsigned char before[32];
        char buffer[1000];
        unsigned char behind[32];
    } between;
    memcpy(between.before, here, sizeof here);
    memcpy(between.behind, here, sizeof here);
    strcpy(between.buffer, hex);
    ssize_t result = kvmserverguest_remote_resume(between.buffer, sizeof between.buffer);
    snprintf(first, sizeof first, "%.20s", result > 0 ? between.buffer : "error");
    memcpy(shared + 1000, here, sizeof here);
    strcpy(between.buffer, hex);
    result = kvmserverguest_remote_resume(between.buffer, sizeof between.buffer);
    snprintf(second, sizeof second, "%.20s", result > 0 ? between.buffer : "error");
    char body[80];
    snprintf(body, sizeof body, "%s, %s", first, second);
    return respond(fd, request, body);
}

static int try_connect(int fd, const struct request *request, const char *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(port))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int peer = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (peer < 0)
        return respond(fd, request, strerror(errno));
    if (connect(peer, (struct sockaddr *)&address, sizeof address) != 0)
        return respond(fd, request, strerror(errno));
    close(peer);
    return respond(fd, request, "connected");
}

/* K16: the call may change RAX, RCX and R11 and no other register. */
static int registers(int fd, const struct request *request)
{
    unsigned long rbx = 0x1111, r12 = 0x3333, r13 = 0x4444, r14 = 0x5555, r15 = 0x6666;
    double xmm = 1.5, kept;
    strcpy(page, "count");
    __asm__ volatile("mov %[r12], %%r12; mov %[r13], %%r13; mov %[r14], %%r14; mov %[r15], %%r15; mov %[rbx], %%rbx\n\t"
                     "movsd %[xmm], %%xmm9\n\t"
                     "mov $0x4b560001, %%eax; lea %[page], %%rdi; mov $4096, %%esi; syscall\n\t"
                     "mov %%r12, %[r12]; mov %%r13, %[r13]; mov %%r14, %[r14]; mov %%r15, %[r15]; mov %%rbx, %[rbx]\n\t"
                     "movsd %%xmm9, %[kept]"
                     : [r12] "+m"(r12), [r13] "+m"(r13), [r14] "+m"(r14), [r15] "+m"(r15), [rbx] "+m"(rbx), [kept] "=m"(kept)
                     : [xmm] "m"(xmm), [page] "m"(page)
                     : "rax", "rcx", "r11", "rdi", "rsi", "r12", "r13", "r14", "r15", "rbx", "xmm9", "memory");
    int same = rbx == 0x1111 && r12 == 0x3333 && r13 == 0x4444 && r14 == 0x5555 && r15 == 0x6666 && kept == 1.5;
    return respond(fd, request, same ? "same" : "changed");
}

static int handle(int fd, const struct request *request)
{
    const char *path = request->path;
    if (strncmp(path, "/call/", 6) == 0)
        return ask(fd, request, page, path + 6);
    if (strncmp(path, "/within/", 8) == 0)
        return ask(fd, request, kvmserverguest_shared_buffer(4096), path + 8);
    if (strncmp(path, "/many/", 6) == 0)
        return many(fd, request, strtoul(path + 6, NULL, 10));
    if (strncmp(path, "/size/", 6) == 0) {
        size_t length = strtoul(path + 6, NULL, 10);
        char *buffer = malloc(length);
        int sent = invert(fd, request, buffer, length);
        free(buffer);
        return sent;
    }
    if (strncmp(path, "/shared/", 8) == 0) {
        size_t length = strtoul(path + 8, NULL, 10);
        return invert(fd, request, kvmserverguest_shared_buffer(length), length);
    }
    if (strncmp(path, "/leave/", 7) == 0) {
        size_t length = strtoul(path + 7, NULL, 10);
        char *buffer = kvmserverguest_shared_buffer(length);
        if (!buffer)
            return respond(fd, request, "no buffer");
        memset(buffer, 0x5a, length);
        return respond(fd, request, "left");
    }
    if (strncmp(path, "/take/", 6) == 0)
        return respond(fd, request, kvmserverguest_shared_buffer(strtoul(path + 6, NULL, 10)) ? "taken" : "none left");
    if (strcmp(path, "/find") == 0) {
        /* All that can be had, and what was taken before the snapshot. */
        size_t length = kept ? 15 << 20 : 16 << 20;
        const char *buffer = kvmserverguest_shared_buffer(length);
        int clean = buffer && is_zero(buffer, length) && (!kept || is_zero(kept, 1 << 20));
        return respond(fd, request, clean ? "clean" : "dirty");
    }
    if (strncmp(path, "/watch/", 7) == 0) {
        const char *buffer = kvmserverguest_shared_buffer(8192);
        return respond(fd, request, buffer && stays_zero(buffer, 8192, strtoul(path + 7, NULL, 10)) ? "clean" : "dirty");
    }
    if (strncmp(path, "/until/", 7) == 0) {
        char *buffer = kvmserverguest_shared_buffer(4096);
        if (!buffer)
            return respond(fd, request, "no buffer");
        words(buffer, "later ");
        strncat(buffer, path + 7, 100);
        ssize_t result = kvmserverguest_remote_resume(buffer, 4096);
        while (result == 1 && *(volatile char *)buffer != 0x77)
            usleep(1000);
        return respond(fd, request, result == 1 ? "written" : "failed");
    }
    if (strncmp(path, "/receive/", 9) == 0)
        return receive(fd, request, path + 9);
    if (strcmp(path, "/secret") == 0)
        return secret(fd, request);
    if (strncmp(path, "/connect/", 9) == 0)
        return try_connect(fd, request, path + 9);
    if (strcmp(path, "/registers") == 0)
        return registers(fd, request);
    return http_count(fd, request);
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    if (argc > 2) {
        kept = kvmserverguest_shared_buffer(1 << 20);
        if (!kept)
            return 3;
        memset(kept, 0x11, 1 << 20);
    }
    http_handler = handle;
    http_serve_for_ever(argv[1]);
}
