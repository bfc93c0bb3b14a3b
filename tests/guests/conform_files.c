/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * Claims about files: conform_files DIRECTORY (writable).
 */
#include "tap.h"
#include <dirent.h>
#include <limits.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/uio.h>

static int create(const char *name, const char *content)
{
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0644);
    if (fd < 0 || write(fd, content, strlen(content)) != (ssize_t)strlen(content)) {
        perror(name);
        exit(98);
    }
    return fd;
}

static int content_is(const char *name, const char *wanted)
{
    char text[256] = "";
    int fd = open(name, O_RDONLY);
    ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    close(fd);
    return got == (ssize_t)strlen(wanted) && strcmp(text, wanted) == 0;
}

static void opening(void)
{
    int fd;
    close(create("a", "hello"));
    CHECK("T10 O_RDWR without O_CREAT opens an existing file", (fd = open("a", O_RDWR)) >= 0);
    CHECK("T10 it can be written", write(fd, "J", 1) == 1 && content_is("a", "Jello"));
    CHECK("the lowest free descriptor is taken", close(fd) == 0 && open("a", O_RDONLY) == fd && close(fd) == 0);
    CHECK_ERRNO("open of a missing file", open("missing", O_RDONLY), ENOENT);
    CHECK_ERRNO("open below a file", open("a/b", O_RDONLY), ENOTDIR);
    CHECK_ERRNO("O_CREAT below a missing directory", open("missing/b", O_RDWR | O_CREAT, 0600), ENOENT);
    CHECK_ERRNO("O_EXCL on an existing file", open("a", O_RDWR | O_CREAT | O_EXCL, 0600), EEXIST);
    CHECK_ERRNO("O_DIRECTORY on a file", open("a", O_RDONLY | O_DIRECTORY), ENOTDIR);
    CHECK_ERRNO("a directory for writing", open(".", O_WRONLY), EISDIR);
    CHECK_ERRNO("an empty path", open("", O_RDONLY), ENOENT);
    CHECK_ERRNO("a path at a bad address", open((char *)8, O_RDONLY), EFAULT);
    char *name = malloc(5000);
    memset(name, 'x', 4999);
    name[4999] = '\0';
    CHECK_ERRNO("a path of 4,999 bytes", open(name, O_RDONLY), ENAMETOOLONG);
    name[300] = '\0';
    CHECK_ERRNO("a name of 300 bytes", open(name, O_RDONLY), ENAMETOOLONG);
    free(name);
    fd = open("a", O_WRONLY | O_TRUNC);
    CHECK("O_TRUNC empties", content_is("a", ""));
    CHECK_ERRNO("reading a write-only descriptor", read(fd, &fd, 1), EBADF);
    close(fd);
    fd = open("a", O_RDONLY);
    CHECK_ERRNO("writing a read-only descriptor", write(fd, "x", 1), EBADF);
    close(fd);
    CHECK_ERRNO("reading a closed descriptor", read(fd, &fd, 1), EBADF);
    CHECK_ERRNO("closing a closed descriptor", close(fd), EBADF);
    CHECK_ERRNO("closing descriptor -1", close(-1), EBADF);
    CHECK_ERRNO("closing a huge descriptor", close(INT_MAX), EBADF);
    close(create("append", "one"));
    fd = open("append", O_RDWR | O_APPEND);
    CHECK("O_APPEND writes at the end", write(fd, "two", 3) == 3 && content_is("append", "onetwo"));
    CHECK("O_APPEND moves the offset", lseek(fd, 0, SEEK_CUR) == 6);
    CHECK("pwrite on O_APPEND appends too", pwrite(fd, "X", 1, 0) == 1 && content_is("append", "onetwoX"));
    close(fd);
    mode_t old = umask(027);
    fd = open("masked", O_RDWR | O_CREAT, 0666);
    struct stat status;
    CHECK("umask applies to new files", fstat(fd, &status) == 0 && (status.st_mode & 07777) == 0640);
    CHECK("umask returns the previous one", umask(old) == 027);
    close(fd);
    fd = open("a", O_PATH);
    CHECK_ERRNO("O_PATH cannot be read", read(fd, &status, 1), EBADF);
    CHECK("O_PATH can be asked for its status", fstat(fd, &status) == 0 && S_ISREG(status.st_mode));
    close(fd);
    fd = open(".", O_RDONLY | O_DIRECTORY);
    CHECK_ERRNO("reading a directory", read(fd, &status, 1), EISDIR);
    int below = openat(fd, "append", O_RDONLY);
    CHECK("openat below a directory descriptor", below >= 0 && close(below) == 0);
    CHECK_ERRNO("openat with a bad descriptor", openat(999, "append", O_RDONLY), EBADF);
    close(fd);
    fd = open("a", O_RDONLY);
    CHECK_ERRNO("openat below a file's descriptor", openat(fd, "b", O_RDONLY), ENOTDIR);
    close(fd);
}

static void zero_length(void)
{
    int fd = create("zero", "data"), ends[2];
    struct iovec none = {.iov_base = (void *)8, .iov_len = 0};
    if (pipe(ends) != 0)
        exit(98);
    CHECK("T1 read of 0 bytes", read(fd, NULL, 0) == 0);
    CHECK("T1 write of 0 bytes", write(fd, NULL, 0) == 0);
    CHECK("T1 write of 0 bytes to stdout", write(1, NULL, 0) == 0);
    CHECK("T1 pread of 0 bytes", pread(fd, NULL, 0, 0) == 0);
    CHECK("T1 pwrite of 0 bytes", pwrite(fd, NULL, 0, 0) == 0);
    CHECK("T1 readv of no vectors", readv(fd, NULL, 0) == 0);
    CHECK("T1 writev of no vectors", writev(fd, NULL, 0) == 0);
    CHECK("T1 readv of an empty vector", readv(fd, &none, 1) == 0);
    CHECK("T1 writev of an empty vector", writev(fd, &none, 1) == 0);
    CHECK("T1 preadv of no vectors", preadv(fd, NULL, 0, 0) == 0);
    CHECK("T1 pwritev of no vectors", pwritev(fd, NULL, 0, 0) == 0);
    CHECK("T1 write of 0 bytes to a pipe", write(ends[1], NULL, 0) == 0);
    CHECK("T1 read of 0 bytes from an empty pipe", read(ends[0], NULL, 0) == 0);
    CHECK("T1 sendfile of 0 bytes", sendfile(ends[1], fd, NULL, 0) == 0);
    CHECK_ERRNO("T1 getcwd into 0 bytes", syscall(SYS_getcwd, NULL, 0), ERANGE);
    CHECK_ERRNO("T1 readlink into 0 bytes", syscall(SYS_readlink, "zero", NULL, 0), EINVAL);
    CHECK("T1 getrandom of 0 bytes", syscall(SYS_getrandom, NULL, 0, 0) == 0);
    CHECK_ERRNO("1,025 vectors", readv(fd, &none, 1025), EINVAL);
    CHECK_ERRNO("-1 vectors", readv(fd, &none, -1), EINVAL);
    close(fd), close(ends[0]), close(ends[1]);
}

static void reading_and_writing(void)
{
    char text[64] = "";
    int fd = create("b", "0123456789");
    CHECK("T37 pread near the end is short", pread(fd, text, 20, 6) == 4 && memcmp(text, "6789", 4) == 0);
    CHECK("T37 pread at the end", pread(fd, text, 20, 10) == 0);
    CHECK("T37 pread past the end", pread(fd, text, 20, 1000) == 0);
    CHECK_ERRNO("pread at a negative offset", pread(fd, text, 1, -1), EINVAL);
    CHECK("pread leaves the offset", lseek(fd, 0, SEEK_CUR) == 10);
    CHECK("pwrite leaves the offset", pwrite(fd, "ab", 2, 2) == 2 && lseek(fd, 0, SEEK_CUR) == 10);
    CHECK("lseek to the start", lseek(fd, 0, SEEK_SET) == 0 && read(fd, text, 5) == 5 && memcmp(text, "01ab4", 5) == 0);
    CHECK("lseek from the end", lseek(fd, -3, SEEK_END) == 7 && read(fd, text, 9) == 3);
    CHECK_ERRNO("lseek before the start", lseek(fd, -1, SEEK_SET), EINVAL);
    CHECK_ERRNO("lseek with a bad whence", lseek(fd, 0, 99), EINVAL);
    CHECK("lseek past the end, then write: a hole", lseek(fd, 20, SEEK_SET) == 20 && write(fd, "z", 1) == 1 &&
                                                       pread(fd, text, 64, 10) == 11 && text[0] == 0 && text[10] == 'z');
    struct iovec parts[3] = {{text, 2}, {text + 10, 3}, {text + 20, 4}};
    CHECK("preadv fills in turn", preadv(fd, parts, 3, 0) == 9 && memcmp(text + 10, "ab4", 3) == 0 && memcmp(text + 20, "5678", 4) == 0);
    strcpy(text, "XY"), strcpy(text + 10, "ZAP"), strcpy(text + 20, "last");
    CHECK("pwritev writes in turn", pwritev(fd, parts, 3, 0) == 9 && pread(fd, text + 30, 9, 0) == 9 && memcmp(text + 30, "XYZAPlast", 9) == 0);
    CHECK_ERRNO("read to a bad address", pread(fd, (void *)8, 4, 0), EFAULT);
    CHECK_ERRNO("write from a bad address", write(fd, (void *)8, 4), EFAULT);
    CHECK_ERRNO("T15 read to an address that wraps around", pread(fd, (void *)-8, 64, 0), EFAULT);
    CHECK_ERRNO("T15 write from an address that wraps around", write(fd, (void *)-8, 64), EFAULT);
    CHECK_ERRNO("T15 read to the kernel's half", pread(fd, (void *)0xffff888000000000, 64, 0), EFAULT);
    parts[1].iov_len = SIZE_MAX / 2 + 1;
    CHECK_ERRNO("a vector of negative length", preadv(fd, parts, 3, 0), EINVAL);
    CHECK_ERRNO("vectors at a bad address", readv(fd, (void *)8, 2), EFAULT);
    /* T38, T25: a buffer that starts in the middle of a page and crosses many. */
    size_t length = 300001;
    char *buffer = malloc(length + 5000), *back = malloc(length + 5000);
    for (size_t i = 0; i < length; i++)
        buffer[123 + i] = (char)(i * 31 / 7);
    int big = create("big", "");
    CHECK("T38 a long write from an odd address", write(big, buffer + 123, length) == (ssize_t)length);
    CHECK("T38 a long read to an odd address", pread(big, back + 77, length, 0) == (ssize_t)length);
    CHECK("T38 nothing is lost at page boundaries", memcmp(buffer + 123, back + 77, length) == 0);
    CHECK("ftruncate shortens", ftruncate(big, 5) == 0 && lseek(big, 0, SEEK_END) == 5);
    CHECK("ftruncate lengthens with zeros", ftruncate(big, 10) == 0 && pread(big, back, 20, 0) == 10 && back[9] == 0);
    CHECK_ERRNO("ftruncate to a negative length", ftruncate(big, -1), EINVAL);
    CHECK_ERRNO("N3 pwrite to a read-only descriptor", pwrite(open("b", O_RDONLY), "x", 1, 0), EBADF);
    CHECK("truncate by name", truncate("big", 3) == 0 && lseek(big, 0, SEEK_END) == 3);
    CHECK("fsync", fsync(big) == 0 && fdatasync(big) == 0);
    CHECK_ERRNO("fsync of a bad descriptor", fsync(999), EBADF);
    off_t start = 2;
    int out = create("out", "");
    CHECK("sendfile from an offset", sendfile(out, fd, &start, 4) == 4 && start == 6 && content_is("out", "ZAPl"));
    lseek(fd, 0, SEEK_SET);
    CHECK("copy_file_range", copy_file_range(fd, NULL, out, NULL, 3, 0) == 3 && content_is("out", "ZAPlXYZ"));
    CHECK("fallocate", fallocate(out, 0, 0, 4096) == 0 && lseek(out, 0, SEEK_END) == 4096);
    close(fd), close(big), close(out);
    free(buffer), free(back);
}

static void status(void)
{
    struct stat status, other;
    struct statx extended;
    struct statfs file_system;
    int fd = create("s", "12345");
    CHECK("fstat of a regular file", fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && status.st_size == 5 && status.st_nlink == 1);
    CHECK("stat and fstat agree", stat("s", &other) == 0 && other.st_ino == status.st_ino && other.st_dev == status.st_dev);
    CHECK("statx", statx(AT_FDCWD, "s", 0, STATX_ALL, &extended) == 0 && extended.stx_size == 5 && extended.stx_ino == status.st_ino);
    CHECK("statx of a descriptor", statx(fd, "", AT_EMPTY_PATH, STATX_SIZE, &extended) == 0 && extended.stx_size == 5);
    CHECK("fstatat with AT_EMPTY_PATH", fstatat(fd, "", &other, AT_EMPTY_PATH) == 0 && other.st_size == 5);
    CHECK_ERRNO("fstatat with unknown flags", fstatat(AT_FDCWD, "s", &other, 0x40000000), EINVAL);
    CHECK_ERRNO("stat of a missing file", stat("missing", &status), ENOENT);
    CHECK_ERRNO("stat into a bad address", syscall(SYS_newfstatat, AT_FDCWD, "s", 8, 0), EFAULT);
    CHECK_ERRNO("statx with reserved bits", statx(AT_FDCWD, "s", 0, 0x80000000u, &extended), EINVAL);
    CHECK("statfs", statfs(".", &file_system) == 0 && file_system.f_bsize > 0);
    CHECK("fstatfs", fstatfs(fd, &file_system) == 0 && file_system.f_namelen > 0);
    CHECK("chmod", chmod("s", 0600) == 0 && fstat(fd, &status) == 0 && (status.st_mode & 0777) == 0600);
    CHECK("fchmod", fchmod(fd, 0644) == 0 && fstat(fd, &status) == 0 && (status.st_mode & 0777) == 0644);
    struct timespec times[2] = {{1000, 5}, {2000, 7}};
    CHECK("utimensat", utimensat(AT_FDCWD, "s", times, 0) == 0 && stat("s", &status) == 0 && status.st_mtim.tv_sec == 2000 && status.st_mtim.tv_nsec == 7);
    CHECK("futimens", futimens(fd, (struct timespec[]){{3000, 0}, {4000, 0}}) == 0 && stat("s", &status) == 0 && status.st_atim.tv_sec == 3000);
    CHECK("access", access("s", R_OK | W_OK) == 0 && access("s", F_OK) == 0);
    CHECK_ERRNO("access to a missing file", access("missing", F_OK), ENOENT);
    CHECK_ERRNO("access with a bad mode", access("s", 0x100), EINVAL);
    CHECK("stdout has a type", fstat(1, &status) == 0 && status.st_mode != 0);
    close(fd);
}

static void names(void)
{
    char text[PATH_MAX], small[4];
    struct stat status;
    close(create("n", "n"));
    CHECK("mkdir", mkdir("d", 0755) == 0 && stat("d", &status) == 0 && S_ISDIR(status.st_mode));
    CHECK_ERRNO("mkdir of an existing one", mkdir("d", 0755), EEXIST);
    close(create("d/inside", "x"));
    CHECK_ERRNO("rmdir of a full directory", rmdir("d"), ENOTEMPTY);
    CHECK_ERRNO("rmdir of a file", rmdir("n"), ENOTDIR);
    CHECK_ERRNO("unlink of a directory", unlink("d"), EISDIR);
    CHECK("T13 unlinkat removes a file", unlinkat(AT_FDCWD, "d/inside", 0) == 0);
    CHECK_ERRNO("T13 unlinkat with AT_REMOVEDIR on a file", unlinkat(AT_FDCWD, "n", AT_REMOVEDIR), ENOTDIR);
    CHECK("T13 unlinkat removes a directory", unlinkat(AT_FDCWD, "d", AT_REMOVEDIR) == 0);
    CHECK_ERRNO("unlink of a missing file", unlink("missing"), ENOENT);
    CHECK("symlink and readlink", symlink("n", "l") == 0 && readlink("l", text, sizeof text) == 1 && text[0] == 'n');
    CHECK("lstat sees the link", lstat("l", &status) == 0 && S_ISLNK(status.st_mode));
    CHECK("stat follows the link", stat("l", &status) == 0 && S_ISREG(status.st_mode));
    CHECK_ERRNO("O_NOFOLLOW", open("l", O_RDONLY | O_NOFOLLOW), ELOOP);
    CHECK("a link to itself", symlink("self", "self") == 0);
    CHECK_ERRNO("opening a link to itself", open("self", O_RDONLY), ELOOP);
    CHECK("readlink cuts", symlink("a/long/target", "long") == 0 && readlink("long", small, 4) == 4 && memcmp(small, "a/lo", 4) == 0);
    CHECK_ERRNO("readlink of a file", readlink("n", text, sizeof text), EINVAL);
    CHECK_ERRNO("T26 readlinkat of a missing name", readlinkat(AT_FDCWD, "missing", text, sizeof text), ENOENT);
    CHECK_ERRNO("T26 readlinkat with a bad descriptor", readlinkat(999, "n", text, sizeof text), EBADF);
    CHECK("link", link("n", "hard") == 0 && stat("n", &status) == 0 && status.st_nlink == 2);
    CHECK("rename", rename("hard", "moved") == 0 && content_is("moved", "n"));
    CHECK_ERRNO("the old name is gone", access("hard", F_OK), ENOENT);
    close(create("other", "o"));
    CHECK_ERRNO("RENAME_NOREPLACE", renameat2(AT_FDCWD, "moved", AT_FDCWD, "other", RENAME_NOREPLACE), EEXIST);
    CHECK("RENAME_EXCHANGE", renameat2(AT_FDCWD, "moved", AT_FDCWD, "other", RENAME_EXCHANGE) == 0 && content_is("other", "n"));
    CHECK("an unlinked file lives on", unlink("other") == 0);
    int fd = create("doomed", "still here");
    CHECK("its content too", unlink("doomed") == 0 && pread(fd, text, 5, 0) == 5 && memcmp(text, "still", 5) == 0);
    CHECK("and it has no name", fstat(fd, &status) == 0 && status.st_nlink == 0);
    close(fd);
    fd = open(".", O_TMPFILE | O_RDWR, 0600);
    CHECK("O_TMPFILE or its refusal", fd >= 0 || errno == EOPNOTSUPP || errno == EISDIR);
    close(fd);
    CHECK("mkfifo or its refusal", mkfifo("fifo", 0600) == 0 || errno == EPERM);
}

static void directories(void)
{
    char text[PATH_MAX], before[PATH_MAX], bytes[512];
    int count = 0, fd, seen[50] = {0};
    mkdir("many", 0755);
    for (int i = 0; i < 50; i++) {
        snprintf(text, sizeof text, "many/file-with-a-longer-name-%d", i);
        close(create(text, ""));
    }
    DIR *directory = opendir("many");
    for (struct dirent *entry; directory && (entry = readdir(directory));) {
        int number;
        count++;
        if (sscanf(entry->d_name, "file-with-a-longer-name-%d", &number) == 1 && number >= 0 && number < 50)
            seen[number]++;
    }
    for (int i = 0; i < 50; i++)
        count += seen[i] == 1 ? 0 : 1000;
    CHECK("readdir gives each name once, with . and ..", count == 52);
    rewinddir(directory);
    int again = 0;
    while (readdir(directory))
        again++;
    CHECK("rewinddir", again == 52);
    closedir(directory);
    fd = open("many", O_RDONLY | O_DIRECTORY);
    CHECK_ERRNO("getdents64 into too few bytes", syscall(SYS_getdents64, fd, bytes, 10), EINVAL);
    CHECK_ERRNO("getdents64 into a bad address", syscall(SYS_getdents64, fd, (void *)8, 512), EFAULT);
    int pieces = 0;
    for (long got; (got = syscall(SYS_getdents64, fd, bytes, sizeof bytes)) > 0;)
        pieces++;
    CHECK("getdents64 in small pieces", pieces > 3);
    close(fd);
    fd = open("a", O_RDONLY);
    memset(bytes, 0x77, sizeof bytes);
    CHECK_ERRNO("T2 getdents64 on a regular file", syscall(SYS_getdents64, fd, bytes, sizeof bytes), ENOTDIR);
    int changed = 0;
    for (size_t i = 0; i < sizeof bytes; i++)
        changed += bytes[i] != 0x77;
    CHECK("T2 nothing is written to the buffer", changed == 0);
    close(fd);
    CHECK("getcwd", getcwd(before, sizeof before) != NULL && before[0] == '/');
    CHECK("chdir", chdir("many") == 0 && getcwd(text, sizeof text) && strcmp(text + strlen(text) - 5, "/many") == 0);
    CHECK("relative names follow", access("file-with-a-longer-name-7", F_OK) == 0);
    CHECK("getcwd returns the length with its zero", syscall(SYS_getcwd, text, sizeof text) == (long)strlen(text) + 1);
    CHECK_ERRNO("getcwd into too few bytes", syscall(SYS_getcwd, bytes, 3), ERANGE);
    CHECK("chdir to the parent", chdir("..") == 0 && getcwd(text, sizeof text) && strcmp(text, before) == 0);
    fd = open("many", O_RDONLY | O_DIRECTORY);
    CHECK("fchdir", fchdir(fd) == 0 && access("file-with-a-longer-name-8", F_OK) == 0 && chdir(before) == 0);
    close(fd);
    CHECK_ERRNO("chdir to a file", chdir("a"), ENOTDIR);
    CHECK_ERRNO("chdir to nowhere", chdir("missing"), ENOENT);
}

static void descriptors(void)
{
    char text[16];
    int fd = create("dup", "0123456789"), copy;
    lseek(fd, 0, SEEK_SET);
    CHECK("N4 dup gives another number", (copy = dup(fd)) >= 0 && copy != fd);
    CHECK("dup shares the offset", read(fd, text, 3) == 3 && lseek(copy, 0, SEEK_CUR) == 3);
    CHECK("N4 the duplicate is writable", write(copy, "X", 1) == 1 && content_is("dup", "012X456789"));
    CHECK("closing one leaves the other", close(fd) == 0 && pread(copy, text, 1, 0) == 1);
    CHECK("dup2 to a chosen number", dup2(copy, 77) == 77 && pread(77, text, 1, 0) == 1);
    CHECK("dup2 onto itself", dup2(77, 77) == 77);
    CHECK_ERRNO("N4 dup2 of a closed one", dup2(998, 78), EBADF);
    CHECK_ERRNO("dup2 to a bad number", dup2(copy, -5), EBADF);
    CHECK_ERRNO("dup3 onto itself", dup3(77, 77, 0), EINVAL);
    CHECK("dup3 with O_CLOEXEC", dup3(copy, 79, O_CLOEXEC) == 79 && fcntl(79, F_GETFD) == FD_CLOEXEC);
    CHECK("N12 F_DUPFD from a number on", fcntl(copy, F_DUPFD, 100) == 100 && fcntl(100, F_GETFD) == 0);
    CHECK("F_DUPFD_CLOEXEC", fcntl(copy, F_DUPFD_CLOEXEC, 100) == 101 && fcntl(101, F_GETFD) == FD_CLOEXEC);
    CHECK_ERRNO("N12 an unknown fcntl command", fcntl(copy, 4242, 0), EINVAL);
    CHECK("F_SETFD", fcntl(copy, F_SETFD, FD_CLOEXEC) == 0 && fcntl(copy, F_GETFD) == FD_CLOEXEC);
    CHECK("F_GETFL tells the access mode", (fcntl(copy, F_GETFL) & O_ACCMODE) == O_RDWR);
    CHECK("F_SETFL sets O_APPEND and O_NONBLOCK", fcntl(copy, F_SETFL, O_APPEND | O_NONBLOCK) == 0 &&
                                                     (fcntl(77, F_GETFL) & (O_APPEND | O_NONBLOCK)) == (O_APPEND | O_NONBLOCK));
    CHECK("F_SETFL cannot change the access mode", fcntl(copy, F_SETFL, O_RDONLY) == 0 && (fcntl(copy, F_GETFL) & O_ACCMODE) == O_RDWR);
    CHECK("close_range closes", close_range(77, 101, 0) == 0);
    CHECK_ERRNO("close_range closed it", fcntl(100, F_GETFD), EBADF);
    CHECK_ERRNO("close_range with the ends swapped", close_range(5, 4, 0), EINVAL);
    close(copy);
}

static void locks(void)
{
    int one = create("lock", "x"), two = open("lock", O_RDWR);
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    CHECK("N10 flock", flock(one, LOCK_EX) == 0);
    CHECK_ERRNO("N10 a second open file conflicts", flock(two, LOCK_EX | LOCK_NB), EWOULDBLOCK);
    CHECK("N10 until it is given back", flock(one, LOCK_UN) == 0 && flock(two, LOCK_EX | LOCK_NB) == 0 && flock(two, LOCK_UN) == 0);
    CHECK("a process does not conflict with itself", fcntl(one, F_SETLK, &whole) == 0 && fcntl(two, F_SETLK, &whole) == 0);
    whole.l_type = F_UNLCK;
    CHECK("F_SETLK gives back", fcntl(one, F_SETLK, &whole) == 0);
    whole.l_type = F_WRLCK;
    CHECK("an open file description lock", fcntl(one, F_OFD_SETLK, &whole) == 0);
    CHECK_ERRNO("N10 which conflicts with another", fcntl(two, F_OFD_SETLK, &whole), EAGAIN);
    close(one), close(two);
}

static void mapped(void)
{
    char text[16];
    int fd = create("map", "mapped file");
    char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK("N9 a shared mapping shows the file", page != MAP_FAILED && memcmp(page, "mapped", 6) == 0);
    memcpy(page, "MAPPED", 6);
    CHECK("N9 msync", msync(page, 4096, MS_SYNC) == 0);
    CHECK("N9 what is written there reaches the file", pread(fd, text, 6, 0) == 6 && memcmp(text, "MAPPED", 6) == 0);
    CHECK("and what is written to the file is seen there", pwrite(fd, "file", 4, 7) == 4 && memcmp(page + 7, "file", 4) == 0);
    char *private = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    memcpy(private, "xxxx", 4);
    CHECK("a private mapping does not reach the file", pread(fd, text, 4, 0) == 4 && memcmp(text, "MAPP", 4) == 0);
    CHECK("the rest of the last page is zero", private[4000] == 0);
    CHECK("a mapping outlives its descriptor", close(fd) == 0 && memcmp(page, "MAPPED", 6) == 0);
    fd = open("map", O_RDONLY);
    CHECK_ERRNO("a writable shared mapping of a read-only descriptor",
                mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), EACCES);
    CHECK_ERRNO("a mapping at an odd offset", mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 100), EINVAL);
    CHECK_ERRNO("a mapping of a bad descriptor", mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, 999, 0), EBADF);
    tap_catch_faults();
    char *past = mmap(NULL, 8192, PROT_READ, MAP_PRIVATE, fd, 0);
    CHECK("an access past the end of the file is SIGBUS", FAULT_OF(*(volatile char *)(past + 4096)) == SIGBUS);
    CHECK("at that address", tap_fault_address == past + 4096);
    CHECK_ERRNO("a system call there is EFAULT", write(open("out", O_WRONLY), past + 4096, 1), EFAULT);
    munmap(page, 4096), munmap(private, 4096), munmap(past, 8192), close(fd);
    fd = open("big", O_RDWR);
    ftruncate(fd, 8192);
    page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    page[5000] = 1;
    ftruncate(fd, 100);
    CHECK("a file cut under its mapping is SIGBUS", FAULT_OF(page[5000] = 2) == SIGBUS);
    CHECK_ERRNO("and EFAULT for system calls", pread(open("b", O_RDONLY), page + 4096, 1, 0), EFAULT);
    munmap(page, 8192);
    close(fd);
}

int main(int argc, char **argv)
{
    if (argc < 2 || chdir(argv[1]) != 0)
        return 2;
    opening();
    zero_length();
    reading_and_writing();
    status();
    names();
    directories();
    descriptors();
    locks();
    mapped();
    return tap_failures != 0;
}
