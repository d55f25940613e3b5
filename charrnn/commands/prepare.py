"""charrnn prepare"""

from __future__ import annotations

from pathlib import Path

import click

from charrnn import datasets
from charrnn.commands.flags import Command, Flag, note
from charrnn.options import Option

DATA_DIR = Option("data_dir", str, None, "folder to make it in  [data/NAME]", group="data", optional=True)


def prepare(name: str, data_dir: str | None) -> None:
    datasets.prepare(name, Path(data_dir or f"data/{name}"), note)


command = Command(
    "prepare",
    [click.Argument(["name"]), Flag(DATA_DIR)],
    callback=prepare,
    help=f"Make a named data set: {', '.join(datasets.names())}.",
)
