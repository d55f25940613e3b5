"""charrnn import"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from charrnn.cli.flags import Command, Flag, with_defaults
from charrnn.cli.streams import note, say
from charrnn.errors import UserError
from charrnn.settings.option import Option

OPTIONS = [Option("force", bool, False, "1 = replace NEW if it exists", "bookkeeping")]


HELP = """Convert a checkpoint of the original char-rnn or grid-lstm.

OLD is an lm_....t7 file of an lstm, gru, rnn or grid_lstm model, saved on a CPU. NEW is the file to write, or a
folder. The weights keep their precision, and the options keep their values. You can sample from the new
checkpoint, evaluate it, or start training from it with -init_from. The run cannot be resumed, because the
original programs do not save the optimizer's state.
"""


def import_(old: str, new: str, **values: Any) -> None:
    values = with_defaults(OPTIONS, values)
    target = Path(new)
    if not target.is_dir():
        check_free(target, values["force"])

    from charrnn.checkpoints import originals

    checkpoint = originals.load(Path(old), note)
    if target.is_dir():
        target /= checkpoint.name
        check_free(target, values["force"])
    checkpoint.save(target)
    options = checkpoint.options
    say(
        f"{target}: {options.model}, {options.num_layers} layers of {options.rnn_size}, "
        f"{len(checkpoint.vocabulary)} characters, {options.precision}, epoch {checkpoint.epoch:.2f}, "
        f"validation loss {checkpoint.val_loss:.4f}"
    )


def check_free(path: Path, force: bool) -> None:
    if os.path.lexists(path) and not force:
        raise UserError(f"{path} already exists; choose another name, or replace it with -force 1")


command = Command(
    "import",
    [click.Argument(["old"]), click.Argument(["new"]), *map(Flag, OPTIONS)],
    callback=import_,
    help=HELP,
)
