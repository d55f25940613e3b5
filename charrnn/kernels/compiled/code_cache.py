"""The folder that keeps compiled code for later processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import numba


def folder() -> Path:
    """Return the folder of this version of the kernels, in $NUMBA_CACHE_DIR, $XDG_CACHE_HOME or ~/.cache.

    Versions do not share a folder, because numba notices changes to a file, but not to the files it imports.
    """
    sources = b"\0".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    chosen = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(chosen).absolute() / "charrnn" / f"kernels-{sha256(sources).hexdigest()[:16]}"


@contextmanager
def in_use() -> Iterator[bool]:
    """Save the functions that numba compiles inside this context. Yields False if the folder cannot be written to."""
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
    """Return whether the folder contains compiled code."""
    return any(folder().rglob("*.nbc"))
