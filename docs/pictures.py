"""Draw the picture of the live display in the README: python docs/pictures.py

It runs a real training in a temporary folder, with the program's own display on a recording console. The run stops in
the middle, as on Ctrl-C, and the script writes the display at that moment as an SVG file.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich.console import Console

from charrnn.cli import display
from charrnn.cli.main import run
from charrnn.training.setup import Setup

PICTURE = Path(__file__).parent / "pictures" / "live_display.svg"
TEXT = Path(__file__).parent.parent / "data" / "tinyshakespeare"
COMMAND = ["train", "-config", "shakespeare_small", "-sample_length", "150"]
STOP_AT = 1500  # iterations: after three validations
WIDTH = 90


class Recorded(display.LiveDisplay):
    """The live display on a recording console. It takes the picture at one iteration, then ends the run.

    Off a terminal, rich prints the bar and the figures only once, when the display closes. A recording of a
    terminal would hold every redraw.
    """

    def __init__(self, command: list[str], stop_at: int, *args: Any, **named: Any) -> None:
        console = Console(record=True, force_terminal=False, width=WIDTH, file=StringIO(), highlight=False)
        console.print(f"[bold green]$[/] charrnn {' '.join(command)}")
        super().__init__(console, *args, **named)
        self.stop_at = stop_at
        self.picture = ""

    def show(self, record: Any) -> None:
        if record.iteration == self.stop_at:
            self.drawn = 0.0  # draw this update, however recent the last one
        super().show(record)
        if record.iteration == self.stop_at:
            self.live.stop()
            self.picture = self.console.export_svg(title="charrnn", unique_id="live")
            os.kill(os.getpid(), signal.SIGINT)


def picture(command: list[str], stop_at: int, *unseen: str) -> str:
    """Return an SVG of the live display of a `charrnn` command after stop_at iterations.

    unseen: further flags, which are not part of the command that the picture shows.
    """
    shown: list[Recorded] = []

    @contextmanager
    def recorded(setup: Setup) -> Iterator[Recorded]:
        tokens = setup.options.batch_size * setup.options.seq_length
        shown.append(Recorded(command, stop_at, tokens, [], type(setup.vocabulary)))
        yield shown[-1]

    with tempfile.TemporaryDirectory() as folder, chdir(folder), patch.object(display, "shown", recorded):
        run([*command, *unseen])
    return shown[-1].picture


if __name__ == "__main__":
    PICTURE.write_text(picture(COMMAND, STOP_AT, "-data_dir", str(TEXT)), encoding="utf-8")
