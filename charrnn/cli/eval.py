"""charrnn eval"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from charrnn.cli.flags import Command, Flag, exclude, with_defaults
from charrnn.cli.streams import note, read
from charrnn.settings.option import FROM_ONE, FROM_ZERO, Interval, Option

if TYPE_CHECKING:
    from charrnn.evaluation.loss import Score
    from charrnn.evaluation.scoring import Scored
    from charrnn.settings.option import Level

OPTIONS = [
    Option("split", str, "val", "part of the data to score", "data", choices=("train", "val", "test")),
    Option("data_dir", str, None, "folder of the text  [as in training]", "data", optional=True, names="folder"),
    Option("batch_size", int, None, "rows read side by side; 1 = a split file as one stream  [as in training]", "data",
           optional=True, within=FROM_ONE),
    Option("text", str, "", "score this file instead; - = stdin", "data", names="file"),
    Option("unk", str, "", "word that stands for those that a model of words does not know  [as in training]", "data"),
    Option("ensemble", str, (), "average the probabilities with those of this checkpoint; may be repeated", "model",
           repeatable=True, names="file"),
    Option("mc_samples", int, 0, "average this many passes with dropout on (Monte Carlo); 0 = off", "model",
           within=FROM_ZERO),
    Option("seed", int, 123, "seed of the Monte Carlo samples", "model", within=Interval(0, 2**63 - 1)),
    Option("dynamic", float, None, "dynamic evaluation: after each -seq_length of training, learn from what was just "
           "scored, at this rate", "model", within=FROM_ZERO),
    Option("gpuid", int, 0, "number of the GPU; -1 = CPU", "device", within=Interval(low=-1)),
]  # fmt: skip


SWITCHES = [
    click.Option(["-per_line", "--per_line"], is_flag=True, help="list the lines with the loss of each, worst first"),
    click.Option(["-per_char", "--per_char"], is_flag=True,
                 help="the loss of each character, or word: JSON lines; on a terminal the text, coloured by surprise"),
    click.Option(["-json", "--json", "as_json"], is_flag=True, help="print one JSON object"),
]  # fmt: skip


EXCLUSIVE = [
    *(("text", other) for other in ("split", "data_dir", "batch_size")),
    ("mc_samples", "dynamic"),
    ("per_line", "per_char"),
]


HELP = """Score a text with a trained model.

CHECKPOINT is a file, or a folder, which stands for its checkpoint with the best validation loss. Prints
the mean loss in nats, bits per character, perplexity, and how many characters were predicted; for a model
of words the loss and the perplexity per word.
"""


def evaluate(checkpoint: str, per_line: bool, per_char: bool, as_json: bool, **values: Any) -> None:
    exclude(*EXCLUSIVE)
    values = with_defaults(OPTIONS, values)

    from charrnn.cli.display import shares
    from charrnn.compute import choose_device
    from charrnn.evaluation.scoring import Method, Scorer

    method = Method(values["mc_samples"], values["seed"], values["dynamic"], per_line or per_char)
    paths = [checkpoint, *values["ensemble"]]
    scorer = Scorer(paths, method, lambda precision: choose_device(values["gpuid"], note, precision), values["unk"])
    options, level = scorer.saved.options, scorer.vocabulary.level
    if values["text"]:
        what = "stdin" if values["text"] == "-" else values["text"]
        scored = scorer.text(read(values["text"], options.encoding), what)
    else:
        what = values["split"]
        scored = scorer.split(what, values["data_dir"], values["batch_size"] or options.batch_size, note)
    if as_json:
        result: dict[str, Any] = {"checkpoint": scorer.paths[0], "scored": what, **figures(scored.static, level)}
        if scorer.paths[1:]:
            result["ensemble"] = scorer.paths[1:]
        if scored.dynamic:
            result["dynamic"] = {"learning_rate": values["dynamic"], **figures(scored.dynamic, level)}
        if per_line:
            result["per_line"] = [
                {"line": line.number, **figures(line.score, level), "text": line.text} for line in scored.lines()
            ]
        if per_char:
            result["per_char"] = list(characters(scored))
        print(json.dumps(result))
        return
    # what is asked for in detail has stdout to itself
    say = note if per_line or per_char else print
    if per_line:
        show_lines(scored)
    if per_char:
        show_characters(scored)
    say(f"{what}: {described(scored.static, level)}, {scored.static.characters:,} {scorer.vocabulary.units}")
    if scored.static.measures:
        say(f"{what}: {shares(scored.static.measures)}")
    if scored.dynamic:
        say(f"{what}, dynamic evaluation at rate {values['dynamic']:g}: {described(scored.dynamic, level)}")


def figures(score: Score, level: Level) -> dict[str, float]:
    if level == "word":
        return {"loss": score.loss, "ppl": score.ppl, "words": score.characters}
    figures = {"loss": score.loss, "bpc": score.bpc, "ppl": score.ppl, "characters": score.characters}
    return figures | score.measures


def described(score: Score, level: Level) -> str:
    if level == "word":
        return f"loss {score.loss:.4f} nats per word, perplexity {score.ppl:.4f}"
    return f"loss {score.loss:.4f} nats, {score.bpc:.4f} bits per character, perplexity {score.ppl:.4f}"


def show_lines(scored: Scored) -> None:
    """A table of as many lines as a terminal shows; elsewhere all of them, tab-separated."""
    from charrnn.cli.display import ranking
    from charrnn.errors import printable
    from charrnn.sampling.output import destination

    of_words = scored.vocabulary.level == "word"
    rows = [
        (
            str(line.number),
            f"{line.score.loss:.4f}",
            f"{line.score.ppl if of_words else line.score.bpc:.4f}",
            str(line.score.characters),
            line.text,
        )
        for line in scored.lines()
    ]
    if sys.stdout.isatty():
        ranking(("line", "loss", "perplexity" if of_words else "bpc", scored.vocabulary.units, "text"), rows)
        return
    with destination("", printable) as stream:
        for row in rows:
            stream.write("\t".join(row) + "\n")


def show_characters(scored: Scored) -> None:
    """The coloured text on a terminal; elsewhere JSON lines."""
    from charrnn.cli.display import surprise

    if sys.stdout.isatty():
        surprise(scored.characters())
        return
    for character in characters(scored):
        print(json.dumps(character))


def characters(scored: Scored) -> Iterator[dict[str, str | float | None]]:
    """Each character, or each word without the space before it, with its loss."""
    unit = scored.vocabulary.unit
    for text, loss in scored.characters():
        yield {unit: text if unit == "character" else text.removeprefix(" "), "loss": loss}


command = Command(
    "eval",
    [click.Argument(["checkpoint"], type=click.Path()), *map(Flag, OPTIONS), *SWITCHES],
    callback=evaluate,
    help=HELP,
)
