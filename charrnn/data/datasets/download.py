"""Download a file from an untrusted server without holding it in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from io import BufferedReader, RawIOBase
from math import inf
from typing import IO, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, Request, build_opener

import charrnn
from charrnn.compute import Report

SILENCE = 30.0  # seconds
MINUTE = 60.0  # seconds
SLOWEST = 100_000  # bytes in each minute
OVERHEAD = 1_000_000  # bytes of headers and the like
CHUNK = 1 << 18  # bytes

# called with a word for the step, the bytes done so far, and the bytes in all if they are known
Progress = Callable[[str, int, int | None], None]


class Unavailable(Exception):
    """A source does not have the text. The message says why, in a few words."""


def by_tenths(report: Report) -> Progress:
    """Return a Progress that reports a line at each tenth, or at every 10 MB if the size is not known."""
    reported: dict[str, int] = {}

    def progress(what: str, done: int, size: int | None) -> None:
        tenths = 10 * done // size if size else done // 10_000_000
        if tenths > reported.setdefault(what, tenths):
            reported[what] = tenths
            report(f"{what}: {done / 1e6:,.1f}{f' of {size / 1e6:,.1f}' if size else ''} MB")

    return progress


def download(
    url: str, file: IO[bytes], limit: int, progress: Progress, silence: float | None = None, patience: float = inf
) -> None:
    """Write the content of a web address, at most ``limit`` bytes, to an open file.

    The caller must check the content. Raises Unavailable if the server does not answer, sends nothing for ``silence``
    seconds (by default SILENCE) or less than SLOWEST in a minute, takes longer than ``patience`` seconds in all, breaks
    off, redirects to another scheme, or sends something other than a file of that size. Raises OSError if the file
    cannot be written.
    """
    silence = SILENCE if silence is None else silence
    deadline = time.monotonic() + patience
    with network_errors(silence):
        response = open_address(url, Pace(2 * limit + OVERHEAD), silence)
    with response:
        size, done = response.length, 0
        check_answer(response, limit)
        while piece := read_piece(response, silence):
            file.write(piece)
            done += len(piece)
            if done > limit:
                raise Unavailable("it sends more bytes than expected")
            if time.monotonic() > deadline:
                raise Unavailable(f"not done after {patience:g} seconds")
            progress("downloading", done, size)
        if done < (size or 0):
            raise Unavailable(f"it broke off after {done:,} of {size:,} bytes")


class Pace:
    """Counts everything that a server sends, and raises Unavailable if it is too little in a minute or too much."""

    def __init__(self, most: int) -> None:
        self.left = most
        self.arrived = 0
        self.since = time.monotonic()

    def add(self, count: int) -> None:
        self.left -= count
        self.arrived += count
        if self.left < 0:
            raise Unavailable("it sends more bytes than expected")
        if time.monotonic() - self.since > MINUTE:
            if self.arrived < SLOWEST:
                raise Unavailable(f"only {self.arrived:,} bytes arrived in {MINUTE:g} seconds")
            self.arrived, self.since = 0, time.monotonic()


class Paced(RawIOBase):
    """A stream whose bytes are counted by a Pace."""

    def __init__(self, stream: RawIOBase, pace: Pace) -> None:
        self.stream = stream
        self.pace = pace

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        count: int | None = self.stream.readinto(buffer)
        self.pace.add(count or 0)
        return count

    def close(self) -> None:
        self.stream.close()
        super().close()


class SameScheme(HTTPRedirectHandler):
    """Follows redirects, but not to another scheme, and without reading the pages that come with them."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        fp.close()
        scheme = urlsplit(newurl).scheme
        if scheme != urlsplit(req.full_url).scheme:
            raise Unavailable(f"it redirects to {scheme}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def open_address(url: str, pace: Pace, silence: float) -> HTTPResponse:
    """Request a web address and return the response. Every byte of it, headers included, is counted by ``pace``."""

    def answer(*arguments: Any, **named: Any) -> HTTPResponse:
        response = HTTPResponse(*arguments, **named)
        response.fp = BufferedReader(Paced(response.fp.detach(), pace))
        return response

    def connection(kind: type[HTTPConnection]) -> Callable[..., HTTPConnection]:
        def connect(*arguments: Any, **named: Any) -> HTTPConnection:
            connected = kind(*arguments, **named)
            connected.response_class = answer  # type: ignore[assignment]
            return connected

        return connect

    class Http(HTTPHandler):
        def http_open(self, req: Request) -> HTTPResponse:
            return self.do_open(connection(HTTPConnection), req)

    class Https(HTTPSHandler):
        def https_open(self, req: Request) -> HTTPResponse:
            return self.do_open(connection(HTTPSConnection), req)

    request = Request(url, headers={"User-Agent": f"charrnn/{charrnn.__version__}"})
    response: HTTPResponse = build_opener(Http, Https, SameScheme).open(request, timeout=silence)
    return response


def check_answer(response: HTTPResponse, limit: int) -> None:
    """Raise Unavailable if the headers show that this is not the file."""
    if response.status != 200:
        raise Unavailable(f"it answers {response.status} {response.reason}")
    if response.headers.get_content_type() == "text/html":
        raise Unavailable("it sends a web page instead of the file")
    if (response.length or 0) > limit:
        raise Unavailable(f"it would send {response.length:,} bytes, more than expected")


def read_piece(response: HTTPResponse, silence: float) -> bytes:
    with network_errors(silence):
        return response.read1(CHUNK)


@contextmanager
def network_errors(silence: float) -> Iterator[None]:
    """Turn network errors into Unavailable. They are OSErrors, and so is a full disk."""
    try:
        yield
    except HTTPError as error:
        error.close()
        raise Unavailable(f"it answers {error.code} {error.reason}") from None
    except (OSError, HTTPException, ValueError) as error:  # ValueError: invalid headers
        cause = getattr(error, "reason", None) or error
        if isinstance(cause, TimeoutError):
            raise Unavailable(f"nothing arrived for {silence:g} seconds") from None
        raise Unavailable(str(getattr(cause, "strerror", None) or cause) or type(cause).__name__) from None
