"""Run the real command, in a new process or in this one."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import select
import signal
import subprocess
import sys
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path
from struct import pack
from termios import TIOCSWINSZ
from unittest.mock import patch

import torch

from charrnn.cli import main as cli

SONG = "The quick brown fox jumps over the lazy dog, and the dog sleeps on.\n"


def environment(**more: str) -> dict[str, str]:
    """Return the environment with one thread, no colour and 100 columns."""
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
    """Exit code and output of a command that ran in this process."""

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


class Terminal(io.TextIOWrapper):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def run(folder: Path, *args: object, code: int | None = 0, stdin: bytes = b"", terminal: bool = False) -> Done:
    """Run ``charrnn ARGS`` in ``folder`` and in this process, which is much faster, and check its exit code.

    With a code of None, any exit code is allowed. With ``terminal``, stdout claims to be a terminal. Restores the
    folder, the streams, the environment, the signal handlers and the number of threads.
    """
    streams, threads = (sys.stdin, sys.stdout, sys.stderr), torch.get_num_threads()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    out, err = io.BytesIO(), io.BytesIO()
    ours = (
        io.TextIOWrapper(io.BytesIO(stdin)),
        (Terminal if terminal else io.TextIOWrapper)(out, "utf-8", write_through=True),
        io.TextIOWrapper(err, "utf-8", "backslashreplace", write_through=True),
    )
    try:
        sys.stdin, sys.stdout, sys.stderr = ours
        with contextlib.chdir(folder), patch.dict(os.environ):
            returned = cli.run([str(arg) for arg in args])
    finally:
        sys.stdin, sys.stdout, sys.stderr = streams
        torch.set_num_threads(threads)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    done = Done(returned, out.getvalue(), err.getvalue())
    assert code is None or returned == code, f"exit code {returned}\n{done.out.decode()}\n{done.err.decode()}"
    return done


def on_a_terminal(folder: Path, *args: object, columns: int = 80, **env: str) -> tuple[int, str]:
    """Run ``charrnn ARGS`` on a terminal with this many columns. Return its exit code and the terminal's output."""
    leader, follower = pty.openpty()
    ioctl(follower, TIOCSWINSZ, pack("HHHH", 24, columns, 0, 0))
    words = [sys.executable, "-m", "charrnn", *map(str, args)]
    clean = {name: value for name, value in environment(**{"TERM": "xterm"} | env).items() if name != "COLUMNS"}
    with subprocess.Popen(words, cwd=folder, stdin=follower, stdout=follower, stderr=follower, env=clean) as process:
        os.close(follower)
        output = b""
        while select.select([leader], [], [], 120)[0]:
            try:
                chunk = os.read(leader, 65536)
            except OSError:  # on Linux, this error means that the other end is closed
                break
            if not chunk:
                break
            output += chunk
    os.close(leader)
    return process.returncode, output.decode()


ASK = """
import os, sys, json, runpy
from charrnn.cli import main as cli
try:
    cli.run()
except SystemExit:
    pass
print("torch" in sys.modules)
"""


def complete(line: str, cwd: Path) -> list[str]:
    """Return the completions of the last word of a command line. Fail if torch was loaded."""
    words = line.split(" ")
    env = environment(COMP_WORDS=line, COMP_CWORD=str(len(words) - 1), _CHARRNN_COMPLETE="bash_complete")
    done = subprocess.run([sys.executable, "-c", ASK], cwd=cwd, env=env, capture_output=True, timeout=60)
    assert done.stderr == b""
    *items, torch_is_there = done.stdout.decode().splitlines()
    assert torch_is_there == "False"
    return items


def one_line(done: subprocess.CompletedProcess[bytes] | Done) -> str:
    """Return the only line on stderr. Fail if there is not exactly one."""
    lines = (done.err if isinstance(done, Done) else done.stderr).decode().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def write_text(folder: Path, text: str = SONG * 80) -> Path:
    """Write a text to input.txt in a data folder. Return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "input.txt").write_text(text, encoding="utf-8", newline="")
    return folder


# flags of a model that trains in seconds
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
SMALL += ("-kernels", "torch")  # auto would choose the faster kernels, which can differ from run to run
QUICK = (*SMALL, "-print_every", 10**6, "-sample_length", 0)  # SMALL, with little output
