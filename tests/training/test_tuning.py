"""Kernels and threads are chosen by timing, and timing has no side effects."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from charrnn import load, registry
from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.data.minibatches import Split
from charrnn.errors import UserError
from charrnn.kernels import backend, gru
from charrnn.settings.training import TrainingOptions
from charrnn.training import tuning
from charrnn.training.setup import configure
from tests.helpers.command import SMALL, charrnn, write_text

V, B, T = 7, 4, 6


def model_of(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return registry.find(name).create(V, 8, 2, 0.3)


def split_of(minibatches: int = 30) -> Split:
    ids = np.random.default_rng(0).integers(0, V, minibatches * B * T + 1, dtype=np.uint8)
    return Split(ids, minibatches * T, 0, minibatches, B, T, carries=True)


def tune(name: str, notes: list[str] | None = None, **options: Any) -> TrainingOptions:
    chosen = TrainingOptions(model=name, batch_size=B, seq_length=T, **options)
    return tuning.tune(model_of(name), split_of(), chosen, (notes if notes is not None else []).append)


@pytest.fixture(autouse=True)
def five_cores() -> Iterator[None]:
    """Let torch use five threads, as on a machine with five cores. Restore the kernels and threads afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(5)
    yield
    backend.use("torch", before)


class Timing:
    """Replaces the measured times so that one candidate is fastest. Records what was timed, in order."""

    def __init__(self) -> None:
        self.timed: list[tuple[str, int]] = []
        self.fastest = ("torch", 1)

    def seconds(self, model: nn.Module, train: Split, options: TrainingOptions, kernels: str, threads: int) -> float:
        self.timed.append((kernels, threads))
        return abs(threads - self.fastest[1]) + 10 * (kernels != self.fastest[0])


@pytest.fixture
def timing(monkeypatch: pytest.MonkeyPatch) -> Timing:
    timing = Timing()
    monkeypatch.setattr(tuning, "seconds", timing.seconds)
    return timing


def without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)


COUNTS = [1, 2, 4, 5]
needs_the_extra = pytest.mark.skipif(not backend.available(), reason="the [fast] extra is not installed")


@needs_the_extra
@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("kernels", ["torch", "compiled"])
def test_the_fastest_candidate_is_chosen(timing: Timing, kernels: str, threads: int) -> None:
    timing.fastest = (kernels, threads)
    tuned = tune("gru")
    assert (tuned.kernels, tuned.threads) == (kernels, threads)
    assert torch.get_num_threads() == threads
    assert backend.threads() == (threads if kernels == "compiled" else 0)
    assert timing.timed == [("torch", n) for n in COUNTS] + [("compiled", n) for n in COUNTS]


def test_a_model_without_compiled_kernels_is_timed_with_torchs_kernels(timing: Timing) -> None:
    timing.fastest = ("compiled", 2)
    notes: list[str] = []
    assert tune("lstm", notes).threads == 2
    assert timing.timed == [("torch", n) for n in COUNTS]
    assert notes == []


def test_only_char_rnns_own_gru_has_compiled_kernels() -> None:
    def has(name: str, **own: Any) -> bool:
        return getattr(registry.find(name).create(V, 8, 1, 0.0, **own), "has_compiled_kernels", False)

    assert [name for name in registry.models() if has(name)] == ["gru", "rhn", "rnn"]
    assert not has("gru", reset_after=True)


def test_compiled_kernels_are_not_timed_in_bf16(timing: Timing) -> None:
    tune("gru", precision="bf16")
    assert timing.timed == [("torch", n) for n in COUNTS]


def test_compiled_kernels_are_not_timed_without_the_extra(timing: Timing, monkeypatch: pytest.MonkeyPatch) -> None:
    without_the_extra(monkeypatch)
    notes: list[str] = []
    tune("gru", notes)
    assert timing.timed == [("torch", n) for n in COUNTS]
    assert notes == []


@needs_the_extra
def test_only_settings_left_at_auto_are_timed(timing: Timing) -> None:
    def tuned(**options: Any) -> tuple[str, int]:
        timing.timed.clear()
        torch.set_num_threads(5)
        tuned = tune("gru", **options)
        return tuned.kernels, tuned.threads

    assert tuned(kernels="torch", threads=3) == ("torch", 3)
    assert timing.timed == []
    assert tuned(kernels="compiled", threads=3) == ("compiled", 3)
    assert timing.timed == []
    timing.fastest = ("compiled", 3)
    assert tuned(threads=3) == ("compiled", 3)
    assert timing.timed == [("torch", 3), ("compiled", 3)]
    timing.fastest = ("torch", 4)
    assert tuned(kernels="compiled") == ("compiled", 4)
    assert timing.timed == [("compiled", n) for n in COUNTS]


def test_missing_compiled_kernels_are_reported_and_not_recorded() -> None:
    notes: list[str] = []
    assert tune("lstm", notes, kernels="compiled", threads=3).kernels == "torch"
    assert notes == ["-kernels compiled: this lstm has no compiled kernels; using torch's"]
    assert backend.threads() == 0 and torch.get_num_threads() == 3


def test_compiled_kernels_without_the_extra_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    without_the_extra(monkeypatch)
    message = r"^-kernels compiled: the compiled kernels need numba.*; use -kernels torch instead"
    with pytest.raises(UserError, match=message):
        tune("gru", kernels="compiled")
    assert backend.threads() == 0 and torch.get_num_threads() == 5


@pytest.mark.parametrize("own", [{"lr_schedule": "plateau"}, {"early_stop": 2}])
def test_settings_that_need_validation_do_not_affect_the_timing(own: dict[str, Any]) -> None:
    tuned = tune("lstm", kernels="auto", **own)
    expected = TrainingOptions(model="lstm", batch_size=B, seq_length=T, kernels="torch", threads=tuned.threads, **own)
    assert tuned == expected


@pytest.mark.parametrize("minibatches", [1, 3, 30])
def test_iterations_are_timed_even_if_a_run_has_only_a_few(minibatches: int) -> None:
    options = TrainingOptions(batch_size=B, seq_length=T, max_epochs=1)
    took = tuning.seconds(model_of("rnn"), split_of(minibatches), options, "torch", 1)
    assert 0 < took < float("inf")


def test_a_loss_that_is_not_finite_counts_as_infinitely_slow() -> None:
    model = model_of("rnn")
    with torch.no_grad():
        next(model.parameters())[:] = torch.nan
    assert tuning.seconds(model, split_of(), TrainingOptions(), "torch", 1) == float("inf")


def test_model_and_random_numbers_do_not_change() -> None:
    model = model_of("gru")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    random_state = torch.get_rng_state()
    options = TrainingOptions(model="gru", batch_size=B, seq_length=T)
    tuned = tuning.tune(model, split_of(), options, lambda line: None)
    assert tuned == replace(options, kernels=tuned.kernels, threads=tuned.threads)
    assert tuned.threads in COUNTS and tuned.kernels in ("torch", "compiled")
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


# Compiled kernels that fail


@pytest.fixture
def compiled_gru() -> Any:
    pytest.importorskip("numba")
    from charrnn.kernels.compiled import gru

    return gru


def test_kernels_with_a_loss_that_is_not_finite_are_not_chosen(
    compiled_gru: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled_gru, "scan", lambda x, h, W, R, b: (h + R.sum() * torch.nan).expand(len(x), -1, -1))
    notes: list[str] = []
    assert tune("gru", notes, threads=1).kernels == "torch"
    assert notes[-1:] == ["using torch's kernels: the loss becomes NaN or explodes in the first iteration"]
    with pytest.raises(UserError, match="explodes in the first iteration; use -kernels torch instead"):
        tune("gru", kernels="compiled", threads=1)


def test_kernels_that_raise_an_error_are_undone(compiled_gru: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> torch.Tensor:
        raise NotImplementedError("no such instruction")

    monkeypatch.setattr(compiled_gru, "scan", broken)
    random_state = torch.get_rng_state()
    with pytest.raises(UserError, match=r"do not run here \(NotImplementedError: no such instruction\)"):
        tune("gru", kernels="compiled")
    assert backend.threads() == 0 and torch.get_num_threads() == 5
    assert torch.equal(torch.get_rng_state(), random_state)


def test_an_error_of_the_model_is_not_blamed_on_the_kernels(compiled_gru: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gru, "scan", lambda *arguments: 1 / 0)
    for kernels in ("compiled", "auto"):
        with pytest.raises(ZeroDivisionError):
            tune("gru", kernels=kernels, threads=1)


def test_a_loss_that_is_not_finite_with_any_kernels_is_not_blamed_on_them(compiled_gru: Any) -> None:
    model, notes = model_of("gru"), []
    with torch.no_grad():
        next(model.parameters())[:] = torch.nan
    options = TrainingOptions(model="gru", batch_size=B, seq_length=T, kernels="auto", threads=1)
    assert tuning.tune(model, split_of(), options, notes.append).kernels == "torch"
    assert not any("explodes" in note for note in notes)


# The command


def test_the_choice_is_saved_and_does_not_change_the_first_loss(tmp_path: Path) -> None:
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
def test_auto_chooses_by_timing(tmp_path: Path, given: object, count: int) -> None:
    assert configure({"threads": given}).options.threads == count
    file = tmp_path / "settings.toml"
    file.write_text(f"threads = {given!r}".replace("'", '"'))
    assert configure({}, str(file)).options.threads == count


def test_help_and_error_messages_mention_auto(tmp_path: Path) -> None:
    shown = " ".join(charrnn("train", "-h", cwd=tmp_path).stdout.decode().split())
    assert "-threads auto|INT" in shown
    assert "found by timing [auto]" in shown
    with pytest.raises(UserError, match=r"^-threads many: must be a whole number or auto$"):
        configure({"threads": "many"})


def test_no_more_threads_are_tried_than_the_environment_allows(tmp_path: Path) -> None:
    write_text(tmp_path / "data")
    words = [sys.executable, "-m", "charrnn", "train", "-data_dir", "data", *map(str, SMALL), "-max_epochs", "0.1"]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert Checkpoint.load(tmp_path / "cv").options.threads == 1
