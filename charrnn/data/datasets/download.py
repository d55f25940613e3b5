"""Download a file without holding it in memory, from an untrusted server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from math import inf
from typing import IO
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import charrnn
from charrnn.compute import Report

SILENCE = 30.0  # seconds
CHUNK = 1 << 18  # bytes

# called with a word for the step, the bytes done so far, and the bytes in all if they are known
Progress = Callable[[str, int, int | None], None]


class Unavailable(Exception):
    """A source does not have the text. The message is the cause, in a few words."""


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

    The caller must check the content. Raises Unavailable if the server does not answer, sends
    nothing for ``silence`` seconds (by default SILENCE), takes longer than ``patience`` seconds in all, breaks off, or
    sends something else. Raises OSError if the file cannot be written.
    """
    silence = SILENCE if silence is None else silence
    deadline = time.monotonic() + patience
    request = Request(url, headers={"User-Agent": f"charrnn/{charrnn.__version__}"})
    with network_errors(silence):
        response: HTTPResponse = urlopen(request, timeout=silence)
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
    """Turn errors of the network, which are OSErrors like a full disk, into Unavailable."""
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
