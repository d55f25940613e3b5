"""A run that was stopped and resumed is the run that never was: every tensor, every number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from charrnn import registry
from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.errors import UserError
from charrnn.settings.training import Schedule
from charrnn.training.run import Run
from charrnn.training.setup import configure
from tests.helpers.command import SONG, write_text

# dropout on, a falling rate, epochs short enough that several borders are crossed
FLAGS: dict[str, Any] = {
    "rnn_size": 10,
    "num_layers": 2,
    "batch_size": 4,
    "seq_length": 16,
    "dropout": 0.2,
    "learning_rate": 0.01,
    "learning_rate_decay": 0.7,
    "learning_rate_decay_after": 1,
    "max_epochs": 2.5,
    "eval_val_every": 7,
    "gpuid": -1,
    "threads": 1,
    "kernels": "torch",
}


def silent(line: str) -> None:
    """Where the notes go."""


def train(folder: Path, flags: dict[str, Any], resume: Path | None = None, stop_at: int = 0) -> Run:
    """Train to the end, or stop after an iteration and save, as Ctrl-C does."""
    given = flags | {"checkpoint_dir": str(folder)}
    run = Run(configure({} if resume else given, resume=str(resume) if resume else None), silent)
    for record in run.records():
        if record.val_loss is not None:
            run.save()
        run.training.stopping = bool(stop_at) and record.iteration >= stop_at
    run.save_last()
    return run


def same(a: Any, b: Any, where: str = "") -> None:
    """Equal in every tensor and every value."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}[{i}]")
    else:
        assert a == b, f"{where}: {a} != {b}"


def same_run(a: Path, b: Path) -> None:
    one, two = (vars(Checkpoint.load(path)) for path in (a, b))
    for content in (one, two):
        content["options"] = vars(content["options"]) | {"checkpoint_dir": ""}
    same(one, two)


def data(folder: Path, kind: str) -> dict[str, Any]:
    if kind == "fractions":
        write_text(folder, SONG * 20)
    else:
        folder.mkdir()
        (folder / "train.txt").write_text(SONG * 16)
        (folder / "val.txt").write_text(SONG * 4)
    return {"data_dir": str(folder)}


@pytest.mark.parametrize("precision", ["float32", "float64", "bf16"])
@pytest.mark.parametrize("name", registry.models())
def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path, name: str, precision: str) -> None:
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
def test_every_optimizer_and_both_layouts(tmp_path: Path, optimizer: str, kind: str) -> None:
    flags = FLAGS | data(tmp_path / "data", kind) | {"optimizer": optimizer, "weight_decay": 1e-3, "max_grad_norm": 1.0}
    train(tmp_path / "whole", flags)
    train(tmp_path / "parts", flags, stop_at=5)
    train(tmp_path / "parts", flags, tmp_path / "parts")
    same_run(tmp_path / "whole/lm_lstm_last.pt", tmp_path / "parts/lm_lstm_last.pt")


@pytest.mark.parametrize("schedule", get_args(Schedule))
@pytest.mark.parametrize("stop_at", [5, 21])
def test_every_schedule(tmp_path: Path, schedule: str, stop_at: int) -> None:
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


def metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, clock times aside."""
    return [json.loads(line) | {"seconds": 0} for line in path.read_text().splitlines()]


def test_stopping_early_ends_at_the_same_iteration_and_can_be_lifted(tmp_path: Path) -> None:
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
    assert again.training.iteration == whole.training.iteration, "it stays ended"
    settings = configure({"early_stop": 0, "checkpoint_dir": str(tmp_path / "parts")}, resume=str(tmp_path / "parts"))
    lifted = Run(settings, silent)
    assert sum(1 for _ in lifted.records()) == whole.training.iterations - whole.training.iteration
    unbounded = Checkpoint.load(tmp_path / "unbounded/lm_lstm_last.pt")
    same(unbounded.weights, lifted.checkpoint().weights)


def test_what_a_schedule_depends_on_cannot_change(tmp_path: Path) -> None:
    text = data(tmp_path / "data", "fractions")
    for schedule, name in (("cosine", "max_epochs"), ("onecycle", "max_epochs"), ("plateau", "eval_val_every")):
        train(tmp_path / schedule, FLAGS | text | {"lr_schedule": schedule}, stop_at=3)
        with pytest.raises(UserError, match=f"-{name} 3"):
            configure({name: 3}, resume=str(tmp_path / schedule))


def test_the_comparison_would_see_a_lost_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = FLAGS | data(tmp_path / "data", "fractions")
    train(tmp_path / "whole", flags)
    train(tmp_path / "parts", flags, stop_at=5)
    monkeypatch.setattr(torch, "set_rng_state", lambda state: torch.manual_seed(0))
    train(tmp_path / "parts", flags, tmp_path / "parts")
    with pytest.raises(AssertionError):
        same_run(tmp_path / "whole/lm_lstm_last.pt", tmp_path / "parts/lm_lstm_last.pt")


def test_what_would_change_the_run_is_refused_and_the_rest_may_change(tmp_path: Path) -> None:
    flags = FLAGS | data(tmp_path / "data", "fractions")
    train(tmp_path / "cv", flags, stop_at=5)
    saved = str(tmp_path / "cv")
    with pytest.raises(UserError, match=r"-rnn_size 11 \(was 10\)"):
        configure({"rnn_size": 11}, resume=saved)
    with pytest.raises(UserError, match="-init_from"):
        configure({"init_from": saved}, resume=saved)
    settings = configure({"max_epochs": 3, "rnn_size": 10, "print_every": 5}, resume=saved)
    assert settings.options.max_epochs == 3


def test_another_text_is_refused(tmp_path: Path) -> None:
    flags = FLAGS | data(tmp_path / "data", "fractions")
    train(tmp_path / "cv", flags, stop_at=5)
    write_text(tmp_path / "data", SONG * 19 + SONG.replace("quick", "qcuik"))
    with pytest.raises(UserError, match="not the one"):
        Run(configure({}, resume=str(tmp_path / "cv")), silent)


def test_old_checkpoints_are_pruned_but_never_the_best(tmp_path: Path) -> None:
    flags = FLAGS | data(tmp_path / "data", "fractions") | {"keep": 2, "eval_val_every": 3, "max_epochs": 2}
    other = tmp_path / "cv" / "lm_lstm_epoch0.10_9.0000.pt"
    other.parent.mkdir()
    other.write_bytes(b"of another run")
    run = train(tmp_path / "cv", flags)
    names = {path.name for path in (tmp_path / "cv").glob("lm_*_epoch*.pt")} - {other.name}
    best = min(run.training.val_losses.values())
    assert len(names) in (2, 3)
    assert any(name.endswith(f"{best:.4f}.pt") for name in names)
    assert other.exists()


def test_rollback_halves_the_rate_and_goes_on(tmp_path: Path) -> None:
    flags = FLAGS | data(tmp_path / "data", "fractions") | {"on_nan": "rollback", "eval_val_every": 5}
    run = Run(configure(flags | {"checkpoint_dir": str(tmp_path / "cv")}), silent)
    seen, broken = [], False
    for record in run.records():
        seen.append((record.iteration, record.learning_rate))
        if record.val_loss is not None:
            run.save()
        if record.iteration == 8 and not broken:
            broken = True
            with torch.no_grad():
                next(run.model.parameters()).fill_(float("nan"))
    iterations = [iteration for iteration, _ in seen]
    assert iterations[:12] == [1, 2, 3, 4, 5, 6, 7, 8, 6, 7, 8, 9]
    assert seen[8][1] == seen[5][1] / 2
    assert run.training.iteration == run.training.iterations
