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
from pathlib import Path
from typing import IO

if sys.platform != "win32":
    import fcntl

# suffix of temporary files
UNFINISHED = ".charrnn-part"

# errors of file systems without locks, such as some network file systems
UNLOCKABLE = (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK)


def open_regular(path: Path, buffering: int = -1) -> IO[bytes]:
    """Open a file for reading. Raises OSError for whatever is not a regular file, such as a FIFO, without waiting."""
    _check_regular(path, path.stat())  # merely opening a device can have effects
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _check_regular(path, os.fstat(descriptor))
        return os.fdopen(descriptor, "rb", buffering)
    except OSError:
        os.close(descriptor)
        raise


def _check_regular(path: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that replaces ``path`` only when the block ends.

    The bytes go to a temporary file in the same folder, which is flushed to disk and then renamed. A reader always sees
    either the old file or the new one, even after a crash or on a full disk. After an error the temporary file is
    removed and ``path`` is unchanged. Temporary files of killed processes are removed the next time a file is written
    to the folder. Those that are still being written are locked and stay. (On Windows they all stay.) Raises OSError.
    """
    _sweep(path.parent)
    with _temporary(path) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if sys.platform == "win32":  # Windows cannot rename an open file
                file.close()
            os.replace(file.name, path)
        except BaseException:
            if sys.platform == "win32":
                file.close()
            os.unlink(file.name)
            raise
    _sync_folder(path.parent)


def _temporary(path: Path) -> IO[bytes]:
    """Create a file next to ``path``. It is locked while it is open, to show that its writer is alive."""
    while True:
        file = path.with_name(f".{path.name}.{secrets.token_hex(4)}{UNFINISHED}").open("x+b")
        if sys.platform == "win32":
            return file
        with suppress(OSError):  # a file system without locks: there nothing is swept away
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.path.exists(file.name):
            return file
        file.close()  # swept away just before it was locked


def _sweep(folder: Path) -> None:
    """Remove the temporary files of killed processes, which are those that no process has locked."""
    if sys.platform == "win32":
        return
    for left in folder.glob(f".*{UNFINISHED}"):
        with suppress(OSError), left.open("rb") as file:  # BlockingIOError: its writer is alive
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

    The system releases the lock when the process ends, however it ends. Yields True on a file system without locks.
    Raises OSError if the lock file cannot be created.
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
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            if error.errno not in UNLOCKABLE:
                raise
        yield True


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
