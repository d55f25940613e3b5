"""The cache next to a text: reused while it is valid, rebuilt when it is not."""

from __future__ import annotations

import os
import resource
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from charrnn.data import cache
from charrnn.data.cache import EncodedTexts
from charrnn.data.encode import Reading, Stamp, Survey
from charrnn.errors import UserError

ROOT = Path(__file__).parents[2]
TEXT = "Wär's abgetan, so wie's getan ist,\nthen 'twere well\n" * 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "input.txt").write_text(TEXT, encoding="utf-8")
    return folder


def encode(folder: Path, names: list[str], encoding: str) -> EncodedTexts:
    """Return the encoded texts of a folder, without printing anything."""
    texts = {name: folder / f"{name}.txt" for name in names}
    return cache.load_or_build(texts, Reading(encoding), folder, pytest.fail)


def open_input(folder: Path, encoding: str = "utf-8") -> EncodedTexts:
    """Open a folder's input.txt and check the vocabulary and every token id against the text."""
    prepared = encode(folder, ["input"], encoding)
    text = (folder / "input.txt").read_text(encoding="utf-8")
    codes = text.encode() if encoding == "bytes" else [ord(character) for character in text]
    assert [prepared.vocabulary.codes[number] for number in prepared.ids["input"][:]] == list(codes)
    assert prepared.vocabulary.codes == tuple(sorted(set(codes)))
    return prepared


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the inode and modification time of each cache file, which change whenever the file is written."""
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["input.npy", "input.txt", "vocab.json"]
    statuses = {name: (folder / name).stat() for name in names if name != "input.txt"}
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in statuses.items()}


def test_a_cache_is_reused(folder: Path) -> None:
    first = open_input(folder)
    made = identities(folder)
    again = open_input(folder)
    assert identities(folder) == made
    assert again.surveys == first.surveys
    assert again.vocabulary == first.vocabulary


def test_a_cache_is_reused_if_its_text_has_a_new_time_or_inode(folder: Path) -> None:
    open_input(folder)
    made = identities(folder)
    os.utime(folder / "input.txt", (1, 1))
    open_input(folder)
    shutil.copy(folder / "input.txt", folder.parent / "copy")
    os.replace(folder.parent / "copy", folder / "input.txt")
    open_input(folder)
    assert identities(folder) == made


def test_a_changed_text_is_detected(folder: Path) -> None:
    text = folder / "input.txt"
    open_input(folder)
    text.write_text(TEXT + "!", encoding="utf-8")
    open_input(folder)
    text.write_text("short", encoding="utf-8")
    open_input(folder)


def test_a_changed_text_with_the_same_size_and_time_is_detected(folder: Path) -> None:
    text = folder / "input.txt"
    os.utime(text, (1000, 1000))
    open_input(folder)
    before = text.stat()
    text.write_text(TEXT[::-1], encoding="utf-8")
    os.utime(text, (1000, 1000))
    after = text.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    open_input(folder)


@contextmanager
def stopped_clock(seconds_ago: float) -> Iterator[None]:
    """Give every file the same time stamps, this many seconds ago."""
    moment = time.time_ns() - int(seconds_ago * 1e9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stamp, "of", classmethod(lambda cls, status: cls(status.st_size, moment, moment, 1)))
        yield


def test_a_text_changed_within_a_tick_of_the_clock_is_detected(folder: Path) -> None:
    with stopped_clock(1):
        open_input(folder)
        (folder / "input.txt").write_text(TEXT[::-1], encoding="utf-8")
        open_input(folder)


def test_a_text_unchanged_for_a_while_is_not_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stopped_clock(10):
        open_input(folder)
        monkeypatch.setattr(cache, "hash_text", pytest.fail)
        monkeypatch.setattr(cache, "build", pytest.fail)
        open_input(folder)


def test_other_settings_or_formats_rebuild_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_input(folder)
    open_input(folder, "bytes")
    open_input(folder)
    made = identities(folder)
    monkeypatch.setattr(cache, "FORMAT", cache.FORMAT + 1)
    open_input(folder)
    assert made.items().isdisjoint(identities(folder).items())


def test_adding_or_removing_a_split_rebuilds_the_cache(folder: Path) -> None:
    """All splits share one vocabulary, which can change with them."""
    (folder / "train.txt").write_text("aab")
    (folder / "val.txt").write_text("b")
    (folder / "test.txt").write_text("bc")
    for names, vocabulary in ((["train", "val"], "ab"), (["train", "val", "test"], "abc"), (["train", "val"], "ab")):
        prepared = encode(folder, names, "utf-8")
        assert prepared.vocabulary.codes == tuple(map(ord, vocabulary))
        assert {name: prepared.vocabulary.decode(ids[:]) for name, ids in prepared.ids.items()} == {
            name: (folder / f"{name}.txt").read_text() for name in names
        }


@pytest.mark.parametrize("name", ["vocab.json", "input.npy"])
def test_a_damaged_file_is_detected(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the damage hides that charrnn wrote the file, the file is kept, and the text is cached elsewhere."""
    open_input(folder)
    lines: list[str] = []
    monkeypatch.setattr(pytest, "fail", lines.append)
    file = folder / name
    whole = file.read_bytes()
    damaged = [whole[:length] for length in (0, 1, len(whole) // 2, len(whole) - 1)]
    damaged += [whole + b"\0", b"\xff", b"[]", b"{}", b"null"]
    for place in range(0, len(whole), 1 + len(whole) // 40):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        damaged.append(bytes(flipped))
    rebuilt = 0
    for content in damaged:
        file.write_bytes(content)
        open_input(folder)
        assert file.read_bytes() == (content if lines else whole)
        rebuilt += not lines
        lines.clear()
    assert rebuilt == 0 if name == "vocab.json" else rebuilt > len(damaged) / 2
    file.unlink()
    open_input(folder)
    identities(folder)
    assert not lines


def link(path: Path, target: Path) -> None:
    target.write_bytes(b"mine")
    path.symlink_to(target)


ARRAY = b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (2,), }".ljust(127) + b"\n\0\1"
FOREIGN: dict[str, Callable[[Path], object]] = {
    "JSON": lambda path: path.write_text('{"a": 0, "b": 1}'),
    "an array": lambda path: path.write_bytes(ARRAY),
    "other bytes": lambda path: path.write_bytes(b"\xff" * 300),
    "an empty file": lambda path: path.touch(),
    "a link": lambda path: link(path, path.parents[1] / "mine"),
    "a broken link": lambda path: path.symlink_to(path.parents[1] / "nothing"),
    "a folder": lambda path: path.mkdir(),
    "a FIFO": lambda path: os.mkfifo(path),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
}


def everything(folder: Path) -> dict[str, object]:
    """Return what is in a folder and the folder above it, including the contents of files."""
    found: dict[str, object] = {}
    for path in sorted([*folder.iterdir(), *folder.parent.iterdir()]):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(path)] = (status.st_ino, status.st_mode, content, path.is_symlink() and os.readlink(path))
    return found


@pytest.mark.parametrize("before", [False, True], ids=["new", "cached before"])
@pytest.mark.parametrize("name", ["vocab.json", "input.npy"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_that_is_not_charrnns_is_kept_and_the_cache_is_written_elsewhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str, before: bool
) -> None:
    if before:
        open_input(folder, "bytes")
        (folder / name).unlink()
    FOREIGN[kind](folder / name)
    theirs = everything(folder)
    lines: list[str] = []
    monkeypatch.setattr(pytest, "fail", lines.append)
    for _ in range(2):
        open_input(folder)
        assert everything(folder) == theirs
    place = cache.user_cache(folder)
    assert (
        lines == [f"{folder} has a {name} that is not charrnn's: its vocabulary and token ids are kept in {place}"] * 2
    )
    assert sorted(path.name for path in place.iterdir()) == ["input.npy", "vocab.json"]


def test_a_file_that_is_not_charrnns_in_the_users_cache_folder_is_an_error(folder: Path) -> None:
    place = cache.user_cache(folder / "input.txt")
    place.mkdir(parents=True)
    (place / "1.npy").write_text("mine")
    with pytest.raises(
        UserError, match=f"^{place / '1.npy'} is not charrnn's, so it was left unchanged: move it away$"
    ):
        cache.load_or_build({"1": folder / "input.txt"}, Reading(), None, pytest.fail)
    assert [path.name for path in place.iterdir()] == ["1.npy"]


@pytest.mark.parametrize("name", ["vocab.json", "input.npy"])
def test_a_cache_that_lost_one_of_its_files_is_built_again_in_its_place(folder: Path, name: str) -> None:
    """A kill between two renames leaves such a cache."""
    open_input(folder)
    (folder / name).unlink()
    (folder / "input.txt").write_text(TEXT[::-1], encoding="utf-8")
    open_input(folder)
    identities(folder)


def test_a_refused_text_leaves_nothing_behind(folder: Path) -> None:
    texts = {"input": folder / "input.txt"}

    def refuse(surveys: Mapping[str, Survey]) -> None:
        assert surveys["input"].sha256 == sha256(TEXT.encode()).hexdigest()
        raise UserError("another text")

    def open_refused(home: Path | None) -> None:
        with pytest.raises(UserError, match=r"^another text$"):
            cache.load_or_build(texts, Reading(), home, pytest.fail, accept=refuse)

    for home in (folder, None):
        open_refused(home)
    assert [path.name for path in folder.iterdir()] == ["input.txt"]
    assert not cache.user_cache(folder / "input.txt").exists()
    open_input(folder)
    open_refused(folder)  # also if the text is cached


INCOMPLETE: dict[str, dict[str, Any]] = {
    "length as text": {"survey": {"length": "9"}},
    "no length": {"survey": {"length": 0}},
    "another field": {"survey": {"other": 1}},
    "checksum as a number": {"survey": {"sha256": 1}},
    "lines as text": {"survey": {"crlf_lines": "0"}},
    "size as text": {"stamp": {"size": "9"}},
    "settled as text": {"settled": "yes"},
    "checksum of the ids as a number": {"tokens_sha256": 1},
}


@pytest.mark.parametrize("change", INCOMPLETE.values(), ids=INCOMPLETE)
def test_a_record_with_a_correct_checksum_but_wrong_values_is_rebuilt(folder: Path, change: dict[str, Any]) -> None:
    """A text from a stranger may come with a cache."""
    open_input(folder)
    whole = cache.unseal((folder / "vocab.json").read_bytes())
    assert whole
    wrong = dict(whole["texts"]["input"])
    for name, value in change.items():
        wrong[name] = wrong[name] | value if isinstance(value, dict) else value
    (folder / "vocab.json").write_bytes(cache.seal(whole | {"texts": {"input": wrong}}))
    open_input(folder)
    assert (cache.unseal((folder / "vocab.json").read_bytes()) or {})["texts"] == whole["texts"]


def test_token_ids_in_use_survive_a_rebuild(folder: Path) -> None:
    first = open_input(folder)
    ids = first.ids["input"][:].tolist()
    (folder / "input.txt").write_text("another", encoding="utf-8")
    open_input(folder)
    assert first.ids["input"][:].tolist() == ids


TOGETHER = """
import sys
from pathlib import Path
from charrnn.data.cache import load_or_build
from charrnn.data.encode import Reading

folder, encoding = Path(sys.argv[1]), sys.argv[2]
expected = (folder / "input.txt").read_text(encoding="utf-8")
print("ready", flush=True)
sys.stdin.read()
for _ in range(100):
    prepared = load_or_build({"input": folder / "input.txt"}, Reading(encoding), folder, sys.exit)
    assert prepared.vocabulary.decode(prepared.ids["input"][:]) == expected
"""


def test_concurrent_processes_never_mix_up_their_files(folder: Path) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    words = [sys.executable, "-c", TOGETHER, str(folder)]
    processes = [subprocess.Popen([*words, encoding], **pipes) for encoding in ("utf-8", "bytes", "utf-8")]
    for process in processes:
        assert process.stdout.readline() == b"ready\n"
    for process in processes:
        process.stdin.close()
    for process in processes:
        with process:
            assert process.stderr.read() == b""
        assert process.returncode == 0
    open_input(folder)
    identities(folder)


def test_a_tokens_file_put_in_place_by_another_process_is_not_paired_with_our_vocabulary(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process writes all its files at the worst moment: after our last read, before we write vocab.json."""
    seal, others = cache.seal, []

    def interrupted(record: dict) -> bytes:
        monkeypatch.setattr(cache, "seal", seal)
        others.append(open_input(folder, "bytes"))
        return seal(record)

    monkeypatch.setattr(cache, "seal", interrupted)
    open_input(folder, "utf-8")
    assert len(others) == 1
    open_input(folder, "bytes")
    open_input(folder, "utf-8")


@contextmanager
def little_room() -> Iterator[None]:
    """Limit every file to 300 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_an_error_and_leaves_nothing_behind(folder: Path) -> None:
    message = f"cannot write the vocabulary and token ids to {folder}: .*make room"
    with pytest.raises(UserError, match=message) as caught, little_room():
        open_input(folder)
    assert "\n" not in str(caught.value)
    assert [path.name for path in folder.iterdir()] == ["input.txt"]
    open_input(folder)


def test_a_full_disk_leaves_the_old_cache(folder: Path) -> None:
    open_input(folder)
    made = identities(folder)
    with pytest.raises(UserError, match="cannot write"), little_room():
        open_input(folder, "bytes")
    assert identities(folder) == made


READ_ONLY = """
import os, sys
from pathlib import Path
from tempfile import TemporaryDirectory
from charrnn.data.cache import load_or_build
from charrnn.data.encode import Reading
from charrnn.errors import UserError
from tests.helpers.rights import give_up_rights

give_up_rights()
lines = []
try:
    folder = Path(sys.argv[1])
    prepared = load_or_build({"input": folder / "input.txt"}, Reading(), folder, lines.append)
    sys.stdout.buffer.write(prepared.vocabulary.decode(prepared.ids["input"][:]).encode())
except UserError as error:
    lines.append(f"error: {error}")
print(*lines, sep="\\n", file=sys.stderr)
"""


@pytest.fixture
def read_only(folder: Path) -> Iterator[Path]:
    """A read-only folder with a text. Next to it is a writable folder, ``home``."""
    place, home = folder.parent / "read only", folder.parent / "home"
    place.mkdir()
    home.mkdir()
    shutil.copy(folder / "input.txt", place)
    place.chmod(0o555)
    yield place
    place.chmod(0o755)


def open_read_only(folder: Path, home: Path) -> tuple[str, str]:
    """Open the text in a process that may not write to the folder. Return the decoded text and the messages."""
    env = os.environ | {"XDG_CACHE_HOME": str(home), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", READ_ONLY, folder], env=env, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode(), done.stderr.decode().rstrip("\n")


def test_the_cache_of_a_read_only_folder_is_in_the_users_cache_folder(read_only: Path) -> None:
    home = read_only.parent / "home"
    text, line = open_read_only(read_only, home)
    assert text == TEXT
    assert [path.name for path in read_only.iterdir()] == ["input.txt"]
    (place,) = (home / "charrnn").iterdir()
    assert line == f"{read_only} cannot be written to: its vocabulary and token ids are kept in {place}"
    made = {path.name: path.stat().st_ino for path in place.iterdir()}
    assert made.keys() == {"vocab.json", "input.npy"}

    assert open_read_only(read_only, home) == (text, line)
    assert {path.name: path.stat().st_ino for path in place.iterdir()} == made

    (read_only / "input.txt").write_text(TEXT.upper(), encoding="utf-8")
    assert open_read_only(read_only, home) == (TEXT.upper(), line)


def test_a_cache_in_a_read_only_folder_is_used(read_only: Path) -> None:
    read_only.chmod(0o755)
    open_input(read_only)
    read_only.chmod(0o555)
    assert open_read_only(read_only, read_only.parent / "home") == (TEXT, "")


def test_it_is_an_error_if_no_folder_for_the_cache_is_writable(read_only: Path) -> None:
    text, lines = open_read_only(read_only, read_only)
    assert text == ""
    assert lines.splitlines()[1].startswith(f"error: cannot write the vocabulary and token ids to {read_only}/charrnn/")


def test_the_users_cache_folder_is_set_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for unset in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert cache.user_cache(Path("data")).parent == tmp_path / ".cache" / "charrnn"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert cache.user_cache(Path("data")).parent == tmp_path / "elsewhere" / "charrnn"
    assert cache.user_cache(Path("data")) == cache.user_cache(Path.cwd() / "data")
    assert cache.user_cache(Path("data")) != cache.user_cache(Path("data2"))
