"""A run that was stopped and resumed equals an uninterrupted one in every tensor and every number."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import get_args

import pytest
import torch

from charrnn import registry
from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.errors import UserError
from charrnn.settings.training import Schedule
from charrnn.training.loop import Record
from charrnn.training.setup import configure
from tests.helpers.command import SONG, write_text
from tests.helpers.runs import FLAGS, broken_at_8, data, metrics, new_run, same, same_run, train


@pytest.mark.parametrize("precision", ["float32", "float64", "bf16"])
@pytest.mark.parametrize("name", registry.models())
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, name: str, precision: str) -> None:
    flags = FLAGS | data(tmp_path / "data", "fractions") | {"model": name, "precision": precision}
    whole = train(tmp_path / "whole", flags)
    assert whole.training.epoch > 2
    parts = tmp_path / "parts"
    train(parts, flags, stop_at=3)
    for stop_at in (whole.training.iterations // 2, whole.training.iterations - 2, 0):
        train(parts, flags, parts / f"lm_{name}_last.pt", stop_at)
    same_run(tmp_path / "whole" / f"lm_{name}_last.pt", parts / f"lm_{name}_last.pt")


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam", "sgd"])
@pytest.mark.parametrize("kind", ["fractions", "files"])
def test_resuming_is_exact_with_every_optimizer_and_both_layouts(tmp_path: Path, optimizer: str, kind: str) -> None:
    flags = FLAGS | data(tmp_path / "data", kind) | {"optimizer": optimizer, "weight_decay": 1e-3, "max_grad_norm": 1.0}
    train(tmp_path / "whole", flags)
    train(tmp_path / "parts", flags, stop_at=5)
    train(tmp_path / "parts", flags, tmp_path / "parts")
    same_run(tmp_path / "whole/lm_lstm_last.pt", tmp_path / "parts/lm_lstm_last.pt")


@pytest.mark.parametrize("schedule", get_args(Schedule))
@pytest.mark.parametrize("stop_at", [5, 21])
def test_resuming_is_exact_with_every_schedule(tmp_path: Path, schedule: str, stop_at: int) -> None:
    flags = FLAGS | data(tmp_path / "data", "fractions") | {"lr_schedule": schedule, "eval_val_every": 3}
    flags |= {"plateau_patience": 1, "learning_rate": 0.1, "plateau_factor": 0.3}
    whole = train(tmp_path / "whole", flags)
    if schedule == "plateau":
        assert whole.training.reductions >= 2
    train(tmp_path / "parts", flags, stop_at=stop_at)
    train(tmp_path / "parts", flags, tmp_path / "parts")
    same_run(tmp_path / "whole/lm_lstm_last.pt", tmp_path / "parts/lm_lstm_last.pt")
    lines = [metrics(tmp_path / name / "lm_lstm_metrics.jsonl") for name in ("whole", "parts")]
    assert [line["iteration"] for line in lines[0]] == list(range(1, whole.training.iterations + 1))
    assert lines[0] == lines[1]


def test_early_stopping_ends_at_the_same_iteration_and_can_be_switched_off(tmp_path: Path) -> None:
    flags = FLAGS | data(tmp_path / "data", "fractions") | {"eval_val_every": 2, "learning_rate": 0.2}
    train(tmp_path / "unbounded", flags)
    whole = train(tmp_path / "whole", flags | {"early_stop": 2})
    losses = list(whole.training.val_losses.values())
    assert whole.training.iteration < whole.training.iterations
    assert min(losses) == losses[-3] and len(losses) > 3
    train(tmp_path / "parts", flags | {"early_stop": 2}, stop_at=whole.training.iteration - 3)
    resumed = train(tmp_path / "parts", {}, tmp_path / "parts")
    assert resumed.training.iteration == whole.training.iteration
    same_run(tmp_path / "whole/lm_lstm_last.pt", tmp_path / "parts/lm_lstm_last.pt")
    again = train(tmp_path / "parts", {}, tmp_path / "parts")
    assert again.training.iteration == whole.training.iteration, "a run that stopped early must not continue"
    settings = configure({"early_stop": 0, "checkpoint_dir": str(tmp_path / "parts")}, resume=str(tmp_path / "parts"))
    lifted = new_run(settings)
    assert sum(1 for _ in lifted.records()) == whole.training.iterations - whole.training.iteration
    unbounded = Checkpoint.load(tmp_path / "unbounded/lm_lstm_last.pt")
    same(unbounded.weights, lifted.checkpoint().weights)


def test_settings_that_a_schedule_depends_on_cannot_change(tmp_path: Path) -> None:
    text = data(tmp_path / "data", "fractions")
    for schedule, name in (("cosine", "max_epochs"), ("onecycle", "max_epochs"), ("plateau", "eval_val_every")):
        train(tmp_path / schedule, FLAGS | text | {"lr_schedule": schedule}, stop_at=3)
        with pytest.raises(UserError, match=f"-{name} 3"):
            configure({name: 3}, resume=str(tmp_path / schedule))


def test_the_comparison_would_detect_a_lost_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = FLAGS | data(tmp_path / "data", "fractions")
    train(tmp_path / "whole", flags)
    train(tmp_path / "parts", flags, stop_at=5)
    monkeypatch.setattr(torch, "set_rng_state", lambda state: torch.manual_seed(0))
    train(tmp_path / "parts", flags, tmp_path / "parts")
    with pytest.raises(AssertionError):
        same_run(tmp_path / "whole/lm_lstm_last.pt", tmp_path / "parts/lm_lstm_last.pt")


def test_only_settings_that_do_not_affect_the_run_may_change(tmp_path: Path) -> None:
    flags = FLAGS | data(tmp_path / "data", "fractions")
    train(tmp_path / "cv", flags, stop_at=5)
    saved = str(tmp_path / "cv")
    with pytest.raises(UserError, match=r"-rnn_size 11 \(was 10\)"):
        configure({"rnn_size": 11}, resume=saved)
    with pytest.raises(UserError, match="-init_from"):
        configure({"init_from": saved}, resume=saved)
    settings = configure({"max_epochs": 3, "rnn_size": 10, "print_every": 5}, resume=saved)
    assert settings.options.max_epochs == 3


def test_a_different_text_is_refused(tmp_path: Path) -> None:
    flags = FLAGS | data(tmp_path / "data", "fractions")
    train(tmp_path / "cv", flags, stop_at=5)
    write_text(tmp_path / "data", SONG * 19 + SONG.replace("quick", "qcuik"))
    with pytest.raises(UserError, match="not the one"):
        new_run(configure({}, resume=str(tmp_path / "cv")))


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_keep_deletes_all_but_the_newest_and_the_best(tmp_path: Path, keep: int) -> None:
    flags = FLAGS | data(tmp_path / "data", "fractions") | {"keep": keep, "eval_val_every": 3, "max_epochs": 2}
    # a learning rate so high that the loss rises and falls
    flags |= {"learning_rate": 0.3, "lr_schedule": "constant"}
    other = tmp_path / "cv" / "lm_lstm_epoch0.10_9.0000.pt"
    other.parent.mkdir()
    other.write_bytes(b"of another run")
    train(tmp_path / "cv", flags, stop_at=16)
    run = train(tmp_path / "cv", {}, tmp_path / "cv")
    losses = list(run.training.val_losses.values())
    best = losses.index(min(losses))
    assert best < len(losses) - keep, "the best is not among the latest"
    epochs = [iteration / len(run.training.train) for iteration in run.training.val_losses]
    names = [f"lm_lstm_epoch{epoch:.2f}_{loss:.4f}.pt" for epoch, loss in zip(epochs, losses, strict=True)]
    found = {path.name for path in (tmp_path / "cv").glob("lm_*_epoch*.pt")}
    assert found == {other.name, names[best], *names[-keep:]}
    assert run.folder.kept == [(names[i], losses[i]) for i in sorted({best, *range(len(losses) - keep, len(losses))})]
    assert run.finish().val_loss == losses[best], "all digits of the loss are kept"


def test_a_save_is_due_after_the_given_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = FLAGS | data(tmp_path / "data", "fractions") | {"save_minutes": 10, "checkpoint_dir": str(tmp_path / "cv")}
    now = 1000.0
    monkeypatch.setattr("charrnn.training.run.time.monotonic", lambda: now)
    run = new_run(configure(flags))
    record = Record(run.training.iteration, run.training.iterations, 0.0, 0.0)
    due = []
    for seconds in (0, 599, 2, 1, 599, 2):
        now += seconds
        due.append(run.save_is_due(record))
        if due[-1]:
            run.save_last()
    assert due == [False, False, True, False, False, True]
    never = new_run(configure(flags | {"save_minutes": 0}))
    now += 1e9
    assert not never.save_is_due(record)


def test_rollback_halves_the_learning_rate_and_continues(tmp_path: Path) -> None:
    flags = FLAGS | data(tmp_path / "data", "fractions") | {"on_nan": "rollback", "eval_val_every": 5}
    run = new_run(configure(flags | {"checkpoint_dir": str(tmp_path / "cv")}))
    seen = [(record.iteration, record.learning_rate) for record in broken_at_8(run)]
    iterations = [iteration for iteration, _ in seen]
    assert iterations[:12] == [1, 2, 3, 4, 5, 6, 7, 8, 6, 7, 8, 9]
    assert seen[8][1] == seen[5][1] / 2
    assert run.training.iteration == run.training.iterations


def test_a_resumed_run_keeps_the_learning_rate_after_its_rollbacks(tmp_path: Path) -> None:
    flags = FLAGS | data(tmp_path / "data", "fractions") | {"on_nan": "rollback", "eval_val_every": 5}
    run = new_run(configure(flags | {"checkpoint_dir": str(tmp_path / "cv"), "lr_schedule": "constant"}))
    for record in broken_at_8(run):
        if record.iteration >= 9:
            run.stop()
    run.save_last()
    resumed = new_run(configure({}, resume=str(tmp_path / "cv")))
    assert resumed.training.rollbacks == 1
    assert next(resumed.records()).learning_rate == FLAGS["learning_rate"] / 2


def test_a_copied_folder_resumes_from_its_newest_checkpoint(tmp_path: Path) -> None:
    flags = FLAGS | data(tmp_path / "data", "fractions")
    train(tmp_path / "cv", flags, stop_at=20)
    shutil.copytree(tmp_path / "cv", tmp_path / "copy")
    for reverse in (False, True):
        files = sorted((tmp_path / "copy").glob("*.pt"), key=lambda path: Checkpoint.load(path).training["iteration"])
        assert len(files) == 3
        for seconds, path in enumerate(reversed(files), 10**9):
            os.utime(path, (seconds, seconds) if reverse else (0, 0))
        configuration = configure({"checkpoint_dir": str(tmp_path / "copy")}, resume=str(tmp_path / "copy"))
        assert str(files[-1]) in configuration.notes[0]
        assert new_run(configuration).training.iteration == 20


def test_a_run_resumes_from_its_last_save_even_if_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = FLAGS | data(tmp_path / "data", "fractions") | {"keep": 1, "learning_rate": 0.3}
    clock = iter(range(10**9, 0, -1))
    monkeypatch.setattr("charrnn.checkpoints.checkpoint.time.time_ns", lambda: next(clock))
    begun = train(tmp_path / "cv", flags, stop_at=10)
    train(tmp_path / "cv", {}, tmp_path / "cv", stop_at=23)
    resumed = new_run(configure({}, resume=str(tmp_path / "cv")))
    assert resumed.training.iteration == 23 and resumed.setup.run_id == begun.setup.run_id
    losses = resumed.training.val_losses
    found = [Checkpoint.load(path).iteration for path in (tmp_path / "cv").glob("*_epoch*.pt")]
    assert list(losses) == [7, 14, 21] and set(found) == {21, min(losses, key=lambda k: losses[k])}


def test_a_folder_resumes_the_latest_training_even_if_an_earlier_one_went_further(tmp_path: Path) -> None:
    flags = FLAGS | data(tmp_path / "data", "fractions")
    further = train(tmp_path / "cv", flags, stop_at=20)
    early = min(tmp_path.glob("cv/*_epoch*.pt"), key=lambda path: Checkpoint.load(path).iteration)
    again = train(tmp_path / "cv", {}, early, stop_at=9)
    resumed = new_run(configure({}, resume=str(tmp_path / "cv")))
    assert resumed.training.iteration == 9
    assert resumed.setup.run_id == again.setup.run_id != further.setup.run_id
