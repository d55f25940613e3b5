"""Tokens, which are characters or words, and their numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import exp, inf, log
from typing import Any, ClassVar, get_args

from charrnn.errors import UserError
from charrnn.settings.option import Encoding, Level


def check_same(ours: Vocabulary, theirs: Vocabulary, our_name: str, their_name: str) -> None:
    """Raises UserError, naming the characters, where two vocabularies differ."""
    if ours == theirs:
        return
    if ours.level != theirs.level:
        raise UserError(f"{our_name} is read as {ours.units}, {their_name} as {theirs.units}: change -level")
    if ours.encoding != theirs.encoding:
        raise UserError(f"{our_name} is read as {ours.encoding}, {their_name} as {theirs.encoding}: change -encoding")
    mine, other = set(ours.codes), set(theirs.codes)
    only = [(our_name, ours, mine - other), (their_name, theirs, other - mine)]
    differences = "; ".join(
        f"only {name} has {' '.join(vocabulary.name(code) for code in sorted(codes)[:20])}"
        f"{f' and {len(codes) - 20} more' if len(codes) > 20 else ''}"
        for name, vocabulary, codes in only
        if codes
    )
    raise UserError(f"the characters differ: {differences}; train on a text with the same characters")


ENCODINGS: tuple[str, ...] = get_args(Encoding)


EOS = "<eos>"  # the word that stands for a newline, as in the PTB reader


LARGEST = 12_000_000  # bytes of all words together: a checkpoint with more is not read again


@dataclass(frozen=True)
class Vocabulary:
    """The characters of a text in ascending order; a character's number is its place, from 0.

    codes: code points for the encoding ``utf-8``, byte values for ``bytes``. Text is always handled as
    ``str``; under ``bytes`` it stands for its UTF-8 bytes, and bytes that are not UTF-8 appear as
    Python's surrogate escapes, so that any byte string survives the round trip. ``Words`` is the same for words.
    """

    codes: tuple[Any, ...]
    encoding: Encoding = "utf-8"

    level: ClassVar[Level] = "char"
    unit: ClassVar[str] = "character"

    def __post_init__(self) -> None:
        self._check_encoding()
        limit = 0x110000 if self.encoding == "utf-8" else 256
        ascending = all(a < b for a, b in zip(self.codes, self.codes[1:], strict=False))
        if not self.codes or not ascending or self.codes[0] < 0 or self.codes[-1] >= limit:
            raise UserError("a vocabulary needs distinct characters in ascending order, at least one")

    def _check_encoding(self) -> None:
        if self.encoding not in ENCODINGS:
            raise UserError(f"unknown encoding {self.encoding!r}: use one of {', '.join(ENCODINGS)}")

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def units(self) -> str:
        """What messages call several tokens."""
        return f"{self.unit}s"

    @cached_property
    def numbers(self) -> dict[Any, int]:
        """Code -> number."""
        return {code: number for number, code in enumerate(self.codes)}

    @cached_property
    def newline(self) -> int | None:
        """The number of the newline, None where the text had none."""
        return self.numbers.get(ord("\n"))

    def number(self, code: Any) -> int:
        """The number of a code. Raises KeyError(code) for an unknown one."""
        return self.numbers[code]

    def lacks(self, codes: Iterable[Any]) -> list[Any]:
        """Those of the codes that have no number, each once, in ascending order."""
        return sorted(set(codes) - self.numbers.keys())

    def split(self, text: str) -> Sequence[Any]:
        """The codes of a text, whether or not the vocabulary has them."""
        if self.encoding == "bytes":
            return text.encode("utf-8", "surrogateescape")
        return [ord(character) for character in text]

    def tidy(self, text: str) -> str:
        """The text as writing would have it: characters stay as they are."""
        return text

    def encode(self, text: str) -> list[int]:
        """The numbers of a text's tokens. Raises KeyError(code) at the first unknown one."""
        return [self.number(code) for code in self.split(text)]

    def unknown(self, text: str) -> list[str]:
        """The distinct tokens of a text that the vocabulary lacks, in ascending order."""
        return [self.name(code) for code in self.lacks(self.split(text))]

    def decode(self, numbers: Iterable[int]) -> str:
        codes = [self.codes[number] for number in numbers]
        if self.encoding == "bytes":
            return bytes(codes).decode("utf-8", "surrogateescape")
        return "".join(map(chr, codes))

    @cached_property
    def _pieces(self) -> list[str]:
        return [self.decode([number]) for number in range(len(self))]

    def piece(self, number: int, after: int | None) -> str:
        """One token as text, where it follows another one; None at the beginning."""
        return self._pieces[number]

    def name(self, code: Any) -> str:
        """How messages call a character: quoted, with escapes for what does not print."""
        return f"byte 0x{code:02x}" if self.encoding == "bytes" and code > 126 else repr(chr(code))

    def to_dict(self) -> dict[str, Any]:
        """Plain strings and numbers, as vocab.json and the checkpoint keep them."""
        tokens = list(self.codes) if self.encoding == "bytes" else [chr(code) for code in self.codes]
        return {"encoding": self.encoding, "tokens": tokens}

    @classmethod
    def from_dict(cls, saved: Any) -> Vocabulary:
        """The inverse of to_dict. Raises UserError for anything else."""
        match saved:
            case {"level": "word", "encoding": encoding, "tokens": str(tokens), "unk": str(unk)}:
                return Words(tuple(tokens.split("\n")), encoding, unk)
            case {"level": _}:
                pass
            case {"encoding": "bytes", "tokens": [*codes]} if all(type(c) is int for c in codes):
                return cls(tuple(codes), "bytes")
            case {"encoding": "utf-8", "tokens": [*tokens]} if all(
                isinstance(t, str) and len(t) == 1 and not 0xD800 <= ord(t) < 0xE000 for t in tokens
            ):
                return cls(tuple(map(ord, tokens)), "utf-8")
        raise UserError("this is not a saved vocabulary")


@dataclass(frozen=True)
class Words(Vocabulary):
    """The words of a text; a word's number is its place, from 0.

    codes: the words, in which white space separates; ``<eos>`` stands for a newline. Under ``utf-8`` white space is
    Unicode's, under ``bytes`` it is ASCII's. unk: the one of the words that stands for all that are not among them,
    or '' for none.
    """

    unk: str = ""

    level: ClassVar[Level] = "word"
    unit: ClassVar[str] = "word"

    def __post_init__(self) -> None:
        self._check_encoding()
        text = " ".join(self.codes)
        try:
            size = len(text.encode("utf-8", "surrogateescape" if self.encoding == "bytes" else "strict"))
        except UnicodeEncodeError:
            raise UserError(f"a vocabulary has words that are not {self.encoding}") from None
        if size > LARGEST:
            raise UserError(
                f"{len(self.codes):,} different words, {size / 1e6:.0f} MB of them, are too many for a model: "
                "put one word in place of the rare ones, or use -level char"
            )
        if not self.codes or self.split(text) != list(self.codes) or len(self.numbers) < len(self.codes):
            raise UserError("a vocabulary needs distinct words without white space in them, at least one")
        if self.unk and (self.unk == EOS or self.unk not in self.numbers):
            raise UserError(f"{self.unk} cannot stand for unknown words: it is not among the words of the model")

    @cached_property
    def newline(self) -> int | None:
        return self.numbers.get(EOS)

    def with_unk(self, unk: str) -> Words:
        """The same words with that one for all others. Raises UserError where it is none of them."""
        return Words(self.codes, self.encoding, unk)

    def number(self, code: Any) -> int:
        found = self.numbers.get(code)
        return self.numbers[self.unk or code] if found is None else found

    def lacks(self, codes: Iterable[Any]) -> list[Any]:
        return [] if self.unk else super().lacks(codes)

    def split(self, text: str) -> Sequence[Any]:
        return split(text, self.encoding)

    def tidy(self, text: str) -> str:
        """The text with single spaces between words, and none beside a newline."""
        return "".join(joined(self.split(text)))

    def decode(self, numbers: Iterable[int]) -> str:
        return "".join(joined(self.codes[number] for number in numbers))

    def piece(self, number: int, after: int | None) -> str:
        """The word, and before it a space where it follows a word; a newline for ``<eos>``."""
        return spaced(self.codes[number], None if after is None else self.codes[after])

    def name(self, code: Any) -> str:
        return repr(code)

    def to_dict(self) -> dict[str, Any]:
        """One string of all words: a list would make a checkpoint of many of them slow to read and to check."""
        return {"level": "word", "encoding": self.encoding, "tokens": "\n".join(self.codes), "unk": self.unk}


def split(text: str, encoding: Encoding) -> list[str]:
    """The words of a text, with ``<eos>`` for each newline."""
    if encoding == "bytes":
        data = text.encode("utf-8", "surrogateescape").replace(b"\n", f" {EOS} ".encode())
        return [word.decode("utf-8", "surrogateescape") for word in data.split()]
    return text.replace("\n", f" {EOS} ").split()


def joined(words: Iterable[str]) -> Iterator[str]:
    """The pieces of the text that words make."""
    before = None
    for word in words:
        yield spaced(word, before)
        before = word


def spaced(word: str, before: str | None) -> str:
    if word == EOS:
        return "\n"
    return word if before is None or before == EOS else f" {word}"


def check_same_vocabulary(names: Sequence[str], vocabularies: Sequence[Vocabulary]) -> None:
    """Raises UserError where checkpoints, of those names, know different characters."""
    first, one = names[0], vocabularies[0]
    for name, other in zip(names, vocabularies, strict=True):
        ours, theirs = set(one.codes), set(other.codes)
        if (one.codes, one.encoding) == (other.codes, other.encoding):
            continue
        if one.level != other.level:
            difference = f"one is trained on {one.units}, the other on {other.units}"
        elif one.encoding != other.encoding:
            difference = f"one is trained on {one.encoding}, the other on {other.encoding}"
        elif ours == theirs:
            difference = f"their {one.units} are numbered differently"
        else:
            codes = [one.name(code) for code in sorted(ours ^ theirs)]
            difference = f"only one of them knows {', '.join(codes[:20])}{' ...' if len(codes) > 20 else ''}"
        raise UserError(
            f"{first} and {name} cannot be averaged: {difference}; train both on texts with the same {one.units}"
        )


def perplexity(loss: float) -> float:
    """Of a loss in nats."""
    return exp(loss) if loss < 700 else inf


def bits(loss: float) -> float:
    """A loss in nats, in bits."""
    return loss / log(2)


def described(loss: float, level: Level) -> str:
    """The figure in which losses at this level are compared, from a loss in nats per token."""
    return f"perplexity {perplexity(loss):.2f} per word" if level == "word" else f"{bits(loss):.3f} bits per character"
