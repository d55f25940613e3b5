"""Kernels and threads are chosen by trying, and trying leaves no trace."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from charrnn import load, registry
from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.data.text import open_text
from charrnn.errors import UserError
from charrnn.kernels import backend
from charrnn.settings.training import TrainingOptions
from charrnn.training import tuning as threads
from charrnn.training.setup import configure
from tests.helpers.command import SMALL, charrnn, write_text

Pair = tuple[str, int]


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Pair, list[Pair]]]:
    """What is settled on, and what was tried, where ``fastest`` is the fastest and the machine has 5 processors."""
    split = open_text(write_text(tmp_path), report=lambda line: None).split(4, 16, 0.9, 0.1)["train"]
    model = registry.find("lstm").create(40, 8, 2, 0.3)
    tried: list[Pair] = []

    def settle(fastest: Pair, has_kernels: bool = True, installed: bool = True, **options: Any) -> Any:
        def seconds(model: object, split: object, options: object, kernels: str, count: int) -> float:
            tried.append((kernels, count))
            return abs(count - fastest[1]) + 10 * (kernels != fastest[0])

        used: list[Pair] = []
        monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
        monkeypatch.setattr(backend, "use", lambda kernels, count: used.append((kernels, count)))
        monkeypatch.setattr(backend, "asked", lambda: has_kernels)
        monkeypatch.setattr(backend, "available", lambda: installed)
        monkeypatch.setattr(threads, "_time", seconds)
        monkeypatch.setattr(threads, "_compile", lambda *arguments: "")
        monkeypatch.setattr(threads, "_iterate", lambda *arguments: True)
        settled = threads.settle(model, split, TrainingOptions(**options), lambda line: None)
        monkeypatch.undo()
        assert used[-1] == (settled.kernels, settled.threads)
        return used[-1], tried

    return settle


COUNTS = [1, 2, 4, 5]
OPTIONS = TrainingOptions(batch_size=4, seq_length=16, threads=1)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("kernels", ["torch", "compiled"])
def test_the_fastest_is_chosen(trial: Any, kernels: str, count: int) -> None:
    settled, tried = trial((kernels, count))
    assert settled == (kernels, count)
    assert tried == [("torch", n) for n in COUNTS] + [("compiled", n) for n in COUNTS]


@pytest.mark.parametrize("lack", [{"has_kernels": False}, {"installed": False}, {"precision": "bf16"}])
def test_compiled_kernels_are_tried_where_there_are_any(trial: Any, lack: dict[str, Any]) -> None:
    settled, tried = trial(("compiled", 2), **lack)
    assert settled == ("torch", 2)
    assert tried == [("torch", n) for n in COUNTS]


def test_what_is_given_is_not_tried(trial: Any) -> None:
    assert trial(("compiled", 2), kernels="torch", threads=3) == (("torch", 3), [])
    assert trial(("torch", 2), kernels="compiled", threads=3) == (("compiled", 3), [])
    assert trial(("torch", 2), threads=3, installed=False) == (("torch", 3), [])
    assert trial(("torch", 3), threads=3) == (("torch", 3), [("torch", 3), ("compiled", 3)])


def test_kernels_that_a_model_has_not_are_not_recorded(trial: Any) -> None:
    assert trial(("compiled", 2), has_kernels=False, kernels="compiled", threads=3) == (("torch", 3), [])


@pytest.mark.parametrize("own", [{"lr_schedule": "plateau"}, {"early_stop": 2}])
def test_what_needs_validations_is_no_matter(tmp_path: Path, own: dict[str, Any]) -> None:
    split = open_text(write_text(tmp_path), report=lambda line: None).split(4, 16, 0.9, 0.1)["train"]
    model = registry.find("lstm").create(40, 8, 1, 0.0)
    options = TrainingOptions(batch_size=4, seq_length=16, kernels="auto", threads=1, **own)
    settled = threads.settle(model, split, options, lambda line: None)
    assert settled == replace(options, kernels="torch")


def test_kernels_that_another_model_has_are_not_this_ones(tmp_path: Path) -> None:
    split = open_text(write_text(tmp_path), report=lambda line: None).split(4, 16, 0.9, 0.1)["train"]
    registry.find("gru").create(40, 8, 1, 0.0)(torch.zeros(2, 3, dtype=torch.int64), None)
    tried: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "_compile", lambda *arguments: tried.append("compiled") or "")
        threads.settle(registry.find("lstm").create(40, 8, 1, 0.0), split, OPTIONS, lambda line: None)
        assert tried == []
        threads.settle(registry.find("gru").create(40, 8, 1, 0.0), split, OPTIONS, lambda line: None)
    assert tried == (["compiled"] if backend.available() else [])
    backend.use("torch", torch.get_num_threads())


def test_the_model_stays(tmp_path: Path) -> None:
    split = open_text(write_text(tmp_path), report=lambda line: None).split(4, 16, 0.9, 0.1)["train"]
    model = registry.find("gru").create(40, 8, 2, 0.3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    state, count = torch.get_rng_state(), torch.get_num_threads()
    try:
        settled = threads.settle(model, split, TrainingOptions(batch_size=4, seq_length=16), lambda line: None)
    finally:
        backend.use("torch", count)
    assert settled.threads > 0 and settled.kernels in ("torch", "compiled")
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_choice_is_recorded_and_does_not_change_the_first_loss(tmp_path: Path) -> None:
    write_text(tmp_path / "data")
    words = ("-data_dir", "data", *SMALL, "-dropout", 0.2, "-max_epochs", 0.1)
    env = {"OMP_NUM_THREADS": "2"}
    first = charrnn("train", *words, "-checkpoint_dir", "chosen", cwd=tmp_path, **env).stdout.decode()
    count = Checkpoint.load(tmp_path / "chosen").options.threads
    assert count in (1, 2)
    again = charrnn("train", *words, "-checkpoint_dir", "given", "-threads", count, cwd=tmp_path, **env).stdout.decode()
    losses = [re.findall(r"train_loss = (\S+)", text) for text in (first, again)]
    assert losses[0] == losses[1] != []
    one, two = (dict(load(tmp_path / name)[0].named_parameters()) for name in ("chosen", "given"))
    assert all(torch.equal(p, two[name]) for name, p in one.items())


@pytest.mark.parametrize(("given", "count"), [("auto", 0), (0, 0), ("0", 0), ("3", 3)])
def test_auto_is_the_word_for_trying(tmp_path: Path, given: object, count: int) -> None:
    assert configure({"threads": given}).options.threads == count
    file = tmp_path / "settings.toml"
    file.write_text(f"threads = {given!r}".replace("'", '"'))
    assert configure({}, str(file)).options.threads == count


def test_auto_is_what_the_help_says_and_what_a_wrong_word_is_answered_with(tmp_path: Path) -> None:
    shown = " ".join(charrnn("train", "-h", cwd=tmp_path).stdout.decode().split())
    assert "-threads auto|INT" in shown
    assert "found by trying [auto]" in shown
    with pytest.raises(UserError, match=r"^-threads many: must be a whole number or auto$"):
        configure({"threads": "many"})


def test_a_number_in_the_environment_is_the_most(tmp_path: Path) -> None:
    write_text(tmp_path / "data")
    words = [sys.executable, "-m", "charrnn", "train", "-data_dir", "data", *map(str, SMALL), "-max_epochs", "0.1"]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert Checkpoint.load(tmp_path / "cv").options.threads == 1
