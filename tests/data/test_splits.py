"""The splits of a data set appear together or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from charrnn.data.datasets.splits import write_splits

SPLITS = ("train", "val", "test")


def pieces() -> Iterator[tuple[str, bytes]]:
    for split in SPLITS:
        yield split, split.encode()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("name", "before"),
    [(name, before) for name in SPLITS for before in ((), ("train",), ("test",)) if name not in before],
)
def test_if_one_split_cannot_be_renamed_none_appears(tmp_path: Path, name: str, before: tuple[str, ...]) -> None:
    there = [f"{split}.txt" for split in before]
    for split in before:
        (tmp_path / f"{split}.txt").write_text(split)

    def with_a_folder_in_the_way() -> Iterator[tuple[str, bytes]]:
        yield from pieces()
        (tmp_path / f"{name}.txt").mkdir()  # by now all files have been written, under temporary names

    with pytest.raises(IsADirectoryError):
        write_splits(tmp_path, "a text", with_a_folder_in_the_way())
    assert names(tmp_path) == sorted([*there, f"{name}.txt"])
    (tmp_path / f"{name}.txt").rmdir()
    written = write_splits(tmp_path, "a text", pieces())
    assert [path.name for path in written] == [f"{split}.txt" for split in SPLITS if split not in before]
    assert {path.stem: path.read_text() for path in tmp_path.iterdir()} == {split: split for split in SPLITS}


def test_a_file_that_replaced_ours_in_the_meantime_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rename of val.txt fails, just after another program has replaced test.txt."""
    replace = os.replace

    def rename(source: str, target: Path) -> None:
        if target.name == "val.txt":
            (tmp_path / "other").write_text("mine")
            replace(tmp_path / "other", tmp_path / "test.txt")
            raise PermissionError
        replace(source, target)

    monkeypatch.setattr(os, "replace", rename)
    with pytest.raises(PermissionError):
        write_splits(tmp_path, "a text", pieces())
    assert names(tmp_path) == ["test.txt"]
    assert (tmp_path / "test.txt").read_text() == "mine"
