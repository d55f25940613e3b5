"""Invalid values of every flag of every command are refused in one line before anything is written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from charrnn import registry
from charrnn.cli import main as cli
from charrnn.cli.flags import Flag
from charrnn.settings.option import Option
from tests.helpers.command import SMALL, SONG, run, write_text

NUMBERS = ["x", "", "nan", "-inf", "inf", "1e999", "-1", "0", "1.5", "1" * 30, "9" * 5000, "-" + "9" * 30, "0x10", "２"]
VALUES = {int: NUMBERS, float: NUMBERS, bool: ["x", "", "2", "-1", "nan", "0.5"], str: ["", "nosuch", "a/b/c", "\n"]}
# brings the model's own flags; harmless for other models
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
    from charrnn.errors import UserError

    for _, _, option in flags():
        if option.type in (int, float) and not (option.optional and value == ""):
            with pytest.raises(UserError):
                option.convert(value)
