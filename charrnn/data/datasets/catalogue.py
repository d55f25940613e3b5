"""Named texts, made on first use.

Each name stands for a function that makes the text's files in a folder. Downloads are checked by SHA-256, so their
source need not be trusted. Existing files are never replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from charrnn.compute import Report
from charrnn.data.datasets import addition, penn_treebank, wikipedia
from charrnn.data.datasets.download import Progress, by_tenths
from charrnn.data.datasets.tinyshakespeare import prepare_tinyshakespeare
from charrnn.errors import UserError, nearest
from charrnn.settings.option import Option


@dataclass(frozen=True)
class Dataset:
    """A text that ``charrnn prepare`` can make."""

    # called as ``make(folder, report, progress, **options)``; writes the files or raises UserError
    make: Callable[..., None]
    # flags of ``charrnn prepare`` for this data set, grouped in the help under its name
    options: tuple[Option, ...] = ()


def names() -> list[str]:
    """Return the names of the texts that ``prepare`` can make."""
    return sorted(DATASETS)


def default_folder(name: str) -> Path:
    """Return the default folder of a named text, relative to the working directory."""
    return Path("data", name)


def for_folder(folder: str | Path) -> str | None:
    """Return the name of the text whose default folder this is; None for any other folder."""
    return next((name for name in names() if default_folder(name) == Path(folder)), None)


def prepare(name: str, folder: str | Path, report: Report, progress: Progress | None = None, **options: Any) -> None:
    """Make a named text's files in a folder, which is created if necessary. Existing correct files are left unchanged.

    ``report`` is called with one line of text at each step, and ``progress`` as in ``download``; without ``progress``,
    ``report`` gets a line at each tenth. ``options`` are those of the data set; missing ones have their defaults.
    Raises UserError for an unknown name or option, if a file to be made exists with other contents, if no source has
    the text, and if the folder cannot be written.
    """
    if name not in DATASETS:
        raise UserError(f"no text is named {name!r}{nearest(name, names())}: choose from {', '.join(names())}")
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
