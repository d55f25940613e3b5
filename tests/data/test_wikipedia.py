"""enwik8 and text8, tested with a text of a few kilobytes in their place."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pty
import random
import re
import resource
import signal
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import pytest

from charrnn.data.datasets import catalogue as datasets
from charrnn.data.datasets.wikipedia import ENWIK8, TEXT8, Archive, prepare
from charrnn.data.text import open_chosen
from charrnn.errors import UserError
from charrnn.settings.training import TrainingOptions
from tests.helpers.command import charrnn, environment, one_line
from tests.helpers.runs import silent
from tests.helpers.server import Site, serving

# the split at byte 9000 cuts an é in two, as the splits of enwik8 may do
TEXT = (b"<page>" + bytes(random.Random(1).choices(b"abcdefghij \n", k=8_993)) + "é".encode() + b"xyz " * 250)[:10_000]
SPLITS = {"train": 9_000, "val": 500, "test": 500}
PARTS = {"train.txt": TEXT[:9_000], "val.txt": TEXT[9_000:9_500], "test.txt": TEXT[9_500:]}


def pack(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w", method) as packed:
        for name, content in members:
            packed.writestr(name, content)
    return file.getvalue()


ZIP = pack(("enwik8", TEXT))


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(ZIP) as served:
        yield served


def small(site: Site, *urls: str) -> Archive:
    return Archive("enwik8", urls or (site.url,), sha256(TEXT).hexdigest(), "a hint", SPLITS)


def make(site: Site, folder: Path) -> list[str]:
    """Prepare the text, check the files, and return the messages."""
    lines: list[str] = []
    prepare(small(site), folder, lines.append, silent)
    assert contents(folder) == PARTS
    return lines


def refusal(site: Site, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        prepare(small(site), folder, lambda line: None, silent)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of each file in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_two_texts_have_the_published_splits_and_checksums() -> None:
    """Compares with the values in the program of Zilly et al. and on Mahoney's page."""
    assert [list(archive.splits.items()) for archive in (ENWIK8, TEXT8)] == 2 * [
        [("train", 90_000_000), ("val", 5_000_000), ("test", 5_000_000)]
    ]
    assert ENWIK8.urls == ("https://mattmahoney.net/dc/enwik8.zip", "http://mattmahoney.net/dc/enwik8.zip")
    assert TEXT8.urls == ("https://mattmahoney.net/dc/text8.zip", "http://mattmahoney.net/dc/text8.zip")
    assert {"enwik8", "text8"} < set(datasets.names())
    assert "-encoding bytes" in ENWIK8.hint
    assert ENWIK8.sha256 == "2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8"
    assert TEXT8.sha256 == "6e890197040d37d85beb962ae1f041ff1d9a9ca8d20c7d99c85027eebf51dca7"


def test_the_text_is_downloaded_and_split_by_bytes(site: Site, tmp_path: Path) -> None:
    folder, seen = tmp_path / "new" / "folder", list[tuple[str, int, int | None]]()
    lines: list[str] = []
    prepare(small(site), folder, lines.append, lambda *now: seen.append(now))
    assert contents(folder) == PARTS
    assert b"".join(PARTS.values()) == TEXT
    assert lines == [
        f"enwik8: trying {site.url}",
        *(f"wrote {folder / name}: {len(content):,} bytes" for name, content in PARTS.items()),
        "enwik8: a hint",
    ]
    assert ("downloading", len(ZIP), len(ZIP)) in seen
    assert seen[-1] == ("unpacking", 10_000, 10_000)


def test_correct_files_are_left_unchanged(site: Site, tmp_path: Path) -> None:
    make(site, tmp_path)
    stamps = [(path, path.stat().st_mtime_ns, path.stat().st_ino) for path in sorted(tmp_path.iterdir())]
    assert make(site, tmp_path) == [f"{tmp_path} already has enwik8: nothing to do"]
    assert [(path, path.stat().st_mtime_ns, path.stat().st_ino) for path in sorted(tmp_path.iterdir())] == stamps
    assert len(site.asked) == 1


def test_splits_that_a_killed_run_did_not_write_are_added(site: Site, tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_bytes(PARTS["test.txt"])
    stamp = (tmp_path / "test.txt").stat().st_mtime_ns
    lines = make(site, tmp_path)
    assert [line.split("/")[-1] for line in lines[1:3]] == ["train.txt: 9,000 bytes", "val.txt: 500 bytes"]
    assert (tmp_path / "test.txt").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("kind", ["longer", "shorter", "folder", "broken link", "same size", "all of the same size"])
def test_a_different_file_is_left_alone_and_named(kind: str, split: str, site: Site, tmp_path: Path) -> None:
    path = tmp_path / f"{split}.txt"
    if kind == "all of the same size":
        for name, content in PARTS.items():
            (tmp_path / name).write_bytes(content)
    content = {"longer": PARTS[path.name] + b"!", "shorter": b""}.get(kind, PARTS[path.name][:-1] + b"!")
    if kind == "folder":
        path.mkdir()
    elif kind == "broken link":
        path.symlink_to("elsewhere")
    else:
        path.write_bytes(content)
    before = sorted(os.listdir(tmp_path))
    message = refusal(site, tmp_path)
    reason = "left unchanged" if kind == "all of the same size" else f"{path} exists and is not part of enwik8"
    assert reason in message
    assert sorted(os.listdir(tmp_path)) == before
    assert bool(site.asked) == (kind == "same size")
    assert path.is_dir() or path.is_symlink() or path.read_bytes() == content
    if kind == "same size":  # detected only when the text is unpacked
        path.unlink()
        make(site, tmp_path)


def test_a_broken_download_leaves_no_file(site: Site, tmp_path: Path) -> None:
    site.cut = 1_000
    message = refusal(site, tmp_path)
    assert f"{site.url}: it broke off after 1,000 of {len(ZIP):,} bytes" in message
    assert contents(tmp_path) == {}
    site.cut = None
    make(site, tmp_path)


def test_the_second_address_is_tried_if_the_first_fails(site: Site, tmp_path: Path) -> None:
    with serving(ZIP) as other:
        site.cut = 1_000
        prepare(small(site, site.url, other.url), tmp_path, lambda line: None, silent)
        assert contents(tmp_path) == PARTS
        assert other.sent == [len(ZIP)]


def test_the_message_for_a_failed_download_says_what_else_to_do(site: Site, tmp_path: Path) -> None:
    site.status, site.type = 404, "text/html"
    message = refusal(site, tmp_path / "data")
    assert message == (
        f"cannot download enwik8 ({site.url}: it answers 404 Not Found): try again later, or put enwik8.zip into "
        f"{tmp_path / 'data'} yourself"
    )
    assert contents(tmp_path / "data") == {}


def encrypted() -> bytes:
    marked = bytearray(ZIP)
    marked[6] |= 1
    marked[marked.index(b"PK\1\2") + 8] |= 1
    return bytes(marked)


def claiming(size: int, content: bytes) -> bytes:
    """Return a zip file that gives this size for its member, in both places where the size is stored."""
    packed = bytearray(pack(("enwik8", content)))
    for at in (22, packed.index(b"PK\1\2") + 24):
        packed[at : at + 4] = size.to_bytes(4, "little")
    return bytes(packed)


def damaged() -> bytes:
    packed = bytearray(ZIP)
    packed[len(packed) // 2] ^= 255
    return bytes(packed)


BAD = {
    "another text": (pack(("enwik8", TEXT[::-1])), "its SHA-256 does not match"),
    "longer": (pack(("enwik8", TEXT + b"!")), "10,001 bytes"),
    "shorter": (pack(("enwik8", TEXT[:-1])), "9,999 bytes"),
    "another member": (pack(("text8", TEXT)), "no item named 'enwik8'"),
    "a path outside the folder": (pack(("../enwik8", TEXT)), "no item named 'enwik8'"),
    "not a zip file": (ZIP[::-1], "not a zip file"),
    "cut off": (ZIP[:-30], "not a zip file"),
    "nothing but zeros": (bytes(100), "not a zip file"),
    "damaged": (damaged(), ""),
    "encrypted": (encrypted(), "encrypted"),
    "a zip bomb": (claiming(10_000, bytes(8_000_000)), "Bad CRC-32"),
    "shorter than its stated size": (claiming(10_000, TEXT[:9_000]), ""),
    "bzip2": (pack(("enwik8", TEXT), method=zipfile.ZIP_BZIP2), "unknown compression"),
    "lzma": (pack(("enwik8", TEXT), method=zipfile.ZIP_LZMA), "unknown compression"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_wrong_download_is_deleted_and_nothing_is_written(kind: str, site: Site, tmp_path: Path) -> None:
    site.body, cause = BAD[kind]
    folder = tmp_path / "data" / "enwik8"
    tracemalloc.start()
    try:
        message = refusal(site, folder)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert message.startswith(f"{site.url} did not send enwik8 (")
    assert cause in message
    assert peak < 4_000_000
    assert contents(folder) == {}
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "enwik8"]
    site.body = ZIP
    assert len(make(site, folder)) == 5


def test_an_announced_length_that_is_too_short_is_reported(site: Site, tmp_path: Path) -> None:
    site.announced = len(ZIP) - 100
    assert f"{site.url} did not send enwik8 (" in refusal(site, tmp_path)
    assert contents(tmp_path) == {}


def test_a_member_with_a_path_outside_the_folder_is_not_unpacked(site: Site, tmp_path: Path) -> None:
    site.body = pack(("../evil.txt", b"evil"), ("/tmp/evil.txt", b"evil"), ("enwik8", TEXT), ("train.txt", b"evil"))
    make(site, tmp_path / "data")
    assert os.listdir(tmp_path) == ["data"]


def test_a_zip_file_provided_by_the_user_is_used_or_left_alone(site: Site, tmp_path: Path) -> None:
    found = tmp_path / "enwik8.zip"
    found.write_bytes(pack(("enwik8", TEXT[::-1])))
    message = refusal(site, tmp_path)
    assert message == (
        f"{found} does not contain enwik8 (its SHA-256 does not match), so it was left unchanged: "
        "move it away, and the next run downloads the right one"
    )
    assert os.listdir(tmp_path) == ["enwik8.zip"]
    found.write_bytes(ZIP)
    lines: list[str] = []
    prepare(small(site), tmp_path, lines.append, silent)
    assert lines[0] == f"enwik8: unpacking {found}"
    assert contents(tmp_path) == PARTS | {"enwik8.zip": ZIP}
    assert site.asked == []


def test_a_fifo_in_place_of_the_zip_file_is_refused_at_once(site: Site, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "enwik8.zip")
    assert "enwik8.zip does not contain enwik8 (not a regular file)" in refusal(site, tmp_path)


def test_a_browsers_unfinished_download_is_left_alone(site: Site, tmp_path: Path) -> None:
    (tmp_path / "enwik8.zip.part").write_bytes(b"mine")
    prepare(small(site), tmp_path, silent, silent)
    assert contents(tmp_path) == PARTS | {"enwik8.zip.part": b"mine"}


def test_two_processes_cannot_download_at_once(site: Site, tmp_path: Path) -> None:
    with (tmp_path / ".enwik8.zip.charrnn-part").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "another charrnn is downloading enwik8" in refusal(site, tmp_path)
    make(site, tmp_path)


def test_preparing_takes_little_memory(site: Site, tmp_path: Path) -> None:
    text = random.Random(3).randbytes(1_000_000) * 30
    (tmp_path / "enwik8.zip").write_bytes(pack(("enwik8", text), method=zipfile.ZIP_STORED))
    splits = {"train": 28_000_000, "val": 1_000_000, "test": 1_000_000}
    archive = replace(small(site), sha256=sha256(text).hexdigest(), splits=splits)
    tracemalloc.start()
    try:
        prepare(archive, tmp_path, lambda line: None, silent)
        prepare(archive, tmp_path, lambda line: None, silent)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tmp_path / "train.txt").read_bytes() == text[:28_000_000]
    assert peak < 4_000_000


def test_the_message_about_a_cut_character_says_how_to_read_the_split(site: Site, tmp_path: Path) -> None:
    make(site, tmp_path)
    options = TrainingOptions(data_dir=str(tmp_path), batch_size=2, seq_length=10)
    with pytest.raises(UserError, match=r"train\.txt is not UTF-8 at byte 8999: .* -encoding bytes"):
        open_chosen(options, lambda line: None)
    text = open_chosen(replace(options, encoding="bytes"), lambda line: None)
    assert text.vocabulary.codes == tuple(sorted(set(TEXT)))
    assert {name: bytes(text.vocabulary.codes[n] for n in ids[:]) for name, ids in text.files.items()} == {
        name.removesuffix(".txt"): content for name, content in PARTS.items()
    }


# runs the real command in a separate process, with the small text instead of the large one
COMMAND = """
import json, sys
from functools import partial
from charrnn.data.datasets import catalogue as datasets; from charrnn.data.datasets import wikipedia
archive = wikipedia.Archive(**json.loads(sys.argv[1]))
datasets.DATASETS["enwik8"] = datasets.Dataset(partial(wikipedia.prepare, archive))
from charrnn.__main__ import main
main(["prepare", "enwik8", *sys.argv[2:]])
"""


def start(site: Site, folder: Path, stderr: int = subprocess.PIPE, **more: object) -> subprocess.Popen[bytes]:
    archive = small(site)
    values = json.dumps({name: getattr(archive, name) for name in ("name", "urls", "sha256", "hint", "splits")})
    words = [sys.executable, "-c", COMMAND, values]
    return subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=stderr, **more)


def test_the_command_can_be_interrupted_and_run_again(site: Site, tmp_path: Path) -> None:
    site.stall = 1_500
    process = start(site, tmp_path)
    part = tmp_path / "data" / "enwik8" / ".enwik8.zip.charrnn-part"
    assert site.stalling.wait(20), process.communicate()
    assert part.exists()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert len(err.decode().rstrip().splitlines()) == 1
    assert contents(part.parent) == {}

    site.stall = None
    site.released.set()
    process = start(site, tmp_path)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, b"")
    assert contents(part.parent) == PARTS
    lines = err.decode().splitlines()
    assert lines[0].startswith("enwik8: trying")
    assert lines[-1] == "enwik8: a hint"


@pytest.mark.parametrize("limit", [2_000, 5_000], ids=["the zip file", "the text"])
def test_a_full_disk_is_reported(limit: int, site: Site, tmp_path: Path) -> None:
    """Limits the size of files, so that a write fails as on a full disk."""
    assert 2_000 < len(ZIP) < 9_000

    def limit_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = start(site, tmp_path, preexec_fn=limit_files)
    _, err = process.communicate(timeout=20)
    folder = tmp_path / "data" / "enwik8"
    last = err.decode().splitlines()[-1]
    assert process.returncode == 1
    assert last == (
        f"charrnn: data/enwik8: {os.strerror(errno.EFBIG)}; make room or choose another folder, "
        "then run the same command again"
    )
    assert "train.txt" not in os.listdir(folder)
    make(site, folder)


def test_a_terminal_shows_a_progress_bar(site: Site, tmp_path: Path) -> None:
    master, slave = pty.openpty()
    process = start(site, tmp_path, stderr=slave, env=environment(TERM="xterm-256color", COLUMNS="120"))
    os.close(slave)
    shown = b""
    while True:
        try:
            shown += os.read(master, 10_000)
        except OSError:  # the command has ended
            break
    os.close(master)
    assert process.wait(20) == 0
    process.stdout.close()
    words = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "━" in words
    assert re.search(r"downloading .*━", words)
    assert "10.0/10.0 kB" in words
    assert "wrote data/enwik8/train.txt: 9,000 bytes" in words
    assert "MB" not in words.replace("MB/s", "")  # no progress lines, which are only for logs


@pytest.mark.parametrize("name", ["enwik8", "text8"])
def test_the_real_command_without_a_network_fails_in_one_line(name: str, tmp_path: Path) -> None:
    proxy = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")}
    done = charrnn("prepare", name, cwd=tmp_path, code=1, **proxy, no_proxy="")
    last = done.stderr.decode().splitlines()[-1]
    assert last.startswith(f"charrnn: cannot download {name} (https://mattmahoney.net/dc/{name}.zip: Connection ref")
    assert contents(tmp_path / "data" / name) == {}


def test_a_flag_that_belongs_to_another_data_set_is_refused(tmp_path: Path) -> None:
    assert "-seed does not apply to enwik8" in one_line(charrnn("prepare", "enwik8", "-seed", 1, cwd=tmp_path, code=1))
    assert os.listdir(tmp_path) == []
