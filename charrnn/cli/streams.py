"""What commands read from stdin and say on stderr."""

from __future__ import annotations

import sys
from pathlib import Path

from charrnn.errors import UserError


def read(file: str, encoding: str) -> str:
    """A whole file, or stdin for -, as text."""
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return data.decode("utf-8", "surrogateescape" if encoding == "bytes" else "strict")
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 at byte {error.start}: convert it first") from None


def note(line: str) -> None:
    """A line for the person at the terminal, apart from the output proper."""
    print(line, file=sys.stderr, flush=True)


def read_stdin() -> str:
    """All of stdin as text; bytes that are not UTF-8 as surrogate escapes, for the encoding `bytes`."""
    if sys.stdin.isatty():
        raise UserError("-primetext with no text reads it from stdin: pipe a text in, or give one")
    return sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
