"""A run's folder: its files' names, its best and its newest checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from charrnn.errors import UserError

NAME = re.compile(r"lm_.+_epoch\d+\.\d+_(\d+\.\d+)\.pt")


def find(path: Path) -> Path:
    """The file itself, or of a folder the checkpoint with the lowest validation loss.

    Where none was validated yet, the newest. Raises UserError where there is none at all.
    """
    if not _is(Path.is_dir, path):
        return _existing(path)
    scored = [(float(match[1]), file) for file in path.glob("*.pt") if (match := NAME.fullmatch(file.name))]
    if not scored:
        return find_newest(path)
    best = min(loss for loss, _ in scored)
    return max((file for loss, file in scored if loss == best), key=written)


def find_newest(path: Path) -> Path:
    """The file itself, or of a folder the checkpoint that was written last. Raises UserError where there is none."""
    if not _is(Path.is_dir, path):
        return _existing(path)
    files = list(path.glob("lm_*.pt"))
    if not files:
        raise UserError(f"the folder {path} has no checkpoints (lm_....pt): charrnn train makes one")
    return max(files, key=written)


def _existing(path: Path) -> Path:
    if not _is(Path.is_file, path):
        raise UserError(f"there is no checkpoint at {path}: charrnn train makes one")
    return path


def _is(kind: Callable[[Path], bool], path: Path) -> bool:
    try:
        return kind(path)
    except OSError as error:  # a name too long, a folder that may not be looked into
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def written(file: Path) -> int:
    """When a checkpoint was written, in nanoseconds: what the newest is newest by."""
    return file.stat().st_mtime_ns


OF_RUN = re.compile(r"lm_(.+?)(?:_epoch\d+\.\d+_(?:\d+\.\d+|nan)|_last)\.pt")


METRICS = "lm_{}_metrics.jsonl"
