/* Makes C library calls on files below a folder fail. Loaded with LD_PRELOAD by tests/helpers/faults.py.

   Calls are counted from 1. The call with the armed number fails; if `lasting` is set, so do all later calls. With
   ENOSPC, only calls that need disk space are counted; with EIO, all are. A write that fails with EIO writes half. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[4096];
static char calls[1 << 16]; /* the counted calls, one "NAME PATH" per line */
static long number, armed;
static int error_number, is_lasting;

void faults_arm(const char *path, long nth, int error, int lasting)
{
    snprintf(folder, sizeof folder, "%s", path);
    calls[0] = 0;
    number = 0, armed = nth, error_number = error, is_lasting = lasting;
}

const char *faults_calls(void) { return calls; }

/* Counts a call, and returns whether it must fail. */
static int fails(const char *name, const char *path, int needs_room)
{
    char absolute[8192];
    if (!folder[0] || (error_number == ENOSPC && !needs_room))
        return 0;
    if (path[0] == '/')
        snprintf(absolute, sizeof absolute, "%s", path);
    else if (getcwd(absolute, 4096))
        snprintf(absolute + strlen(absolute), 4096, "/%s", path);
    else
        return 0;
    if (strncmp(absolute, folder, strlen(folder)))
        return 0;
    size_t end = strlen(calls);
    snprintf(calls + end, sizeof calls - end, "%s %s\n", name, absolute + strlen(folder));
    number++;
    if (!armed || number < armed || (number > armed && !is_lasting))
        return 0;
    errno = error_number;
    return 1;
}

static int fails_open(const char *name, int file, int needs_room)
{
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return path[0] == '/' && fails(name, path, needs_room);
}

#define NEXT(name) ((typeof(&name))dlsym(RTLD_NEXT, #name))

#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...)                                                                         \
    {                                                                                                                  \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                                        \
        va_end(rest);                                                                                                  \
        return fails("open", path, flags & O_CREAT) ? -1 : NEXT(name)(path, flags, mode);                              \
    }
OPEN(open)
OPEN(open64)

static char written[1024]; /* by file descriptor */

ssize_t write(int file, const void *data, size_t length)
{
    if (file >= 0 && file < (int)sizeof written)
        written[file] = 1;
    if (!fails_open("write", file, 1))
        return NEXT(write)(file, data, length);
    if (error_number == EIO && NEXT(write)(file, data, length / 2) < 0)
        return -1;
    errno = error_number;
    return -1;
}

/* Some systems write data only on close, which then reports write errors. The file is closed, but data is lost. */
int close(int file)
{
    int failing = file >= 0 && file < (int)sizeof written && written[file] && fails_open("close", file, 1);
    if (file >= 0 && file < (int)sizeof written)
        written[file] = 0;
    int result = NEXT(close)(file);
    if (failing)
        errno = error_number;
    return failing ? -1 : result;
}

int fsync(int file) { return fails_open("fsync", file, 1) ? -1 : NEXT(fsync)(file); }
int fdatasync(int file) { return fails_open("fdatasync", file, 1) ? -1 : NEXT(fdatasync)(file); }
int ftruncate(int file, off_t length) { return fails_open("truncate", file, 0) ? -1 : NEXT(ftruncate)(file, length); }
int ftruncate64(int file, off64_t length)
{
    return fails_open("truncate", file, 0) ? -1 : NEXT(ftruncate64)(file, length);
}
int rename(const char *from, const char *to) { return fails("rename", to, 1) ? -1 : NEXT(rename)(from, to); }
int unlink(const char *path) { return fails("unlink", path, 0) ? -1 : NEXT(unlink)(path); }
int mkdir(const char *path, mode_t mode) { return fails("mkdir", path, 1) ? -1 : NEXT(mkdir)(path, mode); }
