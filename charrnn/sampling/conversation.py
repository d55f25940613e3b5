"""A conversation with a model: type a beginning, read how it goes on, change the settings on the way."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from charrnn.errors import UserError, nearest
from charrnn.sampling.choice import Choice
from charrnn.sampling.output import Stream, write_plain
from charrnn.sampling.sampler import Sampler
from charrnn.settings.option import Option

HELP = """Type a beginning and press Enter: the model goes on from it. An empty line goes on from the last one again.
  /NAME          show a setting: {names}
  /NAME VALUE    change it
  /help          this
  //text         a beginning that starts with /
Ctrl-C stops a text, Ctrl-D ends."""


class Conversation:
    """Answers lines: beginnings with a continuation each, /commands with a note.

    settings: length, seed and the fields of Choice, by their flags' names, with the Options that check them. The first
    continuation has the seed given, each further one the next. stop: what ends a text before its length does.
    """

    def __init__(
        self,
        sampler: Sampler,
        options: dict[str, Option],
        settings: dict[str, Any],
        note: Callable[[str], None],
        stop: str = "",
    ) -> None:
        self.sampler = sampler
        self.options = options
        self.settings = {name: settings[name] for name in options}
        self.note = note
        self.stop = stop
        self.beginning = ""

    def answer(self, line: str, stream: Stream) -> None:
        """Raises UserError for a setting or a beginning that cannot be."""
        if line.startswith("/") and not line.startswith("//"):
            self.note(self.command(line[1:]))
        else:
            self.go_on(line.removeprefix("/") if line.startswith("//") else line, stream)

    def command(self, words: str) -> str:
        """Obey what stood behind a slash, and say what came of it."""
        name, _, value = words.strip().partition(" ")
        if name == "help":
            return HELP.format(names=", ".join(self.options))
        if name not in self.options:
            raise UserError(f"there is no /{name}{nearest(name, ['help', *self.options])}: /help lists what there is")
        if value:
            changed = self.settings | {name: self.options[name].convert(value.strip())}
            choice(changed)
            self.settings = changed
        shown = self.settings[name]
        return f"{name} {shown:g}" if isinstance(shown, float) else f"{name} {int(shown)}"

    def go_on(self, beginning: str, stream: Stream) -> None:
        beginning = self.sampler.vocabulary.tidy(beginning) or self.beginning
        settings = self.settings
        seed = settings["seed"]
        written = self.sampler.write(beginning, settings["length"], choice(settings), [seed], self.stop)
        self.beginning = beginning
        settings["seed"] = (seed + 1) % 2**63
        try:
            write_plain(stream, beginning, 1, written, self.stop)
        except KeyboardInterrupt:  # enough of this text, not of the conversation
            stream.write("\n")
        stream.flush()


def choice(settings: dict[str, Any]) -> Choice:
    """The Choice among settings named as the flags are."""
    return Choice(settings["temperature"], not settings["sample"], settings["top_k"], settings["top_p"])


def converse(conversation: Conversation, stream: Stream) -> None:
    """Answer every line of stdin; on a terminal with a prompt, line editing and history."""
    on_terminal = sys.stdin.isatty()
    if on_terminal:
        conversation.note("type a beginning; /help tells more, Ctrl-D ends")
    for line in lines(on_terminal):
        try:
            conversation.answer(line, stream)
        except UserError as error:
            conversation.note(str(error))


def lines(on_terminal: bool) -> Iterator[str]:
    if not on_terminal:
        for data in sys.stdin.buffer:
            yield data.decode("utf-8", "surrogateescape").removesuffix("\n")
        return
    with suppress(ImportError):  # not every system has it
        import readline  # noqa: F401  input() edits lines with it
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return
