"""charrnn sample"""

from __future__ import annotations

from typing import Any

import click

from charrnn.cli.flags import Command, Flag, exclude, given, with_defaults
from charrnn.cli.streams import note, read, read_stdin
from charrnn.compute import choose_device, one_thread
from charrnn.settings.option import FROM_ONE, FROM_ZERO, Interval, Option

FROM_STDIN = "--primetext-from-stdin"


OPTIONS = [
    Option("primetext", str, "", "text to go on from; as the last word, with no text: read it from stdin", "Sampling"),
    Option("primefile", str, "", "file with the text to go on from; - = stdin", "Sampling", names="file"),
    Option("unknown", str, "error", "what characters or words do that the model never saw: end it, or get left out of "
           "the prime text", "Sampling", choices=("error", "skip")),
    Option("length", int, 2000, "characters or words to write", "Sampling", within=FROM_ZERO),
    Option("stop", str, "", "end a text once it has written this", "Sampling"),
    Option("num_samples", int, 1, "texts to write; number K, from 0, is the text of seed + K", "Sampling",
           within=FROM_ONE),
    Option("seed", int, 123, "seed of the draws", "Sampling", within=Interval(0, 2**63 - 1)),
    Option("temperature", float, 1.0, "under 1: safer text; over 1: wilder", "Choice of a character"),
    Option("sample", bool, True, "1 = draw each character; 0 = take the most probable", "Choice of a character"),
    Option("top_k", int, 0, "draw among this many of the most probable; 0 = all", "Choice of a character",
           within=FROM_ZERO),
    Option("top_p", float, 1.0, "draw among the most probable that have this share of the probability",
           "Choice of a character", within=Interval(0, 1, open_low=True)),
    Option("beam", int, 0, "draw nothing: search for the most probable text with this many candidates; 0 = off",
           "Choice of a character", within=FROM_ZERO),
    Option("output", str, "", "file to write to instead of stdout", "Output", names="file"),
    Option("verbose", bool, True, "0 = print the text alone", "Output"),
    Option("precision", str, "float64", "float32 is faster; then -num_samples and the machine may change a text",
           "device", choices=("float64", "float32")),
    Option("gpuid", int, 0, "number of the GPU; -1 = CPU", "device", within=Interval(low=-1)),
]  # fmt: skip


SWITCHES = [
    click.Option([FROM_STDIN], is_flag=True, hidden=True),
    click.Option(["-until_newline", "--until_newline"], is_flag=True, help="end a text with its first line"),
    click.Option(["-json", "--json", "as_json"], is_flag=True,
                 help="print a JSON object a text, with the log probability of each character or word"),
    click.Option(["-interactive", "--interactive"], is_flag=True,
                 help="type beginnings, see them continued, change settings on the way"),
]  # fmt: skip


EXCLUSIVE = [
    ("primetext", "primefile"),
    ("primetext_from_stdin", "primefile"),
    ("stop", "until_newline"),
    *(("beam", other) for other in ("num_samples", "seed", "temperature", "sample", "top_k", "top_p", "interactive")),
    *(("interactive", other)
      for other in ("primetext", "primetext_from_stdin", "primefile", "unknown", "num_samples", "as_json", "output")),
]  # fmt: skip


CHANGEABLE = ("temperature", "length", "top_k", "top_p", "sample", "seed")  # in the middle of -interactive


HELP = """Write text with a trained model.

CHECKPOINT is a file, or a folder, which stands for its checkpoint with the best validation loss. The
text goes to stdout as it is made: the prime text, then -length characters (or words, where the model
is one of words), then a newline.
"""


class SampleCommand(Command):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # a bare -primetext at the end: the text comes from stdin. Anywhere else the next word is the text.
        flags = given(args, self.arity(ctx))
        if flags and args[-1] in ("-primetext", "--primetext") and flags[-1] == (args[-1], ""):
            args = [*args[:-1], FROM_STDIN]
        return super().parse_args(ctx, args)


def sample(
    checkpoint: str,
    primetext_from_stdin: bool,
    until_newline: bool,
    as_json: bool,
    interactive: bool,
    **values: Any,
) -> None:
    exclude(*EXCLUSIVE)
    values = with_defaults(OPTIONS, values)

    one_thread()
    import torch

    from charrnn.checkpoints.checkpoint import Checkpoint
    from charrnn.errors import printable
    from charrnn.sampling import beam, output
    from charrnn.sampling.conversation import Conversation, choice, converse
    from charrnn.sampling.sampler import Sampler, known

    def report(line: str) -> None:
        if values["verbose"]:
            note(line)

    drawn = choice(values)
    saved = Checkpoint.load(checkpoint)
    device = choose_device(values["gpuid"], report, saved.options.precision)
    sampler = Sampler(saved.build().to(device), saved.vocabulary, getattr(torch, values["precision"]))
    loss = "" if saved.val_loss is None else f", validation loss {saved.val_loss:.4f}"
    report(f"{saved.options.model} from epoch {saved.epoch:.2f}{loss}")
    stop = saved.vocabulary.tidy("\n" if until_newline else values["stop"])
    if interactive:
        options = {option.name: option for option in OPTIONS if option.name in CHANGEABLE}
        with output.destination("", printable) as stream:
            converse(Conversation(sampler, options, values, note, stop), stream)
        return

    prime = read_stdin() if primetext_from_stdin else values["primetext"]
    if values["primefile"]:
        prime = read(values["primefile"], saved.vocabulary.encoding)
    if values["unknown"] == "skip":
        prime = known(prime, saved.vocabulary, report)
    if not prime and not values["beam"]:
        report(f"no -primetext: the first {saved.vocabulary.unit} is drawn uniformly")
    prime = saved.vocabulary.tidy(prime)
    seeds = [(values["seed"] + k) % 2**63 for k in range(values["num_samples"])]
    if values["beam"]:
        written = beam.beam_search(sampler, prime, values["length"], values["beam"], stop)
    else:
        written = sampler.write(prime, values["length"], drawn, seeds, stop, scored=as_json)
    with output.destination(values["output"], printable) as stream:
        if as_json:
            output.write_json(stream, prime, [None] if values["beam"] else seeds, written)
        else:
            output.write_plain(stream, prime, len(seeds), written, stop)


command = SampleCommand(
    "sample",
    [click.Argument(["checkpoint"], type=click.Path()), *map(Flag, OPTIONS), *SWITCHES],
    callback=sample,
    help=HELP,
)
