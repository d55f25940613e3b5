"""A conversation with a model: type a text, read how the model continues it, change settings along the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from charrnn.errors import UserError, nearest
from charrnn.sampling.choice import Choice
from charrnn.sampling.generate import generate
from charrnn.sampling.output import Stream, write_plain
from charrnn.sampling.sampler import Sampler
from charrnn.settings.option import options_of
from charrnn.settings.sampling import SamplingOptions

CHANGEABLE = ("temperature", "length", "top_k", "top_p", "sample", "seed")

HELP = f"""Type a text and press Enter; the model continues it. An empty line continues the last text again.
  /NAME          show a setting: {", ".join(CHANGEABLE)}
  /NAME VALUE    change it
  /help          show this
  //text         a text that starts with /
Ctrl-C stops the model's text, Ctrl-D ends the conversation."""


class Conversation:
    """Answers lines: a text with its continuation, and a /command with a note.

    The first continuation uses the seed of the options, and each later one uses the next seed.
    """

    def __init__(self, sampler: Sampler, options: SamplingOptions, note: Callable[[str], None]) -> None:
        self.sampler = sampler
        self.options = options
        self.note = note
        self.prime = ""

    def answer(self, line: str, stream: Stream) -> None:
        """Answer a line.

        Raises UserError for an unknown command, an invalid value, or a text with unknown tokens.
        """
        if line.startswith("/") and not line.startswith("//"):
            self.note(self.command(line[1:]))
        else:
            self.continue_text(line.removeprefix("/") if line.startswith("//") else line, stream)

    def command(self, words: str) -> str:
        """Carry out the command after a slash, and return its answer."""
        name, _, value = words.strip().partition(" ")
        if name == "help":
            return HELP
        if name not in CHANGEABLE:
            raise UserError(f"unknown command /{name}{nearest(name, ['help', *CHANGEABLE])}; /help lists the commands")
        if value:
            changed = replace(self.options, **{name: options_of(SamplingOptions)[name].convert(value.strip())})
            Choice.of(changed)  # raises UserError for a temperature of 0
            self.options = changed
        shown = getattr(self.options, name)
        return f"{name} {shown:g}" if isinstance(shown, float) else f"{name} {int(shown)}"

    def continue_text(self, text: str, stream: Stream) -> None:
        """Write the text and its continuation to the stream."""
        prime = self.sampler.vocabulary.normalize(text) or self.prime
        written = generate(self.sampler, prime, self.options)
        self.prime = prime
        self.options = replace(self.options, seed=(self.options.seed + 1) % 2**63)
        try:
            write_plain(stream, prime, 1, written, self.options.stop)
        except KeyboardInterrupt:  # ends this text, not the conversation
            stream.write("\n")
        stream.flush()
