"""A command finds and loads a model's file once, and reads each checkpoint once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from charrnn import registry
from charrnn.checkpoints import archive
from tests.helpers.command import SMALL, run, write_text

TRAIN = ("-data_dir", "data", *SMALL, "-max_epochs", 0.2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text and two runs on it."""
    folder = tmp_path_factory.mktemp("once")
    write_text(folder / "data")
    for name in ("cv", "other"):
        run(folder, "train", *TRAIN, "-checkpoint_dir", name)
    return folder


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count how often a model's file is found and loaded, and how often a checkpoint is read from a file."""
    counts: Counter[str] = Counter()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            counts[name] += not isinstance(args[0], BytesIO)  # the first save is tried in memory
            return function(*args, **named)

        return call

    loading = registry.ModelFile.__dict__["module"]
    monkeypatch.setattr(registry, "find", counted("find", registry.find))
    monkeypatch.setattr(loading, "func", counted("load", loading.func))
    monkeypatch.setattr(archive, "read", counted("read", archive.read))
    return counts


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["train", *TRAIN, "-checkpoint_dir", "new"], (1, 1, 0)),
        (["train", *TRAIN, "-dry_run"], (1, 1, 0)),
        (["train", "-print_config"], (1, 1, 0)),
        (["train", "-resume", "cv", "-max_epochs", 0.2], (1, 1, 1)),
        (["train", "-init_from", "cv", *TRAIN, "-checkpoint_dir", "from"], (1, 1, 1)),
        (["sample", "cv", "-length", 3], (1, 1, 1)),
        (["eval", "cv"], (1, 1, 1)),
        (["eval", "cv", "-ensemble", "other"], (1, 1, 2)),
        (["novelty", "cv", "-length", 100], (1, 1, 1)),
        (["inspect", "cv"], (0, 0, 1)),
    ],
    ids=lambda value: " ".join(map(str, value[:2])) if isinstance(value, list) else "",
)
def test_a_model_is_found_and_loaded_once_and_a_checkpoint_is_read_once(
    command: list[object], expected: tuple[int, int, int], folder: Path, counts: Counter[str]
) -> None:
    run(folder, *command)
    assert (counts["find"], counts["load"], counts["read"]) == expected
