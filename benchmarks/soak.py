"""Endurance: runs in real processes that are killed, stopped and starved at random end like undisturbed ones.

Each round draws a model, its settings and its disturbances from a seed, trains once undisturbed and once disturbed, and
compares the results bit for bit. ``python -m benchmarks`` does not include it:

    python -m benchmarks soak --minutes 120 --seed 1

The rounds have the seeds 1, 2, 3... A seed fixes what is done to a run, but the moment also depends on the machine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.checkpoints.folder import find_best, find_newest
from charrnn.cli.display import table
from charrnn.errors import UserError
from tests.helpers.command import SONG, write_text
from tests.helpers.kills import finish, output, start, unfinished, wait_until
from tests.helpers.rights import give_up_rights
from tests.helpers.runs import metrics, same_run

MODELS = ("lstm", "gru", "rhn")
OPTIMIZERS = {"rmsprop": 0.01, "adam": 0.01, "sgd": 0.2}  # with their learning rates
SCHEDULES = ("constant", "epoch_decay", "plateau", "cosine", "onecycle")
DISK = 16_000_000  # bytes of the small file system
WAIT = 0.12  # longest wait before a disturbance, as a share of the undisturbed run's time
COUNTED = (
    *("rounds", "processes", "resumes", "kills", "kills inside a save", "signals", "signals inside a save", "faults"),
    *("rollbacks", "checkpoints loaded", "checkpoints equal", "iterations equal"),
)


class Different(Exception):
    """A disturbed run that differs from the undisturbed one, or breaks another guarantee."""


def check(holds: bool, message: str) -> None:
    if not holds:
        raise Different(message)


def prepare(size: int, rights: bool, spoil: Callable[[], None] | None) -> None:
    """Limit the size of files unless ``size`` is 0, drop the superuser's rights, and spoil the program for a test."""
    if size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    if not rights:
        give_up_rights()
    if spoil:
        spoil()


def settings(chance: random.Random) -> list[object]:
    """Draw the flags of a run of a few hundred iterations."""
    optimizer = chance.choice(list(OPTIMIZERS))
    flags: dict[str, object] = {
        "data_dir": "data",
        "checkpoint_dir": "disk/cv",
        "gpuid": -1,
        "kernels": "torch",
        "threads": 1,
        "model": chance.choice(MODELS),
        "rnn_size": chance.randint(8, 24),
        "num_layers": chance.randint(1, 2),
        "dropout": chance.choice((0, 0.2)),
        "batch_size": 4,
        "seq_length": 16,
        "max_epochs": round(chance.uniform(8, 15), 2),
        "optimizer": optimizer,
        "learning_rate": OPTIMIZERS[optimizer],
        "lr_schedule": chance.choice(SCHEDULES),
        "learning_rate_decay_after": 1,
        "eval_val_every": chance.randint(5, 50),
        "save_every": chance.choice((0, chance.randint(3, 15), chance.randint(10, 30))),
        "save_minutes": chance.choice((0, 0.002, 10)),
        "keep": chance.choice((0, 1, 2, 3)),
        "sample_length": chance.choice((0, 20)),
        "print_every": 20,
        "seed": chance.randint(0, 1000),
    }
    if chance.random() < 0.25:  # a learning rate so high that the loss explodes
        flags |= {"optimizer": "sgd", "learning_rate": round(chance.uniform(5, 60), 1), "grad_clip": 0}
        flags |= {"lr_schedule": "constant", "dropout": 0, "on_nan": "rollback"}
    return ["train", *(word for name, value in flags.items() for word in (f"-{name}", value))]


class Round:
    """One run, undisturbed in the folder ``whole`` and disturbed in the folder ``parts``."""

    def __init__(
        self, folder: Path, seed: int, counts: Counter[str], limit: int = 20, spoil: Callable[[], None] | None = None
    ) -> None:
        self.chance = random.Random(seed)
        self.flags = settings(self.chance)
        # in random order, so that the best validation is not always the latest one
        self.text = " ".join(self.chance.choices(SONG.split(), k=800))
        self.slow = self.chance.choice((0.0, 0.01, 0.03))
        self.whole, self.parts = folder / "whole", folder / "parts"
        self.cv = self.parts / "disk" / "cv"
        self.counts = counts
        # largest number of disturbances
        self.limit = limit
        self.spoil = spoil
        # seconds of the undisturbed run
        self.seconds = 0.0
        # the iteration and the best validation loss that the disturbed run has reached
        self.iteration, self.best = 0, float("inf")
        # unfinished files that earlier processes left behind
        self.left: set[Path] = set()
        # whether lines of the metrics file may be missing, because the disk was full
        self.lossy = False

    @property
    def name(self) -> str:
        return str(self.flags[self.flags.index("-model") + 1])

    @property
    def wild(self) -> bool:
        return "-on_nan" in self.flags

    def run(self) -> None:
        """Train twice and compare. Raises Different."""
        self.train_undisturbed()
        write_text(self.parts / "data", self.text)
        ended = False
        with small_disk(self.parts / "disk"):
            for _ in range(self.limit):
                if ended := self.disturb() == 0:
                    break
            if not ended:
                self.settle(self.begin(), {0})
            self.compare()

    def train_undisturbed(self) -> None:
        write_text(self.whole / "data", self.text)
        (self.whole / "disk").mkdir()
        began = time.monotonic()
        while finish(start(self.whole, *self.flags)):
            rate = self.flags.index("-learning_rate") + 1
            check("try a lower -learning_rate" in output(self.whole), output(self.whole))
            self.flags[rate] = float(str(self.flags[rate])) / 2
            shutil.rmtree(self.whole / "disk" / "cv", ignore_errors=True)
            began = time.monotonic()
        self.seconds = time.monotonic() - began
        self.counts["rollbacks"] += output(self.whole).count("Back to iteration")

    def begin(self, size: int = 0, rights: bool = True) -> BaseProcess:
        """Start the run, or resume it if it has saved anything."""
        resumes = bool(list(self.cv.glob("*.pt")))
        self.counts["resumes"] += resumes
        self.counts["processes"] += 1
        self.left = set(unfinished(self.cv))
        words = ["train", "-resume", "disk/cv"] if resumes else self.flags
        return start(self.parts, *words, slow=self.slow, prepare=partial(prepare, size, rights, self.spoil))

    def begin_training(self) -> BaseProcess:
        """Start the run, and let it train for a random time."""
        process = self.begin()
        self.wait_for_training(process)
        self.wait(process)
        return process

    def disturb(self) -> int:
        """Train until a random disturbance. Return the exit code."""
        return self.chance.choice(KINDS)(self)

    def wait(self, process: BaseProcess) -> None:
        """Wait for a random time, or until the process ends."""
        process.join(self.chance.uniform(0, self.seconds * WAIT))

    def settle(self, process: BaseProcess, allowed: set[int]) -> int:
        """Wait for the process to end, and check its exit code and what it leaves behind. Return the exit code."""
        code = finish(process)
        text = output(self.parts)
        check(code in allowed and "Traceback" not in text, f"exit code {code}, not one of {sorted(allowed)}:\n{text}")
        loaded = {}
        for path in self.cv.glob("*.pt"):
            try:
                loaded[path.name] = Checkpoint.load(path)
            except UserError as error:
                raise Different(f"a checkpoint is damaged: {error}") from None
        self.counts["checkpoints loaded"] += len(loaded)
        if loaded:
            iteration = loaded[find_newest(self.cv).name].training["iteration"]
            check(self.wild or iteration >= self.iteration, f"went back from {self.iteration} to {iteration}")
            self.iteration = iteration
        losses = [checkpoint.val_loss for name, checkpoint in loaded.items() if "_epoch" in name]
        best = min((loss for loss in losses if loss is not None), default=self.best)
        check(best <= self.best, f"the best checkpoint was lost: {self.best} before, {best} now")
        self.best = best
        return code

    def kill(self) -> int:
        """SIGKILL at a random moment."""
        process = self.begin()
        self.wait(process)
        return self.killed(process)

    def kill_in_a_save(self) -> int:
        """SIGKILL while a checkpoint is being written or flushed."""
        process = self.begin()
        self.wait(process)
        self.wait_for_save(process)
        return self.killed(process)

    def kill_after_signal(self) -> int:
        """SIGKILL while the process saves because of a SIGTERM."""
        process = self.begin_training()
        self.send(process, signal.SIGTERM)
        self.wait_for_save(process)
        return self.killed(process)

    def killed(self, process: BaseProcess) -> int:
        self.send(process, signal.SIGKILL)
        return self.settle(process, {-signal.SIGKILL, 0, 128 + signal.SIGTERM})

    def send(self, process: BaseProcess, number: signal.Signals) -> None:
        """Send a signal and count it, unless the process has ended."""
        if not process.is_alive():
            return
        name, inside = "kills" if number == signal.SIGKILL else "signals", self.saves()
        os.kill(process.pid or 0, number)
        if number == signal.SIGKILL:  # now what it leaves behind no longer changes
            process.join()
            inside = self.saves()
        self.counts[name] += 1
        self.counts[f"{name} inside a save"] += inside

    def saves(self) -> bool:
        """Return whether the process has an unfinished file, because it is saving or was killed while saving."""
        return bool(set(unfinished(self.cv)) - self.left)

    def stop(self) -> int:
        """One signal, which must lose nothing."""
        process = self.begin_training()
        number = self.chance.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
        self.send(process, number)
        code = self.settle(process, {0, 128 + number, -number})
        check(not unfinished(self.cv), "a stopped run left an unfinished file")
        if code == 128 + number and not self.lossy:
            lines = metrics(next(self.cv.glob("*.jsonl")))
            check(lines[-1]["iteration"] == self.iteration, f"{lines[-1]} was lost: saved is {self.iteration}")
        return code

    def stop_twice(self) -> int:
        """SIGINT or SIGTERM twice, often with the second during the save that the first causes."""
        process = self.begin_training()
        number = self.chance.choice((signal.SIGINT, signal.SIGINT, signal.SIGTERM))
        self.send(process, number)
        if self.chance.random() < 0.7:
            self.wait_for_save(process)
        else:
            time.sleep(self.chance.uniform(0, 0.01))
        self.send(process, number)
        code = self.settle(process, {0, 128 + number, -number})
        if number == signal.SIGINT:
            check(not self.saves(), "a second Ctrl-C left an unfinished file")
        return code

    def full_disk(self) -> int:
        """A disk that is full at the start or fills up later, and may have room again afterwards."""
        ballast = self.parts / "disk" / "ballast"

        leave = self.chance.randint(0, 100_000)

        def fill() -> None:
            self.cv.mkdir(parents=True, exist_ok=True)
            while (size := room(self.cv) - leave) > 0:
                with ballast.open("wb") as file, suppress(OSError):  # the process has just taken some of the room
                    os.posix_fallocate(file.fileno(), 0, size)
                    return

        self.lossy = True
        if not os.path.ismount(self.parts / "disk"):
            return self.small_files()
        return self.fault(fill, partial(ballast.unlink, missing_ok=True))

    def small_files(self) -> int:
        """A limit on the size of files, which looks like a full disk."""
        self.lossy = True
        sizes = [path.stat().st_size for path in self.cv.glob("*.pt")]
        size = self.chance.randint(8_000, max([40_000, *sizes]))
        return self.fault(lambda: None, lambda: None, size=size)

    def read_only(self) -> int:
        """A checkpoint folder that nobody may write to."""
        self.cv.mkdir(parents=True, exist_ok=True)
        return self.fault(partial(self.cv.chmod, 0o555), partial(self.cv.chmod, 0o755), rights=False)

    def fault(self, on: Callable[[], object], off: Callable[[], object], size: int = 0, rights: bool = True) -> int:
        """Turn a fault on at the start or later, perhaps turn it off again, and stop or kill the process."""
        self.counts["faults"] += 1
        early = self.chance.random() < 0.5
        if early:
            on()
        process = self.begin(size, rights)
        self.wait(process)
        if not early:
            on()
        self.wait(process)
        if self.chance.random() < 0.5:
            off()
            self.wait(process)
        self.send(process, self.chance.choice((signal.SIGTERM, signal.SIGKILL)))
        finish(process)
        off()
        return self.settle(process, {0, 1, 128 + signal.SIGTERM, -signal.SIGTERM, -signal.SIGKILL})

    def changed_files(self) -> int:
        """Files that something else touches between two processes: times, metrics, cached tokens, the text."""
        self.counts["faults"] += 1
        for path in self.cv.glob("*.pt"):
            os.utime(path, (moment := self.chance.randint(1, 5) * 1e8, moment))
        for path in self.cv.glob("*.jsonl"):
            with path.open("ab") as file:
                file.write(b'{"iteration": 7, "lo')
        cache = self.parts / "data" / self.chance.choice(("input.npy", "vocab.json"))
        if cache.exists():
            self.chance.choice((cache.unlink, partial(cache.write_bytes, cache.read_bytes()[:-9])))()
        if list(self.cv.glob("*.pt")):
            text = self.parts / "data" / "input.txt"
            content = text.read_bytes()
            text.write_bytes(content.replace(b"fox", b"cat", 1))
            self.settle(self.begin(), {1})
            text.write_bytes(content)
        return self.kill()

    def wait_for_training(self, process: BaseProcess) -> None:
        """Wait until the process handles SIGTERM, which it does while it trains."""
        wait_until(lambda: catches(process, signal.SIGTERM), process)

    def wait_for_save(self, process: BaseProcess) -> None:
        """Wait for a save or the end of the process, and then for part of the time that a save takes."""
        wait_until(self.saves, process)
        time.sleep(self.chance.uniform(0, self.slow * 1.1))

    def compare(self) -> None:
        """Compare the results of both runs: final state, validated checkpoints, best checkpoint and metrics."""
        whole = self.whole / "disk" / "cv"
        check(not unfinished(self.cv), "unfinished files are left")
        pairs = {(find_newest(whole), find_newest(self.cv)), (find_best(whole), find_best(self.cv))}
        for one, two in sorted(pairs | {(path, self.cv / path.name) for path in whole.glob("lm_*_epoch*.pt")}):
            check(one.name == two.name, f"{two.name} instead of {one.name}, which the undisturbed run has")
            check(two.exists(), f"{one.name} is missing")
            try:
                same_run(one, two)
            except AssertionError as error:
                raise Different(f"{one.name} differs: {error}") from None
            self.counts["checkpoints equal"] += 1
        lines, ours = (metrics(next(folder.glob("*.jsonl"))) for folder in (whole, self.cv))
        if self.lossy:
            ours_by_iteration = {line["iteration"] for line in ours}
            check(len(ours) == len(ours_by_iteration), "the metrics file has an iteration twice")
            lines = [line for line in lines if line["iteration"] in ours_by_iteration]
        check(lines == ours, "the metrics files differ")
        self.counts["iterations equal"] += len(lines)


KINDS: tuple[Callable[[Round], int], ...] = (
    *(Round.kill, Round.kill, Round.kill_in_a_save, Round.kill_in_a_save, Round.kill_in_a_save),
    *(Round.kill_after_signal, Round.stop, Round.stop_twice, Round.stop_twice),
    *(Round.full_disk, Round.small_files, Round.read_only, Round.changed_files),
)


def room(folder: Path) -> int:
    """Return the number of free bytes."""
    free = os.statvfs(folder)
    return free.f_bavail * free.f_frsize


def catches(process: BaseProcess, number: signal.Signals) -> bool:
    """Return whether a process has a handler for a signal."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return False
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) >> (number - 1) & 1)


@contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """Mount a small file system there inside this context, if the process may."""
    place.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(place)]
    mounted = os.getuid() == 0 and not subprocess.run(mount, capture_output=True).returncode
    try:
        yield
    except BaseException:
        if mounted:  # so that you can look at the files afterwards
            shutil.copytree(place, place.with_name("kept"))
        raise
    finally:
        for process in multiprocessing.active_children():
            process.kill()
            process.join()
        if mounted:
            subprocess.run(["umount", "-l", place], check=True)


def soak(
    minutes: float, seed: int, counts: Counter[str], limit: int = 20, spoil: Callable[[], None] | None = None
) -> None:
    """Run rounds for this many minutes, at least one, and count what happened. Raises Different, which names
    the seed."""
    end = time.monotonic() + 60 * minutes
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"soak_{seed}_"))
        one = Round(folder, seed, counts, limit, spoil)
        before = counts.copy()
        try:
            one.run()
        except (Different, AssertionError) as error:
            again = f"python -m benchmarks soak --minutes 0 --seed {seed}"
            raise Different(f"seed {seed}: {error}\nthe files are in {folder}; again: {again}") from None
        shutil.rmtree(folder)
        counts["rounds"] += 1
        happened = ", ".join(f"{n} {name}" for name, n in (counts - before).items() if name != "rounds")
        print(f"seed {seed}, {one.name}: equal after {happened}", flush=True)
        seed += 1
        if time.monotonic() >= end:
            return


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks soak", description="Disturb training runs for hours.")
    parser.add_argument("--minutes", type=float, default=120, help="duration; at least one round [120]")
    parser.add_argument("--seed", type=int, default=1, help="seed of the first round [1]")
    arguments = parser.parse_args(words)
    # on SIGTERM, still unmount and print the figures
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    counts: Counter[str] = Counter()
    began = time.monotonic()
    try:
        soak(arguments.minutes, arguments.seed, counts)
    except Different as error:
        print(f"different: {error}", file=sys.stderr)
        sys.exit(1)
    finally:
        signal.signal(signal.SIGTERM, before)
        print(f"{time.monotonic() - began:,.0f} seconds")
        table(["what", "how many"], [[name, f"{counts[name]:,}"] for name in COUNTED])
