"""Where compiled code is kept for the processes to come."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import numba


def folder() -> Path:
    """A folder of this version of the kernels alone: numba notices a change of one file, not of those that it uses.

    It is in $NUMBA_CACHE_DIR, or in $XDG_CACHE_HOME, or in ~/.cache.
    """
    sources = b"\0".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    chosen = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(chosen).absolute() / "charrnn" / f"kernels-{sha256(sources).hexdigest()[:16]}"


@contextmanager
def here() -> Iterator[bool]:
    """While it lasts, functions that numba is given are kept there. Gives False where nothing can be written."""
    before = numba.config.CACHE_DIR
    try:
        folder().mkdir(parents=True, exist_ok=True)
        writable = os.access(folder(), os.W_OK)
    except OSError:
        writable = False
    if writable:
        numba.config.CACHE_DIR = str(folder())
    try:
        yield writable
    finally:
        numba.config.CACHE_DIR = before


def filled() -> bool:
    """Whether compiled code is there."""
    return any(folder().rglob("*.nbc"))
