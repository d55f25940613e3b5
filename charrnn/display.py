"""What a person sees: a live display on a terminal, plain lines everywhere else. The one module that imports rich."""

from __future__ import annotations

import sys
import unicodedata
from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from math import log
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from charrnn.training import Record


class TrainingDisplay(Protocol):
    """Follows a training run."""

    def note(self, line: str) -> None: ...
    def show(self, record: Record) -> None: ...
    def validated(self, record: Record, saved: str, sample: str) -> None: ...
    def close(self) -> None: ...


def training_display(print_every: int, characters: int) -> TrainingDisplay:
    """The live display where stdout is a terminal, else the plain one. characters: per iteration."""
    if sys.stdout.isatty():
        return LiveDisplay(characters)
    return PlainDisplay(print_every)


class PlainDisplay:
    """char-rnn's own lines on stdout, for logs and pipes."""

    def __init__(self, print_every: int) -> None:
        self.print_every = print_every

    def note(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def show(self, record: Record) -> None:
        if record.iteration % self.print_every and record.iteration != record.iterations:
            return
        r = record
        ratio = r.grad_norm / r.param_norm if r.param_norm else float("nan")
        print(
            f"{r.iteration}/{r.iterations} (epoch {r.epoch:.3f}), train_loss = {r.loss:6.8f}, "
            f"grad/param norm = {ratio:6.4e}, time/batch = {r.seconds:.4f}s",
            flush=True,
        )

    def validated(self, record: Record, saved: str, sample: str) -> None:
        print(f"val_loss = {record.val_loss:.4f}, saved to {saved}", flush=True)
        if sample:
            print(f"----\n{sample}\n----", flush=True)

    def close(self) -> None:
        """Nothing is left open."""


class LiveDisplay:
    """A bar and the figures that matter, redrawn in place; validations and samples stay above it."""

    REDRAWS_PER_SECOND = 8

    def __init__(self, characters: int) -> None:
        self.console = Console(highlight=False)
        # no refresh thread: drawing must not compete with the training for a core
        self.live = Live(console=self.console, auto_refresh=False, transient=False)
        self.live.start()
        self.characters = characters
        self.recent: deque[Record] = deque(maxlen=100)
        self.validations: list[float] = []
        self.drawn = 0.0

    def note(self, line: str) -> None:
        self.live.console.print(Text(line, style="yellow"))

    def show(self, record: Record) -> None:
        self.recent.append(record)
        now = self.console.get_time()
        if now - self.drawn < 1 / self.REDRAWS_PER_SECOND and record.iteration != record.iterations:
            return
        self.drawn = now
        self.live.update(self._draw(record), refresh=True)

    def validated(self, record: Record, saved: str, sample: str) -> None:
        assert record.val_loss is not None
        self.validations.append(record.val_loss)
        heading = Text.assemble(
            (f"iteration {record.iteration}, epoch {record.epoch:.2f}: ", ""),
            (f"validation loss {record.val_loss:.4f}", "bold"),
            f" ({record.val_loss / log(2):.3f} bits per character), saved to {saved}",
        )
        self.live.console.print(heading)
        if sample:
            self.live.console.print(Text(printable(sample), style="cyan"))
            self.live.console.rule(style="dim")
        self.live.update(self._draw(record), refresh=True)

    def close(self) -> None:
        self.live.stop()

    def _draw(self, record: Record) -> Group:
        seconds = sum(r.seconds for r in self.recent) / len(self.recent)
        left = timedelta(seconds=round(seconds * (record.iterations - record.iteration)))
        losses = [r.loss for r in self.recent]
        figures = {
            "iteration": f"{record.iteration}/{record.iterations}",
            "epoch": f"{record.epoch:.2f}",
            f"train loss (last {len(losses)})": f"{sum(losses) / len(losses):.4f}",
            "grad/param norm": f"{record.grad_norm / record.param_norm:.2e}" if record.param_norm else "-",
            "characters/s": f"{self.characters / seconds:,.0f}" if seconds else "-",
            "time left": str(left),
        }
        if self.validations:
            figures["validation loss"] = f"{self.validations[-1]:.4f} (best {min(self.validations):.4f})"
        line = Text("   ").join(Text.assemble((f"{name} ", "dim"), value) for name, value in figures.items())
        return Group(ProgressBar(total=record.iterations, completed=record.iteration), line)


def printable(text: str) -> str:
    """The text with control characters as visible escapes: sampled text must not drive the terminal."""
    return "".join(c if c in "\n\t" or unicodedata.category(c)[0] != "C" else ascii(c)[1:-1] for c in text)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on a terminal; tab-separated lines elsewhere."""
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(row))
        return
    drawn = Table(*headings, box=None, pad_edge=False)
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    Console(highlight=False).print(drawn)
