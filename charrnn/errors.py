"""The exception for problems that the user can fix, and helpers for writing messages."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from unicodedata import category

# an error is charrnn's own if its traceback shows only these packages and the standard library
OURS = {"charrnn", "click", "rich", "torch", "numpy"}

# Unicode's categories of characters that are escaped in messages
CONTROL = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


class UserError(Exception):
    """A problem that the user can fix.

    The text is one or two plain sentences: the cause, then what to do. The commands print it on stderr
    without a traceback and exit with code 1. Any other exception that escapes is a bug and keeps its traceback.
    """


def foreign(error: BaseException) -> bool:
    """Return whether an error was raised in code outside charrnn, such as a model of the user's own.

    Such an error says nothing about charrnn's files or its output, whatever its type.
    """
    names = set()
    traceback = error.__traceback__
    while traceback:
        names.add(str(traceback.tb_frame.f_globals.get("__name__")).partition(".")[0])
        traceback = traceback.tb_next
    return not names <= OURS | sys.stdlib_module_names


def unreadable(path: object, error: OSError) -> UserError:
    """Return the error for a file that cannot be read."""
    return UserError(f"cannot read {path}: {error.strerror}")


def size(count: int) -> str:
    """Format a number of bytes in MB or GB."""
    value, unit = count / 1e6, "MB"
    if value >= 1000:
        value, unit = value / 1000, "GB"
    return f"{value:,.1f} {unit}"


def nearest(name: str, known: Sequence[str]) -> str:
    """Return a hint naming the known name closest to a mistyped one, or '' if none is close."""
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""


def listed(items: Iterable[str], limit: int = 20) -> str:
    """Join items with commas; after the first ``limit``, say only how many more there are."""
    items = list(items)
    more = len(items) - limit
    return f"{', '.join(items[:limit])}{f' and {more:,} more' if more > 0 else ''}"


def printable(text: str, keep: str = "\n\t") -> str:
    """Escape control characters, except those in ``keep``.

    Otherwise text from a model or a file could send commands to the terminal. Line and paragraph separators, formatting
    characters and lone surrogates are escaped too.
    """
    return "".join(ascii(c)[1:-1] if category(c) in CONTROL and c not in keep else c for c in text)
