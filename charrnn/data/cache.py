"""A folder's texts as numbers, worked out once and kept beside them.

``vocab.json`` holds the vocabulary of characters, ``vocab.words.json`` that of words, and for every text and token
file a checksum; each is sealed with one itself. So whatever is truncated, damaged, out of date, or left by two
processes that worked on the same folder at once, is noticed and made again.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import numpy as np

from charrnn.data.encode import (
    CODES,
    Counts,
    Source,
    Stamp,
    Survey,
    Tokens,
    hash_text,
    open_source,
    read_tokens,
    survey,
    survey_words,
    write_tokens,
    write_words,
)
from charrnn.data.vocabulary import Vocabulary, Words
from charrnn.errors import UserError
from charrnn.files import replacing
from charrnn.settings.option import Encoding, Level

FORMAT = 3


RECORD = {"char": "vocab.json", "word": "vocab.words.json"}


TOKENS = {"char": "{}.npy", "word": "{}.words.npy"}


SETTLED = 2_000_000_000  # ns: a text untouched for so long cannot change again within one tick of its time stamps


READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True)
class Prepared:
    """The vocabulary that some texts share, and for each its tokens and what was found in it.

    counts: how often each character of the vocabulary occurs in all of them together, int64 (V,). Of words only those
    in the text to train on are counted: they come first, by descending count and then alphabetically, as in the PTB
    reader; those with a count of 0, which only other texts have, come last.
    """

    vocabulary: Vocabulary
    counts: Counts
    tokens: dict[str, Tokens]
    surveys: dict[str, Survey]


def prepare(
    folder: Path,
    names: list[str],
    encoding: Encoding,
    report: Callable[[str], None],
    keep: bool = True,
    level: Level = "char",
) -> Prepared:
    """The texts NAME.txt of a folder as numbers, from its cache if that is up to date.

    The cache of a folder that cannot be written to is in the user's own cache folder; ``report`` gets a
    line that says so. keep: whether to write a cache where there is none that is up to date. Raises
    UserError for texts that cannot be read and caches that cannot be written.
    """
    texts = {name: folder / f"{name}.txt" for name in names}
    if not keep:
        there = load(folder, texts, encoding, level) or load(user_cache(folder), texts, encoding, level)
        return there or pass_by(texts, encoding, level)
    try:
        return load(folder, texts, encoding, level) or build(folder, texts, encoding, level)
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise unwritable(folder, error) from None
    home = user_cache(folder)
    report(f"{folder} cannot be written to: its vocabulary and tokens are kept in {home}")
    return in_user_cache(home, texts, encoding, level)


def prepare_files(files: Sequence[Path], encoding: Encoding, keep: bool = True, level: Level = "char") -> Prepared:
    """Text files from anywhere as numbers, under the names "1", "2", ...; as ``prepare`` otherwise.

    No one folder is theirs: the cache is in the user's own cache folder.
    """
    texts = {str(number): file for number, file in enumerate(files, 1)}
    home = user_cache(*files)
    if not keep:
        return load(home, texts, encoding, level) or pass_by(texts, encoding, level)
    return in_user_cache(home, texts, encoding, level)


def in_user_cache(home: Path, texts: Mapping[str, Path], encoding: Encoding, level: Level) -> Prepared:
    try:
        home.mkdir(parents=True, exist_ok=True)
        return load(home, texts, encoding, level) or build(home, texts, encoding, level)
    except OSError as error:
        raise unwritable(home, error) from None


def pass_by(texts: Mapping[str, Path], encoding: Encoding, level: Level) -> Prepared:
    """The texts as numbers, of which nothing stays on the disk."""
    try:
        with TemporaryDirectory(prefix="charrnn-", ignore_cleanup_errors=True) as home:
            return build(Path(home), texts, encoding, level)
    except OSError as error:
        raise UserError(f"no room for temporary files: {error.strerror}; free some, or set TMPDIR") from None


def load(home: Path, files: Mapping[str, Path], encoding: Encoding, level: Level = "char") -> Prepared | None:
    """What ``build`` has left in ``home``, or None where that is not whole or not of these texts."""
    try:
        return _load(home, files, encoding, level)
    except OSError:
        return None
    # a record with its seal in order and other things inside; or a text that cannot be read, as build will say
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, UserError):
        return None


def _load(home: Path, files: Mapping[str, Path], encoding: Encoding, level: Level) -> Prepared | None:
    names = list(files)
    record = unseal((home / RECORD[level]).read_bytes())
    if record is None or (record["format"], record["encoding"]) != (FORMAT, encoding):
        return None
    texts = record["texts"]
    if list(texts) != names or not all(is_same(files[name], texts[name]) for name in names):
        return None
    tokens = {name: read_tokens(home / TOKENS[level].format(name), texts[name]["tokens_sha256"]) for name in names}
    whole = {name: numbers for name, numbers in tokens.items() if numbers is not None}
    if len(whole) < len(names):
        return None
    surveys = {name: Survey(**texts[name]["survey"]) for name in names}
    vocabulary, counts = Vocabulary.from_dict(record), np.array(record["counts"], np.int64)
    if vocabulary.level != level or counts.shape != (len(vocabulary),):
        return None
    if not all(is_whole(found) for found in surveys.values()):
        return None
    return Prepared(vocabulary, counts, whole, surveys)


def build(home: Path, texts: Mapping[str, Path], encoding: Encoding, level: Level = "char") -> Prepared:
    """Read the texts and write everything to ``home``.

    The tokens are mapped from the files as they were written, before another process can put its own in
    their place. Raises OSError where ``home`` cannot be written, UserError for the texts.
    """
    with ExitStack() as stack:
        # entered first, and so renamed last: the record never comes before what it describes
        record_file = stack.enter_context(replacing(home / RECORD[level]))
        files = {name: stack.enter_context(replacing(home / TOKENS[level].format(name))) for name in texts}
        started = time.time_ns()
        sources = {name: stack.enter_context(open_source(path)) for name, path in texts.items()}
        vocabulary, counts, surveys = (of_words if level == "word" else of_characters)(sources, encoding)
        tokens, found = {}, {}
        for name in texts:
            tokens[name], checksum = write(sources[name], surveys[name], vocabulary, files[name])
            stamp = sources[name].stamp
            found[name] = {
                "survey": asdict(surveys[name]),
                "stamp": asdict(stamp),
                "settled": max(stamp.modified, stamp.changed) < started - SETTLED,
                "tokens_sha256": checksum,
            }
        record = {"format": FORMAT, **vocabulary.to_dict(), "counts": counts.tolist(), "texts": found}
        record_file.write(seal(record))
    return Prepared(vocabulary, counts, tokens, surveys)


Surveyed = tuple[Vocabulary, Counts, dict[str, Survey]]


def of_characters(sources: Mapping[str, Source], encoding: Encoding) -> Surveyed:
    """The vocabulary of texts, its counts, and what was found in each text."""
    counts = np.zeros(CODES, np.int64)
    surveys = {name: survey(source, encoding, counts) for name, source in sources.items()}
    codes = np.flatnonzero(counts)
    return Vocabulary(tuple(codes.tolist()), encoding), counts[codes], surveys


def of_words(sources: Mapping[str, Source], encoding: Encoding) -> Surveyed:
    """The same for words: the text that is called ``train``, or else all of them, are to train on."""
    trained, held_out = Counter[str](), Counter[str]()
    surveys = {
        name: survey_words(source, encoding, trained if name == "train" or "train" not in sources else held_out)
        for name, source in sources.items()
    }
    words = sorted(trained | held_out, key=lambda word: (-trained[word], word))
    return Words(tuple(words), encoding), np.array([trained[word] for word in words], np.int64), surveys


def write(source: Source, surveyed: Survey, vocabulary: Vocabulary, file: IO[bytes]) -> tuple[Tokens, str]:
    if isinstance(vocabulary, Words):
        return write_words(source, surveyed, vocabulary, file)
    return write_tokens(source, surveyed, vocabulary, file)


def is_same(path: Path, known: dict[str, Any]) -> bool:
    """Whether a text is still the recorded one: untouched since, or else of the same size and SHA-256."""
    stamp = Stamp.of(path.stat())
    if known["settled"] and asdict(stamp) == known["stamp"]:
        return True
    return bool(stamp.size == known["stamp"]["size"] and hash_text(path) == known["survey"]["sha256"])


def is_whole(found: Survey) -> bool:
    return isinstance(found.sha256, str) and type(found.length) is int and type(found.crlf_lines) is int


def seal(record: dict[str, Any]) -> bytes:
    """A record as JSON, with its own checksum."""
    return json.dumps(record | {"sha256": checksum(record)}).encode()


def unseal(data: bytes) -> dict[str, Any] | None:
    """The record in a file that ``seal`` made; None for anything else."""
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or record.pop("sha256", None) != checksum(record):
        return None
    return record


def checksum(record: dict[str, Any]) -> str:
    return sha256(json.dumps(record).encode()).hexdigest()


def user_cache(*paths: Path) -> Path:
    """Where to keep what belongs to a folder that cannot be written to, or to files from anywhere.

    It is in $XDG_CACHE_HOME, or ~/.cache.
    """
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(chosen) if os.path.isabs(chosen) else Path(os.path.expanduser("~/.cache"))
    return root / "charrnn" / sha256(b"\0".join(os.fsencode(path.resolve()) for path in paths)).hexdigest()[:32]


def unwritable(home: Path, error: OSError) -> UserError:
    return UserError(
        f"cannot write the vocabulary and tokens to {home}: {error.strerror}; make room there, "
        "or copy the text to another folder and name that with -data_dir"
    )
