"""``charrnn novelty`` finds the same copied passages as a search that tries every position."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charrnn.data.encode import Reading
from charrnn.data.text import open_text
from charrnn.errors import UserError
from charrnn.reports import ngrams, novelty
from charrnn.reports.ngrams import NGRAMS, Figures, measure
from charrnn.settings.training import TrainingOptions
from tests.helpers.command import charrnn, one_line
from tests.helpers.runs import silent

SEPARATOR = 9
WORDS = (
    "the",
    "of",
    "and",
    "to",
    "in",
    "that",
    "was",
    "his",
    "he",
    "with",
    "as",
    "for",
    "had",
    "at",
    "her",
    "my",
    "on",
)


def author(seed: int, characters: int) -> str:
    """Return sentences from an author's small vocabulary."""
    draw = random.Random(seed)
    text = ""
    while len(text) < characters:
        text += " ".join(draw.choice(WORDS) for _ in range(draw.randint(4, 9))).capitalize() + ".\n"
    return text[:characters]


# --- figures ----------------------------------------------------------------------------------------------------------


def naive(text: bytes, training: bytes) -> tuple[dict[int, float], int]:
    """Return the shares and the length of the longest passage, found by trying every position."""

    def grams(n: int) -> list[bytes]:
        found = [text[i : i + n] for i in range(len(text) - n + 1)]
        return [gram for gram in found if SEPARATOR not in gram]

    shares = {n: sum(gram in training for gram in grams(n)) / len(grams(n)) for n in NGRAMS if grams(n)}
    return shares, max((n for n in range(1, len(text) + 1) if any(gram in training for gram in grams(n))), default=0)


letters = st.integers(0, 2)
pieces = st.lists(st.one_of(letters, letters, letters, st.just(SEPARATOR)), max_size=120).map(bytes)


@st.composite
def texts(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Draw a text and a training text that usually have a long passage in common."""
    training = draw(pieces)
    start, length = draw(st.integers(0, 60)), draw(st.integers(0, 100))
    return draw(pieces) + training[start : start + length] + draw(pieces), training * draw(st.integers(1, 2))


@given(both=texts(), chunk=st.integers(1, 150))
def test_figures_equal_those_of_a_search_that_tries_every_position(both: tuple[bytes, bytes], chunk: int) -> None:
    text, training = both
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngrams, "CHUNK", chunk)
        figures = measure(np.frombuffer(text, np.uint8), np.frombuffer(training, np.uint8), SEPARATOR)
    shares, longest = naive(text, training)
    assert figures.shares == pytest.approx(shares, abs=1e-12)
    assert figures.characters == len(text.replace(b"\t", b""))
    if figures.longest is None:
        assert longest == 0
        return
    passage = text[figures.longest.place :][: figures.longest.length]
    assert len(passage) == figures.longest.length == longest
    assert training[figures.longest.source :].startswith(passage)
    assert SEPARATOR not in passage


def test_figures_are_exact_for_long_passages_and_many_repetitions(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(4)
    for _ in range(150):
        few = draw.randint(1, 4)
        training = bytes(draw.choices(range(few), k=300))
        start = draw.randint(0, 250)
        text = (
            bytes(draw.choices(range(few), k=60)) * draw.randint(1, 2) + training[start : start + draw.randint(1, 120)]
        )
        monkeypatch.setattr(ngrams, "CHUNK", draw.randint(1, 200))
        figures = measure(np.frombuffer(text, np.uint8), np.frombuffer(training, np.uint8), SEPARATOR)
        shares, longest = naive(text, training)
        assert figures.shares == pytest.approx(shares, abs=1e-12)
        assert figures.longest and figures.longest.length == longest


@pytest.mark.parametrize("length", [50, 51, 99, 100, 101, 5000])
def test_a_long_passage_is_found_completely(length: int) -> None:
    draw = np.random.default_rng(3)
    training = draw.integers(0, 60, 20_000, np.uint8)
    text = draw.integers(60, 99, 6000, np.uint8)
    text[500 : 500 + length] = training[7000 : 7000 + length]
    found = measure(text, training, 255).longest
    assert found is not None
    assert (found.length, found.place, found.source) == (length, 500, 7000)


# --- places -----------------------------------------------------------------------------------------------------------


OPTIONS = TrainingOptions(batch_size=3, seq_length=10, train_frac=0.8, val_frac=0.1)


def folder_with(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8", newline="")
    return folder


def test_splits_equal_those_of_training_and_give_the_position_of_each_token(tmp_path: Path) -> None:
    whole = "".join(map(chr, range(0x4E00, 0x4E00 + 1000)))  # all characters differ
    text = open_text(folder_with(tmp_path, input=whole), report=silent)
    splits = text.split(3, 10, 0.8, 0.1)
    seen: dict[str, set[int]] = {}
    for name, names in (("train", ("train",)), ("held out", ("val", "test"))):
        corpus = novelty.corpus(text, names, OPTIONS)
        assert corpus is not None
        tokens = corpus.tokens[:].tolist()
        seen[name] = set(tokens) - {len(whole)}
        assert seen[name] == {
            t for n in names for k in range(len(splits[n])) for t in splits[n].batch(k)[0].flatten().tolist()
        }
        for index, token in enumerate(tokens):
            if token < len(whole):
                assert corpus.place(index) == ("input", token)
    assert not seen["train"] & seen["held out"]
    assert len(seen["train"]) > 700


def test_a_passage_is_not_found_across_the_rows_of_training(tmp_path: Path) -> None:
    whole = "".join(map(chr, range(0x4E00, 0x4E00 + 1000)))
    text = open_text(folder_with(tmp_path, input=whole), report=silent)
    found = novelty.examine(whole, text, OPTIONS)
    assert found.text.longest is not None
    assert found.text.longest.length == 260  # 26 of 33 minibatches are for training: 260 of the 330 characters in a row
    assert found.source == novelty.Source(str(tmp_path / "input.txt"), 1, 0)
    assert found.held_out is not None and found.held_out.longest is None


def test_the_place_of_a_passage_is_its_file_line_and_offset(tmp_path: Path) -> None:
    train = author(1, 5000)
    copied = train[3210:3300]
    text = open_text(folder_with(tmp_path, train=train, val=author(2, 2000), test=author(3, 2000)), report=silent)
    found = novelty.examine(f"Ω{copied}Ω {author(4, 3000)}", text, OPTIONS)
    assert found.passage == copied
    assert found.source == novelty.Source(str(tmp_path / "train.txt"), train[:3210].count("\n") + 1, 3210)
    assert found.held_out is not None and found.held_out.characters == 4001 - 1
    assert found.verdict == "own"


def test_bytes_are_compared_as_bytes(tmp_path: Path) -> None:
    text = open_text(folder_with(tmp_path, train="ünïcödé " * 9, val="x" * 40), Reading("bytes"), silent)
    found = novelty.examine("ïcödé ün", text, OPTIONS)
    assert found.passage == "ïcödé ün"
    assert found.source == novelty.Source(str(tmp_path / "train.txt"), 1, len("ün".encode()))


def test_a_text_that_is_too_short_is_refused(tmp_path: Path) -> None:
    text = open_text(folder_with(tmp_path, train="abc" * 9, val="x" * 40), report=silent)
    with pytest.raises(UserError, match="3 characters"):
        novelty.examine("abc", text, OPTIONS)


# --- verdict ----------------------------------------------------------------------------------------------------------


def figures(**shares: float) -> Figures:
    return Figures(1000, {int(n[1:]): share for n, share in shares.items()}, None)


@pytest.mark.parametrize(
    ("text", "held_out", "n", "verdict"),
    [
        (figures(n4=0.9, n5=0.1, n6=0.0), figures(n4=0.9, n5=0.2, n6=0.01), 6, "own"),
        (figures(n4=1, n5=0.9, n6=0.08), figures(n4=0.9, n5=0.2, n6=0.01), 6, "partly copied"),
        (figures(n4=1, n5=0.9, n6=0.52), figures(n4=0.9, n5=0.2, n6=0.01), 6, "copied"),
        (figures(n4=1, n5=0.9, n6=0.5), figures(n4=0.9, n5=0.009, n6=0.0), 5, "copied"),
        # a repetitive author: any share that is as high in held-out text is normal
        (figures(n4=1, n5=0.8), figures(n4=0.9, n5=0.8), 5, "own"),
        (figures(n4=1, n5=0.9), figures(n4=0.9, n5=0.8), 5, "partly copied"),
        (figures(n4=1, n5=0.9), None, 5, "copied"),
    ],
)
def test_the_verdict_compares_with_held_out_text(text: Figures, held_out: Figures | None, n: int, verdict: str) -> None:
    assert novelty.judge(text, held_out) == (n, verdict)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of one author: one memorised a few lines, the other was trained on a long text for two epochs."""
    folder = tmp_path_factory.mktemp("models")
    small, large = author(5, 3000), author(6, 60_000)
    common = (
        "-gpuid",
        -1,
        "-threads",
        1,
        "-rnn_size",
        96,
        "-num_layers",
        1,
        "-seq_length",
        40,
        "-train_frac",
        0.8,
        "-val_frac",
        0.2,
    )
    for name, text, epochs, batch in (("memorised", small, 60, 3), ("honest", large, 2, 12)):
        folder_with(folder / name, input=text)
        args = ("-data_dir", name, "-checkpoint_dir", f"cv_{name}", "-max_epochs", epochs, "-batch_size", batch)
        charrnn("train", *args, *common, "-learning_rate", 0.01, "-sample_length", 0, "-save_minutes", 0, cwd=folder)
    return folder


def ask(models: Path, *args: Any) -> dict[str, Any]:
    return json.loads(charrnn("novelty", *args, "-gpuid", -1, "-json", cwd=models).stdout)


def test_a_model_that_memorised_its_text_is_distinguished_from_an_honest_one(models: Path) -> None:
    last = {name: max((models / f"cv_{name}").glob("lm_lstm_epoch*.pt")) for name in ("memorised", "honest")}
    memorised, honest = (ask(models, last[name], "-length", 3000) for name in ("memorised", "honest"))
    assert (memorised["verdict"], honest["verdict"]) == ("copied", "own")
    assert memorised["text"]["longest"]["length"] > 3 * memorised["held_out"]["longest"]["length"]
    assert honest["text"]["longest"]["length"] < 2 * honest["held_out"]["longest"]["length"]
    training = (models / "memorised/input.txt").read_text()
    source = memorised["source"]
    assert training[source["offset"] :].startswith(memorised["passage"])
    assert training.split("\n")[source["line"] - 1] in training[max(0, source["offset"] - 80) : source["offset"] + 80]


def test_a_text_is_compared_like_a_sample(models: Path) -> None:
    layout = ("-data_dir", "memorised", "-batch_size", 3, "-seq_length", 40, "-train_frac", 0.8, "-val_frac", 0.2)
    (models / "copy.txt").write_text((models / "memorised/input.txt").read_text()[100:700])
    printed = charrnn("novelty", "copy.txt", *layout, cwd=models).stdout.decode().splitlines()
    assert printed[-1].startswith("copied: 100.0% of its ")
    assert any(line.startswith("longest passage: 600 characters, in line ") for line in printed)
    done = charrnn("novelty", "-", *layout, cwd=models, stdin=author(8, 2000).encode())
    assert done.stdout.decode().splitlines()[-1].startswith("own: ")


def test_a_mistake_is_reported_in_one_line(models: Path) -> None:
    assert "nothing.txt" in one_line(charrnn("novelty", "nothing.txt", "-data_dir", "memorised", cwd=models, code=1))
    done = charrnn("novelty", "memorised/input.txt", "-data_dir", "nowhere", cwd=models, code=1)
    assert "nowhere" in done.stderr.decode()
