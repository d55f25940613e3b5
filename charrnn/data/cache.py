"""The token ids of texts, computed once and kept on disk.

``vocab.json`` (``vocab.words.json`` for words) holds the vocabulary and, for each text, the checksums of the text and
of the file with its ids. This JSON record also contains its own checksum. A cache that is truncated, damaged, out of
date, or mixed by two processes is therefore detected and rebuilt. Only files that charrnn evidently wrote are replaced:
such a record, and ids with a mark in their header.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from charrnn.compute import Report
from charrnn.data.encode import (
    ENCODERS,
    Counts,
    Reading,
    Stamp,
    Survey,
    TokenIds,
    hash_text,
    is_of_charrnn,
    open_source,
    read_ids,
    room_for_temporary_files,
    write_ids,
)
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import UserError
from charrnn.files import open_regular, replacing

FORMAT = 3
SETTLED = 2_000_000_000  # ns: a text unchanged for this long cannot change again without getting new timestamps
LARGEST = 1 << 27  # bytes of a record, several times what the largest vocabulary takes
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True)
class EncodedTexts:
    """Texts as token ids in one vocabulary, by name."""

    vocabulary: Vocabulary
    # how often each token occurs, int64 (V,): characters in all texts, words in the text to train on
    counts: Counts
    ids: Mapping[str, TokenIds]
    surveys: dict[str, Survey]


Accept = Callable[[Mapping[str, Survey]], None]


def accept_all(_: object) -> None:
    """Accept any text."""


def load_or_build(
    texts: Mapping[str, Path],
    reading: Reading,
    folder: Path | None,
    report: Report,
    keep: bool = True,
    accept: Accept = accept_all,
) -> EncodedTexts:
    """Return the texts as token ids, from their cache if it is up to date.

    ``folder`` is the folder of the texts, None for files that -input names. If the cache cannot be there, because the
    folder is read-only or a foreign file has the name of a cache file, it goes to the user's cache folder, and
    ``report`` gets a line that says so. ``accept`` sees the surveys before anything is written, and may raise an error.
    Without ``keep``, no cache is written. Raises UserError if a text cannot be read or a cache cannot be written.
    """
    homes = [folder, user_cache(folder)] if folder else [user_cache(*texts.values())]
    for home in homes:
        if found := load(home, texts, reading):
            accept(found.surveys)
            return found
        if keep:
            try:
                return build_in(home, texts, reading, accept)
            except NoPlace as error:
                if home == homes[-1]:
                    raise
                report(f"{error.cause}: its vocabulary and token ids are kept in {homes[-1]}")
    return build_in_passing(texts, reading, accept)


def record_path(home: Path, suffix: str) -> Path:
    """Return the path of a cache's record."""
    return home / f"vocab{suffix}.json"


def ids_path(home: Path, name: str, suffix: str) -> Path:
    """Return the path of the token ids of a text of this name."""
    return home / f"{name}{suffix}.npy"


class NoPlace(UserError):
    """A folder cannot hold a cache, but another one may. ``cause`` says why and begins with its name."""

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


def build_in(home: Path, texts: Mapping[str, Path], reading: Reading, accept: Accept) -> EncodedTexts:
    """Build a cache in a folder. Raises NoPlace if that is not possible there, and UserError for other problems."""
    if path := find_foreign(home, texts, ENCODERS[reading.level].suffix):
        raise NoPlace(
            f"{home} has a {path.name} that is not charrnn's",
            f"{path} is not charrnn's, so it was left unchanged: move it away",
        )
    try:
        if home.exists() and not os.access(home, os.W_OK):  # checked before the texts are read
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return build(home, texts, reading, accept)
    except OSError as error:
        message = (
            f"cannot write the vocabulary and token ids to {home}: {error.strerror}; make room there, "
            "or copy the text to another folder and name it with -data_dir"
        )
        if error.errno in READ_ONLY:
            raise NoPlace(f"{home} cannot be written to", message) from None
        raise UserError(message) from None


def find_foreign(home: Path, names: Iterable[str], suffix: str) -> Path | None:
    """Return a file that has a cache file's name but no sign that charrnn wrote it; None if there is no such file."""
    path = record_path(home, suffix)
    record = read_record(path)
    if record is None and os.path.lexists(path):
        return path
    paths = (ids_path(home, name, suffix) for name in names)
    known = checksums_in(record)
    return next((path for path in paths if os.path.lexists(path) and not is_of_charrnn(path, known)), None)


def checksums_in(record: Any) -> list[Any]:
    """Return the checksums of token ids in a record of any version. Their types are not checked."""
    match record:
        case {"texts": dict(texts)}:
            return [known.get("tokens_sha256") for known in texts.values() if isinstance(known, dict)]
    return []


def build_in_passing(texts: Mapping[str, Path], reading: Reading, accept: Accept) -> EncodedTexts:
    """Encode texts without keeping a cache."""
    with room_for_temporary_files(), TemporaryDirectory(prefix="charrnn-", ignore_cleanup_errors=True) as home:
        return build(Path(home), texts, reading, accept)


def load(home: Path, texts: Mapping[str, Path], reading: Reading) -> EncodedTexts | None:
    """Return what ``build`` wrote to ``home``; None if it is missing, damaged or belongs to other texts.

    Raises UserError if a text cannot be read.
    """
    suffix = ENCODERS[reading.level].suffix
    try:
        record = read_record(record_path(home, suffix))
        vocabulary = vocabulary_in(record, reading)
        if record is None or vocabulary is None or list(record["texts"]) != list(texts):
            return None
        if not all(is_unchanged(path, record["texts"][name]) for name, path in texts.items()):
            return None
        ids, surveys = {}, {}
        for name, known in record["texts"].items():
            surveys[name] = Survey(**known["survey"])
            path = ids_path(home, name, suffix)
            found = read_ids(path, known["tokens_sha256"], vocabulary, surveys[name].length)
            if found is None:
                return None
            ids[name] = found
    except OSError:
        return None
    return EncodedTexts(vocabulary, np.array(record["counts"], np.int64), ids, surveys)


def vocabulary_in(record: Any, reading: Reading) -> Vocabulary | None:
    """Return the vocabulary in a record; None unless the record is complete and was made with this ``reading``.

    The seal detects damage. The structure is checked too, because an untrusted text may come with a cache.
    """
    match record:
        case {"format": int(version), "encoding": reading.encoding, "counts": [*counts], "texts": dict(texts)} if (
            version == FORMAT
            and all(type(count) is int and 0 <= count < 2**63 for count in counts)
            and all(map(is_complete, texts.values()))
        ):
            try:
                vocabulary = Vocabulary.from_dict(record)
            except UserError:
                return None
            return vocabulary if (vocabulary.level, len(vocabulary)) == (reading.level, len(counts)) else None
    return None


def is_complete(known: Any) -> bool:
    """Return whether a text's entry in a record is complete."""
    match known:
        case {
            "survey": {"sha256": str(), "length": int(length), "crlf_lines": int(), **more},
            "stamp": {"size": int()},
            "settled": bool(),
            "tokens_sha256": str(),
        }:
            return length > 0 and not more
    return False


def is_unchanged(path: Path, known: dict[str, Any]) -> bool:
    """Return whether a text is the recorded one: untouched since then, or with the same size and SHA-256."""
    stamp = Stamp.of(path.stat())
    if known["settled"] and asdict(stamp) == known["stamp"]:
        return True
    return bool(stamp.size == known["stamp"]["size"] and hash_text(path) == known["survey"]["sha256"])


def build(home: Path, texts: Mapping[str, Path], reading: Reading, accept: Accept) -> EncodedTexts:
    """Encode the texts and write everything to ``home``, unless ``accept`` raises an error.

    The returned ids are read from the files written here, even if another process replaces them. Raises OSError if
    ``home`` cannot be written, and UserError if a text cannot be read or encoded.
    """
    encoder = ENCODERS[reading.level](reading.encoding)
    with ExitStack() as stack:
        started = time.time_ns()
        sources = {name: stack.enter_context(open_source(path)) for name, path in texts.items()}
        surveys = {
            name: encoder.survey(source, train=name == "train" or "train" not in texts)
            for name, source in sources.items()
        }
        accept(surveys)
        vocabulary, counts = encoder.vocabulary()
        home.mkdir(parents=True, exist_ok=True)
        # entered first and therefore renamed last, so the record never appears before the files it describes
        record = stack.enter_context(replacing(record_path(home, encoder.suffix)))
        files = {name: stack.enter_context(replacing(ids_path(home, name, encoder.suffix))) for name in texts}
        ids, known = {}, {}
        for name, source in sources.items():
            path = ids_path(home, name, encoder.suffix)
            ids[name] = write_ids(source, surveys[name], encoder, vocabulary, files[name], path)
            known[name] = {
                "survey": asdict(surveys[name]),
                "stamp": asdict(source.stamp),
                "settled": max(source.stamp.modified, source.stamp.changed) < started - SETTLED,
                "tokens_sha256": ids[name].checksum,
            }
        record.write(seal({"format": FORMAT, **vocabulary.to_dict(), "counts": counts.tolist(), "texts": known}))
    return EncodedTexts(vocabulary, counts, ids, surveys)


def seal(record: dict[str, Any]) -> bytes:
    """Return a record as JSON with its own checksum."""
    return json.dumps(record | {"sha256": checksum(record)}).encode()


def read_record(path: Path) -> dict[str, Any] | None:
    """Return the record in a file; None if the file is missing or ``seal`` did not make it."""
    try:
        with open_regular(path) as file:
            return unseal(file.read(LARGEST))
    except OSError:
        return None


def unseal(data: bytes) -> dict[str, Any] | None:
    """Return the record that ``seal`` was given; None for anything else."""
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
    """Return the cache folder, in $XDG_CACHE_HOME or ~/.cache, for a read-only folder or files that -input names."""
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(chosen) if os.path.isabs(chosen) else Path(os.path.expanduser("~/.cache"))
    return root / "charrnn" / sha256(b"\0".join(os.fsencode(path.resolve()) for path in paths)).hexdigest()[:32]
