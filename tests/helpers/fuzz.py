"""Run commands on broken and hostile files, for test_fuzz and test_soak.

An attempt depends only on its number. To repeat a failed one and those after it:

    pytest tests/robustness/test_fuzz.py --first NUMBER
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.data import cache
from charrnn.settings.training import training_options
from tests.helpers.command import SONG, run

SMALL = [
    *("-gpuid", "-1", "-rnn_size", "6", "-num_layers", "1", "-batch_size", "2", "-seq_length", "8"),
    *("-max_epochs", "0.1", "-sample_length", "5", "-threads", "1"),
]
SECONDS = 60  # limit for one attempt
ODD: list[Any] = [
    *(None, True, False, 0, 1, 2, -1, 7, 255, 256, 2**31, 2**63, -(2**63), 10**12, 10**30, 0.0, 0.5, -0.5, 1e-300),
    *(1e308, float("nan"), float("inf"), -float("inf"), "", "a", "lstm", "../../x", "\0", "\ud800", "é" * 300),
    *("nan", "1e999", "none", [], [1], ["a", "b"], [[]], {}, {"a": 1}, {1: 2}, (), (1, "a")),
]
TEXTS: list[bytes] = [
    *(b"", b"a", b"ab", b"\0", b"\0" * 300, b"a" * 300, b"\n" * 300, b"\r\n" * 200, b"\r" * 200),
    b"\xef\xbb\xbf" + SONG.encode() * 5,  # a byte order mark
    SONG.encode() * 3 + b"\xef\xbb\xbf" + SONG.encode() * 3,
    SONG.encode("utf-16"),
    SONG.encode() * 5 + b"\xed\xa0\x80",  # a lone surrogate
    "\ud83d".encode("utf-8", "surrogatepass") * 100,
    SONG.encode() * 5 + b"\xff\xfe",
    SONG.encode() * 5 + "é".encode()[:1],  # cut off inside a character
    SONG.strip().encode() * 3000,  # one giant line
    b"\xc0\x80" * 100,  # overlong encoding of NUL
    b"\xf4\x90\x80\x80" * 100,  # beyond Unicode
    "".join(map(chr, range(0x100, 0x900))).encode(),
    "👩\u200d🚀\u0301\u202e\u0007\u001b[31m".encode() * 40,
    bytes(range(256)) * 4,
]


@dataclass(frozen=True)
class Attempt:
    """One command on one broken input, its exit code and its output."""

    kind: str
    command: list[str]
    code: int
    out: bytes
    err: str


class Wrong(AssertionError):
    """A command that neither worked nor ended in a one-line error."""


def prepare(folder: Path) -> None:
    """Make the files that attempts start from: a text, and a checkpoint that can be sampled, scored and resumed."""
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "input.txt").write_text(SONG * 20, newline="")
    with contextlib.chdir(folder):
        run(folder, "train", "-data_dir", "data", *SMALL, "-checkpoint_dir", "honest")
        next(Path("honest").glob("*epoch*.pt")).rename("honest.pt")


def attempt(number: int, folder: Path) -> Attempt:
    """Break a file and run a command on it, in a folder made by ``prepare``. Raises Wrong if the command misbehaves."""
    chance = random.Random(number)
    kind = chance.choice(list(KINDS))
    with contextlib.chdir(folder):
        shutil.rmtree("cv", ignore_errors=True)
        command, stdin = KINDS[kind](chance)
        try:
            with limited(SECONDS):
                done = run(folder, *command, code=None, stdin=stdin)
        except Exception as error:
            raise Wrong(f"--first {number} ({kind}): {' '.join(command)}: {error!r}") from error
        found = Attempt(kind, command, done.code, done.out, done.err.decode())
        if problem := judge(found):
            raise Wrong(f"--first {number} ({kind}): {' '.join(command)}: {problem}: {found.err[-2000:]}")
        if done.code == 0 and kind == "text":
            check_vocabulary(command, Path("cv"))
    return found


def judge(found: Attempt) -> str:
    """Return how a command misbehaved, or an empty string."""
    lines = found.err.splitlines()
    if "Traceback" in found.err:
        return "a traceback"
    if found.code not in (0, 1, 2):
        return f"exit code {found.code}"
    if found.code and not (lines and lines[-1].startswith("charrnn")):
        return "no message"
    if found.code and sum(line.startswith("charrnn") for line in lines) != 1:
        return "more than one message"
    if found.code and len(lines[-1]) > 2000:
        return "an endless message"
    return ""


def check_vocabulary(command: list[str], folder: Path) -> None:
    """Check that a trained model knows exactly the characters of its text."""
    text = Path("text/input.txt").read_bytes()
    codes = set(text) if "bytes" in command else set(map(ord, text.decode()))
    for path in folder.glob("*.pt"):
        assert set(Checkpoint.load(path).vocabulary.codes) == codes, command


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise TimeoutError if the body takes longer."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# ways to break bytes and content


def broken(data: bytes, chance: random.Random) -> bytes:
    """Return the bytes with a few random faults."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 5, 30))):
        at = chance.randrange(len(found) + 1)
        size = chance.choice((1, 1, 2, 4, 8, 100, 5000))
        match chance.randrange(7):
            case 0 if found:
                found[at % len(found)] ^= 1 << chance.randrange(8)
            case 1:
                found[at : at + size] = chance.randbytes(size)
            case 2:
                del found[at : at + size]
            case 3:
                found[at:at] = chance.randbytes(size)
            case 4:
                found[at:at] = found[at // 2 : at // 2 + size]
            case 5:
                found[at : at + size] = bytes([chance.choice((0, 1, 0x7F, 0x80, 0xFF))]) * size
            case 6 if chance.random() < 0.3:
                del found[at:]
    return bytes(found)


def altered(value: Any, chance: random.Random) -> Any:
    """Return a file's content with one part replaced, removed or added."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        match chance.randrange(12):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                return value | {chance.choice(("unheard_of", 7, "", "model")): chance.choice(ODD)}
        return value | {key: altered(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.8:
        at = chance.randrange(len(value))
        return [*value[:at], altered(value[at], chance), *value[at + 1 :]]
    if isinstance(value, torch.Tensor) and chance.random() < 0.7:
        return chance.choice(TENSORS)(value)
    return chance.choice(ODD)


TENSORS: list[Callable[[torch.Tensor], torch.Tensor]] = [
    lambda t: t.flatten(),
    lambda t: t[:-1] if t.dim() else t[None],
    lambda t: t.double(),
    lambda t: t.to(torch.uint8),
    lambda t: t.bool(),
    lambda t: t.half(),
    lambda t: t[None],
    lambda t: torch.full_like(t.float(), float("nan")),
    lambda t: torch.full_like(t.float(), float("inf")),
    lambda t: torch.full_like(t.float(), 1e38),
    lambda t: torch.zeros(0),
    lambda t: torch.zeros(()),
    lambda t: t.new_zeros(()).expand(1000, 1000),
    lambda t: t.mT if t.dim() > 1 else t,
    lambda t: t.to(torch.complex64),
]


# the kinds of attempts; each writes its input and returns the command and its stdin


def checkpoint_command(chance: random.Random) -> list[str]:
    return chance.choice(
        [
            ["sample", "bad.pt", "-length", "3", "-gpuid", "-1"],
            ["sample", "bad.pt", "-length", "3", "-gpuid", "-1", "-primetext", "The"],
            ["eval", "bad.pt", "-text", "data/input.txt", "-gpuid", "-1"],
            ["eval", "bad.pt", "-data_dir", "data", "-gpuid", "-1"],
            ["train", "-resume", "bad.pt", "-max_epochs", "0.15", "-data_dir", "data", "-checkpoint_dir", "cv"],
            ["train", "-init_from", "bad.pt", "-data_dir", "data", *SMALL],
        ]
    )


def checkpoint_bytes(chance: random.Random) -> tuple[list[str], bytes]:
    Path("bad.pt").write_bytes(broken(Path("honest.pt").read_bytes(), chance))
    return checkpoint_command(chance), b""


def checkpoint_content(chance: random.Random) -> tuple[list[str], bytes]:
    content = torch.load("honest.pt", weights_only=True)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        content = altered(content, chance)
    torch.save(content, "bad.pt")
    return checkpoint_command(chance), b""


def checkpoint_member(chance: random.Random) -> tuple[list[str], bytes]:
    """Break one member and give it a valid checksum."""
    with zipfile.ZipFile("honest.pt") as whole, zipfile.ZipFile("bad.pt", "w") as archive:
        target = chance.choice(["archive/data.pkl", "archive/data.pkl", *whole.namelist()])
        for name in whole.namelist():
            data = whole.read(name)
            archive.writestr(name, broken(data, chance) if name == target else data)
    return checkpoint_command(chance), b""


def text(chance: random.Random) -> tuple[list[str], bytes]:
    shutil.rmtree("text", ignore_errors=True)
    Path("text").mkdir()
    data = chance.choice(TEXTS)
    if chance.random() < 0.5:
        data = broken(data * chance.choice((1, 3)), chance)
    Path("text/input.txt").write_bytes(data)
    encoding = chance.choice(("utf-8", "bytes"))
    return ["train", "-data_dir", "text", "-encoding", encoding, *SMALL, "-val_frac", "0.05"], b""


def scored_text(chance: random.Random) -> tuple[list[str], bytes]:
    data = broken(chance.choice([*TEXTS, SONG.encode()]), chance)
    Path("scored.txt").write_bytes(data)
    return ["eval", "honest.pt", "-gpuid", "-1", "-text", chance.choice(("scored.txt", "-"))], data


def prime_text(chance: random.Random) -> tuple[list[str], bytes]:
    data = broken(chance.choice([*TEXTS, SONG.encode()]), chance)
    return ["sample", "honest.pt", "-gpuid", "-1", "-length", "3", "-primetext"], data


def cached(chance: random.Random) -> tuple[list[str], bytes]:
    """Break the vocabulary or the token ids that an earlier run left next to the text."""
    if not Path("cached/vocab.json").exists():
        shutil.copytree("data", "cached", dirs_exist_ok=True)
    for name in ("vocab.json", "input.npy"):
        shutil.copy(Path("data") / name, Path("cached") / name)
    path = Path("cached") / chance.choice(("vocab.json", "input.npy"))
    if path.suffix == ".json" and chance.random() < 0.5:
        record = json.loads(path.read_bytes())
        del record["sha256"]
        record = altered(record, chance)
        path.write_bytes(cache.seal(record) if isinstance(record, dict) else json.dumps(record).encode())
    else:
        path.write_bytes(broken(path.read_bytes(), chance))
    return ["train", "-data_dir", "cached", *SMALL], b""


def config(chance: random.Random) -> tuple[list[str], bytes]:
    own = {"depth": 2, "reset_after": 1, "unheard_of": 1, "": 1, "rnn-size": 8}
    names = [*training_options(), *own]
    safe = [name for name in names if name not in ("data_dir", "checkpoint_dir", "max_epochs", "log_dir", "input")]
    values = {name: chance.choice(ODD) for name in chance.sample(safe, chance.choice((1, 1, 2, 4)))}
    if chance.random() < 0.3:
        values["model"] = chance.choice(("lstm", "gru", "rnn", "rhn", "grid_lstm"))
    data = "".join(f"{json.dumps(name)} = {toml(value)}\n" for name, value in values.items()).encode(
        "utf-8", "surrogatepass"
    )
    if chance.random() < 0.3:
        data = broken(data, chance)
    if chance.random() < 0.05:
        data = chance.choice((b"a = " + b"[" * 20_000, b"rnn_size = " + b"9" * 9000, b"\xff", *TEXTS))
    Path("bad.toml").write_bytes(data)
    rest = ["-data_dir", "data", "-checkpoint_dir", "cv", "-max_epochs", "0.05", "-batch_size", "2", "-seq_length", "8"]
    return ["train", "-config", "bad.toml", *rest], b""


def toml(value: Any) -> str:
    """Return a value in TOML, or something close to it."""
    if isinstance(value, float):
        return {"Infinity": "inf", "-Infinity": "-inf", "NaN": "nan"}.get(json.dumps(value), repr(value))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(k))} = {toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)


KINDS: dict[str, Callable[[random.Random], tuple[list[str], bytes]]] = {
    "checkpoint, its bytes": checkpoint_bytes,
    "checkpoint, its content": checkpoint_content,
    "checkpoint, a member": checkpoint_member,
    "text": text,
    "scored text": scored_text,
    "prime text": prime_text,
    "vocabulary and tokens": cached,
    "config": config,
}
