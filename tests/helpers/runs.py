"""Small training runs in this process, stopped or diverging if needed, and comparisons of their results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.settings.resolve import Configuration
from charrnn.training.loop import Record
from charrnn.training.run import Run
from charrnn.training.setup import configure, prepare
from tests.helpers.command import SONG, write_text

# with dropout, a falling learning rate, and epochs so short that several boundaries are crossed
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


def silent(*_: object) -> None:
    """Ignore a report."""


def new_run(configuration: Configuration) -> Run:
    return Run(prepare(configuration, silent), silent)


def train(folder: Path, flags: dict[str, Any], resume: Path | None = None, stop_at: int = 0) -> Run:
    """Train or resume to the end, or stop after an iteration and save, as Ctrl-C does."""
    given = flags | {"checkpoint_dir": str(folder)}
    run = new_run(configure({} if resume else given, resume=str(resume) if resume else None))
    for record in run.records():
        if record.val_loss is not None:
            run.save()
        if stop_at and record.iteration >= stop_at:
            run.stop()
    run.save_last()
    return run


def same(a: Any, b: Any, where: str = "") -> None:
    """Assert that two values are equal in every tensor and every number."""
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
    """Assert that two checkpoints are equal except for the folder they were saved in and the run's identity."""
    one, two = (vars(Checkpoint.load(path)) for path in (a, b))
    for content in (one, two):
        content["run_id"] = ""
        content["options"] = vars(content["options"]) | {"checkpoint_dir": ""}
    same(one, two)


def data(folder: Path, kind: str) -> dict[str, Any]:
    """Write a text as one file for "fractions", or as one for each split. Return the flags to read it."""
    if kind == "fractions":
        write_text(folder, SONG * 20)
    else:
        folder.mkdir()
        (folder / "train.txt").write_text(SONG * 16)
        (folder / "val.txt").write_text(SONG * 4)
    return {"data_dir": str(folder)}


def metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a metrics file, without their times."""
    return [json.loads(line) | {"seconds": 0} for line in path.read_text().splitlines()]


def broken_at_8(run: Run) -> Iterator[Record]:
    """Yield the records of a run whose weights become NaN once, after iteration 8."""
    broken = False
    for record in run.records():
        yield record
        if record.val_loss is not None:
            run.save()
        if record.iteration == 8 and not broken:
            broken = True
            with torch.no_grad():
                next(run.model.parameters()).fill_(float("nan"))
