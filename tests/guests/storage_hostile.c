/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * A server that calls the storage program (storage_service.c) as a hostile or careless program would: storage_hostile PORT.
 *
 *   /errors              the results of calls that must fail, by name
 *   /files/DIRECTORY     the results of calls with buffers in mapped files, by name (+ is a slash)
 *   /random/SEED/N       N calls with random pointers and lengths: "N calls, C refused"
 *   /threads/T/N         the numbers that T threads get, N each, while others compute and allocate
 *   /signals/N           the numbers that a signal handler gets while the main thread calls as well, N in all
 *   /scan                what the storage program finds in its window
 *   anything else        the number of a call
 */
#include "http.h"
#include "../../guestlib/kvmserverguest.h"
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/time.h>

enum { MAX_NUMBERS = 4096 };
static unsigned long numbers[MAX_NUMBERS];
static atomic_ulong used;

static char text[65536];
static size_t length;

static void say(const char *name, long result)
{
    length += (size_t)snprintf(text + length, sizeof text - length, "%s=%ld\n", name, result);
}

static long refused(int result)
{
    return result == 0 ? 0 : -errno;
}

static void errors(void)
{
    static char page[8192] __attribute__((aligned(4096)));
    static const char constant[4096] __attribute__((aligned(4096))) = "invert";
    char *half = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(half + 4096, 4096);
    char *closed = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *shared = kvmserverguest_shared_buffer(4096);
    void *pointer = NULL;
    say("null", kvmserverguest_remote_resume(NULL, 1));
    say("negative", kvmserverguest_remote_resume(page, -1));
    say("most-negative", kvmserverguest_remote_resume(page, (ssize_t)1 << 63));
    say("too-long", kvmserverguest_remote_resume(page, KVMSERVERGUEST_BUFFER_MAX + 1));
    say("wraps", kvmserverguest_remote_resume((void *)-4096L, 8192));
    say("last-byte", kvmserverguest_remote_resume((void *)-1L, 1));
    say("kernel", kvmserverguest_remote_resume((void *)(1L << 63), 16));
    say("not-canonical", kvmserverguest_remote_resume((void *)(1L << 62), 16));
    say("end", kvmserverguest_remote_resume((void *)((120L << 30) - 8), 16));
    say("read-only", kvmserverguest_remote_resume((void *)(uintptr_t)constant, 16));
    say("code", kvmserverguest_remote_resume((void *)(uintptr_t)errors, 16));
    say("unmapped", kvmserverguest_remote_resume(half + 4096, 16));
    say("half-unmapped", kvmserverguest_remote_resume(half + 4090, 16));
    say("no-access", kvmserverguest_remote_resume(closed, 16));
    say("shared-whole", kvmserverguest_remote_resume(shared, KVMSERVERGUEST_BUFFER_MAX));
    say("shared-and-beyond", kvmserverguest_remote_resume(shared + 4096, KVMSERVERGUEST_BUFFER_MAX));
    say("shared-beyond-one", kvmserverguest_remote_resume(shared + KVMSERVERGUEST_BUFFER_MAX - 1, 2));
    say("shared-before-one", kvmserverguest_remote_resume(shared - 1, 2));
    say("wait", kvmserverguest_storage_wait_paused(&pointer, 0));
    say("unmap", refused(munmap(shared, 4096)));
    say("unmap-all-around", refused(munmap(shared - 4096, 3 * 4096)));
    say("protect", refused(mprotect(shared, 4096, PROT_READ)));
    say("replace", mmap(shared, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED ? -errno : 0);
    say("move", mremap(shared, 4096, 8192, MREMAP_MAYMOVE) == MAP_FAILED ? -errno : 0);
    say("move-onto", mremap(half, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, shared) == MAP_FAILED ? -errno : 0);
    say("still-there", *(volatile char *)shared == 0 && (*shared = 1) == 1);
    say("shared-zero", kvmserverguest_shared_buffer(0) == NULL);
    say("shared-too-much", kvmserverguest_shared_buffer(KVMSERVERGUEST_BUFFER_MAX) == NULL);
    say("shared-huge", kvmserverguest_shared_buffer(SIZE_MAX) == NULL);
    say("shared-wraps", kvmserverguest_shared_buffer(SIZE_MAX - 4095) == NULL);
    say("shared-rest", kvmserverguest_shared_buffer(KVMSERVERGUEST_BUFFER_MAX - 4096) == shared + 4096);
    say("shared-none", kvmserverguest_shared_buffer(1) == NULL);
    say("empty", kvmserverguest_remote_resume(NULL, 0));
    say("empty-anywhere", kvmserverguest_remote_resume((void *)-1L, 0));
    say("available", kvmserverguest_available());
}

/* A mapping of two pages of a fresh file. */
static char *map_file(const char *directory, const char *name, int protection, int flags, char *path, size_t room)
{
    static const char zeros[8192];
    snprintf(path, room, "%s/%s", directory, name);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, zeros, sizeof zeros) != sizeof zeros)
        return NULL;
    char *mapped = mmap(NULL, 8192, protection, flags, fd, 0);
    close(fd);
    return mapped == MAP_FAILED ? NULL : mapped;
}

static long scan(void)
{
    char buffer[64] = "scan";
    ssize_t result = kvmserverguest_remote_resume(buffer, sizeof buffer);
    return result == 5 && strcmp(buffer, "clean") == 0;
}

static void files(const char *directory)
{
    char path[1200], seen[16] = "";
    const int both = PROT_READ | PROT_WRITE;
    char *shared = map_file(directory, "shared", both, MAP_SHARED, path, sizeof path);
    if (!shared) {
        say("failed", errno);
        return;
    }
    memcpy(shared, "invert\0", 8);
    say("shared", kvmserverguest_remote_resume(shared, 8192));
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    say("shared-written", pread(fd, seen, 1, 8191) == 1 && seen[0] == (char)~0);
    char *private = map_file(directory, "private", both, MAP_PRIVATE, path, sizeof path);
    memcpy(private, "invert\0", 8);
    say("private", kvmserverguest_remote_resume(private, 8192));
    say("private-own", private[8191] == (char)~0);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    say("private-not-written", pread(fd, seen, 1, 8191) == 1 && seen[0] == 0);
    say("read-only", kvmserverguest_remote_resume(map_file(directory, "constant", PROT_READ, MAP_SHARED, path, sizeof path), 64));

    /* The second page is past the end of the file: what was copied of the first must not stay in the window. */
    char *cut = map_file(directory, "cut", both, MAP_SHARED, path, sizeof path);
    memset(cut, 0x41, 4096);
    if (truncate(path, 4096) != 0)
        say("failed", errno);
    say("cut", kvmserverguest_remote_resume(cut, 8192));
    say("cut-clean", scan());
    char *empty = map_file(directory, "empty", both, MAP_PRIVATE, path, sizeof path);
    if (truncate(path, 0) != 0)
        say("failed", errno);
    say("empty", kvmserverguest_remote_resume(empty, 8192));
    say("empty-clean", scan());

    /* The storage program takes the file away while it has the call. */
    char *gone = map_file(directory, "gone", both, MAP_SHARED, path, sizeof path);
    memset(gone + 4096, 0x42, 4096);
    sprintf(gone, "cut %s", path);
    say("gone", kvmserverguest_remote_resume(gone, 8192));
    say("gone-clean", scan());
}

static uint64_t state;

static uint64_t next(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static void keep_number(void)
{
    char buffer[64] = "number";
    if (kvmserverguest_remote_resume(buffer, sizeof buffer) > 0) {
        unsigned long index = atomic_fetch_add(&used, 1);
        const char *number = strchr(buffer, ' ');
        if (index < MAX_NUMBERS && number)
            numbers[index] = strtoul(number, NULL, 10);
    }
}

static void all_numbers(void)
{
    for (unsigned long index = 0; index < used && index < MAX_NUMBERS; index++)
        length += (size_t)snprintf(text + length, sizeof text - length, "%lu ", numbers[index]);
}

/* Pointers around what is mapped, and anywhere; lengths around pages, sizes of mappings and the limits. */
static void random_calls(uint64_t seed, unsigned long count)
{
    struct {
        uint64_t start, end;
    } mapped[256];
    size_t ranges = 0;
    unsigned long bad = 0, strange = 0;
    char line[512];
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && ranges < 256 && fgets(line, sizeof line, maps))
        ranges += sscanf(line, "%lx-%lx", &mapped[ranges].start, &mapped[ranges].end) == 2;
    state = seed * 0x9e3779b97f4a7c15 + 1;
    for (unsigned long number = 0; number < count; number++) {
        size_t pick = next() % (ranges + 1);
        uint64_t pointer = next() >> (next() % 64), size = next() >> (next() % 64);
        if (pick < ranges) {
            pointer = (next() & 1 ? mapped[pick].start : mapped[pick].end) + next() % 8192 - 4096;
            size = next() % 3 == 0 ? mapped[pick].end - mapped[pick].start + next() % 3 - 1 : next() % 16384;
        }
        /* A gap of the loop's own memory in the middle of the call would be its own fault, so what is given comes back as it was. */
        ssize_t result = kvmserverguest_remote_resume((void *)pointer, (ssize_t)size);
        bad += result == -EINVAL;
        strange += result != -EINVAL && result != 0;
    }
    length += (size_t)snprintf(text + length, sizeof text - length, "%lu calls, %s refused, %lu strange", count,
                               bad > 0 && bad < count ? "some" : "none or all", strange);
}

static unsigned long each;
static atomic_int computing;

static void *caller(void *unused)
{
    (void)unused;
    for (unsigned long number = 0; number < each; number++)
        keep_number();
    return NULL;
}

static void *computer(void *unused)
{
    (void)unused;
    while (computing) {
        char *memory = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        memset(memory, 1, 1 << 20);
        munmap(memory, 1 << 20);
    }
    return NULL;
}

static void threads(unsigned long count)
{
    pthread_t callers[64], computers[2];
    computing = 1;
    for (int index = 0; index < 2; index++)
        if (pthread_create(&computers[index], NULL, computer, NULL) != 0)
            fail("pthread_create");
    for (unsigned long index = 0; index < count && index < 64; index++)
        if (pthread_create(&callers[index], NULL, caller, NULL) != 0)
            fail("pthread_create");
    for (unsigned long index = 0; index < count && index < 64; index++)
        pthread_join(callers[index], NULL);
    computing = 0;
    for (int index = 0; index < 2; index++)
        pthread_join(computers[index], NULL);
}

static volatile sig_atomic_t interrupted;

static void on_alarm(int number)
{
    (void)number;
    interrupted++;
    keep_number();
}

static void signals(unsigned long count)
{
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    const struct itimerval often = {{0, 500}, {0, 500}}, never = {{0, 0}, {0, 0}};
    if (sigaction(SIGALRM, &action, NULL) != 0 || setitimer(ITIMER_REAL, &often, NULL) != 0)
        fail("setitimer");
    while (used < count || interrupted < 3)
        keep_number();
    setitimer(ITIMER_REAL, &never, NULL);
}

static int handle(int fd, const struct request *request)
{
    char path[1024], *end;
    snprintf(path, sizeof path, "%s", request->path);
    length = 0;
    text[0] = '\0';
    used = 0;
    if (strcmp(path, "/errors") == 0) {
        errors();
    } else if (strcmp(path, "/scan") == 0) {
        say("clean", scan());
    } else if (strncmp(path, "/files/", 7) == 0) {
        for (char *at = path; *at; at++)
            *at = *at == '+' ? '/' : *at;
        files(path + 7);
    } else if (strncmp(path, "/random/", 8) == 0) {
        uint64_t seed = strtoul(path + 8, &end, 10);
        random_calls(seed, strtoul(end + 1, NULL, 10));
    } else if (strncmp(path, "/threads/", 9) == 0) {
        unsigned long count = strtoul(path + 9, &end, 10);
        each = strtoul(end + 1, NULL, 10);
        threads(count);
        all_numbers();
    } else if (strncmp(path, "/signals/", 9) == 0) {
        signals(strtoul(path + 9, NULL, 10));
        all_numbers();
    } else {
        keep_number();
        all_numbers();
    }
    return http_respond(fd, request, 200, text, length);
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    http_handler = handle;
    http_serve_for_ever(argv[1]);
}
