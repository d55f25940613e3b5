"""charrnn prepare ptb: three files of the user's, checked and given their names here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from charrnn.data.datasets import catalogue as datasets
from charrnn.errors import UserError
from tests.helpers.command import charrnn, one_line

NAMES = {"train": "ptb.train.txt", "val": "ptb.valid.txt", "test": "ptb.test.txt"}
TEXTS = {
    "train": " aer banknote <unk> N \n the café 's open \n",
    "val": " no it was n't \n",
    "test": " N years \n old",
}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "simple-examples" / "data"
    folder.mkdir(parents=True)
    for split, name in NAMES.items():
        (folder / name).write_text(TEXTS[split], encoding="utf-8", newline="")
    (folder / "README").write_text("something else\n")
    return folder


def refusal(folder: Path, corpus: Path | None) -> str:
    with pytest.raises(UserError) as caught:
        datasets.prepare("ptb", folder, lambda line: None, **({"from": str(corpus)} if corpus else {}))
    return str(caught.value)


def test_prepare_ptb_writes_three_texts_and_counts_them(corpus: Path, tmp_path: Path) -> None:
    done = charrnn("prepare", "ptb", "--from", "simple-examples/data", cwd=tmp_path)
    made = tmp_path / "data" / "ptb"
    assert {path.name: path.read_text(encoding="utf-8") for path in made.iterdir()} == {
        f"{split}.txt": text for split, text in TEXTS.items()
    }
    assert done.stderr.decode().splitlines() == [
        "wrote data/ptb/train.txt: 43 bytes",
        "wrote data/ptb/val.txt: 16 bytes",
        "wrote data/ptb/test.txt: 14 bytes",
        "train: 2 lines, 8 words, 10 tokens with <eos>",
        "val: 1 lines, 4 words, 5 tokens with <eos>",
        "test: 1 lines, 3 words, 4 tokens with <eos>",
        "another text: Mikolov's Penn Treebank has 929,589, 73,760, 82,430 tokens",
    ]
    stamps = [path.stat().st_mtime_ns for path in sorted(made.iterdir())]
    again = charrnn("prepare", "ptb", "-from", corpus, cwd=tmp_path)
    assert again.stderr.decode().splitlines()[0] == "data/ptb holds these texts already: nothing to do"
    assert [path.stat().st_mtime_ns for path in sorted(made.iterdir())] == stamps


def test_without_a_folder_the_command_says_where_the_corpus_is(tmp_path: Path) -> None:
    message = one_line(charrnn("prepare", "ptb", cwd=tmp_path, code=1))
    assert "licensed" in message
    assert "simple-examples.tgz (http://www.fit.vutbr.cz/~imikolov/rnnlm)" in message
    assert message.endswith("charrnn prepare ptb -from FOLDER")
    assert os.listdir(tmp_path) == []


def test_the_numbers_of_the_real_corpus(tmp_path: Path) -> None:
    """Lines and words of Mikolov's files; with <eos> they make 929,589, 73,760 and 82,430, as the papers count."""
    for name, lines, words in (
        ("ptb.train.txt", 42_068, 887_521),
        ("ptb.valid.txt", 3_370, 70_390),
        ("ptb.test.txt", 3_761, 78_669),
    ):
        (tmp_path / name).write_bytes(b" N \n" * (lines - 1) + b" N" * (words - lines + 1) + b" \n")
    lines_told: list[str] = []
    datasets.prepare("ptb", tmp_path / "made", lines_told.append, **{"from": str(tmp_path)})
    assert lines_told[-1] == "as many tokens as Mikolov's Penn Treebank has"
    assert lines_told[3] == "train: 42,068 lines, 887,521 words, 929,589 tokens with <eos>"


@pytest.mark.parametrize("split", NAMES)
def test_a_file_that_is_missing_or_not_text(split: str, corpus: Path, tmp_path: Path) -> None:
    path, folder = corpus / NAMES[split], tmp_path / "made"
    good = path.read_bytes()
    path.write_bytes(good + b"caf\xe9\n")
    assert f"{path} is not UTF-8 in line" in refusal(folder, corpus)
    path.write_bytes(b" \n\n")
    assert f"{path} has no words" in refusal(folder, corpus)
    path.unlink()
    assert f"there is no file {path}" in refusal(folder, corpus)
    path.mkdir()
    assert f"there is no file {path}" in refusal(folder, corpus)
    assert not folder.exists() or os.listdir(folder) == []


def test_the_line_that_is_not_utf_8(corpus: Path, tmp_path: Path) -> None:
    (corpus / "ptb.valid.txt").write_bytes(b"one\ntwo \xff\nthree\n")
    assert "ptb.valid.txt is not UTF-8 in line 2:" in refusal(tmp_path / "made", corpus)


@pytest.mark.parametrize("content", [b"mine", (TEXTS["val"] + "more").encode(), TEXTS["val"][:-1].encode(), None])
def test_another_file_stays_and_is_named(content: bytes | None, corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    path = folder / "val.txt"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    assert f"{path} is not ptb's, and it stays as it is" in refusal(folder, corpus)
    assert os.listdir(folder) == ["val.txt"]
    assert path.is_dir() or path.read_bytes() == content


def test_a_folder_that_cannot_be_made(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "choose another folder" in refusal(tmp_path / "file", corpus)
