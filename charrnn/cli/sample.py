"""charrnn sample"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from charrnn.cli.flags import Command, Flag, exclude, given, switch, with_defaults
from charrnn.cli.streams import lines, note, read, read_stdin
from charrnn.compute import one_thread, silent
from charrnn.errors import UserError, printable
from charrnn.settings.option import Option, options_of
from charrnn.settings.sampling import EXCLUSIVE, SamplingOptions

if TYPE_CHECKING:
    from charrnn.checkpoints.checkpoint import Checkpoint
    from charrnn.sampling.conversation import Conversation

FROM_STDIN = "--primetext-from-stdin"

OPTIONS = [
    Option("primetext", str, "", "text to start from; give -primetext last, without a value, to read it from stdin",
           "Sampling"),
    Option("primefile", str, "", "file with the text to start from; - = stdin", "Sampling", names="file"),
    *options_of(SamplingOptions).values(),
    Option("output", str, "", "file to write to, instead of stdout", "Output", names="file"),
    Option("verbose", bool, True, "0 = print only the text", "Output"),
]  # fmt: skip

SWITCHES = [
    click.Option([FROM_STDIN], is_flag=True, hidden=True),
    switch("until_newline", "end a text after its first line"),
    switch("json", "print a JSON object for each text, with the log probability of each token", "as_json"),
    switch("interactive", "type texts, see them continued, change settings along the way"),
]

NOT_INTERACTIVE = (
    "beam", "primetext", "primetext_from_stdin", "primefile", "unknown", "num_samples", "as_json", "output"
)  # fmt: skip

CONFLICTS = [
    *EXCLUSIVE,
    ("primetext", "primefile"),
    ("primetext_from_stdin", "primefile"),
    ("stop", "until_newline"),
    *(("interactive", other) for other in NOT_INTERACTIVE),
]

HELP = """Write text with a trained model.

CHECKPOINT is a file or a folder. In a folder, the checkpoint with the lowest validation loss is used. The text goes
to stdout as it is generated: the prime text, then -length characters (or words, for a word-level model), then a
newline.
"""


class SampleCommand(Command):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # a bare -primetext at the end means that the text comes from stdin; anywhere else the next word is the text
        flags = given(args, self.arity(ctx))
        if flags and args[-1] in ("-primetext", "--primetext") and flags[-1] == (args[-1], ""):
            args = [*args[:-1], FROM_STDIN]
        return super().parse_args(ctx, args)


def sample(checkpoint: str, as_json: bool, interactive: bool, **values: Any) -> None:
    exclude(*CONFLICTS)
    values |= with_defaults(OPTIONS, values)

    one_thread()
    from charrnn.checkpoints.checkpoint import Checkpoint
    from charrnn.sampling.conversation import Conversation
    from charrnn.sampling.generate import generate, make_sampler, prime_text, seeds
    from charrnn.sampling.output import destination, write_json, write_plain

    report = note if values["verbose"] else silent
    options = SamplingOptions(**{name: values[name] for name in options_of(SamplingOptions)})
    saved = Checkpoint.load(checkpoint)
    vocabulary = saved.vocabulary
    options = replace(options, stop=vocabulary.normalize("\n" if values["until_newline"] else options.stop))
    sampler = make_sampler(saved, options, report)
    report(described(saved))
    if interactive:
        converse(Conversation(sampler, options, answer))
        return
    prime = prime_text(given_text(values, vocabulary.encoding), vocabulary, options, report)
    if not prime and not options.beam:
        report(f"no -primetext: the first {vocabulary.unit} is drawn uniformly")
    written = generate(sampler, prime, options, scored=as_json)
    with destination(values["output"], printable) as stream:
        if as_json:
            write_json(stream, prime, [None] if options.beam else seeds(options), written)
        else:
            write_plain(stream, prime, options.num_samples, written, options.stop)


def described(saved: Checkpoint) -> str:
    """Return a line that identifies the model."""
    loss = "" if saved.val_loss is None else f", validation loss {saved.val_loss:.4f}"
    return f"{saved.options.model} from epoch {saved.epoch:.2f}{loss}"


def given_text(values: dict[str, Any], encoding: str) -> str:
    """Return the prime text as given: on the command line, in a file or on stdin."""
    if values["primetext_from_stdin"]:
        return read_stdin()
    text: str = read(values["primefile"], encoding) if values["primefile"] else values["primetext"]
    return text


def answer(text: str) -> None:
    """Show the answer to a command, which may have several lines."""
    for line in text.splitlines():
        note(line)


def converse(conversation: Conversation) -> None:
    """Answer every line of stdin."""
    from charrnn.sampling.output import destination

    with destination("", printable) as stream:
        for line in lines("type a text to continue; /help shows the commands, Ctrl-D quits"):
            try:
                conversation.answer(line, stream)
            except UserError as error:
                note(str(error))


command = SampleCommand(
    "sample",
    [click.Argument(["checkpoint"], type=click.Path()), *map(Flag, OPTIONS), *SWITCHES],
    callback=sample,
    help=HELP,
)
