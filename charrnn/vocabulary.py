"""Characters and their numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from charrnn.errors import UserError

Encoding = Literal["utf-8", "bytes"]
ENCODINGS: tuple[str, ...] = get_args(Encoding)


@dataclass(frozen=True)
class Vocabulary:
    """The characters of a text in ascending order; a character's number is its place, from 0.

    codes: code points for the encoding ``utf-8``, byte values for ``bytes``. Text is always handled as
    ``str``; under ``bytes`` it stands for its UTF-8 bytes, and bytes that are not UTF-8 appear as
    Python's surrogate escapes, so that any byte string survives the round trip.
    """

    codes: tuple[int, ...]
    encoding: Encoding = "utf-8"

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS:
            raise UserError(f"unknown encoding {self.encoding!r}: use one of {', '.join(ENCODINGS)}")
        limit = 0x110000 if self.encoding == "utf-8" else 256
        ascending = all(a < b for a, b in zip(self.codes, self.codes[1:], strict=False))
        if not self.codes or not ascending or self.codes[0] < 0 or self.codes[-1] >= limit:
            raise UserError("a vocabulary needs distinct characters in ascending order, at least one")

    def __len__(self) -> int:
        return len(self.codes)

    @cached_property
    def numbers(self) -> dict[int, int]:
        """Code -> number."""
        return {code: number for number, code in enumerate(self.codes)}

    def split(self, text: str) -> Sequence[int]:
        """The codes of a text, whether or not the vocabulary has them."""
        if self.encoding == "bytes":
            return text.encode("utf-8", "surrogateescape")
        return [ord(character) for character in text]

    def encode(self, text: str) -> list[int]:
        """The numbers of a text's characters. Raises KeyError(code) at the first unknown one."""
        return [self.numbers[code] for code in self.split(text)]

    def unknown(self, text: str) -> list[str]:
        """The distinct characters of a text that the vocabulary lacks, in ascending order."""
        return [self.name(code) for code in sorted(set(self.split(text)) - self.numbers.keys())]

    def decode(self, numbers: Iterable[int]) -> str:
        codes = [self.codes[number] for number in numbers]
        if self.encoding == "bytes":
            return bytes(codes).decode("utf-8", "surrogateescape")
        return "".join(map(chr, codes))

    def name(self, code: int) -> str:
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
            case {"encoding": "bytes", "tokens": [*codes]} if all(type(c) is int for c in codes):
                return cls(tuple(codes), "bytes")
            case {"encoding": "utf-8", "tokens": [*tokens]} if all(
                isinstance(t, str) and len(t) == 1 and not 0xD800 <= ord(t) < 0xE000 for t in tokens
            ):
                return cls(tuple(map(ord, tokens)), "utf-8")
        raise UserError("this is not a saved vocabulary")
