"""The Penn Treebank as Mikolov prepared it, in three files that the user provides and that are read unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from charrnn.compute import Report
from charrnn.data.datasets.download import Progress
from charrnn.errors import UserError
from charrnn.settings.option import Level

FILES = {"train": "ptb.train.txt", "val": "ptb.valid.txt", "test": "ptb.test.txt"}

# words, with one <eos> for each line, as the papers count them
TOKENS = {"train": 929_589, "val": 73_760, "test": 82_430}


def find(folder: Path) -> dict[str, Path]:
    """Return those of the three files that are in a folder, by the names of their splits. Raises OSError."""
    return {split: folder / name for split, name in FILES.items() if (folder / name).is_file()}


def check(paths: Mapping[str, Path], lengths: Mapping[str, int], level: Level, report: Report) -> None:
    """Report files that are named like Mikolov's but have different numbers of words."""
    if level == "word" and [path.name for path in paths.values()] == list(FILES.values()) and lengths != TOKENS:
        report(
            f"these files differ from Mikolov's Penn Treebank: {numbers(lengths)} tokens instead of {numbers(TOKENS)}"
        )


def numbers(lengths: Mapping[str, int]) -> str:
    return ", ".join(f"{length:,}" for length in lengths.values())


def prepare(folder: Path, report: Report, progress: Progress) -> None:
    """Raise a UserError that says how to get the files, which are licensed."""
    raise UserError(
        f"the Penn Treebank is licensed and cannot be downloaded here: put {', '.join(FILES.values())}, from the "
        f"folder data of Mikolov's simple-examples.tgz (http://www.fit.vutbr.cz/~imikolov/rnnlm), into {folder}; "
        f"charrnn train -data_dir {folder} -level word reads them as they are"
    )
