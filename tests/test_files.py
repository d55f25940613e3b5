"""Files are either complete or absent and respect the umask, and only one process at a time can hold a lock."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from charrnn.files import locked, open_regular, replacing


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
