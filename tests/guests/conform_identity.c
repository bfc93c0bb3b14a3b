/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * Claims about what a program is told of itself: numbers, names, arguments, limits, environment.
 */
#include "tap.h"
#include <asm/prctl.h>
#include <elf.h>
#include <link.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <sys/wait.h>

static long status_field(const char *name)
{
    char line[256];
    long value = -1;
    FILE *file = fopen("/proc/self/status", "r");
    while (file && fgets(line, sizeof line, file))
        if (strncmp(line, name, strlen(name)) == 0)
            value = strtol(line + strlen(name), NULL, 10);
    if (file)
        fclose(file);
    return value;
}

static void numbers(void)
{
    uid_t real, effective, saved;
    gid_t groups[100];
    CHECK("N13 getpid is positive", getpid() > 0);
    CHECK("getpid is stable", getpid() == getpid() && syscall(SYS_getpid) == getpid());
    CHECK("getppid is not negative", getppid() >= 0);
    CHECK("getresuid agrees with getuid", getresuid(&real, &effective, &saved) == 0 && real == getuid() && effective == geteuid());
    CHECK("getresgid agrees with getgid", getresgid(&real, &effective, &saved) == 0 && real == getgid() && effective == getegid());
    CHECK("getgroups", getgroups(100, groups) >= 0);
    CHECK("/proc/self/status has the same process", status_field("Pid:") == getpid());
    CHECK("/proc/self/status has the same user", status_field("Uid:") == (long)getuid());
    CHECK("getpgrp and getsid", getpgrp() >= 0 && getsid(0) >= 0);
    CHECK("getpgid of oneself", getpgid(0) == getpgrp());
    CHECK_ERRNO("getpgid of nobody", getpgid(999999), ESRCH);
    CHECK_ERRNO("getsid of nobody", getsid(999999), ESRCH);
    CHECK_ERRNO("waitpid without children", waitpid(-1, NULL, WNOHANG), ECHILD);
    CHECK_ERRNO("N8 an unknown system call", syscall(9999), ENOSYS);
    CHECK_ERRNO("N8 system call -1", syscall(-1), ENOSYS);
}

static void names(void)
{
    struct utsname system;
    char name[17];
    memset(name, 0x55, sizeof name);
    CHECK("uname", uname(&system) == 0 && strcmp(system.sysname, "Linux") == 0 && strcmp(system.machine, "x86_64") == 0);
    CHECK("its release is a modern one", atoi(system.release) >= 5);
    CHECK("T6 PR_GET_NAME is the program's name, cut to 15", prctl(PR_GET_NAME, name) == 0 && strncmp(name, "conform_identity", 15) == 0 && name[15] == 0);
    CHECK("T6 16 bytes are written, no more", name[16] == 0x55);
    CHECK("PR_SET_NAME", prctl(PR_SET_NAME, "a name that is much too long") == 0 && prctl(PR_GET_NAME, name) == 0 && strcmp(name, "a name that is ") == 0);
    CHECK_ERRNO("PR_GET_NAME to a bad address", prctl(PR_GET_NAME, 8), EFAULT);
    CHECK_ERRNO("an unknown prctl", prctl(99999, 0, 0, 0, 0), EINVAL);
    CHECK("PR_SET_DUMPABLE, PR_GET_DUMPABLE", prctl(PR_SET_DUMPABLE, 0) == 0 && prctl(PR_GET_DUMPABLE) == 0 && prctl(PR_SET_DUMPABLE, 1) == 0);
    CHECK("PR_SET_NO_NEW_PRIVS", prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1);
    CHECK("PR_SET_PDEATHSIG or its refusal", prctl(PR_SET_PDEATHSIG, SIGTERM) == 0 || errno == EINVAL);
}

static void thread_registers(void)
{
    unsigned long base = 0, direct;
    __asm__("mov %%fs:0, %0" : "=r"(direct));
    CHECK("N6 ARCH_GET_FS gives all 64 bits", syscall(SYS_arch_prctl, ARCH_GET_FS, &base) == 0 && base == direct);
    CHECK("ARCH_SET_GS and ARCH_GET_GS", syscall(SYS_arch_prctl, ARCH_SET_GS, 0x123456789000) == 0 && syscall(SYS_arch_prctl, ARCH_GET_GS, &base) == 0 && base == 0x123456789000);
    CHECK_ERRNO("a base in the kernel's half", syscall(SYS_arch_prctl, ARCH_SET_GS, 0xffff800000000000), EPERM);
    CHECK_ERRNO("an unknown arch_prctl", syscall(SYS_arch_prctl, 0x9999, 0), EINVAL);
    CHECK_ERRNO("ARCH_GET_FS to a bad address", syscall(SYS_arch_prctl, ARCH_GET_FS, 8), EFAULT);
    syscall(SYS_arch_prctl, ARCH_SET_GS, 0);
}

static void limits(void)
{
    struct rlimit limit, changed;
    struct sysinfo info;
    int same = 1;
    for (int resource = 0; resource < RLIM_NLIMITS; resource++)
        same &= getrlimit((__rlimit_resource_t)resource, &limit) == 0 && limit.rlim_cur <= limit.rlim_max;
    CHECK("T42 each limit is at most its hard limit", same);
    CHECK_ERRNO("an unknown limit", getrlimit((__rlimit_resource_t)99, &limit), EINVAL);
    getrlimit(RLIMIT_CORE, &limit);
    limit.rlim_cur = 0;
    CHECK("T42 prlimit sets and tells the old one", prlimit(0, RLIMIT_CORE, &limit, &changed) == 0 && getrlimit(RLIMIT_CORE, &changed) == 0 && changed.rlim_cur == 0);
    changed.rlim_cur = 2, changed.rlim_max = 1;
    CHECK_ERRNO("soft above hard", setrlimit(RLIMIT_CORE, &changed), EINVAL);
    CHECK_ERRNO("prlimit of nobody", prlimit(999999, RLIMIT_CORE, NULL, &changed), ESRCH);
    CHECK("RLIMIT_NOFILE allows 256", getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur >= 256);
    CHECK("sysinfo", sysinfo(&info) == 0 && info.totalram > 0 && info.mem_unit > 0 && info.freeram <= info.totalram);
    CHECK("sysconf", sysconf(_SC_PAGESIZE) == 4096 && sysconf(_SC_CLK_TCK) == 100 && sysconf(_SC_NPROCESSORS_ONLN) >= 1 && sysconf(_SC_OPEN_MAX) >= 256);
}

static void start(int argc, char **argv)
{
    unsigned char one[16], two[16];
    char large[5000];
    CHECK("argv is as given", argc == 4 && strcmp(argv[1], "two words") == 0 && argv[2][0] == '\0' && strcmp(argv[3], "\xc3\xa4\"'$\\") == 0 && argv[4] == NULL);
    CHECK("AT_PAGESZ", getauxval(AT_PAGESZ) == 4096);
    CHECK("AT_PHDR is there", getauxval(AT_PHDR) != 0 && getauxval(AT_PHNUM) > 0 && getauxval(AT_PHENT) == sizeof(Elf64_Phdr));
    CHECK("AT_ENTRY is code", getauxval(AT_ENTRY) != 0);
    CHECK("AT_EXECFN names the program", getauxval(AT_EXECFN) != 0 && strstr((char *)getauxval(AT_EXECFN), "conform_identity") != NULL);
    CHECK("AT_PLATFORM", getauxval(AT_PLATFORM) != 0 && strcmp((char *)getauxval(AT_PLATFORM), "x86_64") == 0);
    CHECK("AT_SECURE is 0", getauxval(AT_SECURE) == 0);
    CHECK("AT_UID is getuid", getauxval(AT_UID) == getuid() && getauxval(AT_EUID) == geteuid() && getauxval(AT_GID) == getgid());
    CHECK("AT_CLKTCK", getauxval(AT_CLKTCK) == 100);
    memcpy(one, (void *)getauxval(AT_RANDOM), 16);
    memset(two, 0, 16);
    CHECK("AT_RANDOM is random", memcmp(one, two, 16) != 0);
    CHECK("the stack pointer is aligned", ((uintptr_t)__builtin_frame_address(0) & 15) == 0);
    CHECK("getrandom", getrandom(one, 16, 0) == 16 && getrandom(two, 16, GRND_NONBLOCK) == 16 && memcmp(one, two, 16) != 0);
    CHECK("getrandom of 5,000 bytes", getrandom(large, sizeof large, 0) == sizeof large);
    CHECK_ERRNO("getrandom with bad flags", getrandom(one, 16, 0x100), EINVAL);
    CHECK_ERRNO("getrandom to a bad address", syscall(SYS_getrandom, 8, 16, 0), EFAULT);
    CHECK("PATH is set", getenv("PATH") != NULL);
    CHECK("setenv", setenv("A_NEW_ONE", "value", 1) == 0 && strcmp(getenv("A_NEW_ONE"), "value") == 0);
}

int main(int argc, char **argv)
{
    start(argc, argv);
    numbers();
    names();
    thread_registers();
    limits();
    return tap_failures != 0;
}
