"""``-dry_run``: its figures are compared with formulas and a real run, and it leaves no trace."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from charrnn.training import dry_run as module
from charrnn.training.dry_run import dry_run
from charrnn.training.setup import configure, prepare
from tests.helpers.command import SONG, charrnn, write_text
from tests.helpers.runs import new_run, silent

B, T, H, L = 5, 8, 32, 2
V = len(set(SONG))
FLAGS: dict[str, Any] = {"rnn_size": H, "num_layers": L, "batch_size": B, "seq_length": T, "gpuid": -1}


@pytest.fixture
def flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(module, "TIMED", 2)
    return FLAGS | {"data_dir": str(write_text(tmp_path / "data", SONG * 40))}


def products(model: str) -> int:
    """Return the multiplications and additions per character of a forward pass, by the papers' formulas, without the
    one-hot product."""
    gates = {"lstm": 4, "gru": 3, "rnn": 1}[model]
    return 2 * (gates * H * H * (2 * L - 1) + H * V)


@pytest.mark.parametrize("model", ["lstm", "gru", "rnn"])
def test_the_figures_equal_those_of_the_formulas(flags: dict[str, Any], model: str) -> None:
    found = dry_run(prepare(configure(flags | {"model": model, "max_epochs": 2}), silent, keep=False))
    run = new_run(configure(flags | {"model": model}))
    assert found.parameters == sum(p.numel() for p in run.model.parameters())
    assert found.weights == found.gradients == 4 * found.parameters
    assert found.tokens_per_epoch == len(run.training.train) * B * T
    assert found.iterations == 2 * found.iterations_per_epoch
    # the backward pass takes twice as many products; torch's own layers also multiply the one-hot input
    one_hot = 2 * {"lstm": 4, "gru": 3, "rnn": 1}[model] * H * V
    expected = 3 * products(model) * B * T
    assert expected <= found.flops <= expected + 3 * one_hot * B * T
    # at least one state of every layer and time step, and the probabilities
    assert found.activations >= 4 * B * T * (L * H + V)
    assert found.activations <= 4 * B * T * (30 * L * H + 20 * V)
    assert 0 < found.seconds_per_iteration < 60 and found.timed == 2


@pytest.mark.parametrize(("optimizer", "copies"), [("sgd", 0), ("rmsprop", 1), ("adam", 2)])
def test_the_optimizers_memory_is_that_of_its_running_means(flags: dict[str, Any], optimizer: str, copies: int) -> None:
    found = dry_run(prepare(configure(flags | {"optimizer": optimizer, "precision": "float64"}), silent, keep=False))
    assert found.weights == 8 * found.parameters
    assert copies * found.weights <= found.optimizer <= copies * found.weights + 1000  # a step count per tensor


def test_activations_and_work_grow_with_the_minibatch(flags: dict[str, Any]) -> None:
    small, large = (
        dry_run(prepare(configure(flags | {"seq_length": length}), silent, keep=False)) for length in (T, 4 * T)
    )
    assert large.flops == pytest.approx(4 * small.flops, rel=0.05)  # the first step has no state to multiply with
    assert 3.5 < large.activations / small.activations < 4.5
    assert large.weights == small.weights


def test_a_dry_run_of_a_resumed_run_trains_nothing(flags: dict[str, Any], tmp_path: Path) -> None:
    run = new_run(configure(flags | {"checkpoint_dir": str(tmp_path / "cv"), "max_epochs": 1}))
    for record in run.records():
        if record.val_loss is not None:
            run.save()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    dry_run(prepare(configure({"max_epochs": 2}, resume=str(tmp_path / "cv")), silent, keep=False))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_dry_run_prints_its_table_and_writes_nothing(tmp_path: Path) -> None:
    write_text(tmp_path / "work/data", SONG * 40)
    (tmp_path / "tmp").mkdir()
    env = {"TMPDIR": str(tmp_path / "tmp"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    args = ("-rnn_size", 16, "-batch_size", 4, "-seq_length", 16, "-gpuid", -1, "-log_dir", "runs", "-dry_run")
    done = charrnn("train", "-data_dir", "data", *args[:-3], "-dry_run", cwd=tmp_path / "work", **env)
    names = [line.split("\t")[0] for line in done.stdout.decode().splitlines()]
    assert names == ["model", "parameters", "memory: weights", "memory: gradients", "memory: optimizer",
                     "memory: activations", "work", "characters", "time"]  # fmt: skip
    assert b"counted" in done.stdout and b"measured" in done.stdout
    left = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if not path.is_dir()]
    assert left == [Path("work/data/input.txt")]
    assert os.listdir(tmp_path / "tmp") == []


def test_products_added_in_place_are_counted_as_well() -> None:
    a, b, c = torch.ones(4, 5), torch.ones(5, 6), torch.zeros(4, 6)
    for multiply, count in (
        (lambda: a @ b, 2 * 4 * 5 * 6),
        (lambda: torch.mm(a, b, out=c), 2 * 4 * 5 * 6),
        (lambda: c.addmm_(a, b), 2 * 4 * 5 * 6),
        (lambda: c.expand(3, 4, 6).clone().baddbmm_(a.expand(3, 4, 5), b.expand(3, 5, 6)), 3 * 2 * 4 * 5 * 6),
    ):
        with FlopCounterMode(display=False, custom_mapping=module.IN_PLACE) as counter:
            multiply()
        assert counter.get_total_flops() == count
