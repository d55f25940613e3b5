"""Folders of a text that is already split: ``train.txt``, ``val.txt`` and ``test.txt``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from charrnn.errors import UserError
from charrnn.files import replacing


def split_path(folder: Path, split: str) -> Path:
    return folder / f"{split}.txt"


def in_the_way(path: Path, text: str) -> UserError:
    return UserError(f"{path} is not {text}'s, so it was left unchanged: move it away or choose another folder")


def write_splits(folder: Path, text: str, pieces: Iterable[tuple[str, bytes]]) -> list[Path]:
    """Write the pieces of a text, each with the name of its split, and return the files written.

    The files are renamed after the last piece, the first split's file last. An error before that leaves no new file. An
    existing file must have exactly the same bytes, and is not touched. Raises UserError if it does not, and OSError.
    ``text`` is the name of the text in messages.
    """
    new: dict[str, IO[bytes]] = {}
    old: dict[str, IO[bytes]] = {}
    with ExitStack() as stack:
        for split, piece in pieces:
            path = split_path(folder, split)
            if split not in new and split not in old:
                if not os.path.lexists(path):
                    new[split] = stack.enter_context(replacing(path))
                elif path.is_file():
                    old[split] = stack.enter_context(path.open("rb"))
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
