"""Kill training runs again and again, and check that they end with the same result (test_faults, test_soak)."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.checkpoints.folder import find_newest
from charrnn.files import UNFINISHED
from tests.helpers.command import SMALL, SONG, write_text
from tests.helpers.runs import same_run

# a server that has torch loaded forks a real process for each run, which is fast
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["tests.helpers.kills", "charrnn.training.run", "charrnn.cli.train", "charrnn.cli.display", "torch._dynamo"]
)
TIMEOUT = 60.0  # in seconds, far longer than anything here takes
RUN = (
    *("train", "-data_dir", "data", *SMALL, "-threads", 1, "-max_epochs", 6, "-eval_val_every", 40, "-save_every", 7),
    *("-dropout", 0.2, "-learning_rate_decay_after", 1, "-learning_rate_decay", 0.8, "-sample_length", 20),
)


def work(arguments: list[str], folder: str, slow: float, prepare: Callable[[], None] | None) -> None:
    """Run the command in ``folder``, in the new process. Its output goes to log.txt.

    Every fsync of a checkpoint takes ``slow`` seconds longer.
    """
    os.chdir(folder)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if slow:
        fsync = os.fsync

        def late(file: Any, /) -> None:
            if ".pt." in os.readlink(f"/proc/self/fd/{file}"):
                time.sleep(slow)
            fsync(file)

        os.fsync = late
    if prepare:
        prepare()
    from charrnn.cli.main import run

    code = run(arguments)
    os._exit(code)


def start(folder: Path, *args: object, slow: float = 0.0, prepare: Callable[[], None] | None = None) -> BaseProcess:
    """Start a process that runs ``charrnn ARGS`` in ``folder``."""
    (folder / "log.txt").unlink(missing_ok=True)
    process = SERVER.Process(target=work, args=([str(arg) for arg in args], str(folder), slow, prepare))
    process.daemon = True  # so that a failing test leaves no process behind
    process.start()
    return process


def output(folder: Path) -> str:
    try:
        return (folder / "log.txt").read_text(errors="replace")
    except FileNotFoundError:
        return ""


def wait_until(happened: Callable[[], bool], process: BaseProcess) -> bool:
    """Wait until the condition holds or the process ends. Return whether it held."""
    end = time.monotonic() + TIMEOUT
    while not happened():
        if not process.is_alive():
            return happened()
        assert time.monotonic() < end, "the condition never held"
        time.sleep(0.001)
    return True


def wait_for_iteration(process: BaseProcess, folder: Path, times: int = 1) -> bool:
    return wait_until(lambda: output(folder).count("train_loss") >= times, process)


def unfinished(folder: Path) -> list[Path]:
    """Return the temporary files of saves in progress, or interrupted by a kill."""
    return list(folder.glob(f".*{UNFINISHED}"))


def finish(process: BaseProcess) -> int:
    """Wait for the process to end. Return its exit code, negative for a signal."""
    process.join(TIMEOUT)
    assert process.exitcode is not None, "the process did not end"
    return process.exitcode


@dataclass
class Kills:
    """Outcome of many kills."""

    kills: int = 0
    inside: int = 0  # kills during a save
    iterations: list[int] = field(default_factory=list)  # the iteration at which each resumed run continued


def newest(folder: Path) -> Checkpoint:
    """Return the checkpoint that -resume would use; also load all others to check that they are whole."""
    for path in folder.glob("*.pt"):
        Checkpoint.load(path)
    return Checkpoint.load(find_newest(folder))


def survive(folder: Path, kills: int, seed: int) -> Kills:
    """Train once undisturbed and once with up to ``kills`` kills, half of them aimed at saves on a slow disk.

    There are fewer kills if the run ends first. Raises AssertionError unless every checkpoint on the way is whole and
    both runs end with the same result.
    """
    chance = random.Random(seed)
    whole, parts = folder / "whole", folder / "parts"
    for place in (whole, parts):
        write_text(place / "data", SONG * 60)
    assert finish(start(whole, *RUN)) == 0, output(whole)
    result = Kills()
    while result.kills < kills:
        process = start(parts, *start_or_resume(parts), slow=0.03)
        assert wait_for_iteration(process, parts), output(parts)
        if chance.random() < 0.5:
            wait_until(lambda: bool(unfinished(parts / "cv")), process)
            time.sleep(chance.uniform(0, 0.03))
        else:
            time.sleep(chance.uniform(0, 0.3))
        if not process.is_alive():
            break
        os.kill(process.pid or 0, signal.SIGKILL)
        assert finish(process) == -signal.SIGKILL
        result.kills += 1
        result.inside += bool(unfinished(parts / "cv"))
        if list((parts / "cv").glob("*.pt")):
            result.iterations.append(newest(parts / "cv").training["iteration"])
    assert finish(process if result.kills < kills else start(parts, *start_or_resume(parts))) == 0, output(parts)
    assert not unfinished(parts / "cv"), "leftovers of killed processes must be removed"
    same_run(last_of(whole / "cv"), last_of(parts / "cv"))
    return result


def start_or_resume(folder: Path) -> tuple[object, ...]:
    """Return the command that resumes the run in a folder, or starts it if nothing has been saved yet."""
    return ("train", "-resume", "cv") if list((folder / "cv").glob("*.pt")) else RUN


def last_of(folder: Path) -> Path:
    """Return the final checkpoint of a run."""
    return max(folder.glob("lm_*_epoch*.pt"), key=lambda path: path.stat().st_mtime_ns)
