"""Text from files and stdin, and notes on stderr, for the commands."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from charrnn.errors import UserError, unreadable


def note(line: str) -> None:
    """Write a line to stderr, for the person at the terminal."""
    print(line, file=sys.stderr, flush=True)


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
            print()
            return
