"""Invalid values of every flag of every command are refused in one line before anything is written."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from charrnn import registry
from charrnn.cli import main as cli
from charrnn.cli.flags import Flag
from charrnn.errors import UserError
from charrnn.settings.option import Option
from tests.helpers.command import SMALL, SONG, run, write_text

NUMBERS = ["x", "", "nan", "-inf", "inf", "1e999", "-1", "0", "1.5", "1" * 30, "9" * 5000, "-" + "9" * 30, "0x10", "２"]
VALUES = {int: NUMBERS, float: NUMBERS, bool: ["x", "", "2", "-1", "nan", "0.5"], str: ["", "nosuch", "a/b/c", "\n"]}
# other arguments that make each command valid
BASE = {
    "train": ["-data_dir", "data", *map(str, SMALL), "-max_epochs", "0.02", "-sample_length", "3", "-threads", "1"],
    "sample": ["one.pt", "-gpuid", "-1", "-length", "3"],
    "eval": ["one.pt", "-gpuid", "-1", "-text", "data/input.txt"],
}
CONFLICTS = [
    ["train", "-train_frac", "0.9", "-val_frac", "0.2"],
    ["train", "-resume", "one.pt", "-init_from", "one.pt"],
    ["train", "-resume", "one.pt", "-rnn_size", "9"],
    ["train", "-resume", "one.pt", "-model", "gru"],
    ["train", "-resume", "one.pt", "-seed", "9"],
]


def flags() -> Iterator[tuple[str, list[str], Option]]:
    """Yield each command with its other arguments and one of its flags, the models' own included."""
    for name in cli.COMMANDS:
        command = cli.cli.get_command(click.Context(cli.cli), name)
        assert command is not None
        for flag in command.params:
            if isinstance(flag, Flag):
                yield name, BASE.get(name, []), flag.option
    for model in registry.models():
        for option in registry.find(model).options.values():
            yield "train", [*BASE["train"], "-model", model], option


def cases() -> Iterator[object]:
    for command, base, option in flags():
        for value in [*VALUES[option.type], *(["nosuch"] if option.choices else [])]:
            rest = list(base)
            if f"-{option.name}" in rest:
                at = rest.index(f"-{option.name}")
                del rest[at : at + 2]
            shown = value if len(value) < 12 else f"{value[:4]}...{len(value)}"
            name = f"{command} {base[-1] if '-model' in base else ''} {option.name} {shown!r}"
            yield pytest.param([command, *rest, f"-{option.name}={value}"], id=name)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a text, a checkpoint and the user's cache."""
    folder = tmp_path_factory.mktemp("flags")
    write_text(folder / "data", SONG * 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        run(folder, "train", *BASE["train"])
        next((folder / "cv").glob("*epoch*.pt")).rename(folder / "one.pt")
        clean(folder)
        yield folder


def clean(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.name not in ("one.pt", "input.txt", "data"):
            path.rmdir() if path.is_dir() else path.unlink()


def check(folder: Path, args: list[str], may_work: bool) -> None:
    """Check that a command is refused in one line before it writes anything. With ``may_work``, it may also succeed."""
    before = sorted(folder.rglob("*"))
    done = run(folder, *args, code=None)
    lines = done.err.decode(errors="replace").splitlines()
    if done.code == 0 and may_work:
        clean(folder)
        return
    assert done.code in (1, 2), (done.code, lines)
    messages = [line for line in lines if line.startswith("charrnn")]
    assert len(messages) == 1 and lines[-1] == messages[0], lines
    assert len(messages[0]) < 1000
    assert done.out == b""
    left = sorted(folder.rglob("*"))
    clean(folder)
    assert left == before, "a refused command must write nothing"


@pytest.mark.parametrize("args", list(cases()))
def test_every_value_of_every_flag_works_or_is_refused_in_one_line(place: Path, args: list[str]) -> None:
    check(place, args, may_work=True)


@pytest.mark.parametrize("args", CONFLICTS, ids=" ".join)
def test_flags_that_cannot_be_combined_are_refused_in_one_line(place: Path, args: list[str]) -> None:
    check(place, args, may_work=False)


SENSELESS = [value for value in NUMBERS if value not in ("-1", "0", "1.5", "1" * 30, "-" + "9" * 30, "２")]


@pytest.mark.parametrize("value", SENSELESS)
def test_every_flag_that_takes_a_number_refuses_anything_else(value: str) -> None:
    """Guards the test of every value, which would pass if every value were accepted."""
    for _, _, option in flags():
        if option.type in (int, float) and not (option.optional and value == ""):
            with pytest.raises(UserError):
                option.convert(value)


INT32, INT64, FLOAT32 = 2**31 - 1, 2**63 - 1, 3.4e38
# the interval of every numeric flag: [ and ] include the end, ( and ) exclude it
INTERVALS: dict[str, dict[str, tuple[str, float, float, str]]] = {
    "train": {
        "train_frac": ("(", 0, 1, "]"), "val_frac": ("[", 0, 1, "]"),
        "rnn_size": ("[", 1, 2**20, "]"), "num_layers": ("[", 1, 1000, "]"), "dropout": ("[", 0, 1, ")"),
        "learning_rate": ("[", 0, FLOAT32, "]"), "learning_rate_decay": ("(", 0, 1, "]"),
        "learning_rate_decay_after": ("[", 0, INT64, "]"), "warm_up": ("[", 0, 1, ")"),
        "plateau_factor": ("(", 0, 1, ")"), "plateau_patience": ("[", 1, INT32, "]"),
        "decay_rate": ("[", 0, 1, ")"), "beta1": ("[", 0, 1, ")"), "beta2": ("[", 0, 1, ")"),
        "seq_length": ("[", 1, INT32, "]"), "batch_size": ("[", 1, INT32, "]"), "max_epochs": ("(", 0, 1e9, "]"),
        "early_stop": ("[", 0, INT64, "]"), "grad_clip": ("[", 0, FLOAT32, "]"),
        "max_grad_norm": ("[", 0, FLOAT32, "]"), "weight_decay": ("[", 0, FLOAT32, "]"),
        "seed": ("[", 0, INT64, "]"), "print_every": ("[", 1, INT32, "]"), "eval_val_every": ("[", 1, INT32, "]"),
        "save_every": ("[", 0, INT64, "]"), "save_minutes": ("[", 0, FLOAT32, "]"), "keep": ("[", 0, INT64, "]"),
        "sample_length": ("[", 0, 10**6, "]"), "gpuid": ("[", -1, INT64, "]"), "threads": ("[", 0, 1024, "]"),
        # rhn's own flags, whose values the model checks itself
        "depth": ("[", -INT64, INT64, "]"), "init_bias": ("[", -FLOAT32, FLOAT32, "]"),
        "init_scale": ("[", -FLOAT32, FLOAT32, "]"), "drop_x": ("[", -FLOAT32, FLOAT32, "]"),
        "drop_i": ("[", -FLOAT32, FLOAT32, "]"), "drop_h": ("[", -FLOAT32, FLOAT32, "]"),
        "drop_o": ("[", -FLOAT32, FLOAT32, "]"),
    },
    "sample": {
        "length": ("[", 0, INT64, "]"), "num_samples": ("[", 1, INT32, "]"), "seed": ("[", 0, INT64, "]"),
        "temperature": ("[", -FLOAT32, FLOAT32, "]"), "top_k": ("[", 0, INT64, "]"), "top_p": ("(", 0, 1, "]"),
        "beam": ("[", 0, INT64, "]"), "gpuid": ("[", -1, INT64, "]"),
    },
    "eval": {
        "batch_size": ("[", 1, INT32, "]"), "mc_samples": ("[", 0, INT64, "]"), "seed": ("[", 0, INT64, "]"),
        "dynamic": ("[", 0, FLOAT32, "]"), "gpuid": ("[", -1, INT64, "]"),
    },
    "novelty": {
        "train_frac": ("(", 0, 1, "]"), "val_frac": ("[", 0, 1, "]"), "seq_length": ("[", 1, INT32, "]"),
        "batch_size": ("[", 1, INT32, "]"), "length": ("[", 1, INT32, "]"), "temperature": ("(", 0, FLOAT32, "]"),
        "seed": ("[", 0, INT64, "]"), "gpuid": ("[", -1, INT64, "]"),
    },
    "prepare": {
        "digit_length": ("[", 1, 1000, "]"), "examples": ("[", 1, INT32, "]"), "val_examples": ("[", 1, INT32, "]"),
        "seed": ("[", 0, INT64, "]"),
    },
    "plot": {"smooth": ("[", 0, INT64, "]")},
}  # fmt: skip


def test_the_table_of_intervals_has_every_numeric_flag() -> None:
    numbers = {(command, option.name) for command, _, option in flags() if option.type in (int, float)}
    assert numbers == {(command, name) for command, table in INTERVALS.items() for name in table}


@pytest.mark.parametrize(("command", "option"), [
    pytest.param(command, option, id=f"{command} {option.name}")
    for command, _, option in flags()
    if option.type in (int, float)
])  # fmt: skip
def test_the_ends_of_every_interval_are_accepted_or_refused_as_the_table_says(command: str, option: Option) -> None:
    left, low, high, right = INTERVALS[command][option.name]

    def next_to(end: float, direction: int) -> float:
        """Return the next number in a direction."""
        return end + direction if option.type is int else math.nextafter(end, direction * math.inf)

    inside = [low if left == "[" else next_to(low, 1), high if right == "]" else next_to(high, -1)]
    outside = [next_to(low, -1) if left == "[" else low, next_to(high, 1) if right == "]" else high]
    for value in inside:
        assert option.convert(value) == option.convert(repr(value)) == value
    for value in outside:
        for given in (value, repr(value)):
            with pytest.raises(UserError, match=rf"^-{option.name} \S+: must be "):
                option.convert(given)
