"""The thread count is chosen by trying, and trying leaves no trace."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command import SMALL, charrnn, write_text

from charrnn import load, registry, threads
from charrnn.checkpoint import Checkpoint
from charrnn.configuration import configure
from charrnn.data import open_text
from charrnn.errors import UserError
from charrnn.options import TrainingOptions


@pytest.mark.parametrize("fastest", [1, 2, 4])
def test_the_fastest_count_is_chosen_and_the_model_stays(
    tmp_path: Path, fastest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = open_text(write_text(tmp_path), report=lambda line: None).split(4, 16, 0.9, 0.1)["train"]
    model = registry.create("lstm", 40, 8, 2, 0.3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    tried: list[int] = []
    chosen: list[int] = []

    def seconds(model: object, split: object, options: object, count: int) -> float:
        tried.append(count)
        return abs(count - fastest)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(threads, "_time", seconds)
    assert threads.find_fastest(model, split, TrainingOptions()) == fastest == chosen[-1]
    assert tried == [1, 2, 4, 5]
    monkeypatch.undo()
    threads._time(model, split, TrainingOptions(batch_size=4, seq_length=16), torch.get_num_threads())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


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
