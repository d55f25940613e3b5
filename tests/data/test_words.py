"""Words as tokens, compared with plain splitting and the recorded PTB reader, and tested in real processes."""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from charrnn import registry
from charrnn.checkpoints import archive
from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.data import encode as tokens
from charrnn.data.encode import Reading
from charrnn.data.text import open_text
from charrnn.data.vocabulary import LARGEST, Vocabulary, Words
from charrnn.errors import UserError
from charrnn.evaluation.loss import LOGITS, evaluate, steps_at_once
from charrnn.evaluation.scoring import with_unk
from charrnn.kernels import lookup
from charrnn.reports.inspection import inspect
from charrnn.sampling.beam import beam_search
from charrnn.sampling.choice import Choice
from charrnn.sampling.sampler import Sampler
from charrnn.settings.training import TrainingOptions
from tests.helpers.command import charrnn, one_line
from tests.helpers.recorded import Recording

TINY = ("-gpuid", -1, "-level", "word", "-rnn_size", 8, "-num_layers", 1, "-batch_size", 10, "-seq_length", 10)


def write(folder: Path, **texts: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8", newline="")
    return folder


def naive(text: str) -> list[str]:
    """Split a text as the PTB reader does: for each line its words, then a token for the end of the line."""
    lines = text.split("\n")
    found: list[str] = []
    for k, line in enumerate(lines):
        found += line.split()
        if k < len(lines) - 1:
            found.append("<eos>")
    return found


def naive_vocabulary(text: str) -> list[str]:
    counts = Counter(naive(text))
    return sorted(sorted(counts), key=lambda word: counts[word], reverse=True)


def test_ids_equal_those_of_the_recorded_penn_treebank_reader(reference: Path, tmp_path: Path) -> None:
    recording = Recording(reference / "rhn_schedule.npz")
    texts = {ours: str(recording.given(f"reader_ptb/{theirs}_text")) for ours, theirs in
             (("train", "train"), ("val", "valid"), ("test", "test"))}  # fmt: skip
    text = open_text(write(tmp_path, **texts), report=pytest.fail, reading=Reading(level="word"))
    recording.compare("reader_ptb/words", np.array(text.vocabulary.codes))
    for ours, theirs in (("train", "train"), ("val", "valid"), ("test", "test")):
        assert np.array_equal(text.files[ours], recording.given(f"reader_ptb/{theirs}"))
    assert [key for key in recording.arrays if key.startswith("reader_ptb") and key not in recording.seen] == []


signs = st.text(st.sampled_from("ab \t\r\n\x0b\x1c\x85\xa0\u2003\u3000é汉"), max_size=60)


@given(signs.filter(lambda text: naive(text)), st.integers(1, 7))
@example("a\n\nb\r\nc", 1)
@example("<eos> x\ny<eos>z", 5)
def test_encoding_words_equals_plain_splitting_for_every_chunk_size(text: str, chunk: int) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "CHUNK", chunk)
        opened = open_text(
            write(Path(folder), input=text), report=pytest.fail, keep=False, reading=Reading(level="word")
        )
    words = naive_vocabulary(text)
    assert list(opened.vocabulary.codes) == words
    assert opened.files["input"][:].tolist() == [words.index(word) for word in naive(text)]
    assert opened.counts == Counter(naive(text))
    assert opened.vocabulary.encode(text) == opened.files["input"][:].tolist()


@given(
    st.lists(st.sampled_from([b"a", b" ", b"\n", b"\r", b"\xc3", b"\xa9", b"\xff", b"\x85", b"\xa0"])),
    st.integers(1, 5),
)
def test_words_of_bytes_survive_encoding_and_decoding(pieces: list[bytes], chunk: int) -> None:
    data = b"".join([b"x", *pieces])
    lines = data.split(b"\n")
    expected = [word for k, line in enumerate(lines) for word in ([b"<eos>"] if k else []) + line.split()]
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "CHUNK", chunk)
        Path(folder, "input.txt").write_bytes(data)
        opened = open_text(folder, Reading("bytes", "word"), pytest.fail, keep=False)
    words = [opened.vocabulary.codes[number] for number in opened.files["input"][:]]
    assert [word.encode("utf-8", "surrogateescape") for word in words] == expected
    assert Vocabulary.from_dict(json.loads(json.dumps(opened.vocabulary.to_dict()))) == opened.vocabulary


@given(signs)
def test_words_are_joined_by_single_spaces_and_lines_by_newlines(text: str) -> None:
    vocabulary = Words(tuple(naive_vocabulary(text + " a")))
    joined = "\n".join(" ".join(line.split()) for line in text.split("\n"))
    assert vocabulary.decode(vocabulary.encode(text)) == vocabulary.normalize(text) == joined
    assert vocabulary.encode(joined) == vocabulary.encode(text)


def test_words_not_in_the_training_text_are_an_error_or_replaced(tmp_path: Path) -> None:
    folder = write(tmp_path, train="b a b\n", val="b c\nd a\n")
    with pytest.raises(UserError, match=r"'c', 'd', which train.txt does not contain: .* -unk '<unk>'"):
        open_text(folder, report=pytest.fail, reading=Reading(level="word"))
    added = open_text(folder, report=pytest.fail, reading=Reading(level="word", unk="<unk>"))
    assert added.vocabulary.codes == ("b", "<eos>", "a", "<unk>")
    assert (added.files["train"][:].tolist(), added.files["val"][:].tolist()) == ([0, 2, 0, 1], [0, 3, 1, 3, 2, 1])
    there = open_text(folder, report=pytest.fail, reading=Reading(level="word", unk="a"))
    assert there.vocabulary.codes == ("b", "<eos>", "a")
    assert there.files["val"][:].tolist() == [0, 2, 1, 2, 2, 1]
    with pytest.raises(UserError, match="'c', 'd'"):
        open_text(folder, report=pytest.fail, vocabulary=Words(("a", "b", "<eos>")))
    known = open_text(folder, report=pytest.fail, vocabulary=Words(("a", "b", "<eos>"), unk="a"))
    assert known.files["val"][:].tolist() == [1, 0, 2, 0, 0, 2]


def test_words_and_characters_have_separate_caches(tmp_path: Path) -> None:
    folder = write(tmp_path, input="one two two\n" * 9)
    first = open_text(folder, report=pytest.fail, reading=Reading(level="word"))
    assert open_text(folder, report=pytest.fail).vocabulary.level == "char"
    kept = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = open_text(folder, report=pytest.fail, reading=Reading(level="word"))
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == kept
    assert again.vocabulary == first.vocabulary
    assert np.array_equal(again.files["input"], first.files["input"])
    (folder / "input.txt").write_text("three\n" * 9)
    assert open_text(folder, report=pytest.fail, reading=Reading(level="word")).vocabulary.codes == ("<eos>", "three")


def test_ids_take_the_smallest_type_that_fits(tmp_path: Path) -> None:
    for size, dtype in ((256, np.uint8), (257, np.uint16), (65536, np.uint16), (65537, np.uint32)):
        write(tmp_path, input=" ".join(str(n) for n in range(size)))
        text = open_text(tmp_path, report=pytest.fail, reading=Reading(level="word"), keep=False)
        assert text.files["input"].dtype == dtype
        assert len(text.vocabulary) == size


def test_the_message_names_a_text_without_words_or_white_space(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"input.txt has no words"):
        open_text(write(tmp_path, input="  \t "), report=pytest.fail, reading=Reading(level="word"))
    with pytest.raises(UserError, match=r"a word of more than .* use -level char"):
        open_text(
            write(tmp_path, input="x" * (tokens.LONGEST + tokens.CHUNK)),
            report=pytest.fail,
            reading=Reading(level="word"),
        )


@pytest.mark.parametrize(
    "saved",
    [
        {"tokens": "a\na"},
        {"tokens": "a b"},
        {"tokens": ""},
        {"tokens": "a\n\nb"},
        {"tokens": "a\u2003b"},
        {"tokens": "a\ud800"},
        {"tokens": ["a"]},
        {"tokens": "a", "unk": "b"},
        {"tokens": "a\n<eos>", "unk": "<eos>"},
        {"tokens": "a", "unk": 7},
        {"tokens": "a", "encoding": "latin-1"},
        {"tokens": "a", "encoding": ["utf-8"]},
        {"tokens": "x" * (LARGEST + 1)},
    ],
)
def test_an_invalid_vocabulary_of_words_is_refused(saved: dict[str, object]) -> None:
    good = {"level": "word", "encoding": "utf-8", "tokens": "a\nb", "unk": ""}
    assert Vocabulary.from_dict(good) == Words(("a", "b"))
    with pytest.raises(UserError):
        Vocabulary.from_dict(good | saved)


def test_a_checkpoint_with_the_largest_vocabulary_allowed_can_be_loaded(tmp_path: Path) -> None:
    words = tuple(f"{n:07d}" for n in range(LARGEST // 8))
    saved = Checkpoint(TrainingOptions(level="word"), {}, Words(words), {"w": torch.zeros(1)})
    saved.training = {"counts": torch.arange(len(words))}
    path = saved.save(tmp_path / "many.pt")
    assert path.stat().st_size < archive.PICKLE_BYTES + 8 * len(words) + 10_000
    assert Checkpoint.load(path).vocabulary.codes == words


def zipf(lines: int, size: int, seed: int) -> str:
    """Return random words in the format of the Penn Treebank. The probability of word n is proportional to 1/n."""
    draws = random.Random(seed)
    ranks = range(1, size + 1)
    weights = [1 / rank for rank in ranks]
    return "".join(
        f" {' '.join(f'w{rank}' for rank in draws.choices(ranks, weights, k=draws.randint(3, 20)))} \n"
        for _ in range(lines)
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts of about 3,000 different words in the Penn Treebank's format, and a model of them in cv."""
    folder = tmp_path_factory.mktemp("words")
    write(folder / "ptb", train=zipf(1500, 3000, 1), val=zipf(60, 3000, 2), test=zipf(60, 3000, 3))
    flags = ("-unk", "<unk>", "-max_epochs", 0.5, "-print_every", 50, "-sample_length", 9, "-learning_rate", 0.01)
    done = charrnn("train", "-data_dir", "ptb", *TINY, *flags, cwd=folder)
    size = len(set(naive((folder / "ptb" / "train.txt").read_text()))) + 1
    assert 2000 < size < 3002
    assert f"{size:,} words," in done.stderr.decode()
    loss, perplexity = re.findall(r"val_loss = (\d+\.\d+) \(perplexity (\d+\.\d+) per word\)", done.stdout.decode())[0]
    assert math.exp(float(loss)) == pytest.approx(float(perplexity), rel=1e-3)
    assert float(loss) < math.log(size)
    sample = done.stdout.decode().split("----\n")[1]
    assert len(naive(sample.removesuffix("\n"))) == 9
    return folder


def only(folder: Path) -> Path:
    (path,) = (folder / "cv").glob("lm_lstm_epoch*.pt")
    return path


def test_the_sample_command_writes_words(trained: Path) -> None:
    done = charrnn(
        "sample", "cv", "-gpuid", -1, "-primetext", "  w1   w2 \n w3", "-length", 50, "-top_k", 40, cwd=trained
    )
    text = done.stdout.decode()
    assert text.startswith("w1 w2\nw3")
    assert "  " not in text and " \n" not in text and "\n " not in text
    assert len(naive(text.removesuffix("\n"))) == 4 + 50
    vocabulary = Checkpoint.load(only(trained)).vocabulary
    assert isinstance(vocabulary, Words)
    assert not vocabulary.with_unk("").unknown_tokens(text)


def test_eval_of_words_prints_the_loss_in_the_file_name_and_no_bits_per_character(trained: Path) -> None:
    figures = json.loads(charrnn("eval", "cv", "-gpuid", -1, "-json", cwd=trained).stdout)
    assert f"{figures['loss']:.4f}" == re.findall(r"_(\d+\.\d{4})\.pt", only(trained).name)[0]
    assert figures["ppl"] == pytest.approx(math.exp(figures["loss"]))
    assert figures["words"] == len(naive((trained / "ptb" / "val.txt").read_text())) // 10 // 10 * 100
    assert "bpc" not in figures and "characters" not in figures


def test_eval_of_a_given_text_reports_its_words(trained: Path) -> None:
    done = charrnn("eval", "cv", "-gpuid", -1, "-text", "-", "-per_line", cwd=trained, stdin=b"w1 nowhere\nw2 w3\n")
    rows = [row.split("\t") for row in done.stdout.decode().splitlines()]
    assert sorted((row[0], row[3], row[4]) for row in rows) == [("1", "2", "w1 <unk>"), ("2", "3", "w2 w3")]
    for _, loss, perplexity, _, _ in rows:
        assert math.exp(float(loss)) == pytest.approx(float(perplexity), rel=1e-3)
    assert done.stderr.decode().splitlines()[-1].endswith(", 5 words")


def test_a_resumed_run_of_words_ends_with_the_same_weights(trained: Path) -> None:
    common = ("train", "-data_dir", "ptb", *TINY, "-unk", "<unk>", "-threads", 1, "-sample_length", 0)
    charrnn(*common, "-max_epochs", 0.2, "-checkpoint_dir", "whole", cwd=trained)
    charrnn(*common, "-max_epochs", 0.1, "-checkpoint_dir", "parts", cwd=trained)
    charrnn("train", "-resume", "parts", "-max_epochs", 0.2, cwd=trained)
    whole, parts = (
        max(map(Checkpoint.load, (trained / name).glob("*epoch*.pt")), key=lambda saved: saved.epoch)
        for name in ("whole", "parts")
    )
    assert whole.epoch == parts.epoch and whole.val_loss == parts.val_loss
    for name, weights in whole.weights.items():
        assert torch.equal(weights, parts.weights[name]), name


def test_a_new_run_keeps_the_words_of_its_initial_checkpoint(trained: Path) -> None:
    write(trained / "other", input="w9 w2 nowhere w2\n" * 60)
    init = ("train", "-init_from", only(trained), "-data_dir", "other", "-batch_size", 4, "-seq_length", 5)
    charrnn(*init, "-level", "word", "-gpuid", -1, "-max_epochs", 1, "-checkpoint_dir", "new", cwd=trained)
    new = max((trained / "new").glob("*.pt"))
    assert Checkpoint.load(new).vocabulary == Checkpoint.load(only(trained)).vocabulary
    counts = {token.name: token.count for token in inspect(new).tokens}
    assert (counts["'w2'"], counts["'w9'"], counts["'w1'"], counts["'<unk>'"]) == (120, 60, 0, 0)


def test_only_a_word_of_the_model_can_stand_for_unknown_words() -> None:
    assert Words(("a", "b")).with_unk("b").unk == "b"
    with pytest.raises(UserError, match="c cannot stand for unknown words: it is not a word of the model"):
        Words(("a", "b")).with_unk("c")


def test_only_known_encodings_are_accepted() -> None:
    for kind, codes in ((Vocabulary, (97,)), (Words, ("a",))):
        with pytest.raises(UserError, match="unknown encoding 'latin-1': use one of utf-8, bytes"):
            kind(codes, "latin-1")


def test_unk_is_refused_for_a_model_of_characters(tmp_path: Path) -> None:
    write(tmp_path / "data", input="a b\n" * 99)
    common = ("train", "-data_dir", "data", "-gpuid", -1)
    assert "-level word" in one_line(charrnn(*common, "-unk", "<unk>", cwd=tmp_path, code=1))
    with pytest.raises(UserError, match=r"^-unk <unk>: only a model of words takes -unk, and this is one of"):
        with_unk(Vocabulary((97, 98)), "<unk>")


class Uniform(nn.Module):
    """Gives every word the same probability."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.zeros = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor, state: object) -> tuple[Tensor, tuple[Tensor]]:
        return self.zeros.expand(*x.shape, -1), (torch.zeros(1, x.shape[1], 1),)


def test_the_perplexity_of_a_uniform_model_is_the_size_of_the_vocabulary(tmp_path: Path) -> None:
    text = open_text(write(tmp_path, input=zipf(200, 500, 4)), report=lambda line: None, reading=Reading(level="word"))
    split = text.split(5, 7, 0.9, 0.1)["val"]
    score = evaluate(Uniform(len(text.vocabulary)), split)
    assert score.perplexity == pytest.approx(len(set(naive((tmp_path / "input.txt").read_text()))), rel=1e-5)
    assert score.tokens == len(split) * split.batch_size * split.seq_length


def test_evaluation_uses_fewer_time_steps_at_once_if_the_vocabulary_is_large() -> None:
    assert steps_at_once(50, 65) == steps_at_once(1, 65000) == 512
    for B, V in ((50, 10_000), (1, 10**6), (100, 10**8)):
        assert steps_at_once(B, V) == 1 or steps_at_once(B, V) * B * V <= LOGITS


def sampler(size: int) -> Sampler:
    torch.manual_seed(size)
    model = registry.find("lstm").create(size, 6, 1, 0.0)
    for p in model.parameters():
        nn.init.normal_(p)
    return Sampler(model, Words(("<eos>", *(f"w{n}" for n in range(1, size)))))


@pytest.mark.parametrize("choice", [Choice(), Choice(0.5, top_k=3), Choice(top_p=0.5), Choice(greedy=True)])
def test_words_are_joined_within_each_stream(choice: Choice) -> None:
    drawn = sampler(9)
    together = list(drawn.write("w1", 40, choice, [1, 2, 3]))
    for k in range(3):
        pieces = [written.text for written in together if written.stream == k]
        assert pieces == [written.text for written in drawn.write("w1", 40, choice, [k + 1])]
        text = "w1" + "".join(pieces)
        assert drawn.vocabulary.normalize(text) == text
        assert len(naive(text)) == 41


def test_sampling_words_ends_at_the_stop_text() -> None:
    drawn = sampler(5)
    text = "".join(written.text for written in drawn.write("w1", 2000, Choice(2.0), [1], "w2 w3"))
    assert text.endswith("w2 w3") and text.count("w2 w3") == 1


def test_beam_search_without_a_prime_text_finds_the_best_of_all_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("charrnn.sampling.beam.STEP", 2)
    drawn = sampler(5)
    logits = [drawn.read([n], 1)[0] for n in range(5)]
    best = max(((a, b) for a in range(5) for b in range(5)), key=lambda ab: log_softmax(logits[ab[0]])[ab[1]])
    found = "".join(written.text for written in beam_search(drawn, "", 2, 25))
    assert found == drawn.vocabulary.decode(best)


def log_softmax(logits: object) -> list[float]:
    return torch.as_tensor(logits)[0].log_softmax(-1).tolist()


def test_a_difference_between_vocabularies_is_described() -> None:
    one = Words(("a", "b"))
    assert one.difference(Words(("a", "b"), unk="b"), "x", "y") == ""
    for other, difference in (
        (Words(("b", "a")), "their words have different ids"),
        (Words(("a", "c")), "only x has 'b'; only y has 'c'"),
        (Words(("a", "b", "c")), "only y has 'c'"),
        (Words(("a", "b"), "bytes"), "x is read as utf-8, y as bytes"),
        (Vocabulary((97, 98)), "x is read as words, y as characters"),
    ):
        assert one.difference(other, "x", "y") == difference


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("more", [-1, 0, 1, 30])
def test_looking_up_rows_equals_the_product_with_one_hot_vectors(kind: type[nn.RNNBase], more: int) -> None:
    gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[kind]
    V, H, L = gates * 5 + more, 5, 2
    torch.manual_seed(V)
    layers = kind(V, H, L).double()
    x = torch.randint(V, (7, 3))
    state = torch.randn(L, 3, H).double() if kind is not nn.LSTM else tuple(torch.randn(2, L, 3, H).double())
    for start in (None, state):
        results = []
        for run in (lambda: layers(F.one_hot(x, V).double(), start), lambda: lookup.run(layers, x, start)):  # noqa: B023
            layers.zero_grad()
            y, last = run()
            (y**2).sum().backward()
            last = last if isinstance(last, tuple) else (last,)
            results.append([y.detach(), *last, *(p.grad.clone() for p in layers.parameters())])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn", "grid_lstm"])
def test_no_model_uses_one_hot_vectors_for_a_large_vocabulary(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = registry.find(name).create(3000, 8, 2, 0.0)
    expected = model(torch.arange(12).view(4, 3), None)[0].sum()
    monkeypatch.setattr(F, "one_hot", lambda *_: pytest.fail("one-hot vectors"))
    logits, _ = model(torch.arange(12).view(4, 3), None)
    assert logits.sum() == expected
    logits.sum().backward()
    assert all(p.grad is not None and not p.grad.is_sparse for p in model.parameters())
