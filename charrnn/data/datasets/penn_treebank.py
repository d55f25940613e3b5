"""The Penn Treebank as Mikolov prepared it: three files that the user has, checked and given their names here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from charrnn.data.datasets.download import Progress, Report
from charrnn.data.datasets.splits import write_splits
from charrnn.errors import UserError
from charrnn.settings.option import Option

FROM = Option(
    "from", str, None, "folder with ptb.train.txt, ptb.valid.txt, ptb.test.txt", "ptb", optional=True, names="folder"
)


FILES = {"train": "ptb.train.txt", "val": "ptb.valid.txt", "test": "ptb.test.txt"}


# words, with one <eos> for each line, as the papers count them
TOKENS = {"train": 929_589, "val": 73_760, "test": 82_430}


def prepare(folder: Path, report: Report, progress: Progress, **options: Any) -> None:
    """Copy the three files of the folder ``options["from"]`` to train.txt, val.txt and test.txt, unchanged.

    Reports their lines and words, and whether they are as many as in Mikolov's files. Raises UserError
    without a folder, for a file that is missing, empty or not UTF-8, and where another file is in the way.
    """
    if options["from"] is None:
        raise UserError(
            f"the Penn Treebank is licensed, so it is not fetched: get {', '.join(FILES.values())}, which Mikolov's "
            "simple-examples.tgz (http://www.fit.vutbr.cz/~imikolov/rnnlm) has in its folder data, then run "
            "charrnn prepare ptb -from FOLDER"
        )
    source = Path(options["from"])
    for name in FILES.values():
        if not (source / name).is_file():
            raise UserError(
                f"there is no file {source / name}: -from takes the folder that has {', '.join(FILES.values())}"
            )
    words = dict.fromkeys(FILES, 0)
    lines = dict.fromkeys(FILES, 0)

    def pieces() -> Iterator[tuple[str, bytes]]:
        for split, name in FILES.items():
            with (source / name).open("rb") as file:
                for line in file:
                    try:
                        words[split] += len(line.decode("utf-8").split())
                    except UnicodeDecodeError:
                        where = f"{source / name} is not UTF-8 in line {lines[split] + 1}"
                        raise UserError(f"{where}: take the file as Mikolov made it") from None
                    lines[split] += line.endswith(b"\n")
                    yield split, line
            if not words[split]:
                raise UserError(f"{source / name} has no words: take the file as Mikolov made it")

    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = write_splits(folder, "ptb", pieces())
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror or error}; choose another folder") from error
    if not written:
        report(f"{folder} holds these texts already: nothing to do")
    for path in written:
        report(f"wrote {path}: {path.stat().st_size:,} bytes")
    tokens = {split: words[split] + lines[split] for split in FILES}
    for split in FILES:
        report(f"{split}: {lines[split]:,} lines, {words[split]:,} words, {tokens[split]:,} tokens with <eos>")
    wanted = ", ".join(f"{count:,}" for count in TOKENS.values())
    if tokens == TOKENS:
        report("as many tokens as Mikolov's Penn Treebank has")
    else:
        report(f"another text: Mikolov's Penn Treebank has {wanted} tokens")
