"""Commands on a few broken files; test_soak tries thousands."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from typing import IO

import pytest
import torch

from charrnn.checkpoints import archive
from tests.helpers import fuzz

ATTEMPTS = 120


def test_broken_files_lead_to_clean_results_or_clean_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    first = pytestconfig.getoption("--first")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fuzz.prepare(tmp_path / "fuzz")
    codes: Counter[bool] = Counter()
    kinds = set()
    for number in range(first, first + ATTEMPTS):
        found = fuzz.attempt(number, tmp_path / "fuzz")
        codes[found.code == 0] += 1
        kinds.add(found.kind)
    assert kinds == set(fuzz.KINDS), f"--first {first}"
    assert codes[True] > ATTEMPTS // 10 and codes[False] > ATTEMPTS // 4, f"{codes}: --first {first}"


def test_a_reader_that_raises_unexpected_errors_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz.prepare(tmp_path / "fuzz")

    read = archive.read

    def careless(source: Path | IO[bytes], values: bool = True) -> object:
        """Load a file with torch; a first save that is tried in memory is read as ever."""
        return torch.load(source, weights_only=True) if isinstance(source, Path) else read(source, values)

    monkeypatch.setattr(archive, "read", careless)
    with pytest.raises(fuzz.Wrong, match=rf"{pickle.UnpicklingError.__name__}|Error") as caught:
        for number in range(ATTEMPTS):
            fuzz.attempt(number, tmp_path / "fuzz")
    assert "checkpoint" in str(caught.value)
