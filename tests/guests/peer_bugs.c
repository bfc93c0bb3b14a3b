/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * What a peer's forks and resets got wrong, by the numbers of its bugs: peer_bugs PORT DIRECTORY.
 *
 * Each path of the table finds what the program prepared before it listened, says `ok` or what is wrong, and ruins it
 * afterwards. Natively the second request therefore finds the ruins of the first, unless the table says that nothing
 * is ruined; after a reset every request says `ok`. `/` and `/files` answer the counter.
 */
#include "http.h"
#include <dirent.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/timerfd.h>

enum { PAGE = 4096, BLOCK = 2 << 20, FILE_BYTES = 6 << 20, BLOCKS = 8, STAMP = 100 * PAGE, BSS_BYTES = 64 << 20 };

/* Free in any program, and inside the guest's default address space. */
#define FIXED ((char *)0x700000000ul)

static const char *directory;
static char text[4096];
static __thread long local = 7;
static sem_t asked, answered;
static long helper_found;
static char *mapped, *shared, *huge;
static int file, socket_pair[2], timer, signals, watcher;

/* Initialised data directly before a large zero area, as linkers lay them out. */
static unsigned long data[1000] = {[0] = 0x1111, [511] = 0x2222, [999] = 0x3333};
static char zeros[BSS_BYTES];

#define EXPECT(condition)                \
    do {                                 \
        if (!(condition))                \
            return "not " #condition;    \
    } while (0)

static char pattern(size_t at)
{
    return (char)(at * 7 + at / PAGE);
}

/* ---- memory ---- */

static const char *fixed_mapping(void)
{
    EXPECT(strcmp(FIXED, "fixed") == 0 && FIXED[PAGE] == 'x');
    strcpy(FIXED, "ruined");
    mprotect(FIXED + PAGE, PAGE, PROT_NONE);
    return NULL;
}

static void *help(void *unused)
{
    for (;;) {
        sem_wait(&asked);
        helper_found = local;
        local = 9;
        sem_post(&answered);
    }
    return unused;
}

static const char *thread_local_values(void)
{
    uintptr_t self;
    __asm__ volatile("mov %%fs:0, %0" : "=r"(self));
    EXPECT(self == (uintptr_t)pthread_self());
    EXPECT(local == 7);
    sem_post(&asked);
    sem_wait(&answered);
    EXPECT(helper_found == 7);
    local = 8;
    return NULL;
}

static const char *mapped_file(void)
{
    unsigned long stamp;
    memcpy(&stamp, mapped + STAMP, sizeof stamp);
    EXPECT(stamp == http_counter);
    for (size_t at = 0; at < FILE_BYTES; at += 61) {
        EXPECT(at / PAGE == STAMP / PAGE || mapped[at] == pattern(at));
        EXPECT(shared[at] == pattern(at));
    }
    for (size_t at = 0; at < FILE_BYTES; at += 3 * PAGE)
        memset(mapped + at, 0x55, PAGE);
    madvise(mapped + STAMP, PAGE, MADV_DONTNEED);
    munmap(mapped + FILE_BYTES / 2, 16 * PAGE);
    return NULL;
}

static const char *initialised_data(void)
{
    EXPECT(data[0] == 0x1111 && data[511] == 0x2222 && data[999] == 0x3333);
    for (size_t at = 0; at < BSS_BYTES; at += 509)
        EXPECT(zeros[at] == 0);
    for (size_t i = 0; i < 1000; i++)
        data[i] = i;
    for (size_t at = 0; at < BSS_BYTES; at += 97 * PAGE)
        zeros[at] = 1;
    memset(zeros, 2, PAGE);
    memset(zeros + BSS_BYTES - PAGE, 3, PAGE);
    return NULL;
}

static const char *split_blocks(void)
{
    for (size_t at = 0; at < BLOCKS * BLOCK; at += PAGE) {
        EXPECT(huge[at] == (at == BLOCK + PAGE ? 0 : pattern(at)));
        /* Writable too, or the request dies here. */
        huge[at + 1] = 1;
    }
    mprotect(huge + PAGE, PAGE, PROT_NONE);
    mprotect(huge + 2 * BLOCK - PAGE, 2 * PAGE, PROT_READ);
    munmap(huge + 3 * BLOCK + 5 * PAGE, PAGE);
    mmap(huge + 4 * BLOCK, BLOCK, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    madvise(huge + 5 * BLOCK + PAGE, BLOCK, MADV_DONTNEED);
    munmap(huge + 7 * BLOCK, BLOCK);
    return NULL;
}

/* ---- descriptors ---- */

static int is_kind(int fd, mode_t kind)
{
    struct stat status;
    return fstat(fd, &status) == 0 && (status.st_mode & S_IFMT) == kind;
}

static const char *descriptor_kinds(void)
{
    static int been_here;
    char byte;
    EXPECT(is_kind(file, S_IFREG) && is_kind(socket_pair[0], S_IFSOCK) && is_kind(socket_pair[1], S_IFSOCK));
    EXPECT(pread(file, &byte, 1, 1) == 1 && byte == pattern(1));
    EXPECT(send(socket_pair[0], "x", 1, 0) == 1 && recv(socket_pair[1], &byte, 1, MSG_DONTWAIT) == 1 && byte == 'x');
    int ends[2], first = open(text, O_RDONLY), next = socket(AF_INET, SOCK_STREAM, 0);
    EXPECT(!been_here && first > file && next == first + 1 && pipe(ends) == 0 && ends[0] == first + 2);
    EXPECT(is_kind(first, S_IFREG) && is_kind(next, S_IFSOCK) && is_kind(ends[0], S_IFIFO));
    /* The numbers change their kinds. */
    close(first);
    EXPECT(socket(AF_UNIX, SOCK_DGRAM, 0) == first && is_kind(first, S_IFSOCK));
    EXPECT(dup2(next, file) == file && is_kind(file, S_IFSOCK) && dup2(ends[1], socket_pair[0]) == socket_pair[0]);
    been_here = 1;
    return NULL;
}

static const char *open_and_close(void)
{
    /* Descriptors that are closed twice must not be somebody else's the second time. */
    char path[4200], found[64];
    for (int turn = 0; turn < 25; turn++) {
        int fds[4], sockets[2];
        EXPECT(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0);
        for (int i = 0; i < 4; i++) {
            snprintf(path, sizeof path, "%s/file-%d", directory, i);
            EXPECT((fds[i] = open(path, O_RDONLY)) >= 0);
        }
        for (int i = 3; i >= 0; i--) {
            snprintf(path, sizeof path, "content %d", i);
            ssize_t got = read(fds[i], found, sizeof found);
            EXPECT(got == (ssize_t)strlen(path) && memcmp(found, path, (size_t)got) == 0);
            EXPECT(close(fds[i]) == 0 && close(fds[i]) == -1 && errno == EBADF);
        }
        int real = socket(AF_INET, SOCK_DGRAM, 0);
        EXPECT(real >= 0 && close(real) == 0 && close(real) == -1 && errno == EBADF);
        EXPECT(close(sockets[0]) == 0 && close(sockets[1]) == 0 && close(sockets[1]) == -1);
    }
    return NULL;
}

static const char *leave_open(void)
{
    for (int i = 0; i < 2; i++) {
        EXPECT(open(text, O_RDONLY) >= 0);
        EXPECT(dup(file) >= 0 && dup2(file, 100 + i) == 100 + i && dup2(socket_pair[0], 100 + i) == 100 + i);
        EXPECT(fcntl(file, F_DUPFD, 200) >= 200);
        EXPECT(socket(AF_INET, SOCK_STREAM, 0) >= 0 && socket(AF_INET, SOCK_DGRAM, 0) >= 0);
        EXPECT(epoll_create1(0) >= 0 && eventfd(0, 0) >= 0);
        EXPECT(opendir(directory) != NULL && chdir(i & 1 ? "/" : directory) == 0);
    }
    return NULL;
}

static const char *shut_listener_and_offsets(void)
{
    char bytes[3];
    EXPECT(read(file, bytes, 3) == 3 && bytes[0] == pattern(0) && bytes[2] == pattern(2));
    /* The listener has the lowest number that comes after all that was prepared. */
    for (int fd = 3; fd < 64; fd++) {
        int listens = 0;
        socklen_t length = sizeof listens;
        if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length) == 0 && listens) {
            EXPECT(shutdown(fd, SHUT_RDWR) == 0);
            return NULL;
        }
    }
    return "no listener";
}

static const char *status_flags(void)
{
    int value = 0, one = 1;
    socklen_t length = sizeof value;
    EXPECT((fcntl(file, F_GETFL) & (O_APPEND | O_NONBLOCK)) == 0);
    EXPECT((fcntl(socket_pair[0], F_GETFL) & O_NONBLOCK) == 0);
    EXPECT(getsockopt(socket_pair[0], SOL_SOCKET, SO_KEEPALIVE, &value, &length) == 0 && value == 0);
    EXPECT((fcntl(0, F_GETFL) & O_NONBLOCK) == 0 && (fcntl(2, F_GETFL) & O_NONBLOCK) == 0);
    for (int fd = 0; fd <= socket_pair[1]; fd++) {
        fcntl(fd, F_SETFL, O_APPEND | O_NONBLOCK);
        setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
    }
    return NULL;
}

static const char *timers_and_signals(void)
{
    struct itimerspec spec = {.it_value.tv_nsec = 1000000};
    struct signalfd_siginfo record;
    struct pollfd expiry = {.fd = timer, .events = POLLIN};
    char event[1024];
    uint64_t count;
    EXPECT(read(timer, &count, 8) == -1 && errno == EAGAIN);
    EXPECT(read(signals, &record, sizeof record) == -1 && errno == EAGAIN);
    EXPECT(watcher < 0 || (read(watcher, event, sizeof event) == -1 && errno == EAGAIN));
    EXPECT(timerfd_settime(timer, 0, &spec, NULL) == 0 && poll(&expiry, 1, 2000) == 1);
    spec.it_interval = (struct timespec){.tv_nsec = 1000000};
    EXPECT(timerfd_settime(timer, 0, &spec, NULL) == 0);
    EXPECT(raise(SIGUSR2) == 0);
    close(open(text, O_RDONLY));
    return NULL;
}

/* ---- the server ---- */

static const struct {
    const char *path;
    const char *(*act)(void);
} acts[] = {
    {"/K5-fixed", fixed_mapping},
    {"/K14-T36-thread-local", thread_local_values},
    {"/K18-T21-mapped-file", mapped_file},
    {"/T43-data", initialised_data},
    {"/T47-blocks", split_blocks},
    {"/T33-kinds", descriptor_kinds},
    {"/T34-storm", open_and_close}, /* ruins nothing */
    {"/T55-leave-open", leave_open}, /* ruins nothing */
    {"/N7-shutdown", shut_listener_and_offsets},
    {"/T14-flags", status_flags},
    {"/N11-timers", timers_and_signals},
};

static int handle(int fd, const struct request *request)
{
    for (size_t i = 0; i < sizeof acts / sizeof *acts; i++) {
        if (strcmp(request->path, acts[i].path) == 0) {
            const char *problem = acts[i].act();
            char body[512];
            int length = snprintf(body, sizeof body, "%s\n", problem ? problem : "ok");
            return http_respond(fd, request, 200, body, (size_t)length);
        }
    }
    if (strcmp(request->path, "/files") == 0) {
        /* Closes that are no connection's. */
        for (int i = 0; i < 5; i++)
            close(open(text, O_RDONLY));
    }
    int result = http_count(fd, request);
    memcpy(mapped + STAMP, &http_counter, sizeof http_counter);
    return result;
}

static void write_file(const char *name, const char *content, size_t length)
{
    char path[4200];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || write(fd, content, length) != (ssize_t)length)
        fail("write %s", path);
    close(fd);
}

static void prepare_memory(void)
{
    char *pages = mmap(FIXED, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (pages != FIXED)
        fail("mmap");
    strcpy(FIXED, "fixed");
    FIXED[PAGE] = 'x';
    mapped = mmap(NULL, FILE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
    shared = mmap(NULL, FILE_BYTES, PROT_READ, MAP_SHARED, file, 0);
    char *space = mmap(NULL, (BLOCKS + 1) * BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED || shared == MAP_FAILED || space == MAP_FAILED)
        fail("mmap");
    memset(mapped + STAMP, 0, PAGE);
    huge = (char *)(((uintptr_t)space + BLOCK - 1) & ~(uintptr_t)(BLOCK - 1));
    madvise(huge, BLOCKS * BLOCK, MADV_HUGEPAGE);
    for (size_t at = 0; at < BLOCKS * BLOCK; at += PAGE)
        huge[at] = pattern(at);
    /* One page of the second block is not what its neighbours are. */
    mmap(huge + BLOCK + PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

static void prepare(void)
{
    static char content[FILE_BYTES];
    pthread_t helper;
    sigset_t set;
    for (size_t at = 0; at < FILE_BYTES; at++)
        content[at] = pattern(at);
    write_file("data", content, FILE_BYTES);
    for (int i = 0; i < 4; i++) {
        char name[16];
        int length = snprintf(name, sizeof name, "content %d", i);
        snprintf(text, sizeof text, "file-%d", i);
        write_file(text, name, (size_t)length);
    }
    snprintf(text, sizeof text, "%s/data", directory);
    file = open(text, O_RDONLY | O_CLOEXEC);
    if (file < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, socket_pair) != 0)
        fail("prepare");
    prepare_memory();
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    sigprocmask(SIG_BLOCK, &set, NULL);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    watcher = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (watcher >= 0 && inotify_add_watch(watcher, directory, IN_OPEN) < 0)
        fail("inotify_add_watch");
    if (timer < 0 || signals < 0 || sem_init(&asked, 0, 0) != 0 || sem_init(&answered, 0, 0) != 0)
        fail("prepare");
    if (pthread_create(&helper, NULL, help, NULL) != 0)
        fail("pthread_create");
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    directory = argv[2];
    prepare();
    http_handler = handle;
    http_serve_for_ever(argv[1]);
}
