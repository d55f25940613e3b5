"""Output that cannot be written, and escaping of words from files."""

from __future__ import annotations

import ast
import errno
import io
import lzma
import os
import shlex
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import charrnn as package
from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.checkpoints.folder import find_best, find_newest
from charrnn.cli.streams import is_full
from tests.helpers.command import SMALL, charrnn, environment, on_a_terminal, write_text

TRAIN = ("train", "-data_dir", "data", *SMALL, "-max_epochs", 0.2, "-print_every", 1, "-sample_length", 5)
EVIL = "\x1b[2J\x9b31m\u202e"
RNN = Path(__file__).parent.parent / "checkpoints/t7/rnn_2x32.t7.xz"
LINE_ENDS = {"\r", "\n", "\t"}


def in_a_shell(folder: Path, *args: object, code: int = 0, redirected: str) -> str:
    """Run ``charrnn ARGS`` with redirections, check its exit code, and return what was not redirected."""
    words = f"{shlex.join([sys.executable, '-m', 'charrnn', *map(str, args)])} {redirected}"
    done = subprocess.run(["bash", "-c", words], cwd=folder, capture_output=True, env=environment(), timeout=120)
    assert done.returncode == code, done.stderr.decode()
    return (done.stdout + done.stderr).decode()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    write_text(folder / "data")
    charrnn(*TRAIN, cwd=folder)
    return folder


# --- output that cannot be written ------------------------------------------------------------------------------------


def test_a_full_disk_behind_stdout_does_not_end_training(trained: Path, tmp_path: Path) -> None:
    write_text(tmp_path / "data")
    first, *rest = in_a_shell(tmp_path, *TRAIN, redirected=">/dev/full").splitlines()
    assert first.startswith("lstm with ")
    assert rest == ["cannot write to stdout: No space left on device; training continues without printing"]
    ends = [Checkpoint.load(find_newest(folder / "cv")).training["losses"] for folder in (tmp_path, trained)]
    assert len(ends[0]) == len(ends[1])


def test_a_full_disk_behind_stderr_loses_only_notes(trained: Path, tmp_path: Path) -> None:
    write_text(tmp_path / "data")
    assert "to sample from it" in in_a_shell(tmp_path, *TRAIN, redirected="2>/dev/full")
    in_a_shell(tmp_path, *TRAIN, redirected=">/dev/full 2>&1")
    assert len(in_a_shell(trained, "sample", "cv", "-gpuid", -1, "-length", 5, redirected="2>/dev/full")) == 6


def test_a_full_disk_is_an_error_if_the_output_is_the_result_of_the_command(trained: Path) -> None:
    for words in (("eval", "cv", "-gpuid", -1), ("inspect", "cv"), ("sample", "cv", "-gpuid", -1)):
        assert "cannot write the output" in in_a_shell(trained, *words, code=1, redirected=">/dev/full")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_commands_work_with_closed_streams(tmp_path: Path, closed: str) -> None:
    write_text(tmp_path / "data")
    in_a_shell(tmp_path, *TRAIN, redirected=closed)
    before = {path: path.read_bytes() for path in (tmp_path / "cv").glob("*.pt")}
    assert before and all(Checkpoint.load(path) for path in before)
    in_a_shell(tmp_path, "sample", "cv", "-gpuid", -1, "-length", 5, redirected=closed)


def test_an_error_of_a_terminal_or_a_pipe_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    leader, follower = os.openpty()
    with open(follower, "w") as terminal, (tmp_path / "log").open("w") as file:
        broken = OSError(errno.EIO, "Input/output error")
        assert not is_full(terminal, broken)
        assert is_full(file, broken)
        assert not is_full(terminal, BrokenPipeError(errno.EPIPE, "Broken pipe"))
    os.close(leader)


# --- words from files -------------------------------------------------------------------------------------------------


def harmless(folder: Path, *args: object, code: int = 0, quoted: str = r"\x1b[2J", **env: str) -> str:
    """Run a command on a terminal and return its output. Fail if ``quoted`` is missing or a control character occurs.

    With TERM=dumb the command sends no escape sequences of its own.
    """
    returned, shown = on_a_terminal(folder, *args, columns=400, **{"TERM": "dumb"} | env)
    assert returned == code, shown
    assert quoted in shown, shown
    assert all(c.isprintable() or c in LINE_ENDS for c in shown), ascii(shown)
    return shown


def changed(trained: Path, to: Path, **options: Any) -> Path:
    """Save the newest checkpoint with changed settings, as a stranger might."""
    saved = Checkpoint.load(find_newest(trained / "cv"))
    return replace(saved, options=replace(saved.options, **options)).save(to)


def number(key: bytes) -> bytes:
    """Return the beginning of a .t7 table entry whose value is a number."""
    return struct.pack("<ii", 2, len(key)) + key + struct.pack("<i", 1)


def text(key: bytes, value: bytes) -> bytes:
    """Return a .t7 table entry whose value is four bytes of text, which is as long as an entry with a number."""
    return struct.pack("<ii", 2, len(key)) + key + struct.pack("<ii", 2, 4) + value


def with_text(key: bytes) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        start = data.index(number(key))
        return data[:start] + text(key, b"\x1b[2J") + data[start + len(number(key)) + 8 :]

    return change


def named(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    assert len(old) == len(new)
    return lambda data: data.replace(old, new)


IMPORTED: dict[str, tuple[Callable[[bytes], bytes], int, str]] = {
    "a setting with a default": (with_text(b"seed"), 0, r"-seed \x1b[2J"),
    "a required setting": (with_text(b"rnn_size"), 1, "rnn_size"),
    "the model": (named(b"\3\0\0\0rnn\2", b"\3\0\0\0\x1b[m\2"), 1, r"model \x1b[m"),
    "a class": (named(b"torch.DoubleTensor", b"torch.D\xaa\xaa\xaa\xaa\xaaTensor"), 1, "old.t7"),
}


@pytest.mark.parametrize("name", IMPORTED)
def test_words_of_an_imported_file_do_not_control_the_terminal(tmp_path: Path, name: str) -> None:
    change, code, quoted = IMPORTED[name]
    data = change(lzma.decompress(RNN.read_bytes()))
    assert data != lzma.decompress(RNN.read_bytes())
    (tmp_path / "old.t7").write_bytes(data)
    harmless(tmp_path, "import", "old.t7", "new.pt", code=code, quoted=quoted)


def test_names_of_files_do_not_control_the_terminal(trained: Path, tmp_path: Path) -> None:
    folder = write_text(tmp_path / f"data{EVIL}", "The song\r\n" * 900)
    own = tmp_path / f"cv{EVIL}"
    common = (*SMALL, "-max_epochs", 0.5, "-eval_val_every", 20, "-sample_length", 5)
    harmless(tmp_path, "train", "-data_dir", folder.name, *common, "-checkpoint_dir", own.name)
    harmless(tmp_path, "train", "-resume", own.name, "-max_epochs", 0.6)
    saved = find_best(own)
    (tmp_path / f"{EVIL}.txt").write_text("The song\r\n" * 9)
    harmless(tmp_path, "eval", saved, "-gpuid", -1, "-text", f"{EVIL}.txt")
    harmless(tmp_path, "novelty", saved, "-length", 200, "-gpuid", -1)
    harmless(tmp_path, "inspect", saved)
    harmless(tmp_path, "plot", "-text", own, quoted="lstm")
    harmless(tmp_path, "plot", "-text", f"{EVIL}.txt", code=1)
    harmless(tmp_path, "import", "none", f"{EVIL}/x", code=1, quoted="none")
    (tmp_path / "old.t7").write_bytes(lzma.decompress(RNN.read_bytes()))
    harmless(tmp_path, "import", "old.t7", f"{EVIL}.pt")


def test_settings_of_a_resumed_checkpoint_do_not_control_the_terminal(trained: Path, tmp_path: Path) -> None:
    write_text(tmp_path / "data")
    one = changed(trained, tmp_path / "one.pt", savefile=EVIL, checkpoint_dir=f"cv{EVIL}", max_epochs=0.4)
    harmless(tmp_path, "train", "-resume", one, "-print_config", quoted=r"\u001b[2J\U0000009b31m\U0000202e")
    harmless(tmp_path, "train", "-resume", one)


def test_the_live_display_escapes_what_it_shows(trained: Path, tmp_path: Path) -> None:
    write_text(tmp_path / "data")
    one = changed(trained, tmp_path / "one.pt", savefile=EVIL, max_epochs=0.4)
    _, shown = on_a_terminal(tmp_path, "train", "-resume", one, columns=200)
    assert r"lm_\x1b[2J\x9b31m\u202e_" in shown
    assert "\x1b[2J" not in shown and "\x9b" not in shown and "\u202e" not in shown


MINE = r'''"""Mine."""

from torch import nn


class Mine(nn.Linear):
    def forward(self, ids, state):
        raise ValueError("\x1b[2J\x9b")


def create(input_size, rnn_size, num_layers, dropout):
    return Mine(input_size, input_size)
'''


def test_a_models_own_error_does_not_control_the_terminal(trained: Path, tmp_path: Path) -> None:
    write_text(tmp_path / "data")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/mine.py").write_text(MINE)
    shown = harmless(tmp_path, "train", "-model", "mine", "-data_dir", "data", "-gpuid", -1, code=1)
    assert "ValueError" in shown


def test_only_one_module_prints_and_only_one_function_builds_text_for_the_display() -> None:
    """Any other way to a terminal would skip the escaping."""
    for path in Path(package.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
        if path.name != "streams.py":
            assert not {"print", "click.echo", "sys.stdout.write", "sys.stderr.write"} & set(calls), path
        if path.name == "display.py":
            assert calls.count("Text") == 2, "only in escaped() and, empty, in surprise()"
            assert not [call for call in calls if call.startswith("Text.")]


def test_a_very_long_name_in_a_file_is_shortened(trained: Path, tmp_path: Path) -> None:
    one = changed(trained, tmp_path / "one.pt", model="a" * 10**6)
    said = charrnn("sample", one, cwd=tmp_path, code=1).stderr.decode()
    assert "charrnn: unknown model aaa" in said and "aaa ... " in said and len(said) < 11_000


def test_a_log_is_escaped_even_in_a_file(trained: Path, tmp_path: Path) -> None:
    write_text(tmp_path / "data")
    one = changed(trained, tmp_path / "one.pt", savefile=EVIL, max_epochs=0.4)
    log = io.StringIO(charrnn("train", "-resume", one, cwd=tmp_path).stdout.decode()).read()
    assert r"\x1b[2J" in log and "\x1b" not in log, "tail -f would show it on a terminal"
