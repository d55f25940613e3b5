"""The Penn Treebank: three files that the user provides and that are read unchanged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from charrnn.data.encode import Reading
from charrnn.data.text import has_text, open_text
from charrnn.errors import UserError
from tests.helpers.command import charrnn, one_line

NAMES = {"train": "ptb.train.txt", "val": "ptb.valid.txt", "test": "ptb.test.txt"}
TEXTS = {
    "train": " aer banknote <unk> N \n the café 's open \n",
    "val": " no it was n't \n",
    "test": " N years \n old",
}
WORDS = Reading(level="word", unk="<unk>")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "simple-examples" / "data"
    folder.mkdir(parents=True)
    for split, name in NAMES.items():
        (folder / name).write_text(TEXTS[split], encoding="utf-8", newline="")
    (folder / "README").write_text("something else\n")
    return folder


def test_the_files_are_read_under_their_own_names(corpus: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    text = open_text(corpus, WORDS, lines.append)
    assert {split: len(ids) for split, ids in text.files.items()} == {"train": 10, "val": 5, "test": 4}
    assert text.vocabulary.decode(text.files["val"][:]) == "<unk> <unk> <unk> <unk>\n"
    assert text.called["val"] == str(corpus / "ptb.valid.txt")
    assert lines == [
        "these files differ from Mikolov's Penn Treebank: 10, 5, 4 tokens instead of 929,589, 73,760, 82,430"
    ]
    copied = tmp_path / "copied"
    copied.mkdir()
    for split, name in NAMES.items():
        (copied / f"{split}.txt").write_bytes((corpus / name).read_bytes())
    assert open_text(copied, WORDS, pytest.fail).fingerprint == text.fingerprint
    assert open_text(corpus, Reading(), pytest.fail).vocabulary.level == "char"


def test_files_under_charrnns_own_names_take_precedence(corpus: Path) -> None:
    assert has_text(corpus)
    (corpus / "input.txt").write_text("a b\n")
    assert open_text(corpus, WORDS, pytest.fail).files.keys() == {"input"}


def test_files_with_the_token_counts_of_the_real_corpus_are_accepted(tmp_path: Path) -> None:
    """With one <eos> per line, the token counts are those in the papers: 929,589, 73,760 and 82,430."""
    for name, lines, words in (
        ("ptb.train.txt", 42_068, 887_521),
        ("ptb.valid.txt", 3_370, 70_390),
        ("ptb.test.txt", 3_761, 78_669),
    ):
        (tmp_path / name).write_bytes(b" N \n" * (lines - 1) + b" N" * (words - lines + 1) + b" \n")
    open_text(tmp_path, WORDS, pytest.fail, keep=False)


def test_damaged_or_missing_files_are_reported(corpus: Path) -> None:
    (corpus / NAMES["test"]).write_bytes(b" \n\n")
    assert len(open_text(corpus, WORDS, lambda line: None).files["test"]) == 2
    (corpus / NAMES["test"]).write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match=r"ptb\.test\.txt is not UTF-8 at byte 3"):
        open_text(corpus, WORDS, lambda line: None)
    (corpus / NAMES["val"]).unlink()
    with pytest.raises(UserError, match=r"has ptb\.train\.txt but no ptb\.valid\.txt"):
        open_text(corpus, WORDS, lambda line: None)


def test_training_finds_the_files_in_the_default_folder(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    corpus.rename(tmp_path / "data" / "ptb")
    flags = ("-gpuid", -1, "-rnn_size", 4, "-batch_size", 1, "-seq_length", 2, "-max_epochs", 1)
    done = charrnn("train", "-data_dir", "data/ptb", "-level", "word", "-unk", "<unk>", *flags, cwd=tmp_path)
    assert "these files differ from Mikolov's Penn Treebank" in done.stderr.decode()


def test_prepare_says_where_to_get_the_corpus(tmp_path: Path) -> None:
    message = one_line(charrnn("prepare", "ptb", cwd=tmp_path, code=1))
    assert "licensed" in message
    assert "simple-examples.tgz (http://www.fit.vutbr.cz/~imikolov/rnnlm)" in message
    assert "into data/ptb; charrnn train -data_dir data/ptb -level word" in message
    assert os.listdir(tmp_path) == []
