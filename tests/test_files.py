"""Files are either complete or absent and respect the umask, and only one process at a time can hold a lock."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from charrnn import files
from charrnn.files import UNFINISHED, locked, open_regular, replacing
from tests.helpers.rights import null_device


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_finished_file_has_the_permissions_that_the_umask_allows(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with replacing(tmp_path / "one") as file:
            file.write(b"1")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "one").stat().st_mode) == 0o666 & ~mask


def test_only_a_regular_file_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one").write_text("1")
    os.mkfifo(tmp_path / "fifo")
    with open_regular(tmp_path / "one") as file:
        assert file.read() == b"1"
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "two")
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    # merely opening a device can have effects
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("it was opened"))
    for path in (tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(OSError, match="not a regular file"):
            open_regular(path)


def test_opening_a_file_that_was_just_replaced_by_a_fifo_does_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one").write_text("1")
    path, opened = tmp_path / "one", os.open

    def late(*arguments: Any) -> int:
        path.unlink()
        os.mkfifo(path)
        return opened(*arguments)

    monkeypatch.setattr(os, "open", late)
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(path)


def test_an_interrupted_write_leaves_only_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "one") as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"one": "old"}


def interrupted_at(step: int, path: Path) -> bool:
    """Write b"new" to a file, with a Ctrl-C at one of the interpreter's steps. Return whether that step was reached."""
    traced = {module.__file__ for module in (files, contextlib, pathlib)}
    steps = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal steps
        if frame.f_code.co_filename not in traced:
            return None
        frame.f_trace_opcodes = True
        steps += event == "opcode"
        if event == "opcode" and steps == step:
            signal.raise_signal(signal.SIGINT)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with replacing(path) as file:
            file.write(b"new")
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


# after some steps no variable holds the open file yet; Python closes it and warns
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_at_any_step_leaves_the_old_or_the_new_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KeyboardInterrupt must be raised each time, since another error would change the exit code."""
    monkeypatch.setattr(os, "fsync", lambda file: None)  # would be slow if called thousands of times
    for step in range(1, 100_000):
        (tmp_path / "one").write_bytes(b"old")
        interrupted = interrupted_at(step, tmp_path / "one")
        assert [path.name for path in tmp_path.iterdir()] == ["one"], f"step {step}"
        assert (tmp_path / "one").read_bytes() in ((b"old", b"new") if interrupted else (b"new",)), f"step {step}"
        if not interrupted:
            break
    assert step > 100, "each step must be interrupted in one attempt"


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "\U0001f338" * 63])
def test_a_name_as_long_as_the_file_system_allows_can_be_written(tmp_path: Path, name: str) -> None:
    with replacing(tmp_path / name) as file:
        file.write(b"1")
        (temporary,) = tmp_path.iterdir()
        assert temporary.name.endswith(UNFINISHED)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_followed_and_its_target_replaced(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "there").mkdir()
    target = tmp_path / "there" / "file"
    if exists:
        target.write_bytes(b"old")
    (tmp_path / "there" / "second").symlink_to("file")
    (tmp_path / "first").symlink_to("there/second")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "first") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert (target.read_bytes() if exists else target.exists()) == (b"old" if exists else False)
    with replacing(tmp_path / "first") as file:
        file.write(b"new")
    assert target.read_bytes() == b"new" and not target.is_symlink()
    assert (tmp_path / "first").is_symlink() and (tmp_path / "there" / "second").is_symlink()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "first", "second", "there"]


def test_links_in_a_circle_are_an_error_and_are_kept(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(OSError, match="symbolic links"), replacing(tmp_path / "one"):
        pass
    assert all(path.is_symlink() for path in tmp_path.iterdir())


def test_a_fifo_is_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "one")
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "one").read_bytes()), daemon=True)
    reader.start()
    with replacing(tmp_path / "one") as file:
        file.write(b"new")
    reader.join(60)
    assert got == [b"new"] and (tmp_path / "one").is_fifo()


def test_a_device_is_written_to(tmp_path: Path) -> None:
    null_device(tmp_path / "one")
    before = (tmp_path / "one").lstat()
    with replacing(tmp_path / "one") as file:
        file.write(b"new")
    after = (tmp_path / "one").lstat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert (tmp_path / "one").read_bytes() == b""


def test_a_deleted_file_that_is_still_open_is_written_to(tmp_path: Path) -> None:
    """/dev/stdout may be such a file."""
    with (tmp_path / "one").open("w+b") as file:
        (tmp_path / "one").unlink()
        with replacing(Path(f"/proc/self/fd/{file.fileno()}")) as again:
            again.write(b"new")
        file.seek(0)
        assert file.read() == b"new" and not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", ["ab", "wb"])
def test_only_a_regular_file_is_opened_for_writing(tmp_path: Path, mode: str) -> None:
    (tmp_path / "file").write_bytes(b"1")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link", "new"):
        open_regular(tmp_path / name, mode).close()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "device").symlink_to("/dev/null")
    for name in ("fifo", "device", "."):
        with pytest.raises(OSError, match="directory" if name == "." else "not a regular file"):
            open_regular(tmp_path / name, mode)


def test_a_fifo_with_the_name_of_a_half_written_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f".one.abc{UNFINISHED}")
    with replacing(tmp_path / "two") as file:
        file.write(b"2")


def test_the_folder_is_flushed_after_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[bool] = []  # for each flush, whether it flushed a folder after the file had its final name
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        flushed.append((tmp_path / "one").exists() and stat.S_ISDIR(os.fstat(descriptor).st_mode))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    with replacing(tmp_path / "one") as file:
        file.write(b"1")
    assert flushed == [False, True]


def test_only_one_process_at_a_time_holds_a_lock_and_it_is_free_afterwards(tmp_path: Path) -> None:
    words = "import sys; from pathlib import Path; from charrnn.files import locked\n"
    words += "with locked(Path(sys.argv[1])) as alone: sys.exit(alone)"
    other = [sys.executable, "-c", words, str(tmp_path / "lock")]
    with locked(tmp_path / "lock") as alone:
        assert alone
        assert subprocess.run(other).returncode == 0
    assert subprocess.run(other).returncode == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux does a lock survive the removal of its file")
@pytest.mark.parametrize("change", ["removed", "replaced", "folder removed", "folder replaced"])
def test_a_lock_holds_even_if_its_file_is_removed(tmp_path: Path, change: str) -> None:
    lock = tmp_path / "cv" / "lock"
    lock.parent.mkdir()
    with locked(lock) as alone:
        assert alone
        if change.startswith("folder"):
            lock.parent.rename(tmp_path / "old")
            lock.parent.mkdir()
        else:
            lock.unlink()
        if change.endswith("replaced"):
            lock.touch()
        with locked(tmp_path / "cv" / ".." / "cv" / "lock") as again:
            assert not again
        with locked(lock.with_name("other")) as other:
            assert other
    with locked(lock) as again:
        assert again


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")
@pytest.mark.parametrize(
    ("number", "raised"),
    [(errno.ENOLCK, False), (errno.ENOTSUP, False), (errno.ENOSYS, False), (errno.EACCES, True)],
)
def test_a_file_system_without_locks_is_not_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, raised: bool
) -> None:
    """A lock file left by an earlier run, such as one copied along with its folder, is not an error either."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    (tmp_path / "lock").touch()
    if raised:
        with pytest.raises(OSError), locked(tmp_path / "lock"):
            pass
    else:
        with locked(tmp_path / "lock") as alone:
            assert alone
