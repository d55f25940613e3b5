"""Start-up: seconds to the help text and to the first sampled character.

The latter is compared with importing torch and loading the checkpoint.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import Row, Timing, in_turn
from benchmarks.subjects import Subject, V
from charrnn.checkpoints.checkpoint import Checkpoint
from charrnn.data.vocabulary import Vocabulary
from charrnn.settings.training import TrainingOptions

CHARRNN = [sys.executable, "-m", "charrnn"]


def run(quick: bool) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoint(Path(folder) / "model.pt")
        load = f"import torch; torch.load({str(path)!r}, weights_only=True)"
        timings = in_turn(
            {
                "python -c pass": lambda: first_byte([sys.executable, "-c", "pass"]),
                "charrnn --help": lambda: first_byte([*CHARRNN, "--help"]),
                "import torch and load": lambda: first_byte([sys.executable, "-c", load]),
                "charrnn sample, first character": lambda: first_byte(
                    [*CHARRNN, "sample", str(path), "-gpuid", "-1", "-verbose", "0", "-length", "1"]
                ),
            },
            repeats=1 if quick else 11,
            warm_up=0 if quick else 1,
        )
    return [row(name, timing, timings["import torch and load"]) for name, timing in timings.items()]


def row(name: str, timing: Timing, loading: Timing) -> Row:
    return {
        "command": name,
        "seconds": timing.median,
        "spread": timing.spread,
        "over importing torch and loading": timing.median / loading.median,
    }


def checkpoint(path: Path) -> Path:
    """Write a checkpoint of the default model."""
    weights = dict(Subject("lstm", 128, 2).model().state_dict())
    return Checkpoint(TrainingOptions(), {}, Vocabulary(tuple(range(32, 32 + V))), weights).save(path)


def first_byte(words: list[str]) -> float:
    """Return the seconds until a process writes something or ends."""
    started = time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1)
        took = time.perf_counter() - started
        said = process.stderr.read()
    if process.returncode:
        raise RuntimeError(said.decode(errors="replace"))
    return took
