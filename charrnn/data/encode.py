"""Encode text files as token ids, using little memory.

A text is read in chunks, twice: first to survey its tokens, then to write their ids. ``CharacterEncoder`` does both for
characters, ``WordEncoder`` for words. Only one chunk is in memory, however large the text is.
"""

from __future__ import annotations

import codecs
import os
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import file_digest, sha256
from io import BytesIO
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any, Protocol
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from charrnn.data.vocabulary import Vocabulary, Words, split_words
from charrnn.errors import UserError, unreadable
from charrnn.files import open_regular
from charrnn.settings.option import Encoding, Level

if TYPE_CHECKING:
    from hashlib import _Hash

CHUNK = 1 << 19  # bytes: small enough that everything made from a chunk fits into the processor's cache
CODES = 0x110000  # number of Unicode code points; byte values are the first 256
MOST = 1 << 30  # bytes read at once
LONGEST = 1 << 20  # characters of the longest word allowed
MARK = b"# token ids of charrnn"  # a comment at the end of numpy's header: shows who wrote the file

IdArray = NDArray[np.unsignedinteger[Any]]
Counts = NDArray[np.int64]


class TokenIds(Protocol):
    """Token ids, (N,): an array, or a file whose slices are read when they are needed."""

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, place: slice, /) -> IdArray: ...


@dataclass(frozen=True)
class Reading:
    """How the bytes of a text become tokens."""

    encoding: Encoding = "utf-8"
    level: Level = "char"
    # the word that stands for words that are not in the text to train on; '' for none
    unk: str = ""


@dataclass(frozen=True)
class Stamp:
    """The properties of a file that change with its contents: size in bytes, times in nanoseconds, inode."""

    size: int
    modified: int
    changed: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@dataclass(frozen=True)
class Survey:
    """Result of the first reading of a text."""

    sha256: str
    # in tokens
    length: int
    # lines that end in CRLF; 0 for words, for which CR is white space
    crlf_lines: int


class Source:
    """An open text file that can be read repeatedly. Errors name ``path``."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self.file = file
        self.stamp = self._stamp()

    def _stamp(self) -> Stamp:
        return Stamp.of(os.fstat(self.file.fileno()))

    def chunks(self) -> Iterator[bytes]:
        """Yield the whole file, from its start. Raises UserError if it cannot be read."""
        try:
            self.file.seek(0)
            while chunk := self.file.read(CHUNK):
                yield chunk
        except OSError as error:
            raise unreadable(self.path, error) from None

    def check_unchanged(self, before: str, after: str) -> None:
        """Raise UserError if the file changed between two readings with these SHA-256 sums."""
        if before != after or self.stamp != self._stamp():
            raise UserError(f"{self.path} changed while it was being read: try again when it is complete")


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """Open a text. Raises UserError if it cannot be opened."""
    try:
        file = open_regular(path, buffering=0)
    except OSError as error:
        raise unreadable(path, error) from None
    with file:
        yield Source(path, file)


def hash_text(path: Path) -> str:
    """Return the SHA-256 of a text. Raises UserError if it cannot be read."""
    with open_source(path) as source:
        try:
            return digest_of(source.file)
        except OSError as error:
            raise unreadable(path, error) from None


class Decoder:
    """Decodes the chunks of a text into codes: code points for utf-8, byte values for bytes."""

    def __init__(self, path: Path, encoding: Encoding) -> None:
        self.path = path
        self.encoding = encoding
        self.decoded = 0  # bytes so far
        self.pending = b""  # an incomplete character at the end of the last chunk

    def decode(self, chunk: bytes) -> IdArray:
        """Return the codes of the characters that this chunk completes: uint8 or uint32 (n,).

        Raises UserError with the offset of the first byte that is not valid UTF-8, in which surrogates are invalid.
        """
        if self.encoding == "bytes" or (not self.pending and chunk.isascii()):
            self.decoded += len(chunk)
            return np.frombuffer(chunk, np.uint8)
        return np.frombuffer(codecs.utf_32_le_encode(self.text(chunk))[0], "<u4")

    def text(self, chunk: bytes) -> str:
        """Return the characters, read as UTF-8, that this chunk completes. Raises UserError as ``decode`` does."""
        data = self.pending + chunk
        try:
            text, used = codecs.utf_8_decode(data, "strict", False)
        except UnicodeDecodeError as error:
            raise self._not_utf8(self.decoded + error.start) from None
        self.decoded += used
        self.pending = data[used:]
        return text

    def finish(self) -> None:
        """Raise UserError if the text ends within a character."""
        if self.pending:
            raise self._not_utf8(self.decoded)

    def _not_utf8(self, offset: int) -> UserError:
        return UserError(f"{self.path} is not UTF-8 at byte {offset}: convert it, or read it with -encoding bytes")


class Encoder(ABC):
    """Surveys texts and then converts them to ids in their common vocabulary.

    Call ``survey`` on each text first, then ``vocabulary`` for the vocabulary and the counts, and then ``ids`` for the
    second pass over each text.
    """

    # part of the names of the cache files
    suffix = ""

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding

    @abstractmethod
    def survey(self, source: Source, train: bool) -> Survey:
        """Read a text and count its tokens. ``train`` says whether it belongs to the text to train on.

        Raises UserError if the text is empty, unreadable or not in the encoding.
        """

    @abstractmethod
    def vocabulary(self) -> tuple[Vocabulary, Counts]:
        """Return the vocabulary of the surveyed texts, and the count of each token, int64 (V,)."""

    @abstractmethod
    def ids(self, vocabulary: Any, path: Path, chunks: Iterator[bytes]) -> Iterator[IdArray]:
        """Yield the token ids of a text chunk by chunk."""


class CharacterEncoder(Encoder):
    """Encodes characters. The counts are those of all texts together."""

    def __init__(self, encoding: Encoding) -> None:
        super().__init__(encoding)
        self.counts: Counts = np.zeros(CODES, np.int64)

    def survey(self, source: Source, train: bool) -> Survey:
        decoder = Decoder(source.path, self.encoding)
        digest = sha256()
        length = crlf_lines = 0
        ends_in_cr = False
        for chunk in digested(source.chunks(), digest):
            crlf_lines += ends_in_cr and chunk.startswith(b"\n")
            if b"\r" in chunk:
                crlf_lines += chunk.count(b"\r\n")
            ends_in_cr = chunk.endswith(b"\r")
            codes = decoder.decode(chunk)
            length += len(codes)
            counted = np.bincount(codes)
            present = np.flatnonzero(counted)
            self.counts[present] += counted[present]
        decoder.finish()
        if not length:
            raise UserError(f"{source.path} is empty: put a text there")
        return Survey(digest.hexdigest(), length, crlf_lines)

    def vocabulary(self) -> tuple[Vocabulary, Counts]:
        codes = np.flatnonzero(self.counts)
        return Vocabulary(tuple(codes.tolist()), self.encoding), self.counts[codes]

    def ids(self, vocabulary: Vocabulary, path: Path, chunks: Iterator[bytes]) -> Iterator[IdArray]:
        table = np.zeros(CODES, id_type(vocabulary))
        table[list(vocabulary.codes)] = np.arange(len(vocabulary))
        decoder = Decoder(path, self.encoding)
        return (table.take(decoder.decode(chunk)) for chunk in chunks)


class WordEncoder(Encoder):
    """Encodes words. The counts are those of the text to train on.

    Its words come first in the vocabulary, by descending count and then alphabetically, as in the PTB reader. Words
    with a count of 0, which only other texts have, come last.
    """

    suffix = ".words"

    def __init__(self, encoding: Encoding) -> None:
        super().__init__(encoding)
        self.trained = Counter[str]()
        self.others = Counter[str]()

    def survey(self, source: Source, train: bool) -> Survey:
        digest = sha256()
        length = 0
        counts = self.trained if train else self.others
        for found in self.words(source.path, digested(source.chunks(), digest)):
            length += len(found)
            counts.update(found)
        if not length:
            raise UserError(f"{source.path} has no words: put a text there")
        return Survey(digest.hexdigest(), length, 0)

    def vocabulary(self) -> tuple[Vocabulary, Counts]:
        words = sorted(self.trained | self.others, key=lambda word: (-self.trained[word], word))
        return Words(tuple(words), self.encoding), np.array([self.trained[word] for word in words], np.int64)

    def ids(self, vocabulary: Words, path: Path, chunks: Iterator[bytes]) -> Iterator[IdArray]:
        dtype = id_type(vocabulary)
        for found in self.words(path, chunks):
            # an unknown word means that the text has changed, which the checksum will show
            yield np.fromiter(map(vocabulary.ids.get, found, repeat(0)), dtype, len(found))

    def words(self, path: Path, chunks: Iterator[bytes]) -> Iterator[list[str]]:
        """Yield the words that each chunk completes, then the last one.

        Raises UserError if the text is not in the encoding, or has a word of more than LONGEST characters.
        """
        decoder = Decoder(path, self.encoding)
        begun = ""  # an incomplete word at the end of the last chunk
        for chunk in chunks:
            # with bytes, a character cut in two by a chunk is restored when its surrogate escapes are encoded
            text = chunk.decode("utf-8", "surrogateescape") if self.encoding == "bytes" else decoder.text(chunk)
            text = begun + text
            found = split_words(text, self.encoding)
            begun = found.pop() if found and not ends_in_space(text, self.encoding) else ""
            if len(begun) > LONGEST:
                raise UserError(f"{path} has a word of more than {LONGEST:,} characters: use -level char for this text")
            yield found
        decoder.finish()
        yield [begun] if begun else []


ENCODERS: dict[Level, type[Encoder]] = {"char": CharacterEncoder, "word": WordEncoder}


def ends_in_space(text: str, encoding: Encoding) -> bool:
    return text[-1:].isspace() if encoding == "utf-8" else text[-1:] in " \t\n\r\v\f"


def digested(chunks: Iterator[bytes], digest: _Hash) -> Iterator[bytes]:
    """Yield the chunks, after adding each to a checksum."""
    for chunk in chunks:
        digest.update(chunk)
        yield chunk


class TextChanged(UserError):
    """Another program has changed a file of token ids that is being read."""


class StoredIds:
    """Token ids in an open file, (N,). Slices are read from the file when they are needed.

    The file is not mapped into memory: if someone truncated it, the process would be killed.
    """

    def __init__(
        self, file: IO[bytes], dtype: np.dtype[Any], offset: int, length: int, path: Path, checksum: str
    ) -> None:
        """The ids begin at byte ``offset`` of the file, which messages call ``path``.

        ``checksum`` is its SHA-256, or '' for an unnamed file, which no other program can change.
        """
        self.file = os.fdopen(os.dup(file.fileno()), "rb", buffering=0)
        finalize(self, self.file.close)
        self.dtype = dtype
        self.offset = offset
        self.length = length
        self.path = path
        self.checksum = checksum
        self.stamp = self._stamp()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, place: slice, /) -> IdArray:
        """Return a copy of the ids. Raises TextChanged if the file has changed, and UserError if it cannot be read."""
        start, stop, step = place.indices(self.length)
        assert step == 1
        begin, size = self.offset + start * self.dtype.itemsize, max(0, stop - start) * self.dtype.itemsize
        try:
            data = self._read(begin, size)
            unchanged = len(data) == size and self._is_unchanged()
        except OSError as error:
            raise unreadable(self.path, error) from None
        if not unchanged:
            raise TextChanged(
                f"another program changed {self.path} while it was being read; the next command rebuilds it"
            )
        return np.frombuffer(data, self.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or self.dtype)

    def __reduce__(self) -> Any:
        """Pickle as an array, for another process."""
        return np.asarray, (self[:],)

    def _read(self, begin: int, size: int) -> bytearray:
        data = bytearray()
        while len(data) < size:
            place, left = begin + len(data), min(size - len(data), MOST)
            if sys.platform == "win32":
                self.file.seek(place)
                piece = self.file.read(left)
            else:  # forked processes share the position in the file
                piece = os.pread(self.file.fileno(), left, place)
            if not piece:
                break
            data += piece
        return data

    def _stamp(self) -> tuple[int, int]:
        # not the inode's change time, since renaming the file changes it too
        status = os.fstat(self.file.fileno())
        return status.st_size, status.st_mtime_ns

    def _is_unchanged(self) -> bool:
        """Return whether the file's contents are unchanged. Reads all of it again if only its time has changed."""
        before, now = self.stamp, self._stamp()
        if now == before or not self.checksum:
            return True
        if now[0] != before[0] or digest_of(self.file) != self.checksum:
            return False
        self.stamp = now
        return True


def write_ids(
    source: Source, surveyed: Survey, encoder: Encoder, vocabulary: Vocabulary, file: IO[bytes], path: Path
) -> StoredIds:
    """Write the token ids of a text to ``file`` in numpy's format, with MARK in its header. ``path`` will be its name.

    Returns the ids, which are read from that file when needed. Raises UserError if the text has changed since it was
    surveyed, and OSError if the file cannot be written.
    """
    dtype = id_type(vocabulary)
    header = npy_header(dtype, surveyed.length, MARK)
    text_digest, digest = sha256(), sha256(header)
    file.write(header)
    for ids in encoder.ids(vocabulary, source.path, digested(source.chunks(), text_digest)):
        digest.update(ids.data)
        file.write(ids.data)
    source.check_unchanged(surveyed.sha256, text_digest.hexdigest())
    file.flush()
    return StoredIds(file, dtype, len(header), surveyed.length, path, digest.hexdigest())


def read_ids(path: Path, checksum: str, vocabulary: Vocabulary, length: int) -> StoredIds | None:
    """Open the token ids in a file that ``write_ids`` wrote. Raises OSError.

    Returns None if the file does not have this SHA-256, or if its header is not the one for ``length`` ids of the
    vocabulary, with MARK or, from older versions, without it. The file is opened once, so the checksum applies to these
    ids even if the file is replaced meanwhile.
    """
    dtype = id_type(vocabulary)
    headers = npy_header(dtype, length, MARK), npy_header(dtype, length)
    with open_regular(path) as file:
        header = file.read(len(headers[0]))
        whole = os.fstat(file.fileno()).st_size == len(header) + length * dtype.itemsize
        if header not in headers or not whole:
            return None
        ids = StoredIds(file, dtype, len(header), length, path, checksum)
        return ids if digest_of(file) == checksum else None


def is_of_charrnn(path: Path, checksums: Sequence[str]) -> bool:
    """Return whether ``write_ids`` wrote a file: it has MARK or, from an older version, one of these SHA-256 sums."""
    try:
        with open_regular(path) as file:
            marked = MARK in file.read(len(npy_header(np.dtype("u4"), 1)))
            return marked or (bool(checksums) and digest_of(file) in checksums)
    except OSError:
        return False


def digest_of(file: IO[bytes]) -> str:
    """Return the SHA-256 of a file, from its start."""
    file.seek(0)
    return file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def join(parts: Sequence[TokenIds]) -> TokenIds:
    """Join several texts in a temporary file. Raises UserError if there is no room for it."""
    if len(parts) == 1:
        return parts[0]
    return in_temporary_file((chunk for part in parts for chunk in in_chunks(part)), parts[0].dtype)


def translate(ids: TokenIds, own: Vocabulary, other: Vocabulary) -> TokenIds:
    """Return the ids that the same tokens have in another vocabulary, from a temporary file.

    ``other`` must know every token of ``own``. Raises UserError if there is no room for the file.
    """
    table = np.array([other.id_of(code) for code in own.codes], id_type(other))
    return in_temporary_file((table[chunk] for chunk in in_chunks(ids)), table.dtype)


def in_chunks(ids: TokenIds) -> Iterator[IdArray]:
    return (ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK))


def in_temporary_file(parts: Iterable[IdArray], dtype: np.dtype[Any]) -> StoredIds:
    """Write token ids to an unnamed temporary file, and return them in it."""
    with room_for_temporary_files(), TemporaryFile() as file:
        for part in parts:
            file.write(part.data)
        file.flush()
        return StoredIds(file, dtype, 0, file.tell() // dtype.itemsize, Path("a temporary file"), "")


@contextmanager
def room_for_temporary_files() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write temporary files: {error.strerror}; free some space, or set TMPDIR") from None


def id_type(vocabulary: Vocabulary) -> np.dtype[Any]:
    """Return the smallest unsigned integer type that holds every id."""
    return np.min_scalar_type(len(vocabulary) - 1)


def npy_header(dtype: np.dtype[Any], length: int, mark: bytes = b"") -> bytes:
    """Return numpy's header for ``length`` ids, with the mark at the end of its padding."""
    header = BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(header, described)
    written = header.getvalue().rstrip()
    return written + mark.rjust(len(header.getvalue()) - len(written) - 1) + b"\n"
