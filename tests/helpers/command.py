"""Run the real command, in a process of its own or in this one."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from charrnn.cli import main as cli

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


@dataclass(frozen=True)
class Done:
    """How a command that ran in this process ended."""

    code: int
    out: bytes
    err: bytes

    @property
    def lines(self) -> list[str]:
        """The lines on stdout."""
        return self.out.decode().splitlines()

    @property
    def errors(self) -> list[str]:
        """The lines on stderr."""
        return self.err.decode().splitlines()


def run(*args: object, cwd: Path | None = None, code: int | None = 0, stdin: bytes = b"") -> Done:
    """Run ``charrnn ARGS`` in this process, which takes far less time than to start one, and check its exit code.

    code: None allows any. The folder, the streams, the signal handlers and the number of threads are put back.
    """
    streams, threads = (sys.stdin, sys.stdout, sys.stderr), torch.get_num_threads()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    out, err = io.BytesIO(), io.BytesIO()
    ours = (
        io.TextIOWrapper(io.BytesIO(stdin)),
        io.TextIOWrapper(out, "utf-8", write_through=True),
        io.TextIOWrapper(err, "utf-8", "backslashreplace", write_through=True),
    )
    try:
        sys.stdin, sys.stdout, sys.stderr = ours
        with contextlib.chdir(cwd or Path.cwd()):
            returned = cli.run([str(arg) for arg in args])
    finally:
        sys.stdin, sys.stdout, sys.stderr = streams
        torch.set_num_threads(threads)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    done = Done(returned, out.getvalue(), err.getvalue())
    assert code is None or returned == code, f"exit code {returned}\n{done.out.decode()}\n{done.err.decode()}"
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
