"""charrnn eval"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from charrnn.commands.flags import Command, Flag, note, with_defaults
from charrnn.errors import UserError
from charrnn.options import FROM_ONE, FROM_ZERO, Interval, Option

OPTIONS = [
    Option("split", str, "val", "part of the data to score", "data", choices=("train", "val", "test")),
    Option("data_dir", str, None, "folder of the text  [as in training]", "data", optional=True),
    Option("batch_size", int, None, "rows read side by side; 1 = a split file as one stream  [as in training]", "data",
           optional=True, within=FROM_ONE),
    Option("text", str, "", "score this file instead; - = stdin", "data"),
    Option("mc_samples", int, 0, "average this many passes with dropout on (Monte Carlo); 0 = off", "model",
           within=FROM_ZERO),
    Option("seed", int, 123, "seed of the Monte Carlo samples", "model", within=Interval(0, 2**63 - 1)),
    Option("gpuid", int, 0, "number of the GPU; -1 = CPU", "device", within=Interval(low=-1)),
]  # fmt: skip
HELP = """Score a text with a trained model.

CHECKPOINT is a file, or a folder, which stands for its checkpoint with the best validation loss. Prints
the mean loss in nats, bits per character, perplexity, and how many characters were predicted.
"""


def evaluate(checkpoint: str, as_json: bool, **values: Any) -> None:
    values = with_defaults(OPTIONS, values)

    from charrnn.checkpoint import Checkpoint, find
    from charrnn.device import choose_device
    from charrnn.scoring import Scorer

    path = find(Path(checkpoint))
    saved = Checkpoint.load(path)
    device = choose_device(values["gpuid"], note, saved.options.precision)
    scorer = Scorer(saved, saved.build().to(device), values["mc_samples"], values["seed"])
    if values["text"]:
        what = "stdin" if values["text"] == "-" else values["text"]
        score = scorer.text(read(values["text"], saved.options.encoding))
    else:
        what = values["split"]
        data_dir = values["data_dir"] or saved.options.data_dir
        score = scorer.split(what, data_dir, values["batch_size"] or saved.options.batch_size, note)
    figures = {"loss": score.loss, "bpc": score.bpc, "ppl": score.ppl, "characters": score.characters}
    if as_json:
        print(json.dumps({"checkpoint": str(path), "scored": what, **figures}))
    else:
        print(
            f"{what}: loss {score.loss:.4f} nats, {score.bpc:.4f} bits per character, perplexity {score.ppl:.4f}, "
            f"{score.characters:,} characters"
        )


def read(file: str, encoding: str) -> str:
    """A whole file, or stdin for -, as text."""
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return data.decode("utf-8", "surrogateescape" if encoding == "bytes" else "strict")
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 at byte {error.start}: convert it first") from None


command = Command(
    "eval",
    [
        click.Argument(["checkpoint"]),
        *map(Flag, OPTIONS),
        click.Option(["-json", "--json", "as_json"], is_flag=True, help="print one JSON object"),
    ],
    callback=evaluate,
    help=HELP,
)
