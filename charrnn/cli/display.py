"""Output for people: a live display on a terminal, plain lines elsewhere. No other module imports rich."""

from __future__ import annotations

import sys
from codecs import getincrementaldecoder
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from html import escape
from math import inf, log
from time import monotonic
from typing import TYPE_CHECKING, Any

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

from charrnn.cli.streams import log_line, note, put, say
from charrnn.data.vocabulary import Vocabulary
from charrnn.errors import printable

if TYPE_CHECKING:
    from charrnn.data.datasets import download
    from charrnn.training.loop import Record
    from charrnn.training.run import Viewer
    from charrnn.training.setup import Setup


@contextmanager
def shown(setup: Setup) -> Iterator[Viewer]:
    """Provide the display of a run: for a notebook, for a terminal that can redraw lines, or plain lines elsewhere."""
    options, vocabulary = setup.options, type(setup.vocabulary)
    tokens, val_losses = options.batch_size * options.seq_length, list(setup.training.val_losses.values())
    console = Console(highlight=False)
    if console.is_jupyter:
        yield NotebookDisplay(tokens, val_losses, vocabulary)
    elif console.is_terminal and not console.is_dumb_terminal:
        display = LiveDisplay(console, tokens, val_losses, vocabulary)
        try:
            yield display
        finally:
            with suppress(OSError):  # the terminal is gone
                display.close()
    else:
        yield PlainDisplay(options.print_every, vocabulary)


class PlainDisplay:
    """Prints progress lines in char-rnn's format on stdout, for logs and pipes."""

    def __init__(self, print_every: int, vocabulary: type[Vocabulary]) -> None:
        self.print_every = print_every
        self.vocabulary = vocabulary

    def note(self, line: str) -> None:
        note(line)

    def show(self, record: Record) -> None:
        if record.iteration % self.print_every and record.iteration != record.iterations:
            return
        r = record
        ratio = r.grad_norm / r.param_norm if r.param_norm else float("nan")
        log_line(
            f"{r.iteration}/{r.iterations} (epoch {r.epoch:.3f}), train_loss = {r.loss:6.8f}, "
            f"grad/param norm = {ratio:6.4e}, time/batch = {r.seconds:.4f}s"
        )

    def validated(self, record: Record, saved: str, sample: str) -> None:
        assert record.val_loss is not None
        figure = self.vocabulary.log_figure(record.val_loss)
        log_line(f"val_loss = {record.val_loss:.4f}{figure}, saved to {saved}")
        if record.measures:
            log_line(", ".join(f"{name} = {share:.4f}" for name, share in record.measures.items()))
        if sample:
            log_line(f"----\n{sample}\n----")

    def ended(self, lines: Sequence[str]) -> None:
        for line in lines:
            log_line(line)


class Redrawn:
    """Base of the displays that redraw a run's figures in place a few times a second."""

    REDRAWS_PER_SECOND = 8

    def __init__(self, tokens: int, val_losses: Sequence[float], vocabulary: type[Vocabulary]) -> None:
        # tokens per iteration
        self.tokens = tokens
        self.vocabulary = vocabulary
        self.units = vocabulary.units
        self.recent: deque[Record] = deque(maxlen=100)
        self.validations = list(val_losses)
        # time of the last redraw
        self.drawn = -inf

    def show(self, record: Record) -> None:
        self.recent.append(record)
        now = monotonic()
        if now - self.drawn < 1 / self.REDRAWS_PER_SECOND and record.iteration != record.iterations:
            return
        self.drawn = now
        self.redraw(record)

    def redraw(self, record: Record) -> None:
        raise NotImplementedError

    def figures(self, record: Record) -> dict[str, str]:
        seconds = sum(r.seconds for r in self.recent) / len(self.recent)
        losses = [r.loss for r in self.recent]
        return {
            "iteration": f"{record.iteration}/{record.iterations}",
            "epoch": f"{record.epoch:.2f}",
            "train loss": f"{sum(losses) / len(losses):.4f}",
            "validation": f"{self.validations[-1]:.4f}" if self.validations else "-",
            "best": f"{min(self.validations):.4f}" if self.validations else "-",
            "grad/param norm": f"{record.grad_norm / record.param_norm:.1e}" if record.param_norm else "-",
            f"{self.units}/s": f"{self.tokens / seconds:,.0f}" if seconds else "-",
            "left": str(timedelta(seconds=round(seconds * (record.iterations - record.iteration)))),
        }


class LiveDisplay(Redrawn):
    """Redraws a progress bar and the main figures in place, below the validations and samples.

    The figures take one or two lines on a wide terminal and more on a narrow one; no figure is broken across lines.
    """

    def __init__(
        self, console: Console, tokens: int, val_losses: Sequence[float], vocabulary: type[Vocabulary]
    ) -> None:
        super().__init__(tokens, val_losses, vocabulary)
        self.console = console
        # no refresh thread, so that drawing does not compete with training for a core
        self.live = Live(console=console, auto_refresh=False, transient=False)
        self.live.start()

    def note(self, line: str) -> None:
        self.console.print(escaped(line, "yellow"))

    def redraw(self, record: Record) -> None:
        self.live.update(self._draw(record), refresh=True)

    def validated(self, record: Record, saved: str, sample: str) -> None:
        assert record.val_loss is not None
        self.validations.append(record.val_loss)
        heading = escaped(f"iteration {record.iteration}, epoch {record.epoch:.2f}: ")
        heading.append_text(escaped(f"validation loss {record.val_loss:.4f}", "bold"))
        heading.append_text(escaped(f" ({self.vocabulary.figure(record.val_loss).text}), saved to {saved}"))
        self.console.print(heading)
        if record.measures:
            self.console.print(escaped(shares(record.measures)))
        if sample:
            self.console.print(escaped(sample, "cyan"))
            self.console.rule(style="dim")
        self.redraw(record)

    def ended(self, lines: Sequence[str]) -> None:
        self.live.stop()
        for line in lines:
            # not wrapped at the edge of the window, so that the command in it can be copied
            self.console.print(escaped(line), soft_wrap=True)

    def close(self) -> None:
        self.live.stop()

    def _draw(self, record: Record) -> Table:
        figures = self.figures(record)
        cells = [escaped(f"{name} {value}") for name, value in figures.items()]
        for cell, name in zip(cells, figures, strict=True):
            cell.no_wrap = True
            cell.stylize("dim", 0, len(name))
        drawn = Table.grid(expand=True)  # unlike a Group, a grid ends the line after the bar
        drawn.add_row(ProgressBar(total=record.iterations, completed=record.iteration))
        drawn.add_row(Columns(cells, padding=(0, 2)))
        return drawn


class NotebookDisplay(Redrawn):
    """Redraws one output of a Jupyter notebook: progress, the main figures, the latest validations, the latest sample.

    It needs no widgets, and a saved notebook keeps its last state.
    """

    REDRAWS_PER_SECOND = 4
    VALIDATIONS = 10

    def __init__(self, tokens: int, val_losses: Sequence[float], vocabulary: type[Vocabulary]) -> None:
        super().__init__(tokens, val_losses, vocabulary)
        self.latest: deque[str] = deque(maxlen=self.VALIDATIONS)
        self.sample = ""
        self.output: Any = None

    def note(self, line: str) -> None:
        say(line)

    def redraw(self, record: Record) -> None:
        figures = self.figures(record)
        # for a front end without HTML, such as a text console
        words = ", ".join(f"{name} {value}" for name, value in figures.items())
        cells = "&ensp; ".join(f"{escape(name)}&nbsp;<b>{value}</b>" for name, value in figures.items())
        html = f"<progress value='{record.iteration}' max='{record.iterations}' style='width: 100%'></progress>"
        html += f"<div>{cells}</div>"
        html += "".join(f"<div>{escape(line)}</div>" for line in self.latest)
        if self.sample:
            html += f"<pre>{escape(self.sample)}</pre>"
        self._show({"text/plain": "\n".join([words, *self.latest, self.sample]).rstrip(), "text/html": html})

    def _show(self, drawn: dict[str, str]) -> None:
        from IPython.display import display

        if self.output is None:
            self.output = display(drawn, raw=True, display_id=True)
        else:
            self.output.update(drawn, raw=True)

    def validated(self, record: Record, saved: str, sample: str) -> None:
        assert record.val_loss is not None
        self.validations.append(record.val_loss)
        figure = self.vocabulary.figure(record.val_loss).text
        more = f", {shares(record.measures)}" if record.measures else ""
        self.latest.append(
            f"iteration {record.iteration}, epoch {record.epoch:.2f}: validation loss {record.val_loss:.4f} "
            f"({figure}){more}, saved to {printable(saved)}"
        )
        self.sample = printable(sample)
        self.redraw(record)

    def ended(self, lines: Sequence[str]) -> None:
        for line in lines:
            say(line)


def report(line: str) -> None:
    """Print a line on stderr, or on stdout in a notebook, where stderr looks like an error."""
    (say if Console().is_jupyter else note)(line)


def escaped(text: str, style: str = "") -> Text:
    """Return text in a style, with control characters escaped, for a terminal."""
    return Text(printable(text), style)


def shares(measures: Mapping[str, float]) -> str:
    """Return each name with its share in percent."""
    return ", ".join(f"{name.replace('_', ' ')} {share:.2%}" for name, share in measures.items())


def width() -> int:
    """Return the width of the terminal in characters, or a default if the output is not a terminal."""
    return Console().width


def heading(line: str) -> None:
    """Print a heading, bold on a terminal."""
    Console(highlight=False).print(escaped(f"\n{line}", "bold"), soft_wrap=True)


def lines(drawn: Sequence[str]) -> None:
    """Print lines."""
    for line in drawn:
        put(line)


def flow(cells: Sequence[str]) -> None:
    """Print cells in columns on a terminal, one per line elsewhere."""
    if not sys.stdout.isatty():
        lines(cells)
        return
    Console(highlight=False).print(Columns([escaped(cell) for cell in cells], padding=(0, 2)))


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on a terminal, or the rows as tab-separated lines elsewhere."""
    if not sys.stdout.isatty():
        for row in rows:
            put("\t".join(row))
        return
    drawn = Table(box=None, pad_edge=False)
    for heading in headings:
        drawn.add_column(escaped(heading))
    for row in rows:
        drawn.add_row(*map(escaped, row))
    Console(highlight=False).print(drawn)


def ranking(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print the first rows of a table, as many as fit on the terminal, one per line. The last column is cut to fit."""
    console = Console(highlight=False)
    shown = rows[: max(1, console.height - 6)]  # leaves room for the heading, the lines below and the prompt
    *figures, (text, *_) = zip(headings, *shown, strict=True)
    drawn = Table(box=None, pad_edge=False)
    for heading, *cells in figures:
        drawn.add_column(heading, justify="right", no_wrap=True, min_width=max(map(len, [heading, *cells])))
    drawn.add_column(text, no_wrap=True, overflow="ellipsis", ratio=1)
    for row in shown:
        drawn.add_row(*(escaped(cell.replace("\t", " ")) for cell in row))
    console.print(drawn)
    if len(rows) > len(shown):
        console.print(escaped(f"{len(rows) - len(shown):,} more; redirect to a file to see all", "dim"))


# upper limits in bits, and the style of tokens whose loss is lower; the styles differ even without colours
SURPRISE = ((1.0, "dim"), (3.0, ""), (5.0, "yellow"), (8.0, "bold red"), (inf, "bold reverse red"))


def surprise(tokens: Iterable[tuple[str, float | None]]) -> None:
    """Print a text on a terminal, each token in the style of its loss in nats, or unstyled if that is None."""
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
    legend = [escaped(name, style) for name, (_, style) in zip(names, SURPRISE, strict=True)]
    console.print(escaped("bits of surprise: ").append_text(escaped("  ").join(legend)))


@contextmanager
def transfers() -> Iterator[download.Progress | None]:
    """Yield a function that draws progress bars for downloads and unpacking on stderr, or None without a terminal."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal or console.is_dumb_terminal:
        yield None
        return
    columns = BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    bars = Progress(TextColumn("{task.description}", markup=False), *columns, console=console)
    tasks: dict[str, TaskID] = {}

    def progress(what: str, done: int, size: int | None) -> None:
        if what not in tasks:
            bars.start()
            tasks[what] = bars.add_task(printable(what), completed=done, total=size)
        bars.update(tasks[what], completed=done, total=size)

    try:
        yield progress
    finally:
        bars.stop()
