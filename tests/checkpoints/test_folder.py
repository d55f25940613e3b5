"""A run's folder: its best and newest checkpoints, even after it is copied, and the files that -keep deletes."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from charrnn.checkpoints import archive
from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.checkpoints.folder import Kept, RunFolder, find_best, find_newest, kept_in, newest_by_run, validated_name
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import UserError
from charrnn.settings.training import TrainingOptions


def save(
    folder: Path,
    name: str,
    iteration: int = 0,
    loss: float | None = None,
    written: int | None = None,
    run: str = "one",
    rollbacks: int = 0,
) -> Path:
    """Save a checkpoint without a model.

    ``written`` replaces the time that the file records; 0 leaves it out, as in older files. An empty ``run`` leaves out
    the identity of the run.
    """
    checkpoint = Checkpoint(TrainingOptions(), {}, Vocabulary((97, 98)), {"weight": torch.ones(2)}, val_loss=loss)
    checkpoint.training = {"iteration": iteration, "rollbacks": rollbacks}
    path = checkpoint.save(folder / name)
    replaced = {"run_id": run} if written is None else {"run_id": run, "written": written}
    content = torch.load(path, weights_only=True) | replaced
    torch.save({key: value for key, value in content.items() if value or key not in replaced}, path)
    return path


def set_times(files: list[Path], order: str) -> None:
    """Give files, listed oldest first, equal or reversed modification times."""
    for number, file in enumerate(files):
        seconds = 1_000_000_000 - (number if order == "reversed" else 0)
        os.utime(file, (seconds, seconds))


@pytest.mark.parametrize("order", ["equal", "reversed"])
@pytest.mark.parametrize("written", [None, 0], ids=["now", "by an earlier version"])
def test_the_newest_checkpoint_of_a_copied_folder_is_that_of_the_original(
    tmp_path: Path, order: str, written: int | None
) -> None:
    names = ["lm_lstm_epoch9.00_2.0000.pt", "lm_lstm_epoch10.00_1.0000.pt", "lm_lstm_last.pt"]
    for iteration, name in enumerate(names, 1):
        save(tmp_path / "cv", name, iteration, written=written)
    shutil.copytree(tmp_path / "cv", tmp_path / "copy")
    set_times([tmp_path / "copy" / name for name in names], order)
    assert find_newest(tmp_path / "copy").name == names[-1]


def test_the_newest_checkpoint_belongs_to_the_newest_run_not_the_longest(tmp_path: Path) -> None:
    save(tmp_path, "lm_lstm_epoch50.00_1.0000.pt", 5000, run="first")
    later = save(tmp_path, "lm_lstm_last.pt", 10, run="second")
    os.utime(later, (0, 0))
    assert find_newest(tmp_path) == later


@pytest.mark.parametrize("run", ["one", ""], ids=["with identity", "by an earlier version"])
def test_within_a_run_the_highest_iteration_is_newest_even_if_the_clock_was_set_back(tmp_path: Path, run: str) -> None:
    files = [save(tmp_path, f"lm_lstm_epoch{k}.00_1.0000.pt", k, written=1000 - k, run=run) for k in (1, 2, 3)]
    set_times(files, "reversed")
    assert find_newest(tmp_path) == files[-1]


def test_a_clock_set_back_during_a_second_run_does_not_make_the_first_run_the_newest(tmp_path: Path) -> None:
    save(tmp_path, "lm_lstm_epoch9.00_1.0000.pt", 9, written=500, run="first")
    save(tmp_path, "lm_lstm_epoch1.00_1.0000.pt", 1, written=900, run="second")
    newest = save(tmp_path, "lm_lstm_last.pt", 2, written=100, run="second")
    assert find_newest(tmp_path) == newest


def test_a_save_after_a_rollback_is_newer_than_one_before_it(tmp_path: Path) -> None:
    save(tmp_path, "lm_lstm_last.pt", 100)
    after = save(tmp_path, "lm_lstm_epoch6.00_1.0000.pt", 60, rollbacks=1)
    assert find_newest(tmp_path) == after


def test_at_the_same_iteration_the_time_of_writing_decides(tmp_path: Path) -> None:
    files = [save(tmp_path, f"lm_lstm_epoch1.00_1.000{k}.pt", 7, written=k) for k in (1, 2)]
    set_times(files, "reversed")
    assert find_newest(tmp_path) == files[-1]


def test_a_damaged_identity_and_time_do_not_make_a_checkpoint_the_newest(tmp_path: Path) -> None:
    ours, damaged = save(tmp_path, "lm_lstm_epoch1.00_1.0000.pt", 1), save(tmp_path, "lm_lstm_last.pt", 1)
    torch.save(torch.load(damaged, weights_only=True) | {"run_id": ["one"], "written": 1e30}, damaged)
    assert find_newest(tmp_path) == ours
    with pytest.raises(UserError, match="damaged: the identity of its run is not a string"):
        Checkpoint.load(damaged)


def test_the_modification_time_decides_only_between_checkpoints_without_a_recorded_time(tmp_path: Path) -> None:
    files = [save(tmp_path, f"lm_lstm_epoch{epoch}.00_1.0000.pt", 7, written=0) for epoch in (1, 2)]
    set_times(files, "reversed")
    assert find_newest(tmp_path) == files[0]


def test_a_damaged_file_is_not_the_newest(tmp_path: Path) -> None:
    good = save(tmp_path, "lm_lstm_epoch1.00_1.0000.pt", 5)
    (tmp_path / "lm_lstm_last.pt").write_bytes(b"damaged")
    assert find_newest(tmp_path) == good


def test_a_checkpoint_that_is_deleted_while_the_folder_is_read_is_not_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, pruned = save(tmp_path, "lm_lstm_epoch2.00_1.0000.pt", 2), save(tmp_path, "lm_lstm_epoch1.00_1.0000.pt", 1)
    listing = [good, pruned]
    monkeypatch.setattr(Path, "glob", lambda *_: listing)
    pruned.unlink()
    assert find_newest(tmp_path) == good


def test_the_best_checkpoint_is_the_one_with_the_lowest_unrounded_loss(tmp_path: Path) -> None:
    losses = {"lm_lstm_epoch1.00_1.0000.pt": 0.99999, "lm_lstm_epoch2.00_1.0000.pt": 1.00001}
    for iteration, (name, loss) in enumerate(losses.items(), 1):
        save(tmp_path, name, iteration, loss)
    save(tmp_path, "lm_lstm_epoch3.00_1.0001.pt", 3, 1.0001)
    assert find_best(tmp_path).name == "lm_lstm_epoch1.00_1.0000.pt"


def test_the_newest_of_equally_good_checkpoints_is_the_best(tmp_path: Path) -> None:
    files = [save(tmp_path, f"lm_lstm_epoch{n}.00_1.0000.pt", n, 1.0) for n in (1, 2, 3)]
    set_times(files, "reversed")
    assert find_best(tmp_path) == files[-1]


def test_without_a_finite_loss_the_newest_is_best(tmp_path: Path) -> None:
    files = [save(tmp_path, validated_name("lstm", n, math.nan), n, math.nan) for n in (1, 2)]
    assert find_best(tmp_path) == files[-1]


def test_each_run_has_its_newest_checkpoint(tmp_path: Path) -> None:
    one = [save(tmp_path, name, 1) for name in ("lm_one_epoch1.00_2.0000.pt", "lm_one_last.pt")]
    two = save(tmp_path, validated_name("a_b", 2, math.nan), 1)
    (tmp_path / "lm_other.pt").write_bytes(b"not of a run")
    set_times(one, "reversed")
    assert newest_by_run(tmp_path) == {"one": one[1], "a_b": two}


def test_the_summary_of_a_checkpoint_is_read_without_its_tensors(tmp_path: Path) -> None:
    path = save(tmp_path, "lm_lstm_last.pt", 3)
    outline, whole = archive.read(path, values=False), archive.read(path)
    assert outline["weights"]["weight"].is_meta and not whole["weights"]["weight"].is_meta
    assert outline["weights"]["weight"].shape == whole["weights"]["weight"].shape
    assert outline["training"] == whole["training"] and outline["written"] == whole["written"]


losses = st.lists(st.sampled_from([1.0, 1.00001, 1.1, 1.2, math.inf, math.nan]), min_size=1, max_size=12)


@given(losses, st.integers(0, 4))
def test_keep_leaves_exactly_the_newest_and_the_best(series: list[float], keep: int) -> None:
    folder, files = RunFolder(Path(), "lstm"), set()
    for epoch, loss in enumerate(series):
        name = validated_name("lstm", epoch, loss)
        files |= {name}
        files -= set(folder.add(name, loss, keep))
        seen = series[: epoch + 1]
        ranks = [math.inf if math.isnan(loss) else loss for loss in seen]
        best = max(i for i, rank in enumerate(ranks) if rank == min(ranks))
        latest = range(max(0, len(seen) - keep), len(seen)) if keep else range(len(seen))
        assert files == {validated_name("lstm", i, seen[i]) for i in {best, *latest}}
        assert [kept.name for kept in folder.kept] == sorted(files, key=lambda name: float(name.split("epoch")[1][:4]))


def test_kept_checkpoints_keep_all_digits_of_their_losses() -> None:
    folder = RunFolder(
        Path(), "lstm", [Kept("lm_lstm_epoch1.00_1.2346.pt", 1.23456789), Kept("lm_lstm_epoch2.00_nan.pt", math.inf)]
    )
    assert kept_in(folder.state_dict()) == folder.kept
    assert kept_in({"kept": ["lm_lstm_epoch1.00_1.2346.pt"]}) == [("lm_lstm_epoch1.00_1.2346.pt", 1.2346)]


@pytest.mark.parametrize(
    "state",
    [
        {"kept": ["../lm_lstm_epoch1.00_1.0000.pt"]},
        {"kept": ["lm_lstm_last.pt"]},
        {"kept": ["lm_lstm_epoch1.00_1.0000.pt"], "kept_losses": []},
        {"kept": ["lm_lstm_epoch1.00_1.0000.pt"], "kept_losses": ["low"]},
        {"kept": [3]},
        {},
    ],
)
def test_a_damaged_list_of_checkpoints_is_refused(state: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        kept_in(state)
