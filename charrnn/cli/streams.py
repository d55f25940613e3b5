"""Lines on stdout and stderr, and text from files and stdin. No other module calls print.

A line may quote an untrusted file, whose escape sequences must not reach the terminal. The functions that print lines
therefore escape control characters, and their callers need not.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from charrnn.errors import UserError, printable, unreadable
from charrnn.files import FULL

LONGEST = 10_000  # characters of a note: a name in a stranger's checkpoint may have millions


def open_closed() -> None:
    """Open /dev/null in place of standard streams that are closed. Otherwise other files would get their numbers."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  it stays open


def note(line: str) -> None:
    """Write a line to stderr, for the person at the terminal. It is lost if stderr is a file on a full disk."""
    if len(line) > LONGEST:
        line = f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"
    try:
        print(printable(line, keep=""), file=sys.stderr, flush=True)
    except OSError as error:
        if not is_full(sys.stderr, error):
            raise


def say(line: str = "") -> None:
    """Print a line for people on stdout."""
    print(printable(line), flush=True)


def log_line(line: str) -> None:
    """Print a line of a training run's log on stdout.

    If stdout is a file on a full disk, nothing more is printed, and a note says so: the run is worth more than its log.
    """
    try:
        say(line)
    except OSError as error:
        if not is_full(sys.stdout, error):
            raise
        give_up(sys.stdout)
        note(f"cannot write to stdout: {error.strerror}; training continues without printing")


def put(line: str) -> None:
    """Print a line for programs on stdout. A terminal gets it with control characters escaped."""
    print(printable(line) if sys.stdout.isatty() else line)


def is_full(stream: TextIO, error: OSError) -> bool:
    """Return whether writing failed because a disk is full or broken, and not because a terminal or pipe is gone."""
    return error.errno in FULL or stat.S_ISREG(os.fstat(stream.fileno()).st_mode)


def give_up(stream: TextIO) -> None:
    """Discard unwritten output. Otherwise Python tries to write it at exit, complains, and exits with code 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def read(file: str, encoding: str) -> str:
    """Return the text of a file, or of stdin for -. Raises UserError if it cannot be read or decoded."""
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return data.decode("utf-8", "surrogateescape" if encoding == "bytes" else "strict")
    except OSError as error:
        raise unreadable(file, error) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 at byte {error.start}: convert it first") from None


def read_stdin() -> str:
    """Return all of stdin as text. Bytes that are not UTF-8 become surrogate escapes, for ``-encoding bytes``."""
    if sys.stdin.isatty():
        raise UserError("-primetext without a value reads from stdin: pipe a text in, or give a value")
    return sys.stdin.buffer.read().decode("utf-8", "surrogateescape")


def lines(greeting: str) -> Iterator[str]:
    """Yield the lines of stdin. On a terminal, show a greeting and a prompt, with line editing and history."""
    if not sys.stdin.isatty():
        for data in sys.stdin.buffer:
            yield data.decode("utf-8", "surrogateescape").removesuffix("\n")
        return
    note(greeting)
    with suppress(ImportError):  # some systems do not have it
        import readline  # noqa: F401  input() uses it for line editing
    while True:
        try:
            yield input("> ")
        except EOFError:
            say()
            return
