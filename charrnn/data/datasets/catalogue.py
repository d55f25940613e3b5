"""Texts with a name, made on first use.

Each name stands for one function that makes the text's files in a folder. What is fetched is checked by its
SHA-256, so it does not matter where it came from, and a file that is there already is never replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from charrnn.data.datasets import addition, penn_treebank, wikipedia
from charrnn.data.datasets.download import Progress, Report, by_tenths
from charrnn.data.datasets.tinyshakespeare import prepare_tinyshakespeare
from charrnn.errors import UserError, nearest
from charrnn.settings.option import Option


@dataclass(frozen=True)
class Dataset:
    """A text that can be made.

    make: called as ``make(folder, report, progress, **options)``; it writes the files or raises UserError.
    options: its own, flags of ``charrnn prepare``. They are grouped in the help under the data set's name.
    """

    make: Callable[..., None]
    options: tuple[Option, ...] = ()


def names() -> list[str]:
    """The texts that ``prepare`` can make."""
    return sorted(DATASETS)


def default_folder(name: str) -> Path:
    """Where a named text goes unless the user says otherwise, relative to the working directory."""
    return Path("data", name)


def for_folder(folder: str | Path) -> str | None:
    """The text whose default folder this is, as given; None for any other folder."""
    return next((name for name in names() if default_folder(name) == Path(folder)), None)


def prepare(name: str, folder: str | Path, report: Report, progress: Progress | None = None, **options: Any) -> None:
    """Make a named text's files in a folder, which is made too; files that are right already stay.

    ``report`` is called with one line of text at each step, ``progress`` as in ``download``; without it,
    report gets a line at each tenth. ``options`` are the data set's own, those not given at their defaults.
    Raises UserError for an unknown name, for an option of another data set, where another file is in the
    way, where no source gives the text, and where the folder cannot be written.
    """
    if name not in DATASETS:
        raise UserError(f"no text is called {name!r}{nearest(name, names())}: choose from {', '.join(names())}")
    dataset = DATASETS[name]
    values = {option.name: option.default for option in dataset.options}
    for other in options.keys() - values:
        raise UserError(f"-{other} does not apply to {name}: leave it out")
    dataset.make(Path(folder), report, progress or by_tenths(report), **(values | options))


DATASETS = {
    "tinyshakespeare": Dataset(prepare_tinyshakespeare),
    "enwik8": Dataset(partial(wikipedia.prepare, wikipedia.ENWIK8)),
    "text8": Dataset(partial(wikipedia.prepare, wikipedia.TEXT8)),
    "ptb": Dataset(penn_treebank.prepare),
    "addition": Dataset(addition.prepare, addition.OPTIONS),
}
