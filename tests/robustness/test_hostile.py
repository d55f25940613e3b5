"""Hostile checkpoints are refused in one sentence, with exit code 1. None runs code or takes much memory."""

from __future__ import annotations

import io
import os
import pickle
import random
import re
import shlex
import shutil
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from charrnn import registry
from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import UserError
from charrnn.settings.training import TrainingOptions
from tests.helpers.command import SMALL, SONG, charrnn, environment, on_a_terminal, run, write_text

ALPHABET = Vocabulary(tuple(sorted(set(map(ord, SONG)))))
HUGE = 10**12


def honest(name: str = "lstm", **options: Any) -> Checkpoint:
    """Return a valid checkpoint of a tiny model."""
    torch.manual_seed(1)
    model = registry.find(name).create(len(ALPHABET), 8, 1, 0.0)
    settings = TrainingOptions(model=name, rnn_size=8, num_layers=1, gpuid=-1, **options)
    return Checkpoint(settings, {}, ALPHABET, dict(model.state_dict()), epoch=1.5, val_loss=2.5)


@cache
def plain() -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        found: dict[str, Any] = torch.load(honest().save(Path(folder) / "honest.pt"), weights_only=True)
    return found


def content(**changes: Any) -> dict[str, Any]:
    """Return the content of a checkpoint with some of it replaced. A dict is merged into the existing one."""
    found = dict(plain())
    for key, value in changes.items():
        merge = isinstance(value, dict) and key in ("options", "weights", "training")
        found[key] = found[key] | value if merge else value
    return found


@pytest.fixture(scope="module")
def honest_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return honest().save(tmp_path_factory.mktemp("honest") / "honest.pt")


class Reduced:
    """An object whose unpickling calls ``function``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class Stored:
    """A storage as the pickle declares it: key, number of elements, kind."""

    def __init__(self, key: str, length: int, kind: Any = torch.FloatStorage) -> None:
        self.pid = ("storage", kind, key, "cpu", length)


class Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return value.pid if isinstance(value, Stored) else None


def claim(size: tuple[Any, ...], stride: tuple[Any, ...], length: int = 1, offset: int = 0, key: str = "0") -> Reduced:
    """Return a pickled tensor with any size and strides, in a storage of any claimed length."""
    rebuild = torch._utils._rebuild_tensor_v2
    return Reduced(rebuild, Stored(key, length), offset, size, stride, False, OrderedDict())


def forge(path: Path, value: Any, storages: dict[str, bytes] | None = None) -> None:
    """Write a file as torch.save does, but with a forged pickle, given as a value or as bytes."""
    pickled = io.BytesIO()
    Pickler(pickled, protocol=2).dump(value)
    members = {"data.pkl": value if isinstance(value, bytes) else pickled.getvalue(), "byteorder": b"little"}
    members |= {f"data/{key}": data for key, data in (storages or {"0": b"\0" * 4}).items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"archive/{name}", data)


def big_endian(path: Path) -> None:
    torch.save(content(), path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, b"big" if name.endswith("/byteorder") else data)


def no_pickle(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/byteorder", b"little")


def other_id(path: Path) -> None:
    stored = Stored("0", 1)
    stored.pid = ("storage", torch.FloatStorage, "0", "cpu")
    forge(path, {"training": stored})


def truth(path: Path) -> None:
    """Write a checkpoint with a boolean stored as 2, which torch treats inconsistently."""
    rebuild = torch._utils._rebuild_tensor_v2
    value = Reduced(rebuild, Stored("0", 1, torch.BoolStorage), 0, (1,), (1,), False, OrderedDict())
    forge(path, {"training": {"flag": value}}, {"0": b"\2"})


def tensor(size: tuple[Any, ...], stride: tuple[Any, ...], **more: Any) -> Callable[[Path], None]:
    """Return a writer of a checkpoint that is valid except for its decoder bias."""

    def write(path: Path) -> None:
        whole = content()
        numbers = {f"w{i}": t for i, t in enumerate(whole["weights"].values())}
        weights = {
            name: claim(tuple(t.shape), t.stride(), t.numel(), key=key)
            for (key, t), name in zip(numbers.items(), whole["weights"], strict=True)
        }
        weights["decoder.bias"] = claim(size, stride, **more)
        storages = {key: t.contiguous().numpy().tobytes() for key, t in numbers.items()} | {"0": b"\0" * 4}
        forge(path, whole | {"weights": weights}, storages)

    return write


def saved(**changes: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(content(**changes), path)


def forged(value: Any) -> Callable[[Path], None]:
    return lambda path: forge(path, value)


def raw(data: bytes) -> Callable[[Path], None]:
    return lambda path: (path.write_bytes(data), None)[1]


def zip_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/byteorder", b"little")
        archive.writestr("archive/data.pkl", b"]" * 100_000_000)


def overlapping(path: Path) -> None:
    """Write a file with a thousand directory entries for the same megabyte."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        archive.writestr("archive/byteorder", b"little")
        archive.writestr("archive/data/0", b"\0" * 1_000_000)
        first = archive.infolist()[-1]
        for i in range(1, 1000):
            twin = zipfile.ZipInfo(f"archive/data/{i}")
            twin.header_offset, twin.CRC = first.header_offset, first.CRC
            twin.file_size = twin.compress_size = first.file_size
            archive.filelist.append(twin)
            archive.NameToInfo[twin.filename] = twin


def twice(path: Path) -> None:
    with pytest.warns(UserWarning), zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/byteorder", b"little")
        for value in (content(), {}):
            archive.writestr("archive/data.pkl", pickle.dumps(str(value), 2))


def wrong_size(path: Path) -> None:
    """Write a file whose directory declares 10^12 bytes for a small member."""
    forge(path, {})
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\1\2")
    data[entry + 20 : entry + 28] = struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0)
    path.write_bytes(data)


def another_programs(path: Path) -> None:
    torch.save({"model": torch.nn.Linear(3, 3).state_dict(), "epoch": 3}, path)


def a_whole_module(path: Path) -> None:
    torch.save(torch.nn.Linear(3, 3), path)


def legacy_format(path: Path) -> None:
    torch.save(content(), path, _use_new_zipfile_serialization=False)


def one_for_all(path: Path) -> None:
    """Write a checkpoint of two hundred layers that share the same few bytes of weights."""
    whole = content(options={"num_layers": 200, "rnn_size": 64})
    shapes = {
        name: t.shape for name, t in registry.find("lstm").skeleton(len(ALPHABET), 64, 200, 0.0).state_dict().items()
    }
    length = max(shape.numel() for shape in shapes.values())
    contiguous = {name: torch.empty(shape, device="meta").stride() for name, shape in shapes.items()}
    weights = {name: claim(tuple(shape), contiguous[name], length) for name, shape in shapes.items()}
    forge(path, whole | {"weights": weights}, {"0": b"\0" * 4 * length})


def laughs() -> Any:
    value: Any = "ha"
    for _ in range(60):
        value = [value, value]
    return value


def deep() -> bytes:
    return b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."


def endless() -> Any:
    value: dict[str, Any] = {}
    value["self"] = value
    return value


LONG_BINPUT = b"\x80\x02}r" + struct.pack("<I", 0xFFFFFFF0) + b"."
# tuples (t, t) of tuples t, nested 27 deep: hashing the outermost as a dict key visits 2^27 tuples
TUPLES_AS_KEY = b"\x80\x02})" + b"q\0h\0\x86" * 27 + b"Ns."
TWO_KEYS = b"\x80\x02}(X\1\0\0\0aNX\1\0\0\0aNu."
BYTEARRAY8 = b"\x80\x05\x96" + struct.pack("<Q", HUGE) + b"."

HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty": (raw(b""), "not a zip"),
    "written on a big-endian machine": (big_endian, "not written on a little-endian machine"),
    "no pickle": (no_pickle, "data.pkl is missing"),
    "pickle of 16 MB": (forged("x" * 16_000_000), "missing or too large"),
    "reference to something unknown": (other_id, "not a storage"),
    "truth value of 2": (truth, "neither 0 nor 1"),
    "a type among the values": (forged({"epoch": 1.5, "weights": torch.FloatStorage}), "it contains a dtype"),
    "one byte": (raw(b"P"), "not a zip"),
    "a text": (raw(SONG.encode() * 1000), "not a zip"),
    "zip bomb": (zip_bomb, "compressed"),
    "overlapping members": (overlapping, "the members overlap"),
    "two members with the same name": (twice, "two members"),
    "a member larger than the file": (wrong_size, "the members overlap"),
    "another program's": (another_programs, "not a checkpoint of charrnn"),
    "a whole module": (a_whole_module, "asks for torch.nn.modules.linear.Linear"),
    "torch's old format": (legacy_format, "not a zip"),
    "a list": (forged([1, 2]), "not a checkpoint of charrnn"),
    "future format": (saved(format=2), "format 2"),
    "format of the wrong type": (saved(format=[1]), "format"),
    "no format": (saved(format=None), "format"),
    "pickle with a huge memo index": (forged(LONG_BINPUT), "does not count its memo"),
    "bytearray of 10^12": (forged(BYTEARRAY8), "bytearray8"),
    "call of bytearray": (forged(Reduced(bytearray, HUGE)), "bytearray"),
    "call of torch.Tensor": (forged(Reduced(torch.Tensor, HUGE)), "the file asks for torch.Tensor"),
    "lists in lists": (forged(deep()), "contain each other"),
    "a billion laughs": (saved(training={"kept": laughs()}), "contain each other"),
    "contains itself": (saved(model_options=endless()), "contain each other"),
    "too few weights": (saved(weights={"decoder.bias": torch.zeros(1)}), "weights do not fit the model lstm"),
    "weights of the wrong sizes": (saved(options={"rnn_size": 9}), "do not fit"),
    "weights of another model": (saved(options={"model": "gru"}), "do not fit"),
    "weights of the wrong type": (saved(weights={"decoder.bias": torch.zeros(len(ALPHABET)).double()}), "float64"),
    "weights that are text": (saved(weights={"decoder.bias": "text"}), "its weights are not tensors"),
    "weights without names": (saved(weights={3: torch.zeros(1)}), "its weights are not a table with names"),
    "200 layers in one storage": (one_for_all, "fewer numbers"),
    "10^12 elements": (tensor((HUGE,), (1,)), "does not fit its storage"),
    "10^12 elements with a stride of 0": (tensor((HUGE,), (0,)), "does not fit its storage"),
    "10^30 elements times 0": (tensor((0, 10**30), (1, 1)), "damaged"),
    "storage of 10^12 elements": (tensor((HUGE,), (1,), length=HUGE), "4 bytes, not 1000000000000 elements"),
    "storage longer than its bytes": (tensor((2,), (1,), length=2), "4 bytes, not 2 elements"),
    "storage of negative length": (tensor((2,), (1,), length=-1), "4 bytes, not -1 elements"),
    "missing storage": (tensor((1,), (1,), key="nowhere"), "nowhere"),
    "storage of two types": (tensor((2,), (1,), length=2, key="w0"), "the storage w0 has two types"),
    "offset beyond the storage": (tensor((1,), (1,), offset=10**6), "does not fit its storage"),
    "negative stride": (tensor((1,), (-1,)), "not natural numbers"),
    "sizes that are text": (tensor(("a",), (1,)), "not natural numbers"),
    "one stride missing": (tensor((1, 1), (1,)), "not natural numbers"),
    "2,000 sizes of 2,000 bits": (tensor((2**2000,) * 2000, (1,) * 2000), "64 dimensions"),
    "a size of 2,000 bits": (tensor((0, 2**2000), (1, 1)), "63 bits"),
    "a size of a thousand zeros": (tensor((0,) * 1000, (1,) * 1000), "64 dimensions"),
    "a tensor with a thousand more arguments": (
        forged(Reduced(torch._utils._rebuild_tensor_v2, *range(1000))),
        "positional arguments",
    ),
    "integer keys with the same hash": (
        saved(training={"val_losses": {key * (2**61 - 1): 1.0 for key in range(1, 2000)}}),
        "too irregular",
    ),
    "integer keys at random": (
        saved(training={"val_losses": {key * key % 100_003: 1.0 for key in range(5000)}}),
        "too irregular",
    ),
    "negative integer keys": (saved(training={"val_losses": {-1: 1.0}}), "too irregular"),
    "tuples of tuples as a key": (forged(TUPLES_AS_KEY), "neither text nor an integer"),
    "a number as a key": (saved(training={"val_losses": {1.5: 1.0}}), "neither text nor an integer"),
    "a set": (forged(b"\x80\x04\x8f."), "the pickle has EMPTY_SET"),
    "a list with keys": (forged(b"\x80\x02]NNs."), "the pickle uses a list as a dict"),
    "a key that occurs twice": (forged(TWO_KEYS), "occurs twice"),
    "a storage that is called": (forged(Reduced(torch.FloatStorage)), "not a function"),
    "rnn_size 10^9": (saved(options={"rnn_size": 10**9}), "rnn_size"),
    "rnn_size 10^6": (saved(options={"rnn_size": 10**6}), "do not fit"),
    "num_layers 10^9": (saved(options={"num_layers": 10**9}), "num_layers"),
    "rnn_size of 80 digits": (saved(options={"rnn_size": 10**80}), "between 1 and 1,048,576"),
    "rnn_size nan": (saved(options={"rnn_size": float("nan")}), "rnn_size"),
    "dropout as text": (saved(options={"dropout": "lots"}), "dropout"),
    "a list as the model name": (saved(options={"model": ["lstm"]}), "model"),
    "unknown option": (saved(options={"unheard_of": 1}), "does not know its settings unheard_of"),
    "unknown model option": (saved(model_options={"depth": 3}), "depth"),
    "a million layers as the model's own option": (saved(model_options={"num_layers": 10**6}), "names of settings"),
    "model option of the wrong type": (saved(model_options={"depth": [3]}), "model's options are not plain values"),
    "no options": (saved(options=None), "its options are not a table"),
    "model that does not exist": (saved(options={"model": "nosuch"}), "unknown model nosuch"),
    "model in a parent folder": (saved(options={"model": "../../x"}), "plain word"),
    "model by path": (saved(options={"model": "/tmp/x"}), "plain word"),
    "model in a package": (saved(options={"model": "os.path"}), "plain word"),
    "model name with a NUL": (saved(options={"model": "lstm\0"}), "model"),
    "model name that is a surrogate": (saved(options={"model": "\ud800"}), "model"),
    "epoch nan": (saved(epoch=float("nan")), "its epoch is nan"),
    "epoch inf": (saved(epoch=float("inf")), "its epoch is inf"),
    "epoch as text": (saved(epoch="1"), "its epoch is 1"),
    "validation loss as text": (saved(val_loss="1"), "validation loss"),
    "vocabulary out of order": (saved(vocabulary={"encoding": "utf-8", "tokens": ["b", "a"]}), "vocabulary"),
    "vocabulary of surrogates": (saved(vocabulary={"encoding": "utf-8", "tokens": ["\ud800"]}), "vocabulary"),
    "vocabulary of bytes over 255": (saved(vocabulary={"encoding": "bytes", "tokens": [1, 256]}), "vocabulary"),
    "no vocabulary": (saved(vocabulary={}), "this is not a saved vocabulary"),
    "software versions as a number": (saved(software=3), "software versions"),
    "a software version as a number": (saved(software={"torch": 2}), "software versions"),
}


def refused(*args: object) -> str:
    """Return the one line on stderr of a command that refuses its input; stdout must be empty."""
    done = run(Path(), *args, code=1)
    assert done.out == b""
    (line,) = done.errors
    return line


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_text(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_valid_checkpoint_loads(honest_file: Path) -> None:
    assert len(run(Path(), "sample", honest_file, "-gpuid", -1, "-length", 3).out) == 4


def test_a_forged_checkpoint_without_a_fault_loads(folder: Path) -> None:
    fits = tensor((len(ALPHABET),), (1,), length=len(ALPHABET), key="w5")
    fits(folder / "one.pt")
    again = Checkpoint.load("one.pt")
    again.build(again.model_file())
    assert torch.equal(again.weights["lstm.weight_hh_l0"], honest().weights["lstm.weight_hh_l0"])


@pytest.mark.parametrize("name", HOSTILE)
def test_every_command_refuses_a_hostile_file_in_one_sentence(folder: Path, name: str) -> None:
    write, said = HOSTILE[name]
    write(folder / "one.pt")
    for command in (("sample",), ("eval",), ("train", "-data_dir", "data", "-resume"), ("train", "-init_from")):
        message = refused(*command, "one.pt", "-gpuid", -1)
        assert said in message, message
        assert len(message) < 500
    assert not (folder / "cv").exists()


def test_a_pickle_of_four_million_values_is_refused_and_all_of_unicode_is_not(folder: Path) -> None:
    forge(folder / "one.pt", [None] * 4_000_000)
    assert "too many opcodes" in refused("eval", "one.pt")
    everything = Vocabulary(tuple(code for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000))
    saved(vocabulary=everything.to_dict(), weights=plain()["weights"])(folder / "one.pt")
    assert Checkpoint.load("one.pt").vocabulary == everything


# functions that a pickle could call; each of these would create the file ``mark``
def bombs(mark: Path) -> dict[str, Any]:
    state = Reduced(os.system, f"touch {shlex.quote(str(mark))}")
    return {
        "os.system": Reduced(os.system, f"touch {shlex.quote(str(mark))}"),
        "eval": Reduced(eval, f"open({str(mark)!r}, 'w')"),
        "open": Reduced(open, str(mark), "w"),
        "in the options": {"program": "charrnn", "format": 1, "options": {"rnn_size": state}},
        "as a key": {state: 1},
        "subprocess": Reduced(subprocess.check_call, ["touch", str(mark)]),
    }


@pytest.mark.parametrize("name", bombs(Path()))
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "bare"])
def test_no_code_from_the_file_is_run(folder: Path, name: str, zipped: bool) -> None:
    mark = folder / "mark"
    bomb = bombs(mark)[name]
    if zipped:
        forge(folder / "one.pt", bomb)
    else:
        (folder / "one.pt").write_bytes(pickle.dumps(bomb))
    for command in (("sample",), ("eval",), ("train", "-resume"), ("train", "-init_from")):
        refused(*command, "one.pt")
    assert not mark.exists()
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "import sys, pickle; pickle.loads(sys.stdin.buffer.read())"],
        input=pickle.dumps(bomb), check=True, capture_output=True,
    )  # fmt: skip
    assert mark.exists(), "the bomb works with plain pickle"


def test_a_model_name_cannot_lead_to_a_file_outside_the_folders_of_models(folder: Path) -> None:
    (folder / "x.py").write_text(f"open({str(folder / 'mark')!r}, 'w').close()\ndef create(*a, **k): ...\n")
    (folder / "models").mkdir()
    for name in ("../x", str(folder / "x"), "x", "models/../x", "..x", "x.py", "../x.py"):
        saved(options={"model": name})(folder / "one.pt")
        refused("sample", "one.pt", "-gpuid", -1)
    assert not (folder / "mark").exists()
    shutil.copy(folder / "x.py", folder / "models/x.py")
    saved(options={"model": "x"})(folder / "one.pt")
    found = Checkpoint.load("one.pt").model_file()
    with pytest.raises(UserError):
        Checkpoint.load("one.pt").build(found)
    assert (folder / "mark").exists(), "the file runs as one of the user's own models"


def test_a_truncated_checkpoint_is_refused(folder: Path, honest_file: Path) -> None:
    data = honest_file.read_bytes()
    for end in [*range(0, len(data), 997), *range(len(data) - 60, len(data))]:
        (folder / "one.pt").write_bytes(data[:end])
        with pytest.raises(UserError, match=r"one\.pt"):
            Checkpoint.load("one.pt")


def test_a_flipped_bit_is_detected_or_has_no_effect(folder: Path, honest_file: Path) -> None:
    whole, data = Checkpoint.load(honest_file), honest_file.read_bytes()
    chance = random.Random(5)
    refused = 0
    for _ in range(400):
        flipped = bytearray(data)
        flipped[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        (folder / "one.pt").write_bytes(flipped)
        try:
            found = Checkpoint.load("one.pt")
        except UserError:
            refused += 1
            continue
        assert (found.options, found.vocabulary, found.epoch) == (whole.options, whole.vocabulary, whole.epoch)
        assert found.weights.keys() == whole.weights.keys()
        assert all(torch.equal(found.weights[name], tensor) for name, tensor in whole.weights.items())
    assert refused > 100, "many flips must hit content"


MEMORY = """
import resource, sys
from pathlib import Path
from charrnn.cli import main as cli

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def sample(path):
    return cli.run(["sample", str(path), "-gpuid", "-1", "-length", "1", "-verbose", "0"])

assert sample(sys.argv[1]) == 0
before = peak()
for path in sorted(Path(sys.argv[2]).glob("*.pt")):
    started = peak()
    assert sample(path) == 1, path
    if peak() - started > 40_000_000:
        print(path, "took", peak() - started)
print("in all", peak() - before)
"""


def test_hostile_files_take_little_memory(folder: Path, honest_file: Path) -> None:
    for number, (write, _) in enumerate(HOSTILE.values()):
        write(folder / f"{number}.pt")
    words = [sys.executable, "-c", MEMORY, str(honest_file), str(folder)]
    done = subprocess.run(words, capture_output=True, env=environment(), text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2, (
        lines
    )  # the character sampled from the valid checkpoint and the total: no file took much memory
    assert int(lines[1].removeprefix("in all ")) < 100_000_000


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that can be resumed."""
    folder = tmp_path_factory.mktemp("stopped")
    write_text(folder / "data", SONG * 20)
    charrnn("train", "-data_dir", "data", *SMALL, "-max_epochs", 1, "-save_every", 3, cwd=folder)
    return folder


def first(saved: dict[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """Return the optimizer's state with that of the first parameter changed."""
    memory = saved["optimizer"]["state"]
    return {"optimizer": saved["optimizer"] | {"state": memory | {0: change(memory[0])}}}


TRAINING: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "iteration nan": lambda t: {"iteration": float("nan")},
    "iteration as text": lambda t: {"iteration": "9"},
    "iteration far ahead": lambda t: {"iteration": 10**12},
    "too few losses": lambda t: {"losses": t["losses"][:-1]},
    "losses as a list of strings": lambda t: {"losses": ["a"] * t["iteration"]},
    "losses in two columns": lambda t: {"losses": torch.zeros(t["iteration"], 2)},
    "validation losses as a list": lambda t: {"val_losses": [1.0]},
    "validation losses as text": lambda t: {"val_losses": {1: "low"}},
    "state of the wrong shape": lambda t: {"state": [s[:, :1] for s in t["state"]]},
    "state as plain numbers": lambda t: {"state": [1, 2]},
    "one state instead of two": lambda t: {"state": t["state"][:1]},
    "state as one number": lambda t: {"state": 7},
    "optimizer state of the wrong shape": lambda t: first(t, lambda m: m | {"square_avg": torch.zeros(1)}),
    "empty optimizer state": lambda t: first(t, lambda m: {}),
    "optimizer state as text": lambda t: first(t, lambda m: m | {"square_avg": "text"}),
    "optimizer state of an unknown parameter": lambda t: {
        "optimizer": t["optimizer"] | {"state": {99: t["optimizer"]["state"][0]}}
    },
    "optimizer without groups": lambda t: {"optimizer": t["optimizer"] | {"param_groups": []}},
    "learning rate as text": lambda t: {
        "optimizer": t["optimizer"] | {"param_groups": [t["optimizer"]["param_groups"][0] | {"lr": "fast"}]}
    },
    "generator state of the wrong size": lambda t: {"rng": {"cpu": t["rng"]["cpu"][:-1]}},
    "invalid generator state": lambda t: {"rng": {"cpu": torch.full_like(t["rng"]["cpu"], 255)}},
    "generator state as text": lambda t: {"rng": {"cpu": "text"}},
    "no generator state": lambda t: {"rng": {}},
    "files outside the folder": lambda t: {"kept": ["lm_x/../../data/lm_epoch1.00_1.0000.pt"]},
    "files that are not checkpoints": lambda t: {"kept": ["input.txt"]},
    "numbers as file names": lambda t: {"kept": [3]},
    "rollbacks below 0": lambda t: {"rollbacks": -5000},
    "rollbacks of 400 digits": lambda t: {"rollbacks": 10**400},
    "infinite rollbacks": lambda t: {"rollbacks": float("inf")},
    "learning rate of 400 digits": lambda t: {
        "optimizer": t["optimizer"] | {"param_groups": [t["optimizer"]["param_groups"][0] | {"lr": 10**400}]}
    },
    "optimizer steps below 0": lambda t: first(t, lambda m: m | {"step": torch.tensor(-1.0)}),
    "optimizer steps as a truth value": lambda t: first(t, lambda m: m | {"step": torch.tensor(True)}),
    "numpy's generator with a number of 400 digits": lambda t: {
        "rng": t["rng"] | {"numpy": [*t["rng"]["numpy"][:2], 10**400, 0.0]}
    },
    "rollbacks as text": lambda t: {"rollbacks": "none"},
    "texts as a number": lambda t: {"texts": 3},
}


@pytest.mark.parametrize("name", TRAINING)
def test_a_damaged_training_state_is_refused(stopped: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(stopped)
    found = torch.load("cv/lm_lstm_last.pt", weights_only=True)
    torch.save(found | {"training": found["training"] | TRAINING[name](found["training"])}, "one.pt")
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    lines = run(stopped, "train", "-resume", "one.pt", "-gpuid", -1, code=1).errors
    assert re.search("damaged|is not the one", lines[-1]) and len(lines) <= 2, lines
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before


def test_the_undamaged_run_resumes(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(stopped)
    run(stopped, "train", "-resume", "cv/lm_lstm_last.pt", "-gpuid", -1, "-checkpoint_dir", "other")


def test_an_optimizer_state_whose_elements_share_memory_is_copied(
    stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch refuses to change such a tensor in place."""
    monkeypatch.chdir(stopped)
    found = torch.load("cv/lm_lstm_last.pt", weights_only=True)
    shape = found["training"]["optimizer"]["state"][0]["square_avg"].shape
    shared = torch.zeros(shape.numel()).as_strided(shape, (0,) * len(shape))
    changed = first(found["training"], lambda kept: kept | {"square_avg": shared})
    torch.save(found | {"training": found["training"] | changed}, "one.pt")
    run(stopped, "train", "-resume", "one.pt", "-gpuid", -1, "-checkpoint_dir", "shared", "-max_epochs", 1.1)


IMPOSSIBLE: dict[str, dict[str, Any]] = {
    "infinite counts": {"counts": torch.full((len(ALPHABET),), float("inf"))},
    "a validation loss of 400 digits": {"val_losses": {3: 10**400}},
    "a validation at an iteration of 400 digits": {"val_losses": {"9" * 400: 1.0}},
    "an iteration of 400 digits": {"iteration": 10**400},
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_inspect_and_plot_refuse_numbers_that_cannot_be(folder: Path, case: str) -> None:
    saved(training=IMPOSSIBLE[case])(folder / "one.pt")
    for command in (("inspect", "one.pt"), ("inspect", "one.pt", "-json"), ("plot", "-text", "one.pt")):
        lines = run(folder, *command, code=1).errors
        assert len(lines) == 1 and "one.pt is damaged" in lines[0], lines


def shown_by(folder: Path, *args: object) -> bytes:
    """Return the terminal output of a command, without carriage returns."""
    return on_a_terminal(folder, *args)[1].replace("\r", "").encode()


def test_escape_sequences_do_not_reach_a_terminal(folder: Path) -> None:
    text = "\x1b]0;mine\x07\x1b[2J\x9b31m\u202eab\n" * 40
    write_text(folder / "escapes", text)
    train = ("train", "-data_dir", "escapes", *map(str, SMALL), "-max_epochs", "0.2", "-checkpoint_dir", "escaped")
    shown = shown_by(folder, *train)
    bar, sample = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]"), ("sample", "escaped", "-gpuid", "-1", "-length", "300")
    assert b"\x1b" not in bar.sub(b"", shown), "only the display's own escape sequences"
    assert rb"\x1b" in shown and b"\x07" not in shown and b"\x1b[2J" not in shown
    shown = shown_by(folder, *sample)
    assert rb"\x1b" in shown and b"\x1b" not in shown and b"\xc2\x9b" not in shown and "\u202e".encode() not in shown
    piped = charrnn(*sample, cwd=folder).stdout.decode()
    assert "\x1b" in piped and len(piped) == 301


def test_escape_sequences_in_messages_do_not_reach_a_terminal(folder: Path) -> None:
    saved(options={"model": "\x1b[2Jx"})(folder / "one.pt")
    shown = shown_by(folder, "sample", "one.pt", "-gpuid", "-1")
    assert rb"\x1b[2Jx" in shown and b"\x1b" not in shown
