/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * A server whose requests call the storage program: storage_caller PORT.
 *
 *   /                    the counter of this program
 *   /call/WORDS          a call with these words (+ is a space) in 4,096 bytes: the result and the answer
 *   /size/N              a call of N bytes that are to be inverted: "N ok"
 *   /shared/N            as /size/N in the shared buffer
 *   /many/N              N empty calls: how many had the result 0
 *   /leave/N             write N bytes into shared memory and leave them there
 *   /find                what a fresh shared buffer holds: "clean" or "dirty"
 *   /errors              the results of calls that must fail
 *   /registers           whether a call leaves the registers alone that it has to
 */
#include "http.h"
#include "../../guestlib/kvmserverguest.h"
#include <sys/mman.h>

static char page[4096] __attribute__((aligned(4096)));

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

static int errors(int fd, const struct request *request)
{
    static const char constant[4096] __attribute__((aligned(4096))) = "invert";
    void *unmapped = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap((char *)unmapped + 4096, 4096);
    void *closed = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    void *shared = kvmserverguest_shared_buffer(4096);
    void *pointer;
    const ssize_t results[] = {
        kvmserverguest_remote_resume(NULL, 1),
        kvmserverguest_remote_resume(page, -1),
        kvmserverguest_remote_resume(page, KVMSERVERGUEST_BUFFER_MAX + 1),
        kvmserverguest_remote_resume((void *)-4096L, 8192),
        kvmserverguest_remote_resume((void *)(1L << 62), 16),
        kvmserverguest_remote_resume((void *)(uintptr_t)constant, 16),
        kvmserverguest_remote_resume((char *)unmapped + 4090, 16),
        kvmserverguest_remote_resume(closed, 16),
        kvmserverguest_storage_wait_paused(&pointer, 0),
        munmap(shared, 4096) == 0 ? 0 : -errno,
        mprotect(shared, 4096, PROT_READ) == 0 ? 0 : -errno,
        mmap(shared, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED ? -errno : 0,
        kvmserverguest_shared_buffer(KVMSERVERGUEST_BUFFER_MAX) == NULL,
        kvmserverguest_shared_buffer(SIZE_MAX) == NULL,
        kvmserverguest_remote_resume(NULL, 0),
        kvmserverguest_available(),
    };
    char body[512];
    size_t used = 0;
    for (size_t index = 0; index < sizeof results / sizeof *results; index++)
        used += (size_t)snprintf(body + used, sizeof body - used, "%zd ", results[index]);
    return respond(fd, request, body);
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
    if (strncmp(path, "/call/", 6) == 0) {
        char body[5000];
        snprintf(page, sizeof page, "%s", path + 6);
        for (char *at = page; *at; at++)
            *at = *at == '+' ? ' ' : *at;
        ssize_t result = kvmserverguest_remote_resume(page, sizeof page);
        page[sizeof page - 1] = '\0';
        snprintf(body, sizeof body, "%zd %s", result, page);
        return respond(fd, request, body);
    }
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
    if (strncmp(path, "/many/", 6) == 0) {
        unsigned long good = 0;
        char body[32];
        for (unsigned long left = strtoul(path + 6, NULL, 10); left > 0; left--)
            good += kvmserverguest_remote_resume(NULL, 0) == 0;
        snprintf(body, sizeof body, "%lu", good);
        return respond(fd, request, body);
    }
    if (strncmp(path, "/leave/", 7) == 0) {
        size_t length = strtoul(path + 7, NULL, 10);
        char *buffer = kvmserverguest_shared_buffer(length);
        memset(buffer, 0x5a, length);
        return respond(fd, request, "left");
    }
    if (strcmp(path, "/find") == 0) {
        const size_t length = 8 << 20;
        const char *buffer = kvmserverguest_shared_buffer(length);
        for (size_t at = 0; at < length; at++)
            if (buffer[at] != 0)
                return respond(fd, request, "dirty");
        return respond(fd, request, "clean");
    }
    if (strcmp(path, "/errors") == 0)
        return errors(fd, request);
    if (strcmp(path, "/registers") == 0)
        return registers(fd, request);
    return http_count(fd, request);
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    http_handler = handle;
    int listener = http_listen(argv[1], 0);
    for (;;) {
        struct connection *client = http_accept(listener, 0);
        if (!client)
            fail("accept");
        while (http_serve(client) != HTTP_CLOSED)
            ;
        http_forget(client);
    }
}
