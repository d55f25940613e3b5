"""Running the real command in a real process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SONG = "The quick brown fox jumps over the lazy dog, and the dog sleeps on.\n"


def environment(**more: str) -> dict[str, str]:
    """The environment with one thread, no colour and a plain terminal width."""
    return os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "100"} | more


def charrnn(
    *args: object, cwd: Path, code: int = 0, stdin: bytes = b"", **env: str
) -> subprocess.CompletedProcess[bytes]:
    """Run ``charrnn ARGS`` in ``cwd`` and check its exit code."""
    words = [sys.executable, "-m", "charrnn", *map(str, args)]
    done = subprocess.run(words, cwd=cwd, input=stdin, capture_output=True, env=environment(**env), timeout=300)
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout.decode()}\n{done.stderr.decode()}"
    return done


def one_line(done: subprocess.CompletedProcess[bytes]) -> str:
    """The single line on stderr that a user's mistake leads to."""
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def write_text(folder: Path, text: str = SONG * 80) -> Path:
    """A data folder with that input.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "input.txt").write_text(text, encoding="utf-8", newline="")
    return folder


# a model small enough to train in moments
SMALL: tuple[object, ...] = (
    "-gpuid",
    -1,
    "-rnn_size",
    16,
    "-num_layers",
    1,
    "-batch_size",
    4,
    "-seq_length",
    16,
    "-learning_rate",
    0.01,
)
SMALL += ("-kernels", "torch")  # or the faster, which changes from run to run
