"""charrnn plot"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from charrnn.cli.flags import Command, Flag, exclude, switch, with_defaults
from charrnn.cli.streams import note
from charrnn.settings.option import FROM_ZERO, Option

OPTIONS = [
    Option("output", str, "val_curves.png", "picture to write (.png, .svg or .pdf)", group="Curves", names="file"),
    Option("x", str, "iterations", "horizontal axis", "Curves", choices=("iterations", "epochs", "minutes")),
    Option("y", str, "nats", "unit of the loss", group="Curves", choices=("nats", "bpc")),
    Option("smooth", int, 0, "average training curves over this many iterations; 0 = a hundredth of the run",
           group="Curves", within=FROM_ZERO),
    Option("label", str, (), "name of a run in the legend; repeat it for each run, in order [the settings that differ]",
           group="Curves", repeatable=True),
]  # fmt: skip


EXCLUSIVE = (("text", "output"),)


HELP = """Draw the learning curves of runs.

A RUN is a checkpoint, a metrics file (lm_NAME_metrics.jsonl), or a folder, which means all runs saved in it.
Pictures need matplotlib: pip install matplotlib.
"""


def plot(runs: tuple[str, ...], text: bool, **flags: Any) -> None:
    exclude(*EXCLUSIVE)

    from charrnn.cli import display
    from charrnn.reports import histories
    from charrnn.reports.plot import check_output, save
    from charrnn.reports.plot import text as as_text

    chosen = with_defaults(OPTIONS, flags)
    axes = {name: chosen[name] for name in ("x", "y", "smooth")}
    if not text:
        check_output(chosen["output"])
    found = histories.labelled(histories.read([Path(run) for run in runs]), chosen["label"])
    if text:
        display.lines(as_text(found, min(display.width(), 100), 20, **axes))
        return
    save(found, chosen["output"], **axes)
    note(f"wrote {chosen['output']}")


command = Command(
    "plot",
    [
        click.Argument(["runs"], nargs=-1, required=True, type=click.Path(), metavar="RUN..."),
        *map(Flag, OPTIONS),
        switch("text", "draw in the terminal instead"),
    ],
    callback=plot,
    help=HELP,
)
