"""Files that are written completely or not at all, lock files, and Ctrl-C while a file is being written."""

from __future__ import annotations

import errno
import os
import secrets
import signal
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import IO

if sys.platform != "win32":
    import fcntl
    from socket import AF_UNIX, SOCK_DGRAM, socket

# suffix of temporary files
UNFINISHED = ".charrnn-part"

# characters of a file's name in that of its temporary file: at most 200 bytes of the usual 255
SHOWN = 50

# the most links that Linux follows from one name
LINKS = 40

# errors of a full disk, an exceeded quota, and the limit on file sizes
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# ... or of a broken disk
UNWRITABLE = (*FULL, errno.EIO)

# errors of file systems without locks, such as some network file systems
UNLOCKABLE = (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK)


def open_regular(path: Path, mode: str = "rb", buffering: int = -1) -> IO[bytes]:
    """Open a file. Raises OSError at once for anything else, such as a FIFO."""
    return open(path, mode, buffering, opener=_regular)


def _regular(path: str, flags: int) -> int:
    with suppress(FileNotFoundError):
        _check_regular(path, os.stat(path))  # merely opening a device can have effects
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
    try:
        _check_regular(path, os.fstat(descriptor))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _check_regular(path: str, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", path)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that replaces ``path`` only when the block ends.

    The bytes go to a temporary file in the same folder, which is flushed to disk and then renamed. A reader always sees
    either the old file or the new one, even after a crash or on a full disk. After an error the temporary file is
    removed and ``path`` is unchanged. Temporary files of killed processes are removed the next time a file is written
    to the folder. Those that are still being written are locked and stay. (On Windows they all stay.)

    If ``path`` is a link, this happens to the file that it points to. A device, a FIFO or anything else that cannot
    be replaced is written into, and so is an open file such as /dev/stdout, at its current position. Raises OSError.
    """
    if (descriptor := _open_already(path)) is not None:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            yield file
        return
    target = Path(os.path.realpath(path))
    # path itself, since a link in /proc may name a pipe or a deleted file
    if _exists(path) and not target.is_file():
        with open(path, "wb", opener=_existing) as file:
            yield file
        return
    _sweep(target.parent)
    with temporary(target) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
        if sys.platform == "win32":  # Windows cannot rename an open file
            file.close()
        os.replace(file.name, target)
    _sync_folder(target.parent)


def _open_already(path: Path) -> int | None:
    """Return the descriptor that a path like /dev/stdout or /dev/fd/1 stands for on Linux, or None."""
    for _ in range(LINKS):
        if path.name.isdecimal() and os.path.realpath(path.parent) == f"/proc/{os.getpid()}/fd":
            return int(path.name)
        if not path.is_symlink():
            break
        path = path.parent / os.readlink(path)
    return None


def _exists(path: Path) -> bool:
    """Return whether a path leads to something. Raises OSError if it cannot be followed, as for links in a circle."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    return True


def _existing(path: str, flags: int) -> int:
    return os.open(path, flags & ~os.O_CREAT)


@contextmanager
def temporary(path: Path) -> Iterator[IO[bytes]]:
    """Create a file next to ``path``, and remove it at the end of the block unless it was renamed.

    It is locked while it is open, to show that its writer is alive. Its name begins like that of ``path``, but is short
    enough for any file system.
    """
    while True:
        name = path.with_name(f".{path.name[:SHOWN]}.{secrets.token_hex(8)}{UNFINISHED}")
        try:
            with name.open("x+b") as file:
                if sys.platform != "win32":
                    with suppress(OSError):  # a file system without locks: there nothing is swept away
                        fcntl.flock(file, fcntl.LOCK_EX)
                if name.exists():  # otherwise another process swept it away before it was locked
                    yield file
                    return
        finally:
            with suppress(OSError):
                name.unlink()


def _sweep(folder: Path) -> None:
    """Remove the temporary files of killed processes, which are those that no process has locked."""
    if sys.platform == "win32":
        return
    for left in folder.glob(f".*{UNFINISHED}"):
        with suppress(OSError), open_regular(left) as file:  # BlockingIOError: its writer is alive
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def _sync_folder(folder: Path) -> None:
    """Flush the rename itself to disk. Not every system can open a folder."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold a lock file while the block lasts. Yields False if another process holds it.

    The system releases the lock when the process ends, however it ends. Yields True on a file system without locks. On
    Linux the lock holds even if its file is removed or replaced. Raises OSError if the lock file cannot be created.
    """
    if sys.platform == "win32":
        from filelock import FileLock, Timeout

        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()
        return
    # not filelock: without flock it treats the mere existence of the file as a lock
    with open_regular(path, "ab") as file, _name_of(path) as free:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        except OSError as error:
            if error.errno not in UNLOCKABLE:
                raise
        yield free


@contextmanager
def _name_of(path: Path) -> Iterator[bool]:
    """Hold a name that stands for a path while the block lasts. Yields False if another process holds it.

    It is the name of a socket outside the file system, which only Linux has. It cannot be removed like a lock file, and
    the system releases it when the process ends. It includes the mount namespace, because containers can share such
    names but have different files under the same path.
    """
    if sys.platform != "linux":
        yield True
        return
    mounts = os.stat("/proc/self/ns/mnt").st_ino if os.path.exists("/proc/self/ns/mnt") else 0
    name = f"charrnn {mounts} ".encode() + os.fsencode(os.path.realpath(path))
    with socket(AF_UNIX, SOCK_DGRAM) as holder:
        try:
            holder.bind(b"\0" + sha256(name).digest())
            free = True
        except OSError as error:
            free = error.errno != errno.EADDRINUSE
        yield free


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt while the block lasts, if it would otherwise end the process at once."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
