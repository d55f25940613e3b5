"""Texts, splits and minibatches from real files, compared with recordings of the originals and with plain loops."""

from __future__ import annotations

import os
from math import floor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from charrnn.data.datasets import catalogue as datasets
from charrnn.data.encode import IdArray, Reading, StoredIds
from charrnn.data.minibatches import Split, split_by_fractions
from charrnn.data.text import Text, find_files, open_chosen, open_text, require
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import UserError
from charrnn.settings.training import TrainingOptions
from charrnn.training.loop import Training
from tests.helpers.recorded import Recording
from tests.helpers.runs import silent

SONG = "The quick brown fox jumps over the lazy dog.\n"


def write(folder: Path, **texts: str) -> Path:
    """Write each text to NAME.txt in the folder: input=..., or train=..., val=..., test=..."""
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8", newline="")
    return folder


@pytest.fixture(scope="session")
def tinyshakespeare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tinyshakespeare")
    here = Path(__file__).parent.parent.parent / "data" / "tinyshakespeare" / "input.txt"
    if here.exists():
        (folder / "input.txt").write_bytes(here.read_bytes())
    try:
        datasets.prepare("tinyshakespeare", folder, silent)
    except UserError as error:
        pytest.skip(f"tinyshakespeare is not available here: {error}")
    return folder


class Listener(nn.Module):
    """A model that keeps every minibatch it is given."""

    def __init__(self, vocabulary_size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))
        self.heard: list[Tensor] = []

    def forward(self, x: Tensor, state: tuple[Tensor, ...] | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        self.heard.append(x)
        return self.bias.expand(*x.shape, -1), (x.new_zeros(x.shape[1], 1),)


def after_the_last(split: Split, vocabulary_size: int) -> Tensor:
    """Return the minibatch (T, B) that the training loop reads after the last one of a split."""
    training = Training(Listener(vocabulary_size), split, None, TrainingOptions(max_epochs=2))
    training.iteration = len(split) - 1
    records = training.run()
    next(records)
    next(records)
    return training.model.heard[1]


def test_minibatches_equal_those_of_the_recorded_loader(reference: Path, tinyshakespeare: Path) -> None:
    recording = Recording(reference / "loader_tinyshakespeare.npz")
    text = open_text(tinyshakespeare, Reading(), pytest.fail)
    recording.compare("vocab_bytes", text.vocabulary.codes)
    recording.compare("vocab_size", len(text.vocabulary))
    batch_size, seq_length = int(recording.given("batch_size")), int(recording.given("seq_length"))
    for run in ("split1", "split2"):
        train_frac, val_frac, test_frac = recording.given(f"{run}/fractions").tolist()
        assert abs(train_frac + val_frac + test_frac - 1) < 1e-9
        splits = text.split(batch_size, seq_length, train_frac, val_frac)
        sizes = {name: len(splits.get(name, ())) for name in ("train", "val", "test")}
        recording.compare(f"{run}/nbatches", sum(sizes.values()))
        for name, size in sizes.items():
            recording.compare(f"{run}/n{name}", size)
            for which, k in (("first", 0), ("second", 1), ("last", size - 1)):
                if f"{run}/{name}_{which}_x" in recording.arrays:
                    x, y = splits[name].batch(k)
                    recording.compare(f"{run}/{name}_{which}_x", x.T)
                    recording.compare(f"{run}/{name}_{which}_y", y.T)
        recording.compare(f"{run}/train_wrap_x", after_the_last(splits["train"], len(text.vocabulary)).T)
        assert all(split.carries for split in splits.values())
    assert [key for key in recording.arrays if key not in recording.seen] == []


@pytest.mark.parametrize("run", ["iter0", "iter1", "iter2"])
def test_minibatches_equal_the_recorded_ones_of_the_rhn_program(reference: Path, tmp_path: Path, run: str) -> None:
    recording = Recording(reference / "rhn_schedule.npz")
    stream = recording.given(f"{run}/stream")
    batch_size, seq_length = int(recording.given(f"{run}/batch_size")), int(recording.given(f"{run}/num_steps"))
    # val.txt contains every token, so that each gets the same id as in the recording
    every = "".join(chr(0x100 + n) for n in range(stream.max() + 1))
    write(tmp_path, train="".join(chr(0x100 + n) for n in stream), val=every * batch_size * (seq_length + 1))
    text = open_text(tmp_path, Reading(), pytest.fail)
    assert text.files["train"][:].tolist() == stream.tolist()
    train = text.split(batch_size, seq_length, 0.95, 0.05)["train"]
    batches = [train.batch(k) for k in range(len(train))]
    recording.compare(f"{run}/x", torch.stack([x.T for x, _ in batches]))
    recording.compare(f"{run}/y", torch.stack([y.T for _, y in batches]))
    assert not train.carries
    assert [key for key in recording.arrays if key.startswith(run) and key not in recording.seen] == []


@pytest.mark.parametrize("reader", ["reader_enwik8", "reader_text8"])
def test_ids_of_bytes_equal_those_of_the_recorded_readers(reference: Path, tmp_path: Path, reader: str) -> None:
    recording = Recording(reference / "rhn_schedule.npz")
    data = recording.given(f"{reader}/bytes").tobytes()
    held_out = int(recording.given(f"{reader}/num_test_symbols"))
    (tmp_path / "train.txt").write_bytes(data[: -2 * held_out])
    (tmp_path / "val.txt").write_bytes(data[-2 * held_out : -held_out])
    (tmp_path / "test.txt").write_bytes(data[-held_out:])
    text = open_text(tmp_path, Reading("bytes"), pytest.fail)
    recording.compare(f"{reader}/unique", text.vocabulary.codes)
    for ours, theirs in (("train", "train"), ("val", "valid"), ("test", "test")):
        recording.compare(f"{reader}/{theirs}", text.files[ours][:].astype(np.int64))
    assert [key for key in recording.arrays if key.startswith(reader) and key not in recording.seen] == []


def naive_minibatches(
    text: str, targets: str, rows: list[int], columns: range, seq_length: int, alphabet: list[str]
) -> list[tuple[list[list[int]], list[list[int]]]]:
    """Lay out minibatches character by character. Rows begin at ``rows``, minibatches at ``columns`` within a row."""
    return [
        tuple(
            [[alphabet.index(source[row + k + t]) for row in rows] for t in range(seq_length)]
            for source in (text, targets)
        )
        for k in columns
    ]


def minibatches(split: Split) -> list[tuple[list[list[int]], list[list[int]]]]:
    return [tuple(tokens.tolist() for tokens in split.batch(k)) for k in range(len(split))]


sizes = st.integers(1, 4)
characters = st.sampled_from("abc\r\né汉😀")
fractions = st.sampled_from([(0.95, 0.05), (0.9, 0.05), (0.5, 0.25), (0.7, 0.3), (0.57, 0.43), (1.0, 0.0), (0.4, 0.0)])


@given(st.text(characters, min_size=1, max_size=90), sizes, sizes, fractions)
@example("abcdefgh" * 5, 2, 2, (0.57, 0.43))
@settings(max_examples=settings().max_examples // 2)
def test_minibatches_of_a_text_split_by_fractions_equal_those_of_a_plain_loop(
    text: str, batch_size: int, seq_length: int, fractions: tuple[float, float]
) -> None:
    total = len(text) // (batch_size * seq_length)
    n_train = floor(total * fractions[0])
    assume(n_train)
    n_val = total - n_train if sum(fractions) == 1 else floor(total * fractions[1])
    counts = {"train": n_train, "val": n_val, "test": total - n_train - n_val}

    with TemporaryDirectory() as folder:
        opened = open_text(write(Path(folder), input=text), Reading(), silent)
    splits = opened.split(batch_size, seq_length, *fractions)

    alphabet = sorted(set(text))
    assert opened.vocabulary.codes == tuple(map(ord, alphabet))
    cut = text[: total * batch_size * seq_length]
    rows = [b * total * seq_length for b in range(batch_size)]
    start = 0
    for name, count in counts.items():
        columns = range(start * seq_length, (start + count) * seq_length, seq_length)
        expected = naive_minibatches(cut, cut[1:] + cut[:1], rows, columns, seq_length, alphabet)
        assert (minibatches(splits[name]) if name in splits else []) == expected
        assert name not in splits or len(splits[name]) == count
        start += count


@given(st.data(), sizes, sizes, st.sampled_from([("train", "val"), ("train", "val", "test")]))
@settings(max_examples=settings().max_examples // 2)
def test_minibatches_of_split_files_equal_a_plain_loop(
    data: st.DataObject, batch_size: int, seq_length: int, names: tuple[str, ...]
) -> None:
    enough = st.text(characters, min_size=batch_size * (seq_length + 1), max_size=90)
    named = {name: data.draw(enough, name) for name in names}

    with TemporaryDirectory() as folder:
        opened = open_text(write(Path(folder), **named), Reading(), silent)
    splits = opened.split(batch_size, seq_length, 0.95, 0.05)

    alphabet = sorted(set("".join(named.values())))
    assert splits.keys() == named.keys()
    for name, text in named.items():
        row_length = len(text) // batch_size
        count = (row_length - 1) // seq_length
        assert count
        rows = [b * row_length for b in range(batch_size)]
        expected = naive_minibatches(
            text, text[1:], rows, range(0, count * seq_length, seq_length), seq_length, alphabet
        )
        assert minibatches(splits[name]) == expected
        assert not splits[name].carries


def test_minibatches_have_the_shape_and_dtype_that_a_model_takes(tmp_path: Path) -> None:
    split = open_text(write(tmp_path, input=SONG * 10), Reading(), silent).split(3, 5, 0.95, 0.05)["train"]
    assert (split.batch_size, split.seq_length) == (3, 5)
    for tokens in split.batch(len(split) - 1):
        assert tokens.dtype == torch.int64
        assert tokens.shape == (5, 3)
        assert tokens.is_contiguous()
    for k in (-1, len(split)):
        with pytest.raises(IndexError):
            split.batch(k)


class Counted:
    """An array of ids that counts how many are read."""

    def __init__(self, ids: IdArray) -> None:
        self.ids, self.dtype, self.read = ids, ids.dtype, 0

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, place: slice) -> IdArray:
        self.read += len(self.ids[place])
        return self.ids[place]


@given(st.integers(1, 5), st.integers(1, 7), st.integers(1, 200))
def test_ids_are_read_ahead_and_about_once_per_pass(batch_size: int, seq_length: int, ahead: int) -> None:
    ids = np.arange(batch_size * seq_length * 40, dtype=np.uint16)
    counted = Counted(ids)
    with pytest.MonkeyPatch.context() as patch:
        whole = split_by_fractions(ids, batch_size, seq_length, 1.0, 0.0)["train"]
        expected = minibatches(whole)
        patch.setattr("charrnn.data.minibatches.AHEAD", ahead)
        split = split_by_fractions(counted, batch_size, seq_length, 1.0, 0.0)["train"]
        assert minibatches(split) == expected
        assert [tuple(t.tolist() for t in split.batch(k)) for k in reversed(range(len(split)))] == expected[::-1]
    times = -(-len(split) // max(1, ahead // (batch_size * seq_length)))
    assert counted.read <= 2 * (len(ids) + times * batch_size)


def test_ids_stay_in_a_file_and_texts_have_fingerprints(tmp_path: Path) -> None:
    write(tmp_path, train=SONG * 2, val=SONG, test=SONG)
    text = open_text(str(tmp_path), Reading(), pytest.fail)
    assert all(isinstance(ids, StoredIds) for ids in text.files.values())
    assert text.fingerprint.keys() == {"train.txt", "val.txt", "test.txt"}
    joined = open_text([tmp_path / "train.txt", tmp_path / "val.txt"], Reading(), pytest.fail)
    assert joined.fingerprint.keys() == {"1", "2"}, "earlier checkpoints have these names"
    assert text.fingerprint["val.txt"] == text.fingerprint["test.txt"] != text.fingerprint["train.txt"]
    assert open_text(tmp_path, Reading("bytes"), pytest.fail).fingerprint == text.fingerprint
    write(tmp_path, test=SONG.upper())
    assert open_text(tmp_path, Reading(), pytest.fail).fingerprint["test.txt"] != text.fingerprint["test.txt"]


@pytest.mark.parametrize("encoding", ["utf-8", "bytes"])
def test_lines_that_end_in_crlf_are_reported_each_time(tmp_path: Path, encoding: str) -> None:
    write(tmp_path, train="é\r\n\r\n\r\r\n" * 1001, val="a\rb\n", test="\r\n")
    lines: list[str] = []
    for _ in range(2):
        text = open_text(tmp_path, Reading(encoding), lines.append)
    expected = (
        f"{tmp_path / 'train.txt'}, {tmp_path / 'test.txt'}: 3,004 lines end in CRLF; "
        "the CR is kept as a separate character"
    )
    assert lines == [expected, expected]
    assert ord("\r") in text.vocabulary.codes


def test_bom_and_nul_are_characters(tmp_path: Path) -> None:
    text = open_text(write(tmp_path, input="\ufeffa\0b\0"), Reading(), pytest.fail)
    assert text.vocabulary.decode(text.files["input"][:]) == "\ufeffa\0b\0"
    assert text.vocabulary.codes == (0, ord("a"), ord("b"), 0xFEFF)


def test_a_given_vocabulary_determines_the_ids(tmp_path: Path) -> None:
    own = open_text(write(tmp_path, input="hello"), Reading(), pytest.fail)
    known = Vocabulary(tuple(map(ord, "aehloz")))
    text = open_text(tmp_path, Reading(), pytest.fail, vocabulary=known)
    assert text.vocabulary == known
    assert text.files["input"][:].tolist() == known.encode("hello")
    assert text.fingerprint == own.fingerprint
    same = open_text(tmp_path, Reading(), pytest.fail, vocabulary=own.vocabulary)
    assert same.files["input"][:].tolist() == own.files["input"][:].tolist()
    # a given vocabulary also sets the encoding
    ascii_bytes = Vocabulary(tuple(range(128)), "bytes")
    assert open_text(tmp_path, Reading(), pytest.fail, vocabulary=ascii_bytes).files["input"][:].tolist() == [*b"hello"]


def test_the_message_names_characters_outside_a_given_vocabulary(tmp_path: Path) -> None:
    write(tmp_path, train="hello\0", val="汉hello")
    known = Vocabulary(tuple(map(ord, "elo")))
    with pytest.raises(
        UserError, match=r"has '\\x00', 'h', '汉', which the model's vocabulary does not contain: remove them"
    ):
        open_text(tmp_path, Reading(), pytest.fail, vocabulary=known)
    write(tmp_path, train="".join(map(chr, range(200))))
    with pytest.raises(UserError, match=r"'\\x13' and 178 more, which the model"):
        open_text(tmp_path, Reading(), pytest.fail, vocabulary=known)


def opened(folder: Path, **texts: str) -> Text:
    return open_text(write(folder, **texts), Reading(), silent)


def test_the_message_for_a_missing_text_says_where_to_put_it(tmp_path: Path) -> None:
    for folder, cause in ((tmp_path / "none", "no folder"), (tmp_path, "no text found in")):
        with pytest.raises(UserError) as caught:
            open_text(folder, Reading(), pytest.fail)
        assert str(caught.value) == (
            f"{cause} {folder}: save your text as {folder / 'input.txt'} (or as train.txt and val.txt there), "
            "or get a standard text with charrnn prepare"
        )


def test_a_training_text_needs_a_validation_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has train\.txt but no val\.txt: add it, or name the text input\.txt"):
        opened(tmp_path, train=SONG, test=SONG)


def test_input_txt_takes_precedence_over_split_files(tmp_path: Path) -> None:
    assert opened(tmp_path, input="a", train="bb", val="cc").files.keys() == {"input"}


@pytest.mark.parametrize("kind", ["a FIFO", "a device"])
@pytest.mark.parametrize("name", ["input", "train", "val", "test"])
def test_a_text_that_is_not_a_regular_file_is_refused_at_once(tmp_path: Path, name: str, kind: str) -> None:
    write(tmp_path, **({} if name == "input" else {"train": SONG, "val": SONG}))
    path = tmp_path / f"{name}.txt"
    path.unlink(missing_ok=True)
    if kind == "a FIFO":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match=f"^cannot read {path}: not a regular file$"):
        open_text(tmp_path, Reading(), pytest.fail)
    with pytest.raises(UserError, match=f"^-input {path}: not a regular file$"):
        find_files([str(path)])
    with pytest.raises(UserError, match=f"^-input {path}: not a regular file$"):
        open_chosen(TrainingOptions(input=(str(path),)), pytest.fail)


@pytest.mark.parametrize("name", ["train", "val", "test"])
def test_an_empty_text_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"/{name}\.txt is empty"):
        opened(tmp_path, **{"train": SONG, "val": SONG, "test": SONG, name: ""})
    assert {path.suffix for path in tmp_path.iterdir()} == {".txt"}


def test_too_little_text_for_one_minibatch_is_an_error(tmp_path: Path) -> None:
    text = opened(tmp_path, input="a" * 99)
    with pytest.raises(UserError) as caught:
        text.split(10, 10, 0.95, 0.05)
    assert str(caught.value) == (
        f"{tmp_path / 'input.txt'} has 99 characters, but one minibatch of -batch_size 10 and -seq_length 10 "
        "needs 100: lower either of them, or add text"
    )
    assert len(opened(tmp_path, input="a" * 100).split(10, 10, 1.0, 0.0)["train"]) == 1


@pytest.mark.parametrize("name", ["train", "val", "test"])
def test_too_little_text_in_a_split_file_is_an_error(tmp_path: Path, name: str) -> None:
    texts = {"train": "a" * 110, "val": "a" * 110, "test": "a" * 110}
    assert [len(split) for split in opened(tmp_path, **texts).split(10, 10, 0, 0).values()] == [1, 1, 1]
    with pytest.raises(
        UserError, match=rf"/{name}\.txt has 109 characters, .* needs 110: lower either of them, or add text"
    ):
        opened(tmp_path, **texts | {name: "a" * 109}).split(10, 10, 0, 0)


def test_fractions_that_leave_nothing_to_train_on_are_an_error(tmp_path: Path) -> None:
    text = opened(tmp_path, input="a" * 100)
    with pytest.raises(
        UserError, match=r"-train_frac 0\.9 leaves nothing to train on \(minibatches in all: 1\): raise"
    ):
        text.split(10, 10, 0.9, 0.1)


@pytest.mark.parametrize(
    ("train_frac", "val_frac", "message"),
    [
        (1.1, 0.0, r"-train_frac 1\.1: must be between 0 and 1"),
        (0.5, -0.1, r"-val_frac -0\.1: must be between 0 and 1"),
        (float("nan"), 0.1, r"-train_frac nan: must be between 0 and 1"),
        (0.9, 0.2, r"-train_frac 0\.9 and -val_frac 0\.2 add up to more than 1: lower one"),
    ],
)
def test_fractions_must_be_valid(tmp_path: Path, train_frac: float, val_frac: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        opened(tmp_path, input=SONG).split(1, 1, train_frac, val_frac)


def test_percentages_that_add_up_to_100_leave_no_test_split(tmp_path: Path) -> None:
    text = opened(tmp_path, input="a" * 1000)
    for percent in range(1, 101):
        splits = text.split(1, 1, percent / 100, (100 - percent) / 100)
        assert "test" not in splits
        assert sum(map(len, splits.values())) == 1000


def test_few_minibatches_lead_to_a_warning(tmp_path: Path) -> None:
    lines: list[str] = []
    warning = "the text has only 49 minibatches: consider a smaller -batch_size or -seq_length"
    for length, expected in ((50, []), (49, [warning])):
        text = open_text(write(tmp_path, input="a" * length), Reading(), lines.append)
        assert lines == []
        text.split(1, 1, 0.95, 0.05)
        assert lines == expected
    assert open_text(write(tmp_path, input="a" * 100), Reading(), pytest.fail).split(1, 1, 0.1, 0.1)


def test_the_message_for_a_missing_split_says_why(tmp_path: Path) -> None:
    by_fractions = opened(tmp_path, input=SONG).split(1, 1, 0.95, 0.05)
    assert require(by_fractions, "val") is by_fractions["val"]
    with pytest.raises(UserError, match="no test split: -train_frac and -val_frac leave no minibatch for it"):
        require(by_fractions, "test")
    (tmp_path / "input.txt").unlink()
    of_files = opened(tmp_path, train=SONG, val=SONG).split(1, 1, 0.95, 0.05)
    with pytest.raises(UserError, match=r"no test split: add test\.txt to the folder of the text"):
        require(of_files, "test")
