"""charrnn novelty"""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from charrnn.cli.flags import Command, Flag, switch, with_defaults
from charrnn.cli.streams import note, put, read, say
from charrnn.compute import one_thread
from charrnn.settings.option import FROM_ONE, POSITIVE, options_of
from charrnn.settings.sampling import SamplingOptions
from charrnn.settings.training import TrainingOptions, training_options

if TYPE_CHECKING:
    from charrnn.reports.novelty import Novelty

SAMPLING = options_of(SamplingOptions)

SAMPLED = [
    replace(SAMPLING["length"], default=20_000, within=FROM_ONE),
    replace(SAMPLING["temperature"], group="Sampling", within=POSITIVE),
    SAMPLING["seed"],
    SAMPLING["gpuid"],
]


AS_TRAINED = [
    replace(option, default=None, optional=True, help=f"{option.help}  [as in training]", group="data")
    for option in training_options().values()
    if option.name in ("data_dir", "level", "unk", "encoding", "train_frac", "val_frac", "batch_size", "seq_length")
]


OPTIONS = AS_TRAINED + SAMPLED


SHOWN = (4, 6, 8, 10, 12, 16, 20, 30, 40, 50)


EXCERPT = 300  # characters shown of the longest passage


HELP = """Measure how much of a text is copied from the training text.

Give a CHECKPOINT (a file or a folder) to examine a sample of -length characters (or words) from its model, or a
TEXT (a file, or - for stdin) to examine that text. Prints the share of its n-grams that occur in the training
text, and the longest copied passage with its location. For comparison, it prints the same figures for held-out
text, the val and test splits.
"""


def novelty(source: str, as_json: bool, **values: Any) -> None:
    given = {option.name: values[option.name] for option in AS_TRAINED if values[option.name] is not None}
    values = with_defaults(OPTIONS, values)

    from charrnn.data.text import open_chosen
    from charrnn.reports.novelty import examine

    if is_checkpoint(source):
        trained, words = sampled(source, values)
        options = replace(trained, **given)
    else:
        options = replace(TrainingOptions(), **given)
        words = read(source, options.encoding)
    options = replace(options, input=()) if "data_dir" in given else options
    # nothing is written to a folder that only the checkpoint names
    text = open_chosen(options, note, keep="data_dir" in given or not is_checkpoint(source))
    found = examine(words, text, options)
    if as_json:
        put(json.dumps({"examined": source, **asdict(found)}))
    else:
        show(found, text.vocabulary.unit)


def is_checkpoint(source: str) -> bool:
    path = Path(source)
    return path.is_dir() or path.suffix == ".pt" or (path.is_file() and zipfile.is_zipfile(path))


def sampled(source: str, values: dict[str, Any]) -> tuple[TrainingOptions, str]:
    """Return the settings of a checkpoint's run, and a sample from its model."""
    one_thread()
    from charrnn.checkpoints.checkpoint import Checkpoint
    from charrnn.sampling.generate import generate, make_sampler

    saved = Checkpoint.load(source)
    options = SamplingOptions(**{option.name: values[option.name] for option in SAMPLED})
    prime = "" if saved.vocabulary.unknown_tokens("\n") else "\n"
    written = generate(make_sampler(saved, options, note), prime, options)
    return saved.options, "".join(token.text for token in written)


def show(found: Novelty, unit: str) -> None:
    """Print the findings. ``unit`` is the name of one token: character or word."""
    from charrnn.cli.display import table

    text, held_out = found.text, found.held_out
    natural = held_out.shares if held_out else {}
    rows = [(str(n), percent(text.shares.get(n)), percent(natural.get(n))) for n in SHOWN if n in text.shares]
    table(("n", "n-grams in the training text", "of held-out text"), rows)
    if found.source and text.longest:
        excerpt = found.passage[:EXCERPT].replace("\n", "\\n")
        say(
            f"longest passage: {text.longest.length:,} {unit}s, in line {found.source.line:,} of "
            f"{found.source.file} ({unit} {found.source.offset:,}): "
            f"{excerpt}{' ...' if len(found.passage) > EXCERPT else ''}"
        )
    if held_out and held_out.longest:
        say(f"longest passage in {held_out.characters:,} {unit}s of held-out text: {held_out.longest.length:,}")
    baseline = percent(natural.get(found.n)) if held_out else "none to compare with"
    say(
        f"{found.verdict}: {percent(text.shares[found.n])} of its {found.n}-{unit} passages occur in the training text "
        f"(held-out text: {baseline})"
    )


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"


command = Command(
    "novelty",
    [
        click.Argument(["source"], metavar="CHECKPOINT|TEXT"),
        *map(Flag, OPTIONS),
        switch("json", "print one JSON object", "as_json"),
    ],
    callback=novelty,
    help=HELP,
)
