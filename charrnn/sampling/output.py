"""Where written text goes: streamed to stdout as it is made, or into a file that is whole or not there."""

from __future__ import annotations

import codecs
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from charrnn.errors import UserError
from charrnn.files import interruptible, replacing
from charrnn.sampling.sampler import Written

PATIENCE = 0.02  # seconds that text may wait for more: below what an eye sees, above what a write costs


class Stream:
    """Text that goes out as it is made, byte for byte, or through ``shown`` where that is given: for a terminal."""

    def __init__(self, file: IO[bytes], shown: Callable[[str], str] | None = None) -> None:
        self.file = file
        self.shown = shown
        # characters may come byte by byte: a terminal is shown whole ones
        self.decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.flushed = time.monotonic()

    def write(self, text: str) -> None:
        data = text.encode("utf-8", "surrogateescape")
        if self.shown:
            data = self.shown(self.decoder.decode(data)).encode()
        self.file.write(data)
        now = time.monotonic()
        if now - self.flushed > PATIENCE:
            self.file.flush()
            self.flushed = now

    def flush(self) -> None:
        """Show all of what was written, the bytes of a character that was left incomplete too."""
        if self.shown:
            self.file.write(self.shown(self.decoder.decode(b"", final=True)).encode())
        self.file.flush()


@contextmanager
def destination(path: str, shown: Callable[[str], str]) -> Iterator[Stream]:
    """Stdout, or the file of that path, which is replaced once all of it is written. Raises UserError.

    shown: what a terminal is given for a text. Ctrl-C raises KeyboardInterrupt while the text is written: what has
    been made goes out to stdout, and a file is as it was.
    """
    with interruptible():
        if not path:
            stream = Stream(sys.stdout.buffer, shown if sys.stdout.isatty() else None)
            try:
                yield stream
            finally:
                stream.flush()
            return
        try:
            with replacing(Path(path)) as file:
                yield Stream(file)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; name another -output") from None


def write_plain(stream: Stream, prime: str, texts: int, written: Iterable[Written], stop: str = "") -> None:
    """The prime text, what follows it and a newline, for each text; a line ---- between two of them.

    The first text goes out as it is made, the others, made beside it, once it has ended.
    """
    others: list[list[str]] = [[] for _ in range(texts)]
    stream.write(prime)
    tail = ""
    for k, text, _ in written:
        if k:
            others[k].append(text)
        else:
            stream.write(text)
            tail = (tail + text)[-len(stop) :] if stop else ""
    stream.write(end_of_line(tail, stop))
    for characters in others[1:]:
        text = "".join(characters)
        stream.write(f"----\n{prime}{text}{end_of_line(text, stop)}")


def end_of_line(text: str, stop: str) -> str:
    """The newline after a text, unless it is what ended the text."""
    return "" if stop.endswith("\n") and text.endswith(stop) else "\n"


def write_json(stream: Stream, prime: str, seeds: Sequence[int | None], written: Iterable[Written]) -> None:
    """One JSON object in a line for each text, with the natural log probability of each of its characters.

    seeds: one a text; None where the text follows from none.
    """
    texts: list[list[Written]] = [[] for _ in seeds]
    for character in written:
        texts[character.stream].append(character)
    for k, (seed, characters) in enumerate(zip(seeds, texts, strict=True)):
        # joined as bytes: under the encoding bytes one character may have come in several pieces
        data = "".join(character.text for character in characters).encode("utf-8", "surrogateescape")
        sample: dict[str, Any] = {"sample": k, "seed": seed, "prime": prime}
        sample["text"] = data.decode("utf-8", "surrogateescape")
        sample["log_probabilities"] = [character.log_probability for character in characters]
        stream.write(json.dumps(sample) + "\n")
