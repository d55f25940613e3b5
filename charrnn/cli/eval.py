"""charrnn eval"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from charrnn.cli.flags import Command, Flag, exclude, switch, with_defaults
from charrnn.cli.streams import note, put, read, say
from charrnn.settings.evaluation import EXCLUSIVE, EvaluationOptions
from charrnn.settings.option import Option, options_of

if TYPE_CHECKING:
    from charrnn.data.vocabulary import Vocabulary
    from charrnn.evaluation.loss import Score
    from charrnn.evaluation.scoring import Scored, Scorer

OPTIONS = [
    Option("text", str, "", "score this file instead of a split; - = stdin", "data", names="file"),
    *options_of(EvaluationOptions).values(),
    Option("ensemble", str, (), "average the probabilities with those of this checkpoint; may be repeated", "model",
           repeatable=True, names="file"),
]  # fmt: skip

SWITCHES = [
    switch("per_line", "list the lines with their losses, worst first"),
    switch("per_char", "show each token's loss: on a terminal as text coloured by surprise, elsewhere as JSON lines"),
    switch("json", "print one JSON object", "as_json"),
]

HELP = """Score a text with a trained model.

CHECKPOINT is a file or a folder. In a folder, the checkpoint with the lowest validation loss is used. Prints the
mean loss in nats, the bits per character, the perplexity, and the number of characters predicted; for a word-level
model, the loss and the perplexity per word.
"""


def evaluate(checkpoint: str, per_line: bool, per_char: bool, as_json: bool, **values: Any) -> None:
    exclude(*EXCLUSIVE, ("per_line", "per_char"))
    values = with_defaults(OPTIONS, values)

    from charrnn.evaluation.scoring import Scorer

    options = EvaluationOptions(**{name: values[name] for name in options_of(EvaluationOptions)})
    scorer = Scorer([checkpoint, *values["ensemble"]], options, note, each=per_line or per_char)
    if values["text"]:
        called = "stdin" if values["text"] == "-" else values["text"]
        scored = scorer.text(read(values["text"], scorer.saved.options.encoding), called)
    else:
        called = options.split
        scored = scorer.split()
    if as_json:
        put(json.dumps(as_object(scorer, scored, called, per_line, per_char)))
        return
    if per_line:
        show_lines(scored)
    if per_char:
        show_tokens(scored)
    # with -per_line or -per_char, stdout has only the details
    for line in summary(scored, called, options):
        (note if scorer.each else say)(line)


def as_object(scorer: Scorer, scored: Scored, called: str, per_line: bool, per_char: bool) -> dict[str, Any]:
    """Return all results as one object of plain values, for JSON."""
    vocabulary = scored.vocabulary
    found: dict[str, Any] = {"checkpoint": scorer.names[0], "scored": called, **figures(scored.static, vocabulary)}
    if scorer.names[1:]:
        found["ensemble"] = scorer.names[1:]
    if scored.dynamic:
        found["dynamic"] = {"learning_rate": scorer.options.dynamic, **figures(scored.dynamic, vocabulary)}
    if per_line:
        found["per_line"] = [
            {"line": line.number, **figures(line.score, vocabulary), "text": line.text} for line in scored.lines()
        ]
    if per_char:
        found["per_char"] = list(tokens(scored))
    return found


def summary(scored: Scored, called: str, options: EvaluationOptions) -> Iterator[str]:
    """Yield the summary, one line per score."""
    from charrnn.cli.display import shares

    vocabulary, static = scored.vocabulary, scored.static
    yield f"{called}: {vocabulary.describe(static.loss)}, {static.tokens:,} {vocabulary.units}"
    if static.measures:
        yield f"{called}: {shares(static.measures)}"
    if scored.dynamic:
        described = vocabulary.describe(scored.dynamic.loss)
        yield f"{called}, dynamic evaluation at learning rate {options.dynamic:g}: {described}"


def figures(score: Score, vocabulary: Vocabulary) -> dict[str, float]:
    """Return the figures of a score under their JSON keys."""
    figure = vocabulary.figure(score.loss)
    figures = {"loss": score.loss, figure.key: figure.value, "ppl": score.perplexity, vocabulary.units: score.tokens}
    return figures | score.measures


def show_lines(scored: Scored) -> None:
    """Print the scored lines: on a terminal, a table of as many as fit; elsewhere, all of them, tab-separated."""
    from charrnn.cli.display import ranking
    from charrnn.errors import printable
    from charrnn.sampling.output import destination

    vocabulary = scored.vocabulary
    rows = [
        (
            str(line.number),
            f"{line.score.loss:.4f}",
            f"{vocabulary.figure(line.score.loss).value:.4f}",
            str(line.score.tokens),
            line.text,
        )
        for line in scored.lines()
    ]
    if sys.stdout.isatty():
        ranking(("line", "loss", vocabulary.figure(0.0).name, vocabulary.units, "text"), rows)
        return
    with destination("", printable) as stream:
        for row in rows:
            stream.write("\t".join(row) + "\n")


def show_tokens(scored: Scored) -> None:
    """Print the coloured text on a terminal, or JSON lines elsewhere."""
    from charrnn.cli.display import surprise

    if sys.stdout.isatty():
        surprise(scored.tokens())
        return
    for token in tokens(scored):
        put(json.dumps(token))


def tokens(scored: Scored) -> Iterator[dict[str, str | float | None]]:
    """Yield each character, or each word without the space before it, with its loss."""
    unit = scored.vocabulary.unit
    for text, loss in scored.tokens():
        yield {unit: text if unit == "character" else text.removeprefix(" "), "loss": loss}


command = Command(
    "eval",
    [click.Argument(["checkpoint"], type=click.Path()), *map(Flag, OPTIONS), *SWITCHES],
    callback=evaluate,
    help=HELP,
)
