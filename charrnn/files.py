"""Files that are either whole or not there."""

from __future__ import annotations

import errno
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

if sys.platform != "win32":  # there two runs must keep apart by themselves
    import fcntl


UNFINISHED = ".charrnn-part"


UNLOCKABLE = (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK)  # some network file systems


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes the place of ``path`` when the block ends, and not before.

    The bytes go to a temporary file in the same folder, which is flushed to the disk and then renamed: a
    reader, a crash or a full disk meets the old file or the new one. On any error the temporary file is
    removed and ``path`` is as it was; what a killed process left is removed by the next to write in the
    folder. Raises OSError.
    """
    _sweep(path.parent)
    with ExitStack() as stack:
        descriptor, name = _temporary(path, stack)
        try:
            with open(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    _sync_folder(path.parent)


def _temporary(path: Path, stack: ExitStack) -> tuple[int, str]:
    """Descriptor and name of a new file beside ``path``, locked until the stack ends: a sign that its writer lives."""
    while True:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=UNFINISHED, dir=path.parent)
        if sys.platform == "win32":
            return descriptor, name
        holder = os.dup(descriptor)  # the lock outlasts the writing, until the file has its own name
        stack.callback(os.close, holder)
        with suppress(OSError):  # where nothing can be locked, nothing is swept away
            fcntl.flock(holder, fcntl.LOCK_EX)
        if os.path.exists(name):
            return descriptor, name
        os.close(descriptor)  # swept away just before it was locked


def _sweep(folder: Path) -> None:
    """Remove the temporary files of writers that were killed: those that nobody holds a lock on."""
    if sys.platform == "win32":
        return
    for left in folder.glob(f".*{UNFINISHED}"):
        with suppress(OSError), left.open("rb") as file:  # BlockingIOError: its writer lives
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold a lock file as long as the block lasts. Gives False where another process holds it.

    The system lets go of the lock when the process ends, however it ends.
    """
    if sys.platform == "win32":
        yield True
        return
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


def _umask() -> int:
    """The process's file mode mask: mkstemp makes its files private, a finished file should not be."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make the rename itself last. Not every system can open a folder."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        return
    finally:
        os.close(descriptor)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C as an exception, for a process that it would end."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
