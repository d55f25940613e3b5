"""Downloads from a local server that breaks the connection, stalls or announces the wrong length."""

from __future__ import annotations

import errno
import random
import re
import socket
import threading
import tracemalloc
from collections.abc import Iterator
from email.message import Message
from io import BytesIO
from pathlib import Path
from urllib.request import Request

import pytest

from charrnn.data.datasets import download as module
from charrnn.data.datasets.download import Progress, Unavailable, by_tenths, download
from tests.helpers.runs import silent
from tests.helpers.server import Site, serving

BODY = random.Random(1).randbytes(50_000)
LIMIT = 60_000


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(BODY) as served:
        yield served


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.part"


def fetch(site: Site, path: Path, progress: Progress = silent, limit: int = LIMIT) -> None:
    with path.open("wb") as file:
        download(site.url, file, limit, progress)


def refusal(site: Site, path: Path) -> str:
    with pytest.raises(Unavailable) as caught:
        fetch(site, path)
    return str(caught.value)


def test_a_whole_file_is_downloaded_with_progress(site: Site, path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    fetch(site, path, lambda *now: seen.append(now))
    assert path.read_bytes() == BODY
    assert seen[-1] == ("downloading", 50_000, 50_000)
    assert [done for _, done, _ in seen] == sorted({done for _, done, _ in seen})
    assert "Range" not in site.asked[0]
    assert site.asked[0]["User-Agent"].startswith("charrnn/")


def test_a_broken_connection_is_reported_and_can_be_retried(site: Site, path: Path) -> None:
    site.cut = 20_000
    assert refusal(site, path) == "it broke off after 20,000 of 50,000 bytes"
    site.cut = None
    fetch(site, path)
    assert path.read_bytes() == BODY


def test_partial_content_that_was_not_requested_is_refused(site: Site, path: Path) -> None:
    site.status = 206
    assert refusal(site, path) == "it answers 206 Partial Content"
    assert path.read_bytes() == b""


def test_an_announced_length_that_is_too_long_is_reported(site: Site, path: Path) -> None:
    site.announced = 55_000
    assert refusal(site, path) == "it broke off after 50,000 of 55,000 bytes"


def test_an_announced_length_that_is_too_short_truncates_the_file(site: Site, path: Path) -> None:
    site.announced = 40_000
    fetch(site, path)
    assert path.read_bytes() == BODY[:40_000]  # the caller's checksum detects this


def test_without_an_announced_length_the_file_is_read_to_its_end(site: Site, path: Path) -> None:
    site.announced = -1
    seen = set()
    fetch(site, path, lambda what, done, size: seen.add(size))
    assert path.read_bytes() == BODY
    assert seen == {None}


def test_more_bytes_than_expected_are_refused(site: Site, path: Path) -> None:
    site.body = BODY * 2
    assert refusal(site, path) == "it would send 100,000 bytes, more than expected"
    assert path.read_bytes() == b""
    site.announced = -1
    assert refusal(site, path) == "it sends more bytes than expected"


@pytest.mark.parametrize(
    ("status", "cause"),
    [
        (200, "it sends a web page instead of the file"),
        (404, "it answers 404 Not Found"),
        (503, "it answers 503 Service Unavailable"),
    ],
)
def test_a_web_page_or_an_error_is_refused(status: int, cause: str, site: Site, path: Path) -> None:
    site.body, site.type, site.status = b"<html>Please log in", "text/html; charset=utf-8", status
    assert refusal(site, path) == cause
    assert path.read_bytes() == b""


@pytest.mark.parametrize("after", [-1, 0, 20_000])
def test_a_download_from_a_silent_server_ends_after_a_time_limit(
    after: int, site: Site, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SILENCE", 0.2)
    site.stall = after
    assert refusal(site, path) == "nothing arrived for 0.2 seconds"


OK = b"HTTP/1.1 200 OK\r\n"
ENDLESS = {
    "the status": (b"HTTP/1.1 200 O", b"K"),
    "a header": (OK + b"X: ", b"y"),
    "headers": (OK, b"X: y\r\n"),
    "interim responses": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "the content": (OK + b"Content-Length: 50000\r\n\r\n", b"x"),
    "content without a length": (OK + b"\r\n", b"x"),
    "the length of a chunk": (OK + b"Transfer-Encoding: chunked\r\n\r\n1;x=", b"y"),
    "chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "the trailer": (OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", b"X: y\r\n"),
    "a redirect": (b"HTTP/1.1 302 Found\r\nLocation: /next\r\nContent-Length: 50000\r\n\r\n", b"x"),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_download_that_is_too_slow_is_abandoned(
    kind: str, site: Site, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MINUTE", 0.2)
    site.endless, site.pause = ENDLESS[kind], 0.01
    message = refusal(site, path)
    # a redirect is followed before its content arrives; here it leads to the same redirect again
    assert re.fullmatch(r"only [\d,]+ bytes arrived in 0\.2 seconds|it answers 302 .*", message, re.DOTALL), message


def test_a_download_that_starts_fast_and_then_stalls_is_abandoned(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MINUTE", 0.2)
    site.endless, site.pause = (OK + b"Content-Length: 500000\r\n\r\n" + b"x" * 3 * module.SLOWEST, b"x"), 0.01
    with pytest.raises(Unavailable, match=r"^only [\d,]+ bytes arrived in 0\.2 seconds$"):
        download(site.url, BytesIO(), 1_000_000, silent)


@pytest.mark.parametrize("kind", sorted(ENDLESS.keys() - {"the content"}))  # that one ends at its announced length
def test_an_endless_response_is_abandoned_and_takes_little_memory(kind: str, site: Site, path: Path) -> None:
    first, piece = ENDLESS[kind]
    site.endless = first, piece * 10_000
    tracemalloc.start()
    try:
        assert refusal(site, path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000
    assert path.stat().st_size <= LIMIT + module.CHUNK


@pytest.mark.parametrize(
    "to", ["https://127.0.0.1:{port}/", "ftp://127.0.0.1:{port}/", "file:///etc/passwd", "data:,x"]
)
def test_a_redirect_to_another_scheme_is_refused(to: str, site: Site, path: Path) -> None:
    site.status, site.location = 302, to
    message = refusal(site, path)
    assert message.startswith("it redirects to ") or "is not allowed" in message
    assert path.read_bytes() == b"" and len(site.asked) == 1


def test_a_redirect_from_https_to_http_is_refused() -> None:
    here, there = Request("https://example.org/a.zip"), "http://example.org/a.zip"
    with pytest.raises(Unavailable, match=r"^it redirects to http$"):
        module.SameScheme().redirect_request(here, BytesIO(), 302, "Found", Message(), there)


def test_a_redirect_within_the_scheme_is_followed(site: Site, path: Path) -> None:
    site.status, site.location = 302, "http://127.0.0.1:{port}/next"
    fetch(site, path)
    assert path.read_bytes() == BODY and len(site.asked) == 2


def test_an_unreachable_server_and_an_invalid_response_are_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"

        def talk() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(b"220 mail.example ESMTP\r\n")

        thread = threading.Thread(target=talk)
        thread.start()
        with pytest.raises(Unavailable, match="220 mail"):
            download(url, BytesIO(), LIMIT, silent)
        thread.join()
    with pytest.raises(Unavailable, match=r"^Connection refused$"):
        download(url, BytesIO(), LIMIT, silent)


def test_a_full_disk_is_not_blamed_on_the_server(site: Site, path: Path) -> None:
    path.symlink_to("/dev/full")
    with pytest.raises(OSError) as caught:
        fetch(site, path)
    assert caught.value.errno == errno.ENOSPC


def test_downloading_a_large_file_takes_little_memory(site: Site, path: Path) -> None:
    site.body = BODY * 600
    tracemalloc.start()
    try:
        fetch(site, path, limit=len(site.body))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert path.stat().st_size == 30_000_000
    assert peak < 4_000_000


def test_progress_is_reported_every_tenth_or_every_10_megabytes() -> None:
    lines: list[str] = []
    progress = by_tenths(lines.append)
    for done in range(0, 36_000_001, 1_000_000):
        progress("downloading", done, 36_000_000)
    assert len(lines) == 10
    assert lines[0] == "downloading: 4.0 of 36.0 MB"
    assert lines[-1] == "downloading: 36.0 of 36.0 MB"
    lines.clear()
    for done in range(0, 35_000_000, 1_000_000):
        progress("fetching", done, None)
    assert lines == ["fetching: 10.0 MB", "fetching: 20.0 MB", "fetching: 30.0 MB"]
