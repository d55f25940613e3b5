"""From the bytes of a text file to the numbers of its characters or words, in little memory.

A text is read in chunks, twice: ``survey`` finds out which characters there are, ``write_tokens`` writes
their numbers, at memory's speed; ``survey_words`` and ``write_words`` do the same for words. However large the text,
only one chunk of it is in memory.
"""

from __future__ import annotations

import codecs
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from charrnn.data.vocabulary import Vocabulary, Words, split_words
from charrnn.errors import UserError
from charrnn.settings.option import Encoding

if TYPE_CHECKING:
    from hashlib import _Hash

CHUNK = 1 << 19  # bytes: all that is made of them stays in the cache


CODES = 0x110000  # code points there are; byte values are the first 256


LONGEST = 1 << 20  # characters of a word: what has longer ones is no text of words


Tokens = NDArray[np.unsignedinteger[Any]]


Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Stamp:
    """What changes with a file's contents: its size in bytes, times in nanoseconds, and inode."""

    size: int
    modified: int
    changed: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@dataclass(frozen=True)
class Survey:
    """What one reading of a text tells: its SHA-256, its length in tokens, the lines that end in CRLF."""

    sha256: str
    length: int
    crlf_lines: int


class Source:
    """A text file, open for reading as often as needed. Errors name ``path``."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self.file = file
        self.stamp = self._stamp()

    def _stamp(self) -> Stamp:
        return Stamp.of(os.fstat(self.file.fileno()))

    def chunks(self) -> Iterator[bytes]:
        """The whole file, from its start. Raises UserError where it cannot be read."""
        try:
            self.file.seek(0)
            while chunk := self.file.read(CHUNK):
                yield chunk
        except OSError as error:
            raise unreadable(self.path, error) from None

    def check_unchanged(self, before: str, after: str) -> None:
        """Raises UserError where two readings, each given by its SHA-256, did not meet the same file."""
        if before != after or self.stamp != self._stamp():
            raise UserError(f"{self.path} changed while it was read: try again once it is finished")


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """Open a text. Raises UserError where that fails."""
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise unreadable(path, error) from None
    with file:
        yield Source(path, file)


def unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot read {path}: {error.strerror}")


def hash_text(path: Path) -> str:
    """The SHA-256 of a text. Raises UserError where it cannot be read."""
    digest = sha256()
    with open_source(path) as source:
        for chunk in source.chunks():
            digest.update(chunk)
    return digest.hexdigest()


class Decoder:
    """Turns the chunks of a text into codes: code points for utf-8, byte values for bytes."""

    def __init__(self, path: Path, encoding: Encoding) -> None:
        self.path = path
        self.encoding = encoding
        self.decoded = 0  # bytes so far
        self.pending = b""  # the beginning of a character that the next chunk completes

    def decode(self, chunk: bytes) -> Tokens:
        """The codes of the characters that this chunk completes: uint8 or uint32 (n,).

        Raises UserError, with the place of the first wrong byte, for what is not UTF-8. Surrogates are not.
        """
        if self.encoding == "bytes" or (not self.pending and chunk.isascii()):
            self.decoded += len(chunk)
            return np.frombuffer(chunk, np.uint8)
        return np.frombuffer(codecs.utf_32_le_encode(self.text(chunk))[0], "<u4")

    def text(self, chunk: bytes) -> str:
        """The characters, read as UTF-8, that this chunk completes. Raises UserError as ``decode`` does."""
        data = self.pending + chunk
        try:
            text, used = codecs.utf_8_decode(data, "strict", False)
        except UnicodeDecodeError as error:
            raise self._not_utf8(self.decoded + error.start) from None
        self.decoded += used
        self.pending = data[used:]
        return text

    def finish(self) -> None:
        """Raises UserError where the text ends within a character."""
        if self.pending:
            raise self._not_utf8(self.decoded)

    def _not_utf8(self, offset: int) -> UserError:
        return UserError(f"{self.path} is not UTF-8 at byte {offset}: convert it, or read it with -encoding bytes")


def survey(source: Source, encoding: Encoding, counts: Counts) -> Survey:
    """Read a text and add up in ``counts``, int64 (CODES,), how often each of its characters' codes occurs.

    Raises UserError for a text that is empty, unreadable or not in the encoding.
    """
    decoder = Decoder(source.path, encoding)
    digest = sha256()
    characters = crlf_lines = 0
    ends_in_cr = False
    for chunk in source.chunks():
        digest.update(chunk)
        crlf_lines += ends_in_cr and chunk.startswith(b"\n")
        if b"\r" in chunk:
            crlf_lines += chunk.count(b"\r\n")
        ends_in_cr = chunk.endswith(b"\r")
        codes = decoder.decode(chunk)
        characters += len(codes)
        counted = np.bincount(codes)
        present = np.flatnonzero(counted)
        counts[present] += counted[present]
    decoder.finish()
    if not characters:
        raise UserError(f"{source.path} is empty: put a text there")
    return Survey(digest.hexdigest(), characters, crlf_lines)


def write_tokens(source: Source, surveyed: Survey, vocabulary: Vocabulary, file: IO[bytes]) -> tuple[Tokens, str]:
    """Write the numbers of a text's characters to ``file`` in numpy's format.

    Returns them mapped from that very file, and the file's SHA-256. Raises UserError where the text is no
    longer the one that was surveyed, and OSError where the file cannot be written.
    """
    table = np.zeros(CODES, token_type(vocabulary))
    table[list(vocabulary.codes)] = np.arange(len(vocabulary))
    decoder = Decoder(source.path, vocabulary.encoding)

    def numbers(chunks: Iterator[bytes]) -> Iterator[Tokens]:
        return (table.take(decoder.decode(chunk)) for chunk in chunks)

    return _write(source, surveyed, table.dtype, numbers, file)


def _write(
    source: Source,
    surveyed: Survey,
    dtype: np.dtype[Any],
    numbers: Callable[[Iterator[bytes]], Iterator[Tokens]],
    file: IO[bytes],
) -> tuple[Tokens, str]:
    text_digest = sha256()
    header = npy_header(dtype, surveyed.length)
    file_digest = sha256(header)
    file.write(header)
    for tokens in numbers(digested(source.chunks(), text_digest)):
        file_digest.update(tokens.data)
        file.write(tokens.data)
    source.check_unchanged(surveyed.sha256, text_digest.hexdigest())
    file.flush()
    return map_tokens(file, dtype, len(header), surveyed.length), file_digest.hexdigest()


def digested(chunks: Iterator[bytes], digest: _Hash) -> Iterator[bytes]:
    """The same chunks, each added to a checksum."""
    for chunk in chunks:
        digest.update(chunk)
        yield chunk


def words(path: Path, encoding: Encoding, chunks: Iterator[bytes]) -> Iterator[list[str]]:
    """The words of a text, a list for each chunk, then the last ones.

    Raises UserError for what is not in the encoding, and for a word too long to be one.
    """
    decoder = Decoder(path, encoding)
    begun = ""  # the word that the next chunk goes on with
    for chunk in chunks:
        # of bytes: a character that a chunk's end cuts in two is whole again once it is encoded
        text = chunk.decode("utf-8", "surrogateescape") if encoding == "bytes" else decoder.text(chunk)
        text = begun + text
        found = split_words(text, encoding)
        begun = found.pop() if found and not ends_in_space(text, encoding) else ""
        if len(begun) > LONGEST:
            raise UserError(f"{path} has a word of over {LONGEST:,} characters: use -level char for such a text")
        yield found
    decoder.finish()
    yield [begun] if begun else []


def ends_in_space(text: str, encoding: Encoding) -> bool:
    return text[-1:].isspace() if encoding == "utf-8" else text[-1:] in " \t\n\r\v\f"


def survey_words(source: Source, encoding: Encoding, counts: Counter[str]) -> Survey:
    """Read a text and add up in ``counts`` how often each of its words occurs; otherwise as ``survey``."""
    digest = sha256()
    length = 0
    for found in words(source.path, encoding, digested(source.chunks(), digest)):
        length += len(found)
        counts.update(found)
    if not length:
        raise UserError(f"{source.path} has no words: put a text there")
    return Survey(digest.hexdigest(), length, 0)  # CR is white space


def write_words(source: Source, surveyed: Survey, vocabulary: Words, file: IO[bytes]) -> tuple[Tokens, str]:
    """Write the numbers of a text's words to ``file``; otherwise as ``write_tokens``."""
    dtype = token_type(vocabulary)

    def numbers(chunks: Iterator[bytes]) -> Iterator[Tokens]:
        for found in words(source.path, vocabulary.encoding, chunks):
            # a word without a number means that the text has changed, which will be noticed
            yield np.fromiter(map(vocabulary.ids.get, found, repeat(0)), dtype, len(found))

    return _write(source, surveyed, dtype, numbers, file)


def read_tokens(path: Path, checksum: str) -> Tokens | None:
    """Map the numbers in a file if it has this SHA-256; otherwise None. Raises OSError.

    The file is opened once: what was checked is what is mapped, even if it is replaced meanwhile.
    """
    digest = sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
        if digest.hexdigest() != checksum:
            return None
        file.seek(0)
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        return map_tokens(file, dtype, file.tell(), *shape)


def join(parts: Sequence[Tokens]) -> Tokens:
    """Several texts as one, mapped from a nameless temporary file. Raises OSError where there is no room for it."""
    if len(parts) == 1:
        return parts[0]
    with TemporaryFile() as file:
        for part in parts:
            file.write(part.data)
        file.flush()
        return map_tokens(file, parts[0].dtype, 0, sum(map(len, parts)))


def renumber(tokens: Tokens, own: Vocabulary, other: Vocabulary) -> Tokens:
    """The same tokens with another vocabulary's numbers, mapped from a nameless temporary file.

    ``other`` has a number for every token of ``own``. Raises OSError where there is no room for the file.
    """
    table = np.array([other.id_of(code) for code in own.codes], token_type(other))
    with TemporaryFile() as file:
        for start in range(0, len(tokens), CHUNK):
            file.write(table[tokens[start : start + CHUNK]].data)
        file.flush()
        return map_tokens(file, table.dtype, 0, len(tokens))


def token_type(vocabulary: Vocabulary) -> np.dtype[Any]:
    """The smallest unsigned integers that hold every number."""
    return np.min_scalar_type(len(vocabulary) - 1)


def npy_header(dtype: np.dtype[Any], length: int) -> bytes:
    header = BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue()


def map_tokens(file: IO[bytes], dtype: np.dtype[Any], offset: int, length: int) -> Tokens:
    return np.memmap(file, dtype, "r", offset, (length,))
