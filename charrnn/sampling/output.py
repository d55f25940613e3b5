"""The destination of generated text: stdout, at once, or a file, which is replaced once the text is complete."""

from __future__ import annotations

import codecs
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from charrnn.errors import UserError, foreign
from charrnn.files import interruptible, replacing
from charrnn.sampling.sampler import Written

PATIENCE = 0.02  # seconds between flushes: too short to notice, but long enough to avoid most flushes


class Stream:
    """Writes text to a file as it is generated: byte for byte, or for a terminal as ``shown`` converts it."""

    def __init__(self, file: IO[bytes], shown: Callable[[str], str] | None = None) -> None:
        self.file = file
        self.shown = shown
        # a character may arrive byte by byte, but a terminal is shown only whole ones
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
        """Show everything written so far, including the bytes of an incomplete character."""
        if self.shown:
            self.file.write(self.shown(self.decoder.decode(b"", final=True)).encode())
        self.file.flush()


@contextmanager
def destination(path: str, shown: Callable[[str], str]) -> Iterator[Stream]:
    """Open stdout if ``path`` is empty, or else the file, which is replaced once all text is written.

    A terminal gets the text as ``shown`` converts it. Inside this context, Ctrl-C raises KeyboardInterrupt: stdout
    keeps the text written so far, and a file keeps its old content. Raises UserError if the file cannot be written.
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
                yield Stream(file, shown if file.isatty() else None)
        except OSError as error:
            if foreign(error):
                raise
            raise UserError(f"cannot write {path}: {error.strerror}; choose another -output") from None


def write_plain(stream: Stream, prime: str, texts: int, written: Iterable[Written], stop: str = "") -> None:
    """Write each text as the prime text, its continuation and a newline, with a line ---- between texts.

    The first text is written as it is generated. The others, generated at the same time, follow once it has ended.
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
    for pieces in others[1:]:
        text = "".join(pieces)
        stream.write(f"----\n{prime}{text}{end_of_line(text, stop)}")


def end_of_line(text: str, stop: str) -> str:
    """Return the newline that follows a text, or '' if the text already ends with one."""
    return "" if stop.endswith("\n") and text.endswith(stop) else "\n"


def write_json(stream: Stream, prime: str, seeds: Sequence[int | None], written: Iterable[Written]) -> None:
    """Write a line of JSON for each text, with the natural log probability of each of its tokens.

    ``seeds`` has one seed for each text, or None for a text that does not depend on a seed.
    """
    texts: list[list[Written]] = [[] for _ in seeds]
    for token in written:
        texts[token.stream].append(token)
    for k, (seed, tokens) in enumerate(zip(seeds, texts, strict=True)):
        text = "".join(whole_characters(token.text for token in tokens))
        sample: dict[str, Any] = {"sample": k, "seed": seed, "prime": prime, "text": text}
        sample["log_probabilities"] = [token.log_probability for token in tokens]
        stream.write(json.dumps(sample) + "\n")


def whole_characters(pieces: Iterable[str]) -> Iterator[str]:
    """Join the bytes of each character. With the encoding ``bytes``, they come one by one."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    for piece in pieces:
        if text := decoder.decode(piece.encode("utf-8", "surrogateescape")):
            yield text
    if rest := decoder.decode(b"", final=True):
        yield rest
