"""``charrnn prepare``: prepare a named data set."""

from __future__ import annotations

from typing import Any

import click

from charrnn.cli.flags import Command, Flag
from charrnn.cli.streams import note
from charrnn.data.datasets import catalogue
from charrnn.settings.option import Option

DATA_DIR = Option(
    "data_dir", str, None, "folder for the files  [data/NAME]", group="data", optional=True, names="folder"
)


OWN = [option for dataset in catalogue.DATASETS.values() for option in dataset.options]


def prepare(name: str, data_dir: str | None, **values: Any) -> None:
    from charrnn.cli.display import transfers

    given = {option: value for option, value in values.items() if value is not None}
    with transfers() as progress:
        catalogue.prepare(name, data_dir or catalogue.default_folder(name), note, progress, **given)


def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in catalogue.names() if name.startswith(incomplete)]


command = Command(
    "prepare",
    [click.Argument(["name"], shell_complete=complete), Flag(DATA_DIR), *map(Flag, OWN)],
    callback=prepare,
    help=f"Prepare a named data set: {', '.join(catalogue.names())}.",
)
