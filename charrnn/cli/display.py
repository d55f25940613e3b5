"""Output for people: a live display on a terminal, plain lines elsewhere. No other module imports rich."""

from __future__ import annotations

import sys
from codecs import getincrementaldecoder
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from math import inf, log
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import printable

if TYPE_CHECKING:
    from charrnn.data.datasets import download
    from charrnn.training.loop import Record


class TrainingDisplay(Protocol):
    """Follows a training run."""

    def note(self, line: str) -> None: ...
    def show(self, record: Record) -> None: ...
    def validated(self, record: Record, saved: str, sample: str) -> None: ...
    def ended(self, lines: Sequence[str]) -> None: ...
    def close(self) -> None: ...


def training_display(
    print_every: int, tokens: int, val_losses: Sequence[float] = (), vocabulary: type[Vocabulary] = Vocabulary
) -> TrainingDisplay:
    """Return the live display if stdout is a terminal that can draw it, otherwise the plain one.

    tokens: per iteration. val_losses: earlier ones of a resumed run.
    """
    console = Console(highlight=False)
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveDisplay(console, tokens, val_losses, vocabulary)
    return PlainDisplay(print_every, vocabulary)


class PlainDisplay:
    """Prints char-rnn's lines on stdout, for logs and pipes."""

    def __init__(self, print_every: int, vocabulary: type[Vocabulary]) -> None:
        self.print_every = print_every
        self.vocabulary = vocabulary

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
        assert record.val_loss is not None
        figure = self.vocabulary.log_figure(record.val_loss)
        print(f"val_loss = {record.val_loss:.4f}{figure}, saved to {saved}", flush=True)
        if record.measures:
            print(", ".join(f"{name} = {share:.4f}" for name, share in record.measures.items()), flush=True)
        if sample:
            print(f"----\n{sample}\n----", flush=True)

    def ended(self, lines: Sequence[str]) -> None:
        print(*lines, sep="\n", flush=True)

    def close(self) -> None:
        """Do nothing: plain lines leave nothing open."""


class LiveDisplay:
    """Redraws a progress bar and the main figures in place, below the validations and samples.

    The figures take one or two lines on a wide terminal and more on a narrow one; no figure is broken across lines.
    """

    REDRAWS_PER_SECOND = 8

    def __init__(
        self, console: Console, tokens: int, val_losses: Sequence[float], vocabulary: type[Vocabulary]
    ) -> None:
        self.console = console
        # no refresh thread, so that drawing does not compete with training for a core
        self.live = Live(console=console, auto_refresh=False, transient=False)
        self.live.start()
        self.tokens = tokens  # per iteration
        self.vocabulary = vocabulary
        self.units = vocabulary.units
        self.recent: deque[Record] = deque(maxlen=100)
        self.validations = list(val_losses)
        self.drawn = -inf  # time of the last redraw

    def note(self, line: str) -> None:
        self.console.print(Text(line, style="yellow"))

    def show(self, record: Record) -> None:
        self.recent.append(record)
        now = monotonic()
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
            f" ({self.vocabulary.figure(record.val_loss).text}), saved to {saved}",
        )
        self.console.print(heading)
        if record.measures:
            self.console.print(Text(shares(record.measures)))
        if sample:
            self.console.print(Text(sample, style="cyan"))
            self.console.rule(style="dim")
        self.live.update(self._draw(record), refresh=True)

    def ended(self, lines: Sequence[str]) -> None:
        self.live.stop()
        for line in lines:
            # not wrapped at the edge of the window, so that the command in it can be copied
            self.console.print(Text(line), soft_wrap=True)

    def close(self) -> None:
        self.live.stop()

    def _draw(self, record: Record) -> Table:
        seconds = sum(r.seconds for r in self.recent) / len(self.recent)
        losses = [r.loss for r in self.recent]
        figures = {
            "iteration": f"{record.iteration}/{record.iterations}",
            "epoch": f"{record.epoch:.2f}",
            "train loss": f"{sum(losses) / len(losses):.4f}",
            "validation": f"{self.validations[-1]:.4f}" if self.validations else "-",
            "best": f"{min(self.validations):.4f}" if self.validations else "-",
            "grad/param norm": f"{record.grad_norm / record.param_norm:.1e}" if record.param_norm else "-",
            f"{self.units}/s": f"{self.tokens / seconds:,.0f}" if seconds else "-",
            "left": str(timedelta(seconds=round(seconds * (record.iterations - record.iteration)))),
        }
        cells = [Text.assemble((f"{name} ", "dim"), value, no_wrap=True) for name, value in figures.items()]
        drawn = Table.grid(expand=True)  # unlike a Group, it ends the bar's line
        drawn.add_row(ProgressBar(total=record.iterations, completed=record.iteration))
        drawn.add_row(Columns(cells, padding=(0, 2)))
        return drawn


def shares(measures: Mapping[str, float]) -> str:
    """Return shares in words, each with its name."""
    return ", ".join(f"{name.replace('_', ' ')} {share:.2%}" for name, share in measures.items())


def width() -> int:
    """Return the width of the terminal in characters, or a default without one."""
    return Console().width


def heading(line: str) -> None:
    """Print a heading, bold on a terminal."""
    Console(highlight=False).print(Text(f"\n{printable(line)}", style="bold"), soft_wrap=True)


def lines(drawn: Sequence[str]) -> None:
    """Print lines unchanged."""
    for line in drawn:
        print(line)


def flow(cells: Sequence[str]) -> None:
    """Print cells in columns on a terminal, one per line elsewhere."""
    if not sys.stdout.isatty():
        lines(cells)
        return
    Console(highlight=False).print(Columns([Text(printable(cell)) for cell in cells], padding=(0, 2)))


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on a terminal, and elsewhere the rows as tab-separated lines."""
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(row))
        return
    drawn = Table(*headings, box=None, pad_edge=False)
    for row in rows:
        drawn.add_row(*(Text(printable(cell)) for cell in row))
    Console(highlight=False).print(drawn)


def ranking(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on a terminal: the first rows, as many as fit, one line each. The last column is cut to fit."""
    console = Console(highlight=False)
    shown = rows[: max(1, console.height - 6)]  # leaves room for the heading, the lines below and the prompt
    *figures, (text, *_) = zip(headings, *shown, strict=True)
    drawn = Table(box=None, pad_edge=False)
    for heading, *cells in figures:
        drawn.add_column(heading, justify="right", no_wrap=True, min_width=max(map(len, [heading, *cells])))
    drawn.add_column(text, no_wrap=True, overflow="ellipsis", ratio=1)
    for row in shown:
        drawn.add_row(*(Text(printable(cell).replace("\t", " ")) for cell in row))
    console.print(drawn)
    if len(rows) > len(shown):
        console.print(Text(f"{len(rows) - len(shown):,} more; redirect to a file to see all", style="dim"))


# upper limits in bits, and the styles of tokens with less surprise, which can be told apart without colours too
SURPRISE = ((1.0, "dim"), (3.0, ""), (5.0, "yellow"), (8.0, "bold red"), (inf, "bold reverse red"))


def surprise(tokens: Iterable[tuple[str, float | None]]) -> None:
    """Print a text on a terminal, each token in the style of its loss, which is in nats, or None if it has none."""
    decoder = getincrementaldecoder("utf-8")("surrogateescape")  # joins bytes into characters
    text, loss = Text(), 0.0
    for token, nats in tokens:
        character = decoder.decode(token.encode("utf-8", "surrogateescape"))
        loss += nats or 0.0  # the losses of a character's bytes add up
        if character:
            style = next(style for bits, style in SURPRISE if loss / log(2) < bits) if nats is not None else ""
            visible_newline = character == "\n" and style not in ("", "dim")
            text.append("\u21b5\n" if visible_newline else printable(character), style)
            loss = 0.0
    console = Console(highlight=False)
    console.print(text, soft_wrap=True)
    names = [f"under {bits:g}" for bits, _ in SURPRISE[:-1]] + ["more"]
    legend = [Text(name, style) for name, (_, style) in zip(names, SURPRISE, strict=True)]
    console.print(Text("bits of surprise: ").append_text(Text("  ").join(legend)))


@contextmanager
def transfers() -> Iterator[download.Progress | None]:
    """Yield a function that shows a progress bar on stderr for each download or file to unpack; None off a terminal."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal or console.is_dumb_terminal:
        yield None
        return
    columns = BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    bars = Progress(TextColumn("{task.description}"), *columns, console=console)
    tasks: dict[str, TaskID] = {}

    def progress(what: str, done: int, size: int | None) -> None:
        if what not in tasks:
            bars.start()
            tasks[what] = bars.add_task(what, completed=done, total=size)
        bars.update(tasks[what], completed=done, total=size)

    try:
        yield progress
    finally:
        bars.stop()
