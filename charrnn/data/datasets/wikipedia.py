"""enwik8 and text8: a hundred million bytes of Wikipedia each, from Matt Mahoney's page.

http://mattmahoney.net/dc/textdata.html describes how they were made. Each is one member of a zip file, and is split as
in the papers that publish results for them: 90, 5 and 5 million bytes for training, validation and test.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

from charrnn.compute import Report
from charrnn.data.datasets.download import CHUNK, Progress, Unavailable, download
from charrnn.data.datasets.splits import in_the_way, split_path, write_splits
from charrnn.errors import UserError
from charrnn.files import UNFINISHED, interruptible, locked, open_regular

SPLITS = {"train": 90_000_000, "val": 5_000_000, "test": 5_000_000}


@dataclass(frozen=True)
class Archive:
    """A text in a zip file on the web."""

    # of the text and of its member in NAME.zip
    name: str
    # addresses of the zip file, tried in turn
    urls: tuple[str, ...]
    # of the text
    sha256: str
    # how to read the text
    hint: str
    # bytes of each split, in their order
    splits: Mapping[str, int]

    @property
    def size(self) -> int:
        return sum(self.splits.values())


def _urls(name: str) -> tuple[str, str]:
    # the text is checked, so http is as safe as https
    return f"https://mattmahoney.net/dc/{name}.zip", f"http://mattmahoney.net/dc/{name}.zip"


# The page publishes MD5 and SHA-1 of enwik8, a1fa5ffddb56f4953e226637dabbb36a and
# 57b8363b814821dc9d47aa4d41f58733519076b2. Many independent programs agree on these SHA-256 sums. For
# enwik8 some of them list both kinds of sums for one file; for text8 the MD5 is 3bea1919949baf155f99411df5fada7e.
ENWIK8 = Archive(
    "enwik8",
    _urls("enwik8"),
    "2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8",
    "read it with -encoding bytes, as published results do (205 symbols): its splits may cut a character in two",
    SPLITS,
)


TEXT8 = Archive(
    "text8",
    _urls("text8"),
    "6e890197040d37d85beb962ae1f041ff1d9a9ca8d20c7d99c85027eebf51dca7",
    "27 symbols: a to z and the space",
    SPLITS,
)


def prepare(archive: Archive, folder: Path, report: Report, progress: Progress) -> None:
    """Make the splits of an archive's text in a folder, from NAME.zip there or else from the web.

    A zip file that the user put there is kept. Raises UserError, without leaving partial files.
    """
    found = folder / f"{archive.name}.zip"
    try:
        if _is_here(archive, folder):
            report(f"{folder} already has {archive.name}: nothing to do")
            return
        folder.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(found):
            _unpack_found(archive, found, report, progress)
        else:
            _fetch(archive, folder, report, progress)
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: {error.strerror or error}; make room or choose another folder, "
            "then run the same command again"
        ) from error
    report(f"{archive.name}: {archive.hint}")


def _is_here(archive: Archive, folder: Path) -> bool:
    """Return whether the splits already exist. Raises UserError if different files have their names."""
    paths = {split_path(folder, split): size for split, size in archive.splits.items()}
    there = [path for path in paths if os.path.lexists(path)]
    for path in there:
        if not path.is_file() or path.stat().st_size != paths[path]:
            raise in_the_way(path, archive.name)
    if len(there) < len(paths):
        return False  # splits that a killed run left behind are compared with the text while it is unpacked
    digest = sha256()
    for path in paths:
        with path.open("rb") as file:
            file_digest(file, lambda: digest)
    if digest.hexdigest() != archive.sha256:
        raise UserError(
            f"the files in {folder} have the sizes of {archive.name}'s splits but different contents, so they were "
            "left unchanged: move them away or choose another folder"
        )
    return True


def _unpack_found(archive: Archive, path: Path, report: Report, progress: Progress) -> None:
    report(f"{archive.name}: unpacking {path}")
    try:
        _unpack(archive, path, path.parent, report, progress)
    except Unavailable as error:
        raise UserError(
            f"{path} does not contain {archive.name} ({error}), so it was left unchanged: "
            "move it away, and the next run downloads the right one"
        ) from None


def _fetch(archive: Archive, folder: Path, report: Report, progress: Progress) -> None:
    """Download the zip file under a hidden name, unpack it and always remove it. Only one process does so at a time."""
    path = folder / f".{archive.name}.zip{UNFINISHED}"
    with interruptible(), locked(path) as alone:
        if not alone:
            raise UserError(f"another charrnn is downloading {archive.name} to {folder}: wait until it is done")
        try:
            url = _download(archive, path, report, progress)
            _unpack(archive, path, folder, report, progress)
        except Unavailable as error:
            raise UserError(
                f"{url} did not send {archive.name} ({error}): try again later, "
                f"or put {archive.name}.zip into {folder} yourself"
            ) from None
        finally:
            path.unlink(missing_ok=True)


def _download(archive: Archive, path: Path, report: Report, progress: Progress) -> str:
    """Download the zip file from the first address that has it, and return the address. Raises UserError."""
    causes = []
    for url in archive.urls:
        report(f"{archive.name}: trying {url}")
        try:
            with path.open("wb") as file:
                # the zip file is smaller than the text
                download(url, file, archive.size, progress)
            return url
        except Unavailable as error:
            causes.append(f"{url}: {error}")
    raise UserError(
        f"cannot download {archive.name} ({'; '.join(causes)}): try again later, or put {archive.name}.zip into "
        f"{path.parent} yourself"
    )


def _unpack(archive: Archive, path: Path, folder: Path, report: Report, progress: Progress) -> None:
    """Write the splits from a zip file. Raises Unavailable, and writes no split, if it is the wrong file."""

    def shown() -> Iterator[tuple[str, bytes]]:
        done = 0
        for split, piece in _pieces(archive, path):
            done += len(piece)
            progress("unpacking", done, archive.size)
            yield split, piece

    for written in write_splits(folder, archive.name, shown()):
        report(f"wrote {written}: {written.stat().st_size:,} bytes")


def _pieces(archive: Archive, path: Path) -> Iterator[tuple[str, bytes]]:
    """Unpack the text and yield it piece by piece, each with the name of its split. No other member is read.

    Raises Unavailable, at the latest after the last piece, if it is not the right text.
    """
    digest = sha256()
    try:
        with open_regular(path) as file, ZipFile(file) as packed:
            member = packed.getinfo(archive.name)
            # other compression methods can expand a few bytes to gigabytes at once
            if member.compress_type not in (ZIP_STORED, ZIP_DEFLATED) or member.file_size != archive.size:
                raise Unavailable(f"its {archive.name} has {member.file_size:,} bytes or an unknown compression")
            with packed.open(member) as stream:
                for split, size in archive.splits.items():
                    left = size
                    while left:
                        piece = stream.read(min(CHUNK, left))
                        if not piece:
                            raise Unavailable("it is truncated")
                        digest.update(piece)
                        left -= len(piece)
                        yield split, piece
    except Exception as error:  # the zip reader raises almost anything for a damaged file
        cause = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Unavailable(cause[:200]) from None
    if digest.hexdigest() != archive.sha256:
        raise Unavailable("its SHA-256 does not match")
