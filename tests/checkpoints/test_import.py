"""Imported checkpoints compute what the original programs computed, and hostile files do no harm.

To test another folder of checkpoints (see t7/README.md): pytest tests/checkpoints/test_import.py --t7 DIR
"""

from __future__ import annotations

import lzma
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import charrnn as package
from charrnn.checkpoints import originals, t7
from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import UserError
from charrnn.training.setup import configure
from tests.helpers.command import charrnn, one_line, write_text
from tests.helpers.runs import new_run, silent

SMALLEST = Path(__file__).parent / "t7/rnn_2x32.t7.xz"


def unpack(path: Path, folder: Path) -> Path:
    """Return a checkpoint file as char-rnn wrote it, unpacked if necessary."""
    if path.suffix != ".xz":
        return path
    target = folder / path.stem
    target.write_bytes(lzma.decompress(path.read_bytes()))
    return target


def log_probabilities(checkpoint: Checkpoint, text: bytes) -> np.ndarray:
    """Return the log-probabilities after each character of the text, (T, V), from a zero state."""
    numbers = torch.tensor(checkpoint.vocabulary.encode(text.decode("utf-8", "surrogateescape")))
    with torch.no_grad():
        logits, _ = checkpoint.build(checkpoint.model_file()).eval()(numbers[:, None], None)
    return logits[:, 0].log_softmax(-1).numpy()


# --- files written by the original programs ---------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = Path(metafunc.config.getoption("--t7"))
    files = sorted(folder.glob("*.t7*"))
    for fixture, found in (("old", files), ("printed", sorted(folder.glob("*.txt")))):
        if fixture in metafunc.fixturenames:
            assert found, f"no checkpoints to compare with in {folder}"
            metafunc.parametrize(fixture, found, ids=lambda path: path.name.partition(".")[0])


def test_log_probabilities_equal_the_originals(old: Path, tmp_path: Path) -> None:
    checkpoint = originals.load(unpack(old, tmp_path), pytest.fail)
    assert checkpoint.options.precision == "float64"
    with np.load(old.parent / "expected.npz") as expected:
        text, theirs = expected["text"].tobytes(), expected[f"{old.name.partition('.')[0]}/logprobs"]
    ours = log_probabilities(checkpoint, text)
    assert ours.shape == theirs.shape and len(text) >= 100
    assert np.abs(ours - theirs).max() < 1e-10


def test_greedy_samples_equal_the_originals_byte_for_byte(printed: Path, tmp_path: Path) -> None:
    (old,) = printed.parent.glob(f"{printed.stem}.t7*")
    originals.load(unpack(old, tmp_path), pytest.fail).save(tmp_path / "new.pt")
    args = ("-sample", 0, "-length", 300, "-primetext", "ROMEO:", "-verbose", 0, "-gpuid", -1)
    assert charrnn("sample", "new.pt", *args, cwd=tmp_path).stdout == printed.read_bytes()


def test_the_checkpoints_cover_every_architecture() -> None:
    models = {path.name.rpartition("_")[0].replace("_1x48", "") for path in SMALLEST.parent.glob("*.t7.xz")}
    assert models == {"lstm", "gru", "rnn", "grid_lstm"}


def test_the_original_options_are_kept(tmp_path: Path) -> None:
    checkpoint = originals.load(unpack(SMALLEST.parent / "lstm_1x48_dropout.t7.xz", tmp_path), pytest.fail)
    options = checkpoint.options
    assert (options.model, options.rnn_size, options.num_layers, options.dropout) == ("lstm", 48, 1, 0.3)
    assert (options.learning_rate, options.seed, options.max_epochs) == (2e-3, 123, 0.143)
    assert (options.eval_val_every, options.gpuid, options.data_dir) == (60, -1, "data/tinyshakespeare")
    assert checkpoint.epoch == pytest.approx(60 / 423)
    assert checkpoint.name == "lm_lstm_epoch0.14_3.2555.pt"
    assert checkpoint.vocabulary.encoding == "utf-8"
    grid = originals.load(unpack(SMALLEST.parent / "grid_lstm_2x32.t7.xz", tmp_path), pytest.fail)
    assert grid.model_options == {"tie_weights": True}


# --- the command ------------------------------------------------------------------------------------------------------


def test_an_existing_file_is_replaced_only_with_force(tmp_path: Path) -> None:
    old = unpack(SMALLEST, tmp_path)
    (tmp_path / "new.pt").write_text("precious")
    message = one_line(charrnn("import", old, "new.pt", cwd=tmp_path, code=1))
    assert "new.pt" in message and "-force 1" in message
    assert (tmp_path / "new.pt").read_text() == "precious"
    said = charrnn("import", old, "new.pt", "-force", 1, cwd=tmp_path).stdout.decode()
    assert said == "new.pt: rnn, 2 layers of 32, 65 characters, float64, epoch 0.47, validation loss 2.6768\n"
    package.load(tmp_path / "new.pt")


def test_in_a_folder_the_file_gets_char_rnns_name(tmp_path: Path) -> None:
    old = unpack(SMALLEST, tmp_path)
    (tmp_path / "cv").mkdir()
    charrnn("import", old, "cv", cwd=tmp_path)
    assert [path.name for path in (tmp_path / "cv").iterdir()] == ["lm_rnn_epoch0.47_2.6768.pt"]


def test_an_imported_checkpoint_can_start_a_run_but_not_resume_one(tmp_path: Path) -> None:
    checkpoint = originals.load(unpack(SMALLEST, tmp_path), pytest.fail)
    new = str(checkpoint.save(tmp_path / "new.pt"))
    everything = checkpoint.vocabulary.decode(range(len(checkpoint.vocabulary)))
    flags = {"data_dir": str(write_text(tmp_path / "data", everything * 120)), "gpuid": -1, "precision": "float64"}
    flags["threads"] = 1
    run = new_run(configure(flags | {"init_from": new}))
    assert all(torch.equal(weight, checkpoint.weights[name]) for name, weight in run.model.state_dict().items())
    with pytest.raises(UserError, match="-init_from"):
        new_run(configure({"data_dir": flags["data_dir"]}, resume=new))


def test_a_file_of_another_kind_is_refused_in_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "old.t7").write_bytes(b"no checkpoint")
    assert "old.t7" in one_line(charrnn("import", "old.t7", "new.pt", cwd=tmp_path, code=1))
    assert [path.name for path in tmp_path.iterdir()] == ["old.t7"]


@pytest.mark.parametrize("content", [b"", b"\0" * 400, b"PK\3\4" + bytes(range(256))])
def test_the_message_names_the_file(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"old\.t7"):
        load(tmp_path, content)
    with pytest.raises(UserError, match=r"nothing\.t7"):
        originals.load(tmp_path / "nothing.t7", pytest.fail)


# --- files written by the tests ---------------------------------------------------------------------------------------


class Writer:
    """Writes objects in Torch7's format: the kinds in char-rnn's checkpoints, and broken ones."""

    def __init__(self) -> None:
        self.index = 0

    def new(self, kind: int) -> bytes:
        self.index += 1
        return struct.pack("<ii", kind, self.index)

    def write(self, value: Any) -> bytes:
        match value:
            case bytes():
                return value  # already an object
            case bool():
                return struct.pack("<ii", 5, value)
            case int() | float():
                return struct.pack("<id", 1, value)
            case str():
                return struct.pack("<i", 2) + string(value)
            case dict():
                head = self.new(3) + struct.pack("<i", len(value))
                return head + b"".join(self.write(key) + self.write(item) for key, item in value.items())
            case np.ndarray():
                return self.tensor(value)
        raise TypeError(value)

    def torch(self, name: str, content: bytes) -> bytes:
        return self.new(4) + string("V 1") + string(name) + content

    def tensor(self, array: np.ndarray, gpu: str = "") -> bytes:
        name = gpu or {"f8": "Double", "f4": "Float"}[array.dtype.str[1:]]
        shape = (*array.shape, *(stride // array.itemsize for stride in array.strides), 1)
        storage = self.torch(f"torch.{name}Storage", struct.pack("<q", array.size) + array.tobytes())
        head = struct.pack(f"<i{len(shape)}q", array.ndim, *shape)
        return self.torch(f"torch.{name}Tensor", head + storage)

    def module(self, name: str, **fields: Any) -> bytes:
        return self.torch(f"nn.{name}", self.write(fields))


def string(text: str) -> bytes:
    data = text.encode("latin-1")
    return struct.pack("<i", len(data)) + data


def small(change: Callable[[dict[str, Any], Writer], None] = lambda root, writer: None, dtype: str = "<f8") -> bytes:
    """Return a checkpoint of an rnn with 3 units and 5 characters, changed before it is written."""
    rng, writer = np.random.default_rng(7), Writer()
    vocab = {character: k + 1 for k, character in enumerate("\nabcd")}

    def linear(rows: int, columns: int) -> bytes:
        arrays = (rng.normal(size=shape).astype(dtype) for shape in ((rows, columns), rows))
        return writer.module("Linear", **dict(zip(("weight", "bias"), arrays, strict=True)))

    modules = [writer.module("Identity"), linear(3, 5), linear(3, 3), writer.module("CAddTable"), linear(5, 3)]
    graph = writer.module("gModule", modules=writer.write({k + 1: module for k, module in enumerate(modules)}))
    opt = {"model": "rnn", "rnn_size": 3, "num_layers": 1, "dropout": 0, "seed": 5, "savefile": "rnn"}
    root = {"opt": opt, "vocab": vocab, "protos": {"rnn": graph}, "epoch": 1.5, "val_loss": 2.5}
    change(root, writer)
    return writer.write(root)


def load(folder: Path, data: bytes, report: Callable[[str], None] = silent) -> Checkpoint:
    (folder / "old.t7").write_bytes(data)
    return originals.load(folder / "old.t7", report)


def test_single_precision_is_kept(tmp_path: Path) -> None:
    double, single = load(tmp_path, small()), load(tmp_path, small(dtype="<f4"))
    assert {w.dtype for w in single.weights.values()} == {torch.float32}
    assert single.options.precision == "float32"
    text = b"abcd\nabba"
    ours = log_probabilities(single, text)
    assert ours.dtype == np.float32
    assert 0 < np.abs(ours - log_probabilities(double, text)).max() < 1e-5


def test_the_order_of_the_vocabulary_does_not_matter(tmp_path: Path) -> None:
    def turn(root: dict[str, Any], writer: Writer) -> None:
        root["vocab"] = dict(zip("dab\nc", range(1, 6), strict=True))

    ours, theirs = load(tmp_path, small(turn)), load(tmp_path, small())
    assert ours.vocabulary == theirs.vocabulary
    # the two texts have the same ids, each in the vocabulary of its own file
    expected = log_probabilities(theirs, b"\nabcdabc\n")[:, [3, 1, 2, 4, 0]]
    np.testing.assert_allclose(log_probabilities(ours, b"dab\ncab\nd"), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("characters", "vocabulary"),
    [
        (["a", "b", "c", "d", "\xe9"], Vocabulary((97, 98, 99, 100, 0xE9), "bytes")),
        (["a", "b", "c", "d", "é".encode().decode("latin-1")], Vocabulary((97, 98, 99, 100, 0xE9))),
        (["a", "b", "c", "d", "🌸".encode().decode("latin-1")], Vocabulary((97, 98, 99, 100, 0x1F338))),
    ],
    ids=["bytes", "é", "🌸"],
)
def test_vocabularies_beyond_ascii(characters: list[str], vocabulary: Vocabulary, tmp_path: Path) -> None:
    def widen(root: dict[str, Any], writer: Writer) -> None:
        root["vocab"] = {character: k + 1 for k, character in enumerate(characters)}

    checkpoint = load(tmp_path, small(widen))
    assert checkpoint.vocabulary == vocabulary
    assert checkpoint.options.encoding == vocabulary.encoding


def test_a_setting_that_cannot_be_imported_is_reported(tmp_path: Path) -> None:
    def spoil(root: dict[str, Any], writer: Writer) -> None:
        root["opt"] |= {"seed": -4, "savefile": "../../out", "unheard_of": {1: 2}, "grad_clip": "x"}

    lines: list[str] = []
    checkpoint = load(tmp_path, small(spoil), lines.append)
    assert ["-seed -4" in lines[0] or "-seed -4" in lines[1], len(lines)] == [True, 2]
    assert checkpoint.options.seed == 123
    assert "/" not in checkpoint.name


def test_lua_functions_are_skipped(tmp_path: Path) -> None:
    def call(root: dict[str, Any], writer: Writer) -> None:
        code = string("\x1bLua" + "os.execute('touch ran')" * 3)
        rest = dict(root)
        root.clear()  # the functions come first: the rest is read correctly only if their end is found
        root["hook"] = struct.pack("<i", 6) + code + writer.write({"x": 1})
        for kind in (7, 8):
            root[f"hook{kind}"] = writer.new(kind) + code + writer.write({"x": 1})
        root.update(rest)

    assert load(tmp_path, small(call)).epoch == 1.5
    assert [path.name for path in tmp_path.iterdir()] == ["old.t7"]


def test_strides_are_respected(tmp_path: Path) -> None:
    array = np.arange(12.0).reshape(3, 4)
    for view in (array, np.ascontiguousarray(array.T)):
        assert np.array_equal(t7.Reader(Writer().write(view)).read(), view)
    writer = Writer()
    storage = writer.torch("torch.DoubleStorage", struct.pack("<12q", 11, *range(11)))
    head = struct.pack("<i5q", 2, 3, 2, 1, 4, 3)
    got = t7.Reader(writer.torch("torch.DoubleTensor", head + storage)).read()
    assert np.array_equal(got.view(np.int64), [[2, 6], [3, 7], [4, 8]])


def test_numbers_from_a_file_are_never_keys_because_they_can_be_chosen_to_collide() -> None:
    writer = Writer()
    reader = t7.Reader(writer.write({1.0: {2.0: 3.0}, 4.5: True}))
    assert reader.read() == {"1.0": {"2.0": 3.0}, "4.5": True}
    assert len(reader.objects) == 2 and all(isinstance(index, bytes) for index in reader.objects)


def gpu(root: dict[str, Any], writer: Writer) -> None:
    root["state"] = writer.tensor(np.zeros(3, "<f4"), gpu="Cuda")


def other_model(root: dict[str, Any], writer: Writer) -> None:
    root["opt"]["model"] = "transformer"


def no_vocabulary(root: dict[str, Any], writer: Writer) -> None:
    del root["vocab"]


def words(root: dict[str, Any], writer: Writer) -> None:
    root["vocab"] = {word: k + 1 for k, word in enumerate(("one", "two", "three", "four", "five"))}


def numbered_wrongly(root: dict[str, Any], writer: Writer) -> None:
    root["vocab"]["a"] = 3


def many_layers(root: dict[str, Any], writer: Writer) -> None:
    root["opt"]["num_layers"] = 900


def two_layers(root: dict[str, Any], writer: Writer) -> None:
    root["opt"]["num_layers"] = 2


def wide(root: dict[str, Any], writer: Writer) -> None:
    root["opt"]["rnn_size"] = 1e4


def half_a_layer(root: dict[str, Any], writer: Writer) -> None:
    root["opt"]["num_layers"] = 1.5


def own_parent(root: dict[str, Any], writer: Writer) -> None:
    root["protos"] = struct.pack("<ii", 3, writer.index + 1)  # a reference to the next table written, the root itself


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (gpu, "convert_gpu_cpu_checkpoint.lua"),
        (other_model, "lstm, gru, rnn, grid_lstm"),
        (no_vocabulary, "vocab is missing"),
        (words, "words"),
        (numbered_wrongly, "vocabulary"),
        (many_layers, "900 layers"),
        (two_layers, "2 layers"),
        (wide, "10000"),
        (half_a_layer, "num_layers 1.5"),
        (own_parent, "modules is missing"),
    ],
)
def test_the_message_says_why_a_checkpoint_cannot_be_imported(
    change: Callable[[dict[str, Any], Writer], None], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        load(tmp_path, small(change))
    assert "old.t7" in str(caught.value)


# --- hostile files ----------------------------------------------------------------------------------------------------


def nested(depth: int) -> bytes:
    return b"".join(struct.pack("<iii", 3, k, 1) + struct.pack("<id", 1, 1.0) for k in range(depth))


def storage(size: int) -> bytes:
    return (
        struct.pack("<ii", 4, 2) + string("V 1") + string("torch.DoubleStorage") + struct.pack("<q", size) + b"x" * 80
    )


def tensor(sizes: list[int], strides: list[int], start: int) -> bytes:
    head = struct.pack(f"<i{2 * len(sizes) + 1}q", len(sizes), *sizes, *strides, start)
    return struct.pack("<ii", 4, 1) + string("V 1") + string("torch.DoubleTensor") + head + storage(10)


HOSTILE = {
    "a string of 2 GB": struct.pack("<ii", 2, 2**31 - 1) + b"x",
    "a string of negative length": struct.pack("<ii", 2, -5) + b"x" * 20,
    "a table of 2 billion entries": struct.pack("<iii", 3, 1, 2**31 - 1) + struct.pack("<id", 1, 1.0) * 9,
    "a storage of 8 EB": storage(2**60),
    "a storage of size 2**61, which times 8 is 0": storage(2**61),
    "a storage of negative size": storage(-1),
    "a tensor beyond its storage": tensor([11], [1], 1),
    "a tensor that begins before its storage": tensor([2], [1], 0),
    "a tensor that runs backwards": tensor([10], [-1], 1),
    "a tensor of one number repeated": tensor([2**40], [0], 1),
    "a tensor whose strides overflow to 0": tensor([5], [2**59], 1),
    "a tensor whose sizes overflow to 0": tensor([2**32, 2**32], [0, 0], 1),
    "a tensor of 2 billion dimensions": struct.pack("<ii", 4, 1)
    + string("torch.DoubleTensor")
    + b"\xff\xff\xff\x7f" * 9,
    "tables nested 200,000 deep": nested(200_000),
    "20,000 empty tables": struct.pack("<iii", 3, 1, 2**31 - 1)
    + b"".join(struct.pack("<idiii", 1, k, 3, k + 2, 0) for k in range(20_000)),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_file_fails_cleanly_in_little_memory(data: bytes, tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"old\.t7"):
            load(tmp_path, data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * len(data) + 15e6


def test_a_tensor_as_large_as_its_storage_is_read() -> None:
    """These are the valid counterparts of the hostile tensors."""
    assert t7.Reader(tensor([10], [1], 1)).read().shape == (10,)
    assert t7.Reader(tensor([5, 2], [1, 5], 1)).read().shape == (5, 2)
    assert t7.Reader(tensor([1, 10], [2**60, 1], 1)).read().shape == (1, 10), "no element lies at that stride"


def test_overlapping_weights_are_refused(tmp_path: Path) -> None:
    """If all tensors shared one storage, a small file could describe a huge model."""
    writer = Writer()
    shared = writer.torch("torch.DoubleStorage", struct.pack("<q", 400) + bytes(3200))
    first = struct.pack("<i", 4) + shared[4:8]

    def linear(rows: int, columns: int, storage: bytes) -> bytes:
        made = []
        for shape in ((rows, columns), (rows,)):
            strides = (columns, 1) if len(shape) == 2 else (1,)
            head = struct.pack(f"<i{2 * len(shape) + 1}q", len(shape), *shape, *strides, 1)
            made.append(writer.torch("torch.DoubleTensor", head + storage))
            storage = first
        return writer.module("Linear", weight=made[0], bias=made[1])

    n_layers = 30
    modules = [linear(20, 20 if k else 1, first if k else shared) for k in range(2 * n_layers)] + [linear(1, 20, first)]
    graph = writer.module("gModule", modules=writer.write({k + 1: module for k, module in enumerate(modules)}))
    opt = {"model": "rnn", "rnn_size": 20, "num_layers": n_layers}
    root = {"opt": opt, "vocab": {"a": 1}, "protos": {"rnn": graph}, "epoch": 1.0, "val_loss": 1.0}
    with pytest.raises(UserError, match="overlap"):
        load(tmp_path, writer.write(root))


mutations = st.lists(
    st.tuples(
        st.integers(0, 10**9),
        st.one_of(
            st.binary(min_size=1, max_size=9),
            st.sampled_from([struct.pack("<i", k) for k in (-1, 0, 1, 2, 3, 4, 6, 8, 2**31 - 1)]),
            st.sampled_from([struct.pack("<q", k) for k in (-1, 2**31, 2**60, 2**63 - 1)]),
            st.sampled_from([struct.pack("<d", k) for k in (0.5, -1.0, 1e9, 1e300, float("nan"), float("inf"))]),
        ),
    ),
    max_size=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=mutations, keep=st.floats(0.05, 1), cut=st.booleans())
def test_a_damaged_file_is_refused_or_gives_a_complete_checkpoint(
    changes: list[tuple[int, bytes]], keep: float, cut: bool, tmp_path: Path
) -> None:
    data = bytearray(small())
    for place, content in changes:
        place %= len(data)
        data[place : place + len(content)] = content
    try:
        checkpoint = load(tmp_path, bytes(data[: int(keep * len(data))] if cut else data))
    except UserError as error:
        assert "old.t7" in str(error)
        return
    logits, _ = checkpoint.build(checkpoint.model_file())(torch.zeros(2, 1, dtype=torch.long), None)
    assert logits.shape == (2, 1, 5)
    again = Checkpoint.load(checkpoint.save(tmp_path / "new.pt"))
    assert again.vocabulary == checkpoint.vocabulary


@settings(max_examples=settings().max_examples // 4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=mutations.filter(bool))
def test_a_damaged_original_is_refused_or_gives_a_complete_checkpoint(
    changes: list[tuple[int, bytes]], tmp_path: Path, original: bytes
) -> None:
    data = bytearray(original)
    for place, content in changes:
        place %= len(data)
        data[place : place + len(content)] = content
    try:
        checkpoint = load(tmp_path, bytes(data))
        checkpoint.build(checkpoint.model_file())
    except UserError as error:
        assert "old.t7" in str(error)


@pytest.fixture(scope="session")
def original() -> bytes:
    return lzma.decompress(SMALLEST.read_bytes())
