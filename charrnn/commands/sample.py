"""charrnn sample"""

from __future__ import annotations

import sys
from typing import Any

import click

from charrnn.commands.flags import Command, Flag, given, note, with_defaults
from charrnn.errors import UserError
from charrnn.options import FROM_ZERO, Interval, Option

FROM_STDIN = "--primetext-from-stdin"
OPTIONS = [
    Option("primetext", str, "", "text to go on from; as the last word, with no text: read it from stdin", "Sampling"),
    Option("length", int, 2000, "characters to write", "Sampling", within=FROM_ZERO),
    Option("temperature", float, 1.0, "under 1: safer text; over 1: wilder", "Sampling"),
    Option("sample", bool, True, "1 = draw each character; 0 = take the most probable", "Sampling"),
    Option("seed", int, 123, "seed of the draws", "Sampling", within=Interval(0, 2**63 - 1)),
    Option("verbose", bool, True, "0 = print the text alone", "Sampling"),
    Option("gpuid", int, 0, "number of the GPU; -1 = CPU", "device", within=Interval(low=-1)),
]
HELP = """Write text with a trained model.

CHECKPOINT is a file, or a folder, which stands for its checkpoint with the best validation loss. The
text goes to stdout as it is made: the prime text, then -length characters, then a newline.
"""


class SampleCommand(Command):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # a bare -primetext at the end: the text comes from stdin. Anywhere else the next word is the text.
        flags = given(args, self.arity(ctx))
        if flags and args[-1] in ("-primetext", "--primetext") and flags[-1] == (args[-1], ""):
            args = [*args[:-1], FROM_STDIN]
        return super().parse_args(ctx, args)


def sample(checkpoint: str, primetext_from_stdin: bool, **values: Any) -> None:
    values = with_defaults(OPTIONS, values)
    if values["temperature"] <= 0:
        raise UserError(
            f"-temperature {values['temperature']:g}: must be over 0; "
            "for the most probable character each time, use -sample 0"
        )

    import torch

    from charrnn import sampling
    from charrnn.checkpoint import Checkpoint
    from charrnn.device import choose_device

    def report(line: str) -> None:
        if values["verbose"]:
            note(line)

    saved = Checkpoint.load(checkpoint)
    device = choose_device(values["gpuid"], report, saved.options.precision)
    if device.type == "cpu":
        torch.set_num_threads(1)  # one character at a time leaves a second thread nothing but waiting
    model = saved.build().to(device)
    prime = read_stdin() if primetext_from_stdin else values["primetext"]
    loss = "" if saved.val_loss is None else f", validation loss {saved.val_loss:.4f}"
    report(f"{saved.options.model} from epoch {saved.epoch:.2f}{loss}")
    if not prime:
        report("no -primetext: the first character is drawn uniformly")
    characters = sampling.sample(
        model,
        saved.vocabulary,
        prime,
        values["length"],
        values["temperature"],
        greedy=not values["sample"],
        seed=values["seed"],
    )
    write = writer()
    write(prime)
    for character in characters:
        write(character)
    write("\n")


def read_stdin() -> str:
    """All of stdin as text; bytes that are not UTF-8 as surrogate escapes, for the encoding `bytes`."""
    if sys.stdin.isatty():
        raise UserError("-primetext with no text reads it from stdin: pipe a text in, or give one")
    return sys.stdin.buffer.read().decode("utf-8", "surrogateescape")


def writer() -> Any:
    """A function that writes text to stdout at once: escaped on a terminal, else byte for byte."""
    from charrnn.display import printable

    escape = printable if sys.stdout.isatty() else str

    def write(text: str) -> None:
        sys.stdout.buffer.write(escape(text).encode("utf-8", "surrogateescape"))
        sys.stdout.buffer.flush()

    return write


command = SampleCommand(
    "sample",
    [
        click.Argument(["checkpoint"]),
        *map(Flag, OPTIONS),
        click.Option([FROM_STDIN], is_flag=True, hidden=True),
    ],
    callback=sample,
    help=HELP,
)
