"""The one exception that a user may see: its text is the whole message."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


class UserError(Exception):
    """Something the user can put right.

    The text is one plain sentence or two: the cause, then the next move. The commands print it on
    stderr, without a traceback, and exit with code 1. Anything else that escapes is a defect of ours
    and keeps its traceback.
    """


def size(count: int) -> str:
    """Bytes in the unit that reads best."""
    value, unit = count / 1e6, "MB"
    if value >= 1000:
        value, unit = value / 1000, "GB"
    return f"{value:,.1f} {unit}"


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint at the known name most like a mistyped one, or '' where none is like it."""
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""


def printable(text: str) -> str:
    """The text with control characters as visible escapes: sampled text must not drive the terminal."""
    return "".join(c if c in "\n\t" or unicodedata.category(c)[0] != "C" else ascii(c)[1:-1] for c in text)
