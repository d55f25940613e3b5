"""Checkpoints and caches written by earlier versions, kept in old/, can still be used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.data import cache
from charrnn.data.encode import Reading
from tests.checkpoints.old.make import RUNS, write_text
from tests.helpers.command import run

OLD = Path(__file__).parent / "old"
VERSIONS = sorted(path.parent.name for path in OLD.glob("*/recorded.json"))
RESULTS: dict[str, dict[str, dict[str, Any]]] = {
    version: json.loads((OLD / version / "recorded.json").read_text()) for version in VERSIONS
}
CASES = [(version, name) for version in VERSIONS for name in RESULTS[version]]
# the runs that earlier versions lack the settings for
RUNS_MISSING = {
    "80e9c1d": {"rnn_plateau", "lstm_words", "rnn_clock"},
    "56fc9c6": {"lstm_words", "rnn_clock"},
    **{version: {"rnn_clock"} for version in ("ad10ff9", "21cd0ce", "1565fd8", "63031f1")},
}


@pytest.fixture
def folder(tmp_path: Path, version: str, name: str) -> Path:
    """A folder with the text of a run in data, and its checkpoint in cv."""
    write_text(tmp_path / "data", RUNS[name][0])
    (tmp_path / "cv").mkdir()
    shutil.copy(OLD / version / f"{name}.pt", tmp_path / f"cv/lm_{name}_last.pt")
    return tmp_path


def test_every_old_version_has_all_its_runs() -> None:
    assert VERSIONS
    for version in VERSIONS:
        runs = RUNS.keys() - RUNS_MISSING.get(version, set())
        assert RESULTS[version].keys() == runs
        assert {path.stem for path in (OLD / version).glob("*.pt")} == runs


@pytest.mark.parametrize(("version", "name"), CASES)
def test_an_old_checkpoint_samples_the_recorded_text_and_resumes_with_the_recorded_losses(
    folder: Path, version: str, name: str
) -> None:
    then = RESULTS[version][name]
    words = ("-gpuid", -1, "-verbose", 0, "-sample", 0, "-length", 60, "-primetext", "The ")
    assert run(folder, "sample", "cv", *words).out.decode() == then["text"]

    assert run(folder, "inspect", "cv").code == 0

    begun = Checkpoint.load(folder / "cv").training["iteration"]
    run(folder, "train", "-resume", "cv", "-max_epochs", 10)
    lines = (folder / f"cv/lm_{name}_metrics.jsonl").read_text().splitlines()
    losses = {record["iteration"]: record["loss"] for record in map(json.loads, lines)}
    ten = [losses[begun + i] for i in range(1, 11)]
    assert ten == pytest.approx(then["losses"], rel=1e-10, abs=0)


def test_the_count_of_rollbacks_is_read_from_an_old_checkpoint() -> None:
    for version in VERSIONS:
        assert Checkpoint.load(OLD / version / "gru_rollback.pt").training["rollbacks"] == 1


def test_the_rollback_state_is_read_from_an_old_checkpoint() -> None:
    for version in VERSIONS:
        if "rnn_clock" in RESULTS[version]:
            training = Checkpoint.load(OLD / version / "rnn_clock.pt").training
            assert training["good"]["training"]["iteration"] == training["iteration"] // 50 * 50


@pytest.mark.parametrize("version", VERSIONS)
def test_an_old_cache_is_used_unchanged_or_built_again(tmp_path: Path, version: str) -> None:
    write_text(tmp_path / "data", ["input.txt"])
    for name in ("vocab.json", "input.npy"):
        shutil.copy2(OLD / version / name, tmp_path / "data")
    before = {path.name: path.stat().st_ino for path in (tmp_path / "data").iterdir()}
    prepared = cache.load_or_build(
        {"input": tmp_path / "data" / "input.txt"}, Reading(), tmp_path / "data", pytest.fail
    )
    text = (tmp_path / "data" / "input.txt").read_text()
    assert "".join(chr(prepared.vocabulary.codes[token]) for token in prepared.ids["input"][:]) == text
    same = {path.name: path.stat().st_ino for path in (tmp_path / "data").iterdir()} == before
    assert same == (json.loads((OLD / version / "vocab.json").read_text())["format"] == cache.FORMAT)
