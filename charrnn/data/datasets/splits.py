"""Folders whose text is already split into ``train.txt``, ``val.txt`` and ``test.txt``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from charrnn.errors import UserError
from charrnn.files import open_regular, replacing


def split_path(folder: Path, split: str) -> Path:
    return folder / f"{split}.txt"


def in_the_way(path: Path, text: str) -> UserError:
    return UserError(
        f"{path} exists and is not part of {text}, so it was left unchanged: move it away or choose another folder"
    )


def write_splits(folder: Path, text: str, pieces: Iterable[tuple[str, bytes]]) -> list[Path]:
    """Write the pieces of a text, each with the name of its split, and return the files written.

    The files get their names after the last piece, the first split's file last. An error leaves no new file. An
    existing file is not touched, and must have exactly the same bytes. Raises UserError if it does not, and OSError.
    ``text`` is what messages call the text.
    """
    new: dict[str, IO[bytes]] = {}
    old: dict[str, IO[bytes]] = {}
    with ExitStack() as stack:
        made = stack.enter_context(all_or_none())  # entered first and therefore left after the last rename
        for split, piece in pieces:
            path = split_path(folder, split)
            if split not in new and split not in old:
                if not os.path.lexists(path):
                    new[split] = stack.enter_context(replacing(path))
                    made[path] = identity(os.fstat(new[split].fileno()))
                elif path.is_file():
                    old[split] = stack.enter_context(open_regular(path))
                else:
                    raise in_the_way(path, text)
            if split in new:
                new[split].write(piece)
            elif old[split].read(len(piece)) != piece:
                raise in_the_way(path, text)
        for split, file in old.items():
            if file.read(1):
                raise in_the_way(split_path(folder, split), text)
    return [split_path(folder, split) for split in new]


@contextmanager
def all_or_none() -> Iterator[dict[Path, tuple[int, int]]]:
    """Yield a dict that takes the path and identity of each file made. After an error, remove these files."""
    made: dict[Path, tuple[int, int]] = {}
    try:
        yield made
    except BaseException:
        for path, expected in made.items():
            with suppress(OSError):
                if identity(path.lstat()) == expected:
                    path.unlink()
        raise


def identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
