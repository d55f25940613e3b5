"""Downloads from a real server that breaks off, lies, stalls and changes its mind."""

from __future__ import annotations

import errno
import json
import os
import random
import socket
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from charrnn.data.datasets import download as module
from charrnn.data.datasets.download import Unavailable, by_tenths, discard, download
from tests.helpers.runs import silent
from tests.helpers.server import Site, serving

BODY = random.Random(1).randbytes(50_000)
OTHER = random.Random(2).randbytes(50_000)
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


def refusal(site: Site, path: Path) -> str:
    with pytest.raises(Unavailable) as caught:
        download(site.url, path, LIMIT, silent)
    return str(caught.value)


def broken_off(site: Site, path: Path, at: int = 20_000) -> None:
    """Leave the beginning of the file."""
    site.cut = at
    assert refusal(site, path) == f"it broke off after {at:,} of 50,000 bytes"
    assert path.read_bytes() == BODY[:at]
    site.cut = None


def test_a_whole_file_is_not_asked_for_again(site: Site, path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    download(site.url, path, LIMIT, lambda *now: seen.append(now))
    assert path.read_bytes() == BODY
    assert seen[-1] == ("downloading", 50_000, 50_000)
    assert [done for _, done, _ in seen] == sorted({done for _, done, _ in seen})
    assert "Range" not in site.asked[0]
    assert site.asked[0]["User-Agent"].startswith("charrnn/")
    download(site.url, path, LIMIT, silent)
    assert len(site.asked) == 1
    discard(path)
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize(
    "version",
    [
        {"ETag": '"one"'},
        {"Last-Modified": "Sat, 04 Mar 2006 00:00:00 GMT"},
        {"ETag": 'W/"weak"', "Last-Modified": "Sat, 04 Mar 2006 00:00:00 GMT"},
    ],
    ids=["tag", "date", "weak tag and date"],
)
def test_only_the_rest_is_asked_for(version: dict[str, str], site: Site, path: Path) -> None:
    site.version = version
    broken_off(site, path)
    broken_off(site, path, 30_000)
    seen: list[int] = []
    download(site.url, path, LIMIT, lambda what, done, size: seen.append(done))
    assert path.read_bytes() == BODY
    assert site.sent == [20_000, 10_000, 20_000]
    assert [(asked["Range"], asked["If-Range"]) for asked in site.asked[1:]] == [
        ("bytes=20000-", list(version.values())[-1]),
        ("bytes=30000-", list(version.values())[-1]),
    ]
    assert seen[0] > 30_000
    assert seen[-1] == 50_000


@pytest.mark.parametrize("version", [{}, {"ETag": 'W/"weak"'}], ids=["none", "weak"])
def test_without_a_version_all_comes_anew(version: dict[str, str], site: Site, path: Path) -> None:
    site.version = version
    broken_off(site, path)
    download(site.url, path, LIMIT, silent)
    assert path.read_bytes() == BODY
    assert "Range" not in site.asked[1]


def test_a_server_without_ranges_sends_all_anew(site: Site, path: Path) -> None:
    broken_off(site, path)
    site.ranges = False
    download(site.url, path, LIMIT, silent)
    assert site.asked[1]["Range"] == "bytes=20000-"
    assert path.read_bytes() == BODY
    assert site.sent == [20_000, 50_000]


def test_another_version_comes_anew(site: Site, path: Path) -> None:
    broken_off(site, path)
    site.body, site.version = OTHER, {"ETag": '"two"'}
    site.cut = 10_000  # and is the one that a third try goes on with
    assert "broke off" in refusal(site, path)
    assert path.read_bytes() == OTHER[:10_000]
    site.cut = None
    download(site.url, path, LIMIT, silent)
    assert path.read_bytes() == OTHER
    assert site.sent == [20_000, 10_000, 40_000]


def test_a_part_that_was_not_asked_for(site: Site, path: Path) -> None:
    broken_off(site, path)
    site.content_range = "bytes 1000-49999/50000"
    download(site.url, path, LIMIT, silent)
    assert path.read_bytes() == BODY
    assert [asked["Range"] for asked in site.asked] == [None, "bytes=20000-", None]

    discard(path)
    site.status = 206
    assert refusal(site, path) == "it sends a part in place of the file"
    assert not path.exists()


@pytest.mark.parametrize("record", ["", "[]", '{"version": 7, "size": 9}', "\0\xff", None])
def test_without_a_sound_record_all_comes_anew(record: str | None, site: Site, path: Path) -> None:
    broken_off(site, path)
    beside = path.with_name("file.part.json")
    assert json.loads(beside.read_text()) == {"version": '"one"', "size": 50_000}
    if record is None:
        beside.unlink()
    else:
        beside.write_text(record, encoding="latin-1")
    download(site.url, path, LIMIT, silent)
    assert path.read_bytes() == BODY
    assert "Range" not in site.asked[1]


def test_a_length_that_is_too_long(site: Site, path: Path) -> None:
    site.announced = 55_000
    assert refusal(site, path) == "it broke off after 50,000 of 55,000 bytes"
    assert path.read_bytes() == BODY
    site.announced = None
    download(site.url, path, LIMIT, silent)  # there is no rest, so all is fetched
    assert path.read_bytes() == BODY
    assert [asked["Range"] for asked in site.asked] == [None, "bytes=50000-", None]


def test_a_length_that_is_too_short(site: Site, path: Path) -> None:
    site.announced = 40_000
    download(site.url, path, LIMIT, silent)
    assert path.read_bytes() == BODY[:40_000]  # for all that one can know; its user finds out


def test_a_server_that_names_no_length_is_read_to_its_end(site: Site, path: Path) -> None:
    site.announced = -1
    seen = set()
    download(site.url, path, LIMIT, lambda what, done, size: seen.add(size))
    assert path.read_bytes() == BODY
    assert seen == {None}
    download(site.url, path, LIMIT, silent)
    assert len(site.asked) == 1


def test_more_than_there_should_be(site: Site, path: Path) -> None:
    broken_off(site, path)
    site.body, site.version = BODY + OTHER, {"ETag": '"two"'}
    assert refusal(site, path) == "it would send 100,000 bytes, more than there should be"
    assert path.read_bytes() == BODY[:20_000]
    site.announced = -1
    assert refusal(site, path) == "it sends more than there should be"
    assert path.read_bytes() == b""


@pytest.mark.parametrize("status", [200, 404, 503])
def test_a_web_page_or_an_error_leaves_what_has_come(status: int, site: Site, path: Path) -> None:
    broken_off(site, path)
    site.body, site.version, site.type, site.status = b"<html>Please log in", {}, "text/html; charset=utf-8", status
    assert (
        refusal(site, path)
        == {
            200: "it sends a web page in place of the file",
            404: "it answers 404 Not Found",
            503: "it answers 503 Service Unavailable",
        }[status]
    )
    assert path.read_bytes() == BODY[:20_000]
    site.body, site.version, site.type, site.status = BODY, {"ETag": '"one"'}, "application/zip", 200
    download(site.url, path, LIMIT, silent)
    assert path.read_bytes() == BODY
    assert site.sent[-1] == 30_000


@pytest.mark.parametrize("after", [-1, 0, 20_000])
def test_a_silent_server_is_given_up(after: int, site: Site, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE", 0.2)
    site.stall = after
    assert refusal(site, path) == "nothing came for 0.2 seconds"
    assert path.read_bytes() == BODY[:after] if after >= 0 else not path.exists()
    site.stall = None
    download(site.url, path, LIMIT, silent)
    assert path.read_bytes() == BODY


def test_a_server_that_is_not_there_and_one_that_talks_nonsense(path: Path) -> None:
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
            download(url, path, LIMIT, silent)
        thread.join()
    with pytest.raises(Unavailable, match=r"^Connection refused$"):
        download(url, path, LIMIT, silent)
    assert not path.exists()


def test_a_full_disk_is_not_the_servers_fault(site: Site, path: Path) -> None:
    path.symlink_to("/dev/full")
    with pytest.raises(OSError) as caught:
        download(site.url, path, LIMIT, silent)
    assert caught.value.errno == errno.ENOSPC


def test_little_memory(site: Site, path: Path) -> None:
    site.body = BODY * 600
    tracemalloc.start()
    try:
        download(site.url, path, len(site.body), silent)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert path.stat().st_size == 30_000_000
    assert peak < 4_000_000


def test_lines_by_tenths() -> None:
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
    lines.clear()
    by_tenths(lines.append)("downloading", 30_000_000, 36_000_000)  # where a broken one goes on, nothing was done
    assert lines == []
