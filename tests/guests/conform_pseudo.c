/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * Claims about /proc and /dev as a program sees them: conform_pseudo DIRECTORY (writable).
 */
#include "tap.h"
#include <dirent.h>
#include <limits.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

static char text[1 << 18];

static ssize_t slurp(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    size_t used = 0;
    ssize_t got = -1;
    while (fd >= 0 && (got = read(fd, text + used, sizeof text - 1 - used)) > 0)
        used += (size_t)got;
    text[used] = '\0';
    if (fd >= 0)
        close(fd);
    return got < 0 ? -1 : (ssize_t)used;
}

static int has(const char *path, const char *wanted)
{
    return slurp(path) >= 0 && strstr(text, wanted) != NULL;
}

static int maps_have(const void *address, const char *rights)
{
    unsigned long start, end;
    char found[8];
    if (slurp("/proc/self/maps") <= 0)
        return 0;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
        if (sscanf(line, "%lx-%lx %7s", &start, &end, found) == 3 && start <= (uintptr_t)address && (uintptr_t)address < end)
            return strncmp(found, rights, strlen(rights)) == 0;
    return 0;
}

static void devices(void)
{
    struct stat status;
    char bytes[4096];
    int fd = open("/dev/null", O_RDWR), right = 1;
    CHECK("/dev/null swallows and is empty", write(fd, "x", 1) == 1 && read(fd, bytes, 1) == 0);
    CHECK("it is a character device", fstat(fd, &status) == 0 && S_ISCHR(status.st_mode) && major(status.st_rdev) == 1 && minor(status.st_rdev) == 3);
    close(fd);
    memset(bytes, 1, sizeof bytes);
    fd = open("/dev/zero", O_RDWR);
    CHECK("/dev/zero gives zeros", read(fd, bytes, sizeof bytes) == sizeof bytes);
    for (size_t i = 0; i < sizeof bytes; i++)
        right &= bytes[i] == 0;
    CHECK("only zeros", right);
    char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    CHECK("/dev/zero can be mapped", page != MAP_FAILED && page[7] == 0 && (page[7] = 1));
    close(fd);
    fd = open("/dev/urandom", O_RDONLY);
    right = read(fd, bytes, 16) == 16 && read(fd, bytes + 16, 16) == 16 && memcmp(bytes, bytes + 16, 16) != 0;
    CHECK("/dev/urandom is random", right);
    close(fd);
    fd = open("/dev/full", O_WRONLY);
    CHECK("/dev/full is full, or not there", fd < 0 ? errno == ENOENT || errno == EACCES : write(fd, "x", 1) == -1 && errno == ENOSPC);
    fd = open("/dev/random", O_RDONLY);
    CHECK("/dev/random", read(fd, bytes, 4) == 4);
    close(fd);
    fd = open("/dev/shm/kvmserver-test", O_RDWR | O_CREAT | O_EXCL, 0600);
    CHECK("/dev/shm holds files", fd >= 0 && write(fd, "x", 1) == 1 && unlink("/dev/shm/kvmserver-test") == 0);
    close(fd);
    fd = open("/dev/fd/1", O_WRONLY);
    CHECK("/dev/fd/1 is stdout", fd >= 0 || errno == ENXIO);
    close(fd);
    CHECK_ERRNO("the host's KVM is not there", getenv("NATIVE") ? (errno = ENOENT, -1) : open("/dev/kvm", O_RDWR), ENOENT);
}

static void self(const char *directory)
{
    char path[PATH_MAX], target[PATH_MAX];
    struct stat by_name, by_link;
    ssize_t length = readlink("/proc/self/exe", target, sizeof target - 1);
    CHECK("K20 readlink of /proc/self/exe", length > 0 && (target[length] = '\0', strstr(target, "conform_pseudo") != NULL));
    CHECK("K20 stat of it is that of the program", stat("/proc/self/exe", &by_link) == 0 && stat(target, &by_name) == 0 && by_link.st_ino == by_name.st_ino && S_ISREG(by_link.st_mode));
    int fd = open("/proc/self/exe", O_RDONLY);
    CHECK("K20 it can be read", read(fd, path, 4) == 4 && memcmp(path, "\177ELF", 4) == 0);
    close(fd);
    CHECK("K24 /proc/self/cwd", chdir(directory) == 0 && (length = readlink("/proc/self/cwd", target, sizeof target - 1)) > 0 && (target[length] = '\0', getcwd(path, sizeof path) && strcmp(path, target) == 0));
    fd = open(".", O_RDONLY | O_DIRECTORY);
    snprintf(text, sizeof text, "/proc/self/fd/%d", fd);
    CHECK("/proc/self/fd/N is the name", (length = readlink(text, target, sizeof target - 1)) > 0 && (target[length] = '\0', strcmp(path, target) == 0));
    close(fd);
    CHECK("the one of a closed descriptor is gone", readlink(text, target, sizeof target) == -1 && errno == ENOENT);
    DIR *list = opendir("/proc/self/fd");
    int count = 0;
    for (struct dirent *entry; list && (entry = readdir(list));)
        count += entry->d_name[0] != '.';
    int open_now = 0;
    for (int number = 0; number < 1024; number++)
        open_now += fcntl(number, F_GETFD) >= 0;
    CHECK("/proc/self/fd lists what is open", count == open_now && count >= 4);
    if (list)
        closedir(list);
    CHECK("/proc/self/cmdline", slurp("/proc/self/cmdline") > 0 && strstr(text, "conform_pseudo") && strlen(text) + 1 + strlen(directory) + 1 <= sizeof text &&
                                    strcmp(text + strlen(text) + 1, directory) == 0);
    CHECK("/proc/self/comm", has("/proc/self/comm", "conform_pseudo"));
    CHECK("/proc/self/status", has("/proc/self/status", "VmRSS:") && strstr(text, "Threads:\t1\n"));
    CHECK("/proc/self/stat has the process first", slurp("/proc/self/stat") > 0 && atoi(text) == getpid());
    CHECK("/proc/self/statm", slurp("/proc/self/statm") > 0 && atol(text) > 0);
    CHECK("/proc/self/environ or its refusal", slurp("/proc/self/environ") >= 0 || errno == ENOENT || errno == EACCES);
    CHECK("/proc/self/limits or its refusal", has("/proc/self/limits", "Max open files") || errno == ENOENT);
    snprintf(path, sizeof path, "/proc/%d/status", getpid());
    CHECK("/proc/PID is the same", has(path, "Threads:"));
    CHECK("/proc/thread-self or /proc/self/task", access("/proc/self/task", F_OK) == 0 || access("/proc/thread-self", F_OK) == 0);
}

static void maps(void)
{
    int local = 0;
    static int global;
    char *page = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK("/proc/self/maps has the code", maps_have((void *)(uintptr_t)maps_have, "r-xp"));
    CHECK("the data", maps_have(&global, "rw-p"));
    CHECK("the stack", maps_have(&local, "rw-p") && has("/proc/self/maps", "[stack]"));
    CHECK("a new mapping", maps_have(page, "rw-p"));
    mprotect(page + 4096, 4096, PROT_READ);
    CHECK("its parts", maps_have(page + 4096, "r--p") && maps_have(page + 8192, "rw-p"));
    munmap(page, 3 * 4096);
    CHECK("and not when it is gone", !maps_have(page, ""));
    CHECK("the program's file", has("/proc/self/maps", "conform_pseudo"));
    int fd = open("/proc/self/mem", O_RDWR);
    CHECK("/proc/self/mem reads memory, or is refused", fd < 0 || (global = 77, pread(fd, &local, 4, (off_t)(uintptr_t)&global) == 4 && local == 77));
    close(fd);
}

static void whole_system(void)
{
    CHECK("/proc/cpuinfo", has("/proc/cpuinfo", "processor\t: 0") && strstr(text, "flags\t\t:") && strstr(text, " sse2 "));
    CHECK("/proc/meminfo", has("/proc/meminfo", "MemTotal:") && strstr(text, "MemAvailable:"));
    CHECK("/proc/stat", has("/proc/stat", "cpu "));
    CHECK("/proc/uptime", slurp("/proc/uptime") > 0 && atof(text) >= 0);
    CHECK("/proc/loadavg", slurp("/proc/loadavg") > 0);
    CHECK("/proc/version", has("/proc/version", "Linux version"));
    CHECK("/proc/mounts or its refusal", has("/proc/mounts", "/") || errno == ENOENT);
    CHECK("/proc/sys/kernel/osrelease", slurp("/proc/sys/kernel/osrelease") > 0 && atoi(text) >= 5);
    CHECK("/proc/sys/vm/overcommit_memory", slurp("/proc/sys/vm/overcommit_memory") > 0);
    CHECK("/proc/sys/kernel/random/uuid or its refusal", slurp("/proc/sys/kernel/random/uuid") == 37 || errno == ENOENT);
    CHECK_ERRNO("/proc/999999", open("/proc/999999/status", O_RDONLY), ENOENT);
    CHECK_ERRNO("/proc has no such file", open("/proc/no-such-file", O_RDONLY), ENOENT);
    CHECK("/sys/devices/system/cpu/online", slurp("/sys/devices/system/cpu/online") > 0 && text[0] == '0');
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    devices();
    maps();
    self(argv[1]);
    whole_system();
    return tap_failures != 0;
}
