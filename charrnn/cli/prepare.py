"""charrnn prepare"""

from __future__ import annotations

from typing import Any

import click

from charrnn.cli.flags import Command, Flag
from charrnn.cli.streams import note
from charrnn.data.datasets import catalogue as datasets
from charrnn.settings.option import Option

DATA_DIR = Option(
    "data_dir", str, None, "folder to make it in  [data/NAME]", group="data", optional=True, names="folder"
)


OWN = [option for dataset in datasets.DATASETS.values() for option in dataset.options]


def prepare(name: str, data_dir: str | None, **values: Any) -> None:
    from charrnn.cli.display import transfers

    given = {option: value for option, value in values.items() if value is not None}
    with transfers() as progress:
        datasets.prepare(name, data_dir or datasets.default_folder(name), note, progress, **given)


def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in datasets.names() if name.startswith(incomplete)]


command = Command(
    "prepare",
    [click.Argument(["name"], shell_complete=complete), Flag(DATA_DIR), *map(Flag, OWN)],
    callback=prepare,
    help=f"Make a named data set: {', '.join(datasets.names())}.",
)
