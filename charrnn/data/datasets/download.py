"""Large files from the web: what broke off goes on where it stopped, and no file is held in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import charrnn

SILENCE = 30.0  # seconds


CHUNK = 1 << 18  # bytes


Report = Callable[[str], None]


# called with what goes on, in a word, how many bytes of it are done, and of how many, where that is known
Progress = Callable[[str, int, int | None], None]


class Unavailable(Exception):
    """A source did not give the text. The message is the cause, in a few words."""


def by_tenths(report: Report) -> Progress:
    """A Progress that gives ``report`` a line at each tenth; at each 10 MB where the size is not known."""
    told: dict[str, int] = {}

    def progress(what: str, done: int, size: int | None) -> None:
        tenths = 10 * done // size if size else done // 10_000_000
        if tenths > told.setdefault(what, tenths):
            told[what] = tenths
            report(f"{what}: {done / 1e6:,.1f}{f' of {size / 1e6:,.1f}' if size else ''} MB")

    return progress


def download(url: str, path: Path, limit: int, progress: Progress) -> None:
    """Fetch what a web address holds, at most ``limit`` bytes, to a file. What an earlier call has fetched stays.

    ``path`` with ``.json`` after it tells which version of the file is coming and how long it is. Only the rest
    is asked for, under the condition that the server still has that version (RFC 9110: Range, If-Range); all of it,
    where the server has another one by now, does not name versions, or knows no ranges. A file that is whole
    already is not asked for again. Whether it is the right one, the caller must find out.

    Raises Unavailable where the server does not answer, says nothing for SILENCE seconds, breaks off, or sends
    something else; what has come until then is kept. Raises OSError where the file cannot be written.
    """
    there, version, size = _begun(path)
    if there and there == size:
        return
    with _open(url, there, version) as response:
        begin = there if response.status == 206 else 0
        size = None if response.length is None else begin + response.length
        if response.headers.get_content_type() == "text/html":
            raise Unavailable("it sends a web page in place of the file")
        if (size or 0) > limit:
            raise Unavailable(f"it would send {size:,} bytes, more than there should be")
        with path.open("ab" if begin else "wb") as file:
            _note(path, response, size)
            done = begin
            while piece := _read(response):
                file.write(piece)
                file.flush()  # a process that is killed loses nothing of it
                done += len(piece)
                if done > limit:
                    file.truncate(0)
                    raise Unavailable("it sends more than there should be")
                progress("downloading", done, size)
        if done < (size or 0):
            raise Unavailable(f"it broke off after {done:,} of {size:,} bytes")
        _note(path, response, done)


def discard(path: Path) -> None:
    """Remove what ``download`` has left or made."""
    path.unlink(missing_ok=True)
    _record(path).unlink(missing_ok=True)


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _note(path: Path, response: HTTPResponse, size: int | None) -> None:
    """Write down which version is coming, by a name that a later request can use, and its size."""
    tag = response.headers.get("ETag", "")
    version = tag if tag.startswith('"') else response.headers.get("Last-Modified", "")  # W/"..." promises too little
    _record(path).write_text(json.dumps({"version": version, "size": size}) + "\n", encoding="utf-8")


def _begun(path: Path) -> tuple[int, str, int | None]:
    """How many bytes are there, of which version, and how many that has. Without a version they are worth nothing."""
    try:
        match json.loads(_record(path).read_text(encoding="utf-8")):
            case {"version": str(version), "size": int() | None as size}:
                return path.stat().st_size, version, size
    except (OSError, ValueError):
        pass
    return 0, "", None


def _open(url: str, there: int, version: str) -> HTTPResponse:
    """The server's answer: the rest from byte ``there`` on, with status 206, or all of it."""
    headers = {"User-Agent": f"charrnn/{charrnn.__version__}"}
    resume = there > 0 and version != ""
    if resume:
        headers |= {"Range": f"bytes={there}-", "If-Range": version}
    with _network():
        try:
            response: HTTPResponse = urlopen(Request(url, headers=headers), timeout=SILENCE)
        except HTTPError as error:
            error.close()
            if resume and error.code == 416:  # there is no rest
                return _open(url, 0, "")
            raise
    if response.status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {there}-"):
        response.close()
        if resume:
            return _open(url, 0, "")
        raise Unavailable("it sends a part in place of the file")
    return response


def _read(response: HTTPResponse) -> bytes:
    with _network():
        return response.read1(CHUNK)


@contextmanager
def _network() -> Iterator[None]:
    """Errors of the network, which are OSErrors as a full disk is, become Unavailable."""
    try:
        yield
    except HTTPError as error:
        raise Unavailable(f"it answers {error.code} {error.reason}") from None
    except (OSError, HTTPException, ValueError) as error:  # ValueError: headers that make no sense
        cause = getattr(error, "reason", None) or error
        if isinstance(cause, TimeoutError):
            raise Unavailable(f"nothing came for {SILENCE:g} seconds") from None
        raise Unavailable(str(getattr(cause, "strerror", None) or cause) or type(cause).__name__) from None
