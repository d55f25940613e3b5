"""Vocabularies of characters and of words: their token ids, and the units in which their losses are compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import exp, inf, log
from typing import Any, ClassVar, get_args

from charrnn.errors import UserError, listed
from charrnn.settings.option import Encoding, Level

ENCODINGS: tuple[str, ...] = get_args(Encoding)
EOS = "<eos>"  # the word that stands for a newline, as in the PTB reader
LARGEST = 12_000_000  # bytes of all words together: small enough for a checkpoint, whose pickle has a limit


@dataclass(frozen=True)
class Figure:
    """A loss in the unit in which people compare models."""

    # column heading
    name: str
    # key in JSON
    key: str
    value: float
    # value and unit, as in "1.853 bits per character"
    text: str


@dataclass(frozen=True)
class Vocabulary:
    """The characters of a text in ascending order; the id of a character is its index.

    Text is always a ``str``. With the encoding ``bytes``, it stands for its UTF-8 bytes, and bytes that are not UTF-8
    appear as Python's surrogate escapes, so that any byte string survives a round trip. ``Words`` is the vocabulary of
    words. Raises UserError unless the codes are distinct, in ascending order and valid in the encoding.
    """

    # code points for the encoding ``utf-8``, byte values for ``bytes``; the words themselves in ``Words``
    codes: tuple[Any, ...]
    encoding: Encoding = "utf-8"

    level: ClassVar[Level] = "char"
    # one token, in messages
    unit: ClassVar[str] = "character"
    # several tokens, in messages and JSON
    units: ClassVar[str] = "characters"
    # how many tokens an overview shows; None for all
    overview: ClassVar[int | None] = None
    # what to do about unknown tokens in a text
    remedy: ClassVar[str] = "remove them, or use a model trained on such text"

    def __post_init__(self) -> None:
        self._check_encoding()
        limit = 0x110000 if self.encoding == "utf-8" else 256
        ascending = all(a < b for a, b in zip(self.codes, self.codes[1:], strict=False))
        if not self.codes or not ascending or self.codes[0] < 0 or self.codes[-1] >= limit:
            raise UserError("a vocabulary needs at least one character, all distinct and in ascending order")

    def _check_encoding(self) -> None:
        if self.encoding not in ENCODINGS:
            raise UserError(f"unknown encoding {self.encoding!r}: use one of {', '.join(ENCODINGS)}")

    def __len__(self) -> int:
        return len(self.codes)

    @cached_property
    def ids(self) -> dict[Any, int]:
        """The id of each code."""
        return {code: token for token, code in enumerate(self.codes)}

    @cached_property
    def newline(self) -> int | None:
        """The id of the newline, None if it is not in the vocabulary."""
        return self.ids.get(ord("\n"))

    def id_of(self, code: Any) -> int:
        """Return the id of a code. Raises KeyError(code) if it is unknown."""
        return self.ids[code]

    def unknown_codes(self, codes: Iterable[Any]) -> list[Any]:
        """Return the distinct codes that are not in the vocabulary, in ascending order."""
        return sorted(set(codes) - self.ids.keys())

    def split(self, text: str) -> Sequence[Any]:
        """Return the codes of a text's tokens, known or unknown."""
        if self.encoding == "bytes":
            return text.encode("utf-8", "surrogateescape")
        return [ord(character) for character in text]

    def normalize(self, text: str) -> str:
        """Return the text in the form that ``decode`` produces. For characters, that is the text itself."""
        return text

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text's tokens. Raises KeyError(code) at the first unknown one."""
        return [self.id_of(code) for code in self.split(text)]

    def unknown_tokens(self, text: str) -> list[str]:
        """Return the names of a text's distinct unknown tokens, in ascending order."""
        return [self.name(code) for code in self.unknown_codes(self.split(text))]

    def unknown_error(self, text: str, tokens: Iterable[str], remedy: str = "", place: str = "") -> UserError:
        """Return the error for unknown tokens, given by name, in a text. ``text`` is what messages call the text."""
        return UserError(
            f"{text} has {listed(tokens)}{place}, which the model's vocabulary does not contain: "
            f"{remedy or self.remedy}"
        )

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text that these tokens make up."""
        codes = [self.codes[token] for token in ids]
        if self.encoding == "bytes":
            return bytes(codes).decode("utf-8", "surrogateescape")
        return "".join(map(chr, codes))

    @cached_property
    def _texts(self) -> list[str]:
        return [self.decode([token]) for token in range(len(self))]

    def token_text(self, token: int, before: int | None) -> str:
        """Return the text of one token that follows the token ``before``, which is None at the beginning of a text."""
        return self._texts[token]

    def name(self, code: Any) -> str:
        """Return what messages call a code: the quoted character, escaped if it is not printable, or ``byte 0xff``."""
        return f"byte 0x{code:02x}" if self.encoding == "bytes" and code > 126 else repr(chr(code))

    def difference(self, other: Vocabulary, mine: str, others: str) -> str:
        """Return how the tokens or ids of two vocabularies differ, or '' if they do not.

        ``mine`` and ``others`` are what messages call their owners. The words for unknown words are not compared.
        """
        if self.level != other.level:
            return f"{mine} is read as {self.units}, {others} as {other.units}"
        if self.encoding != other.encoding:
            return f"{mine} is read as {self.encoding}, {others} as {other.encoding}"
        if self.codes == other.codes:
            return ""
        only = [(mine, self.ids.keys() - other.ids.keys()), (others, other.ids.keys() - self.ids.keys())]
        parts = [f"only {owner} has {listed(map(self.name, sorted(codes)))}" for owner, codes in only if codes]
        return "; ".join(parts) or f"their {self.units} have different ids"

    @staticmethod
    def figure(loss: float) -> Figure:
        """Convert a loss in nats per token to the figure that people quote: bits per character."""
        return Figure("bpc", "bpc", bits(loss), f"{bits(loss):.3f} bits per character")

    @staticmethod
    def log_figure(loss: float) -> str:
        """Return what follows the loss in a log: nothing for characters, as in char-rnn."""
        return ""

    @staticmethod
    def describe(loss: float) -> str:
        """Return a description of a loss in nats per token, in every common unit."""
        return f"loss {loss:.4f} nats, {bits(loss):.4f} bits per character, perplexity {perplexity(loss):.4f}"

    def to_dict(self) -> dict[str, Any]:
        """Return the vocabulary as plain strings and numbers, for vocab.json and checkpoints."""
        tokens = list(self.codes) if self.encoding == "bytes" else [chr(code) for code in self.codes]
        return {"encoding": self.encoding, "tokens": tokens}

    @classmethod
    def from_dict(cls, saved: Any) -> Vocabulary:
        """Return the vocabulary that ``to_dict`` saved. Raises UserError for anything else."""
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
    """The words of a text, separated by white space; ``<eos>`` stands for a newline.

    White space is Unicode's with the encoding ``utf-8``, and ASCII's with ``bytes``. The id of a word is its index.
    """

    # the word of the vocabulary that stands for all unknown ones; '' for none
    unk: str = ""

    level: ClassVar[Level] = "word"
    unit: ClassVar[str] = "word"
    units: ClassVar[str] = "words"
    overview: ClassVar[int | None] = 200
    remedy: ClassVar[str] = f"name a word to stand for them with -unk, {Vocabulary.remedy}"

    def __post_init__(self) -> None:
        self._check_encoding()
        text = " ".join(self.codes)
        try:
            size = len(text.encode("utf-8", "surrogateescape" if self.encoding == "bytes" else "strict"))
        except UnicodeEncodeError:
            raise UserError(f"a vocabulary has words that are not {self.encoding}") from None
        if size > LARGEST:
            raise UserError(
                f"{len(self.codes):,} different words ({size / 1e6:.0f} MB) are too many for a model: "
                "replace the rare ones with a single word, or use -level char"
            )
        if not self.codes or self.split(text) != list(self.codes) or len(self.ids) < len(self.codes):
            raise UserError("a vocabulary needs at least one word, all distinct and without white space")
        if self.unk and (self.unk == EOS or self.unk not in self.ids):
            raise UserError(f"{self.unk} cannot stand for unknown words: it is not a word of the model")

    @cached_property
    def newline(self) -> int | None:
        return self.ids.get(EOS)

    def with_unk(self, unk: str) -> Words:
        """Return the same words with ``unk`` for unknown ones. Raises UserError if ``unk`` is not one of the words."""
        return Words(self.codes, self.encoding, unk)

    def id_of(self, code: Any) -> int:
        found = self.ids.get(code)
        return self.ids[self.unk or code] if found is None else found

    def unknown_codes(self, codes: Iterable[Any]) -> list[Any]:
        return [] if self.unk else super().unknown_codes(codes)

    def split(self, text: str) -> Sequence[Any]:
        return split_words(text, self.encoding)

    def normalize(self, text: str) -> str:
        """Return the text with single spaces between words and none next to a newline."""
        return "".join(spaced_words(self.split(text)))

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(spaced_words(self.codes[token] for token in ids))

    def token_text(self, token: int, before: int | None) -> str:
        """Return the word, after a space if it follows a word; a newline for ``<eos>``."""
        return spaced(self.codes[token], None if before is None else self.codes[before])

    def name(self, code: Any) -> str:
        return repr(code)

    @staticmethod
    def figure(loss: float) -> Figure:
        """Convert a loss in nats per token to the figure that people quote: perplexity per word."""
        return Figure("perplexity", "ppl", perplexity(loss), f"perplexity {perplexity(loss):.2f} per word")

    @staticmethod
    def log_figure(loss: float) -> str:
        return f" ({Words.figure(loss).text})"

    @staticmethod
    def describe(loss: float) -> str:
        return f"loss {loss:.4f} nats per word, perplexity {perplexity(loss):.4f}"

    def to_dict(self) -> dict[str, Any]:
        """Return the words as one string: a long list would make a checkpoint slow to read and to check."""
        return {"level": "word", "encoding": self.encoding, "tokens": "\n".join(self.codes), "unk": self.unk}


VOCABULARIES: dict[Level, type[Vocabulary]] = {"char": Vocabulary, "word": Words}


def split_words(text: str, encoding: Encoding) -> list[str]:
    """Return the words of a text, with ``<eos>`` for each newline."""
    if encoding == "bytes":
        data = text.encode("utf-8", "surrogateescape").replace(b"\n", f" {EOS} ".encode())
        return [word.decode("utf-8", "surrogateescape") for word in data.split()]
    return text.replace("\n", f" {EOS} ").split()


def spaced_words(words: Iterable[str]) -> Iterator[str]:
    """Yield each word with the space that goes before it."""
    before = None
    for word in words:
        yield spaced(word, before)
        before = word


def spaced(word: str, before: str | None) -> str:
    if word == EOS:
        return "\n"
    return word if before is None or before == EOS else f" {word}"


def perplexity(loss: float) -> float:
    """Return the perplexity for a loss in nats; inf if it is too large for a float."""
    return exp(loss) if loss < 700 else inf


def bits(loss: float) -> float:
    """Convert a loss from nats to bits."""
    return loss / log(2)
