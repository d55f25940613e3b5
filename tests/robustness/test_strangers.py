"""No command writes to a folder, or searches one, only because a stranger's checkpoint names it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.checkpoints.folder import find_newest
from tests.helpers.command import QUICK, SONG, one_line, run, write_text


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short run of a text in two files."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "texts").mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / "texts" / name).write_text(SONG * 40)
    run(folder, "train", "-input", "texts/*.txt", *QUICK, "-max_epochs", 0.2, "-eval_val_every", 10_000)
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, and another text in other/input.txt. The user's cache folder is empty."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    write_text(tmp_path / "other", SONG * 79 + SONG.upper())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def theirs(folder: Path, **options: Any) -> Path:
    """Return a copy of the run's checkpoint with other settings."""
    checkpoint = Checkpoint.load(find_newest(folder / "cv"))
    checkpoint.options = replace(checkpoint.options, **options)
    return checkpoint.save(folder / "theirs.pt")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


RESUME = ("train", "-resume", "theirs.pt", "-max_epochs", 0.3)


def test_the_run_itself_resumes(folder: Path) -> None:
    theirs(folder)
    assert run(folder, *RESUME, "-checkpoint_dir", "again").code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input": (), "data_dir": "other"}, "the text in other is not the one that this run was trained on"),
        ({"input": ("other/input.txt",)}, "the text of -input is not the one that this run was trained on"),
        ({"input": ("texts/a.txt", "other/input.txt")}, "the text of -input is not the one"),
        ({"input": (), "data_dir": "data/tinyshakespeare"}, "no folder data/tinyshakespeare"),
    ],
    ids=["a folder", "a file", "one file of two", "a text that charrnn could make"],
)
@pytest.mark.parametrize("cached", [False, True], ids=["not cached", "cached"])
def test_resuming_with_another_text_writes_nothing(
    folder: Path, options: dict[str, Any], message: str, cached: bool
) -> None:
    if cached:
        run(
            folder,
            "train",
            "-data_dir",
            "other",
            *QUICK,
            "-max_epochs",
            0.1,
            "-checkpoint_dir",
            "mine",
            "-encoding",
            "bytes",
        )
    theirs(folder, checkpoint_dir="elsewhere", log_dir="logs", **options)
    before = files(folder)
    assert message in one_line(run(folder, *RESUME, code=1))
    assert files(folder) == before
    assert not (folder / "elsewhere").exists() and not (folder / "data").exists()


@pytest.mark.parametrize("pattern", ["texts/*.txt", "**/[ab].txt", "texts/?.txt", "/*/*/*/*/*/../*", "x" * 300])
@pytest.mark.parametrize(
    "command",
    [RESUME, ("eval", "theirs.pt", "-gpuid", -1), ("novelty", "theirs.pt", "-gpuid", -1)],
    ids=lambda words: words[0],
)
def test_the_input_of_a_checkpoint_is_never_expanded_as_a_pattern(
    folder: Path, pattern: str, command: tuple[object, ...]
) -> None:
    theirs(folder, input=(pattern,))
    message = one_line(run(folder, *command, code=1))
    assert f"-input {pattern[:1]}" in message and message.endswith(": no such file")


@pytest.mark.parametrize("command", ["eval", "novelty"])
def test_eval_and_novelty_cache_nothing_next_to_a_text_named_only_by_the_checkpoint(folder: Path, command: str) -> None:
    write_text(folder / "other", SONG * 80)
    for options in ({"input": (), "data_dir": "other"}, {"input": ("other/input.txt",)}):
        theirs(folder, **options)
        before = files(folder)
        run(folder, command, "theirs.pt", "-gpuid", -1)
        assert files(folder) == before
    run(folder, command, "theirs.pt", "-gpuid", -1, "-data_dir", "other")
    assert sorted(path.name for path in (folder / "other").iterdir()) == ["input.npy", "input.txt", "vocab.json"]


def test_a_pattern_may_be_given_again_when_a_run_resumes(folder: Path) -> None:
    theirs(folder, input=("gone.txt",))
    assert run(folder, *RESUME, "-input", "texts/*.txt", "-checkpoint_dir", "again").code == 0


def test_the_folder_of_tensorboard_events_is_used_only_if_it_is_given(folder: Path) -> None:
    pytest.importorskip("tensorboard")
    theirs(folder, log_dir="logs")
    said = run(folder, *RESUME, "-checkpoint_dir", "again").errors
    assert "not writing TensorBoard events: to continue those in logs, add -log_dir" in said
    assert not (folder / "logs").exists()
    said = run(folder, *RESUME, "-checkpoint_dir", "once more", "-log_dir", "logs").errors
    assert not any("TensorBoard" in line for line in said)
    assert list((folder / "logs").rglob("events*"))
