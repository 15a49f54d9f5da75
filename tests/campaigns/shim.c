/* What a program does to the files below one folder: recorded, cut short by kill -9, or made to fail. For LD_PRELOAD.
 *
 * Only calls through libc's symbols are seen, which is how Python and SQLite make theirs. One lock is held over a call
 * and its record, so that the order in the log is the order on the disk. Memory maps are not seen: SQLite's -shm files
 * are the only ones here, and are made anew after every crash.
 *
 * A record: op u32, fd i32, a i64, b i64, the lengths of first and second u32, then those bytes (native byte order).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN = 1, CLOSE, WRITE, TRUNCATE, SYNC, RENAME, LINK, UNLINK, RMDIR, MKDIR, SYMLINK, PUNCH };
enum { MAX_FDS = 4096 };
enum when { NEVER, BEFORE, HALF, AFTER };

struct head { uint32_t op; int32_t fd; int64_t a, b; uint32_t first, second; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char below[PATH_MAX];
static size_t below_bytes;
static int log_fd = -1;
static char *names[MAX_FDS]; /* of files opened below the folder, relative to it */
static long kill_in;
static enum when kill_when;
static unsigned kill_ops; /* bit (1 << op): the ops that count */
static unsigned fail_ops; /* bit (1 << op): the ops that fail, from the fail_in-th on, fail_times times */
static long fail_in, fail_times;
static int fail_errno;

#define REAL(result, name, ...) \
    static result (*real)(__VA_ARGS__); \
    if (!real) real = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

/* Watch `folder` (absolute, without a slash at its end) from now on; records go to `fd`, nowhere if it is -1. */
void shim_watch(const char *folder, int fd)
{
    snprintf(below, sizeof below, "%s/", folder);
    below_bytes = strlen(below);
    log_fd = fd;
    for (int i = 0; i < MAX_FDS; i++) {
        free(names[i]);
        names[i] = NULL;
    }
}

/* kill -9 at the n-th of those calls from now: before it, in the middle of a write, or behind it. */
void shim_kill(long n, int when, unsigned ops)
{
    kill_ops = ops;
    kill_in = n;
    kill_when = when;
}

/* Let calls fail: those whose bits are set in `ops`, from the n-th on, `times` times. */
void shim_fail(unsigned ops, long n, long times, int error)
{
    fail_ops = ops;
    fail_in = n;
    fail_times = times;
    fail_errno = error;
}

/* `path`, taken from the folder `dir_fd`, relative to the watched folder; NULL where it is elsewhere. */
static const char *watched(int dir_fd, const char *path, char *room)
{
    char whole[PATH_MAX];
    if (!below_bytes || !path) return NULL;
    if (path[0] != '/') {
        if (dir_fd == AT_FDCWD) {
            char here[PATH_MAX];
            if (!getcwd(here, sizeof here)) return NULL;
            if (snprintf(whole, sizeof whole, "%s/%s", here, path) >= (int)sizeof whole) return NULL;
        } else {
            if (dir_fd < 0 || dir_fd >= MAX_FDS || !names[dir_fd]) return NULL;
            if (snprintf(whole, sizeof whole, "%s%s/%s", below, names[dir_fd], path) >= (int)sizeof whole) return NULL;
        }
        path = whole;
    }
    if (!strncmp(path, below, below_bytes)) return strcpy(room, path + below_bytes);
    if (strlen(path) + 1 == below_bytes && !strncmp(path, below, below_bytes - 1)) return strcpy(room, "");
    return NULL;
}

static int is_watched(int fd)
{
    return fd >= 0 && fd < MAX_FDS && names[fd] != NULL;
}

static void die(void)
{
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static void record(int op, int fd, int64_t a, int64_t b, const void *first, size_t n1, const void *second, size_t n2)
{
    struct head head = {op, fd, a, b, n1, n2};
    struct iovec parts[3] = {{&head, sizeof head}, {(void *)first, n1}, {(void *)second, n2}};
    if (log_fd < 0) return;
    if (syscall(SYS_writev, log_fd, parts, 3) != (long)(sizeof head + n1 + n2)) abort(); /* a lie is worse */
}

/* Before a watched call: does it fail, is this where we die? HALF asks a write to be cut. */
static enum when due(int op)
{
    if (fail_ops >> op & 1 && fail_times > 0 && --fail_in <= 0) {
        fail_times--;
        errno = fail_errno;
        return NEVER - 1;
    }
    if (kill_when == NEVER || !(kill_ops >> op & 1) || --kill_in > 0) return NEVER;
    if (kill_when == BEFORE || (kill_when == HALF && op != WRITE)) die();
    return kill_when;
}
#define FAILS(when) ((int)(when) == -1)

static int opened(int dir_fd, const char *path, int flags, mode_t mode)
{
    char room[PATH_MAX];
    REAL(int, "openat64", int, const char *, int, ...);
    pthread_mutex_lock(&lock);
    const char *name = watched(dir_fd, path, room);
    enum when when = NEVER;
    int changes = name && flags & (O_CREAT | O_TRUNC);
    int fd = -1;
    if (!changes || !FAILS(when = due(OPEN))) fd = real(dir_fd, path, flags, mode);
    if (fd >= 0 && fd < MAX_FDS) {
        int error = errno;
        free(names[fd]);
        names[fd] = name ? strdup(name) : NULL;
        if (name) record(OPEN, fd, flags, 0, name, strlen(name), NULL, 0);
        errno = error;
    }
    if (when > NEVER) die();
    pthread_mutex_unlock(&lock);
    return fd;
}

#define MODE(last) \
    mode_t mode = 0; \
    if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) { \
        va_list args; \
        va_start(args, last); \
        mode = va_arg(args, mode_t); \
        va_end(args); \
    }

int open(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int openat(int fd, const char *path, int flags, ...) { MODE(flags) return opened(fd, path, flags, mode); }
int openat64(int fd, const char *path, int flags, ...) { MODE(flags) return opened(fd, path, flags, mode); }

int close(int fd)
{
    REAL(int, "close", int);
    if (!is_watched(fd)) return real(fd);
    pthread_mutex_lock(&lock);
    record(CLOSE, fd, 0, 0, NULL, 0, NULL, 0);
    free(names[fd]);
    names[fd] = NULL;
    int result = real(fd);
    pthread_mutex_unlock(&lock);
    return result;
}

static ssize_t written(int fd, const void *data, size_t n, off64_t at)
{
    pthread_mutex_lock(&lock);
    enum when when = due(WRITE);
    ssize_t result = -1;
    if (!FAILS(when)) {
        if (when == HALF) n = n / 2;
        int64_t offset = at;
        if (at < 0) offset = fcntl(fd, F_GETFL) & O_APPEND ? lseek64(fd, 0, SEEK_END) : lseek64(fd, 0, SEEK_CUR);
        result = at < 0 ? syscall(SYS_write, fd, data, n) : syscall(SYS_pwrite64, fd, data, n, at);
        int error = errno;
        if (result > 0) record(WRITE, fd, offset, 0, data, result, NULL, 0);
        errno = error;
        if (when > NEVER) die();
    }
    pthread_mutex_unlock(&lock);
    return result;
}

ssize_t write(int fd, const void *data, size_t n)
{
    return is_watched(fd) ? written(fd, data, n, -1) : syscall(SYS_write, fd, data, n);
}
ssize_t pwrite(int fd, const void *data, size_t n, off_t at)
{
    return is_watched(fd) ? written(fd, data, n, at) : syscall(SYS_pwrite64, fd, data, n, at);
}
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) { return pwrite(fd, data, n, at); }

/* Ways to write that are not recorded: refused, so that callers take another one or are found out. */
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t n, unsigned flags)
{
    REAL(ssize_t, "copy_file_range", int, off64_t *, int, off64_t *, size_t, unsigned);
    if (!is_watched(out)) return real(in, from, out, to, n, flags);
    errno = ENOSYS;
    return -1;
}
ssize_t sendfile64(int out, int in, off64_t *from, size_t n)
{
    REAL(ssize_t, "sendfile64", int, int, off64_t *, size_t);
    if (!is_watched(out)) return real(out, in, from, n);
    errno = ENOSYS;
    return -1;
}
ssize_t sendfile(int out, int in, off_t *from, size_t n) { return sendfile64(out, in, (off64_t *)from, n); }
ssize_t writev(int fd, const struct iovec *parts, int n)
{
    if (!is_watched(fd)) return syscall(SYS_writev, fd, parts, n);
    return n ? written(fd, parts[0].iov_base, parts[0].iov_len, -1) : 0;
}
ssize_t pwritev(int fd, const struct iovec *parts, int n, off_t at)
{
    REAL(ssize_t, "pwritev", int, const struct iovec *, int, off_t);
    if (!is_watched(fd)) return real(fd, parts, n, at);
    return n ? written(fd, parts[0].iov_base, parts[0].iov_len, at) : 0;
}
ssize_t pwritev64(int fd, const struct iovec *parts, int n, off64_t at) { return pwritev(fd, parts, n, at); }
int posix_fallocate64(int fd, off64_t at, off64_t n)
{
    REAL(int, "posix_fallocate64", int, off64_t, off64_t);
    return is_watched(fd) ? EOPNOTSUPP : real(fd, at, n);
}
int posix_fallocate(int fd, off_t at, off_t n) { return posix_fallocate64(fd, at, n); }

#define CHANGE(op, fd, a, b, first, n1, second, n2, call) \
    pthread_mutex_lock(&lock); \
    enum when when = due(op); \
    int result = -1; \
    if (!FAILS(when)) { \
        result = call; \
        int error = errno; \
        if (result == 0) record(op, fd, a, b, first, n1, second, n2); \
        errno = error; \
        if (when > NEVER) die(); \
    } \
    pthread_mutex_unlock(&lock); \
    return result

int ftruncate64(int fd, off64_t n)
{
    REAL(int, "ftruncate64", int, off64_t);
    if (!is_watched(fd)) return real(fd, n);
    CHANGE(TRUNCATE, fd, n, 0, NULL, 0, NULL, 0, real(fd, n));
}
int ftruncate(int fd, off_t n) { return ftruncate64(fd, n); }

/* Holes; other ways to give a file room are refused, as posix_fallocate is. A hole behind the end changes nothing. */
int fallocate64(int fd, int mode, off64_t at, off64_t n)
{
    REAL(int, "fallocate64", int, int, off64_t, off64_t);
    if (!is_watched(fd)) return real(fd, mode, at, n);
    if (mode != (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)) {
        errno = EOPNOTSUPP;
        return -1;
    }
    if (at >= lseek64(fd, 0, SEEK_END)) return real(fd, mode, at, n);
    CHANGE(PUNCH, fd, at, n, NULL, 0, NULL, 0, real(fd, mode, at, n));
}
int fallocate(int fd, int mode, off_t at, off_t n) { return fallocate64(fd, mode, at, n); }

int fsync(int fd)
{
    REAL(int, "fsync", int);
    if (!is_watched(fd)) return real(fd);
    CHANGE(SYNC, fd, 0, 0, NULL, 0, NULL, 0, real(fd));
}
int fdatasync(int fd)
{
    REAL(int, "fdatasync", int);
    if (!is_watched(fd)) return real(fd);
    CHANGE(SYNC, fd, 0, 0, NULL, 0, NULL, 0, real(fd));
}

static int moved(int op, int from_fd, const char *from, int to_fd, const char *to, int flags)
{
    REAL(int, "linkat", int, const char *, int, const char *, int);
    char room1[PATH_MAX], room2[PATH_MAX];
    const char *name = watched(from_fd, from, room1), *new_name = watched(to_fd, to, room2);
    if (!name && !new_name)
        return op == LINK ? real(from_fd, from, to_fd, to, flags)
                          : (int)syscall(SYS_renameat2, from_fd, from, to_fd, to, flags);
    if (!name || !new_name) { /* from elsewhere: not a thing that could be replayed */
        errno = EXDEV;
        return -1;
    }
    CHANGE(op, -1, 0, 0, name, strlen(name), new_name, strlen(new_name),
           op == LINK ? real(from_fd, from, to_fd, to, flags)
                      : (int)syscall(SYS_renameat2, from_fd, from, to_fd, to, flags));
}
int rename(const char *from, const char *to) { return moved(RENAME, AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int from_fd, const char *from, int to_fd, const char *to)
{
    return moved(RENAME, from_fd, from, to_fd, to, 0);
}
int link(const char *from, const char *to) { return moved(LINK, AT_FDCWD, from, AT_FDCWD, to, 0); }
int linkat(int from_fd, const char *from, int to_fd, const char *to, int flags)
{
    return moved(LINK, from_fd, from, to_fd, to, flags);
}

static int removed(int dir_fd, const char *path, int flags)
{
    REAL(int, "unlinkat", int, const char *, int);
    char room[PATH_MAX];
    const char *name = watched(dir_fd, path, room);
    if (!name) return real(dir_fd, path, flags);
    CHANGE(flags & AT_REMOVEDIR ? RMDIR : UNLINK, -1, 0, 0, name, strlen(name), NULL, 0, real(dir_fd, path, flags));
}
int unlink(const char *path) { return removed(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return removed(AT_FDCWD, path, AT_REMOVEDIR); }
int unlinkat(int dir_fd, const char *path, int flags) { return removed(dir_fd, path, flags); }

int mkdirat(int dir_fd, const char *path, mode_t mode)
{
    REAL(int, "mkdirat", int, const char *, mode_t);
    char room[PATH_MAX];
    const char *name = watched(dir_fd, path, room);
    if (!name) return real(dir_fd, path, mode);
    CHANGE(MKDIR, -1, 0, 0, name, strlen(name), NULL, 0, real(dir_fd, path, mode));
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int symlinkat(const char *target, int dir_fd, const char *path)
{
    REAL(int, "symlinkat", const char *, int, const char *);
    char room[PATH_MAX];
    const char *name = watched(dir_fd, path, room);
    if (!name) return real(target, dir_fd, path);
    CHANGE(SYMLINK, -1, 0, 0, name, strlen(name), target, strlen(target), real(target, dir_fd, path));
}
int symlink(const char *target, const char *path) { return symlinkat(target, AT_FDCWD, path); }
