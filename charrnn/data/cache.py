"""The token ids of texts, computed once and kept.

``vocab.json`` holds the vocabulary of characters, ``vocab.words.json`` that of words, and for each text checksums of
the text and of the file of its ids. This JSON record also contains its own checksum. A cache that is
truncated, damaged, out of date, or mixed by two processes is therefore detected and rebuilt.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Mapping
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
    open_source,
    read_ids,
    room_for_temporary_files,
    write_ids,
)
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import UserError
from charrnn.files import replacing

FORMAT = 3
SETTLED = 2_000_000_000  # ns: a text unchanged for this long cannot change again without new time stamps
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True)
class EncodedTexts:
    """The token ids of texts in one vocabulary, by the texts' names."""

    vocabulary: Vocabulary
    # how often each token occurs, int64 (V,): characters in all texts, words in the text to train on
    counts: Counts
    ids: dict[str, TokenIds]
    surveys: dict[str, Survey]


def load_or_build(
    texts: Mapping[str, Path], reading: Reading, folder: Path | None, report: Report, keep: bool = True
) -> EncodedTexts:
    """Return the texts as token ids, from their cache if it is up to date.

    ``folder`` is the folder of the texts, None for files that -input names. If its cache is in the user's cache folder
    because the folder is read-only, ``report`` gets a line that says so. Without ``keep`` no cache is written. Raises
    UserError if a text cannot be read or a cache cannot be written.
    """
    homes = [folder, user_cache(folder)] if folder else [user_cache(*texts.values())]
    if not keep:
        found = (load(home, texts, reading) for home in homes)
        return next(filter(None, found), None) or build_in_passing(texts, reading)
    for home in homes:
        try:
            if home != folder:
                home.mkdir(parents=True, exist_ok=True)
            return load(home, texts, reading) or build(home, texts, reading)
        except OSError as error:
            if home == homes[-1] or error.errno not in READ_ONLY:
                raise UserError(
                    f"cannot write the vocabulary and token ids to {home}: {error.strerror}; make room there, "
                    "or copy the text to another folder and name it with -data_dir"
                ) from None
        report(f"{folder} cannot be written to: its vocabulary and token ids are kept in {homes[-1]}")
    raise AssertionError("the last folder has returned or raised")


def build_in_passing(texts: Mapping[str, Path], reading: Reading) -> EncodedTexts:
    """Encode texts without keeping a cache."""
    with room_for_temporary_files(), TemporaryDirectory(prefix="charrnn-", ignore_cleanup_errors=True) as home:
        return build(Path(home), texts, reading)


def load(home: Path, texts: Mapping[str, Path], reading: Reading) -> EncodedTexts | None:
    """Return what ``build`` has written to ``home``; None if it is missing, damaged or belongs to other texts.

    Raises UserError if a text cannot be read.
    """
    suffix = ENCODERS[reading.level].suffix
    try:
        record = unseal((home / f"vocab{suffix}.json").read_bytes())
        vocabulary = vocabulary_in(record, reading)
        if record is None or vocabulary is None or list(record["texts"]) != list(texts):
            return None
        if not all(is_unchanged(path, record["texts"][name]) for name, path in texts.items()):
            return None
        ids, surveys = {}, {}
        for name, known in record["texts"].items():
            surveys[name] = Survey(**known["survey"])
            found = read_ids(home / f"{name}{suffix}.npy", known["tokens_sha256"], vocabulary, surveys[name].length)
            if found is None:
                return None
            ids[name] = found
    except OSError:
        return None
    return EncodedTexts(vocabulary, np.array(record["counts"], np.int64), ids, surveys)


def vocabulary_in(record: Any, reading: Reading) -> Vocabulary | None:
    """Return the vocabulary in a record; None unless the record is complete and was made by the same reading.

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
    """Return whether a record has everything about a text."""
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
    """Return whether a text is the recorded one: not touched since then, or of the same size and SHA-256."""
    stamp = Stamp.of(path.stat())
    if known["settled"] and asdict(stamp) == known["stamp"]:
        return True
    return bool(stamp.size == known["stamp"]["size"] and hash_text(path) == known["survey"]["sha256"])


def build(home: Path, texts: Mapping[str, Path], reading: Reading) -> EncodedTexts:
    """Encode the texts and write everything to ``home``.

    The ids are mapped from the same files that were written, before another process can replace them. Raises OSError
    if ``home`` cannot be written, and UserError for the texts.
    """
    encoder = ENCODERS[reading.level](reading.encoding)
    with ExitStack() as stack:
        # entered first and therefore renamed last, so the record never appears before the files it describes
        record = stack.enter_context(replacing(home / f"vocab{encoder.suffix}.json"))
        files = {name: stack.enter_context(replacing(home / f"{name}{encoder.suffix}.npy")) for name in texts}
        started = time.time_ns()
        sources = {name: stack.enter_context(open_source(path)) for name, path in texts.items()}
        surveys = {
            name: encoder.survey(source, train=name == "train" or "train" not in texts)
            for name, source in sources.items()
        }
        vocabulary, counts = encoder.vocabulary()
        ids, known = {}, {}
        for name, source in sources.items():
            ids[name], checksum = write_ids(source, surveys[name], encoder, vocabulary, files[name])
            known[name] = {
                "survey": asdict(surveys[name]),
                "stamp": asdict(source.stamp),
                "settled": max(source.stamp.modified, source.stamp.changed) < started - SETTLED,
                "tokens_sha256": checksum,
            }
        record.write(seal({"format": FORMAT, **vocabulary.to_dict(), "counts": counts.tolist(), "texts": known}))
    return EncodedTexts(vocabulary, counts, ids, surveys)


def seal(record: dict[str, Any]) -> bytes:
    """Return a record as JSON with its own checksum."""
    return json.dumps(record | {"sha256": checksum(record)}).encode()


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
    """Return the folder for the cache of a read-only folder or of files that -input names.

    It is in $XDG_CACHE_HOME, or ~/.cache.
    """
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(chosen) if os.path.isabs(chosen) else Path(os.path.expanduser("~/.cache"))
    return root / "charrnn" / sha256(b"\0".join(os.fsencode(path.resolve()) for path in paths)).hexdigest()[:32]
