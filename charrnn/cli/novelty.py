"""charrnn novelty"""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from charrnn.cli.flags import Command, Flag, with_defaults
from charrnn.cli.streams import note, read
from charrnn.compute import choose_device, one_thread
from charrnn.settings.option import FROM_ONE, POSITIVE, Interval, Option
from charrnn.settings.training import TrainingOptions, training_options

if TYPE_CHECKING:
    from charrnn.reports.novelty import Novelty

SAMPLED = [
    Option("length", int, 20_000, "characters or words to sample", "Sampling", within=FROM_ONE),
    Option("temperature", float, 1.0, "below 1: more conservative; above 1: more varied", "Sampling", within=POSITIVE),
    Option("seed", int, 123, "seed of the draws", "Sampling", within=Interval(0, 2**63 - 1)),
    Option("gpuid", int, 0, "number of the GPU; -1 = CPU", "device", within=Interval(low=-1)),
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

CHECKPOINT, a file or a folder: examine a sample of -length characters (or words) of its model. TEXT, a file or -
for stdin: examine that text. Prints which share of its n-grams occur in the training text, and the longest copied
passage with its place. The same figures for held-out text, the val and test splits, show what is normal.
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
    text = open_chosen(replace(options, input=()) if "data_dir" in given else options, note)
    found = examine(words, text, options)
    if as_json:
        print(json.dumps({"examined": source, **asdict(found)}))
    else:
        show(found, text.vocabulary.unit)


def is_checkpoint(source: str) -> bool:
    path = Path(source)
    return path.is_dir() or path.suffix == ".pt" or (path.is_file() and zipfile.is_zipfile(path))


def sampled(source: str, values: dict[str, Any]) -> tuple[TrainingOptions, str]:
    """Return the settings of a checkpoint's run, and a sample of its model."""
    one_thread()
    from charrnn.checkpoints.checkpoint import Checkpoint
    from charrnn.sampling.sampler import sample

    saved = Checkpoint.load(source)
    device = choose_device(values["gpuid"], note, saved.options.precision)
    model = saved.build(saved.model_file()).to(device)
    prime = "" if saved.vocabulary.unknown_tokens("\n") else "\n"
    characters = sample(model, saved.vocabulary, prime, values["length"], values["temperature"], seed=values["seed"])
    return saved.options, "".join(characters)


def show(found: Novelty, unit: str) -> None:
    """Print the findings. ``unit`` is what the text consists of: character or word."""
    from charrnn.cli.display import table
    from charrnn.errors import printable

    text, held_out = found.text, found.held_out
    natural = held_out.shares if held_out else {}
    rows = [(str(n), percent(text.shares.get(n)), percent(natural.get(n))) for n in SHOWN if n in text.shares]
    table(("n", "n-grams in the training text", "of held-out text"), rows)
    if found.source and text.longest:
        excerpt = printable(found.passage[:EXCERPT]).replace("\n", "\\n")
        print(
            f"longest passage: {text.longest.length:,} {unit}s, in line {found.source.line:,} of "
            f"{found.source.file} ({unit} {found.source.offset:,}): "
            f"{excerpt}{' ...' if len(found.passage) > EXCERPT else ''}"
        )
    if held_out and held_out.longest:
        print(f"longest passage of {held_out.characters:,} {unit}s of held-out text: {held_out.longest.length:,}")
    baseline = percent(natural.get(found.n)) if held_out else "none to compare with"
    print(
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
        click.Option(["-json", "--json", "as_json"], is_flag=True, help="print one JSON object"),
    ],
    callback=novelty,
    help=HELP,
)
