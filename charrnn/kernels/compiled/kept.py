"""Where compiled code is kept for the processes to come."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

import numba


def folder() -> Path:
    """A folder of this version of the kernels alone: numba notices a change of one file, not of those that it uses.

    It is in $NUMBA_CACHE_DIR, or in $XDG_CACHE_HOME, or in ~/.cache.
    """
    sources = b"\0".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    chosen = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME", "")
    root = Path(chosen) if os.path.isabs(chosen) else Path(os.path.expanduser("~/.cache"))
    return root / "charrnn" / f"kernels-{sha256(sources).hexdigest()[:16]}"


def prepare() -> bool:
    """Have numba keep there what it compiles from now on. False where nothing can be written."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    numba.config.CACHE_DIR = str(folder())
    return os.access(folder(), os.W_OK)


def filled() -> bool:
    """Whether compiled code is there."""
    return any(folder().rglob("*.nbc"))
