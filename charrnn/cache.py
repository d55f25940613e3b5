"""A folder's texts as numbers, worked out once and kept beside them.

``vocab.json`` holds the vocabulary, and for every text and token file a checksum; it is sealed with one
itself. So whatever is truncated, damaged, out of date, or left by two processes that worked on the same
folder at once, is noticed and made again.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from charrnn.errors import UserError
from charrnn.files import replacing
from charrnn.tokens import CODES, Stamp, Survey, Tokens, hash_text, open_source, read_tokens, survey, write_tokens
from charrnn.vocabulary import Encoding, Vocabulary

FORMAT = 1
RECORD = "vocab.json"
SETTLED = 2_000_000_000  # ns: a text untouched for so long cannot change again within one tick of its time stamps
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True)
class Prepared:
    """The vocabulary that some texts share, and for each its tokens and what was found in it."""

    vocabulary: Vocabulary
    tokens: dict[str, Tokens]
    surveys: dict[str, Survey]


def prepare(folder: Path, names: list[str], encoding: Encoding, report: Callable[[str], None]) -> Prepared:
    """The texts NAME.txt of a folder as numbers, from its cache if that is up to date.

    The cache of a folder that cannot be written to is in the user's own cache folder; ``report`` gets a
    line that says so. Raises UserError for texts that cannot be read and caches that cannot be written.
    """
    try:
        return load(folder, folder, names, encoding) or build(folder, folder, names, encoding)
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise unwritable(folder, error) from None
    home = user_cache(folder)
    report(f"{folder} cannot be written to: its vocabulary and tokens are kept in {home}")
    try:
        home.mkdir(parents=True, exist_ok=True)
        return load(home, folder, names, encoding) or build(home, folder, names, encoding)
    except OSError as error:
        raise unwritable(home, error) from None


def load(home: Path, folder: Path, names: list[str], encoding: Encoding) -> Prepared | None:
    """What ``build`` has left in ``home``, or None where that is not whole or not of these texts."""
    try:
        record = unseal((home / RECORD).read_bytes())
        if record is None or (record["format"], record["encoding"]) != (FORMAT, encoding):
            return None
        texts = record["texts"]
        if list(texts) != names or not all(is_same(folder / f"{name}.txt", texts[name]) for name in names):
            return None
        tokens = {name: read_tokens(home / f"{name}.npy", texts[name]["tokens_sha256"]) for name in names}
    except OSError:
        return None
    whole = {name: numbers for name, numbers in tokens.items() if numbers is not None}
    if len(whole) < len(names):
        return None
    surveys = {name: Survey(**texts[name]["survey"]) for name in names}
    return Prepared(Vocabulary.from_dict(record), whole, surveys)


def build(home: Path, folder: Path, names: list[str], encoding: Encoding) -> Prepared:
    """Read the texts and write everything to ``home``.

    The tokens are mapped from the files as they were written, before another process can put its own in
    their place. Raises OSError where ``home`` cannot be written, UserError for the texts.
    """
    with ExitStack() as stack:
        # entered first, and so renamed last: the record never comes before what it describes
        record_file = stack.enter_context(replacing(home / RECORD))
        files = {name: stack.enter_context(replacing(home / f"{name}.npy")) for name in names}
        started = time.time_ns()
        sources = {name: stack.enter_context(open_source(folder / f"{name}.txt")) for name in names}
        seen = np.zeros(CODES, bool)
        surveys = {name: survey(sources[name], encoding, seen) for name in names}
        vocabulary = Vocabulary(tuple(np.flatnonzero(seen).tolist()), encoding)
        tokens, texts = {}, {}
        for name in names:
            tokens[name], checksum = write_tokens(sources[name], surveys[name], vocabulary, files[name])
            stamp = sources[name].stamp
            texts[name] = {
                "survey": asdict(surveys[name]),
                "stamp": asdict(stamp),
                "settled": max(stamp.modified, stamp.changed) < started - SETTLED,
                "tokens_sha256": checksum,
            }
        record_file.write(seal({"format": FORMAT, **vocabulary.to_dict(), "texts": texts}))
    return Prepared(vocabulary, tokens, surveys)


def is_same(path: Path, known: dict[str, Any]) -> bool:
    """Whether a text is still the recorded one: untouched since, or else of the same size and SHA-256."""
    stamp = Stamp.of(path.stat())
    if known["settled"] and asdict(stamp) == known["stamp"]:
        return True
    return bool(stamp.size == known["stamp"]["size"] and hash_text(path) == known["survey"]["sha256"])


def seal(record: dict[str, Any]) -> bytes:
    """A record as JSON, with its own checksum."""
    return json.dumps(record | {"sha256": checksum(record)}).encode()


def unseal(data: bytes) -> dict[str, Any] | None:
    """The record in a file that ``seal`` made; None for anything else."""
    try:
        record = json.loads(data)
    except ValueError:
        return None
    if not isinstance(record, dict) or record.pop("sha256", None) != checksum(record):
        return None
    return record


def checksum(record: dict[str, Any]) -> str:
    return sha256(json.dumps(record).encode()).hexdigest()


def user_cache(folder: Path) -> Path:
    """Where to keep what belongs to a folder that cannot be written to ($XDG_CACHE_HOME, or ~/.cache)."""
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(chosen) if os.path.isabs(chosen) else Path(os.path.expanduser("~/.cache"))
    return root / "charrnn" / sha256(os.fsencode(folder.resolve())).hexdigest()[:32]


def unwritable(home: Path, error: OSError) -> UserError:
    return UserError(
        f"cannot write the vocabulary and tokens to {home}: {error.strerror}; make room there, "
        "or copy the text to another folder and name that with -data_dir"
    )
