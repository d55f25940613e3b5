"""What a terminal may be shown."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """The text with control characters as visible escapes: sampled text must not drive the terminal."""
    return "".join(c if c in "\n\t" or unicodedata.category(c)[0] != "C" else ascii(c)[1:-1] for c in text)
