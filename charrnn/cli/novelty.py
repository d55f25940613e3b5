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
    Option("temperature", float, 1.0, "under 1: safer text; over 1: wilder", "Sampling", within=POSITIVE),
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


HELP = """Say how much of a text is copied from the training text.

Of CHECKPOINT, a file or a folder, -length characters (or words) are sampled; TEXT is a file of any text, - stands for
stdin. Prints the share of its n-grams that occur in the training text, and the longest passage that does and
where it stands: beside the same of held-out text, the validation and test parts, which shows what is natural.
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
    """The settings of a checkpoint's run, and what its model writes."""
    one_thread()
    from charrnn.checkpoints.checkpoint import Checkpoint
    from charrnn.sampling.sampler import sample

    saved = Checkpoint.load(source)
    device = choose_device(values["gpuid"], note, saved.options.precision)
    model = saved.build(saved.model_file()).to(device)
    prime = "" if saved.vocabulary.unknown("\n") else "\n"
    characters = sample(model, saved.vocabulary, prime, values["length"], values["temperature"], seed=values["seed"])
    return saved.options, "".join(characters)


def show(found: Novelty, unit: str) -> None:
    """unit: what the text is made of, a character or a word."""
    from charrnn.cli.display import table
    from charrnn.errors import printable

    text, held_out = found.text, found.held_out
    natural = held_out.shares if held_out else {}

    def percent(share: float | None) -> str:
        return "-" if share is None else f"{100 * share:.1f}%"

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
    print(verdict(found, unit))


def verdict(found: Novelty, unit: str) -> str:
    share = f"{100 * found.text.shares[found.n]:.1f}% of its passages of {found.n} {unit}s are in the training text"
    if found.held_out is None:
        return f"{found.verdict}: {share}; there is no held-out text to compare with"
    natural = f"{100 * found.held_out.shares[found.n]:.1f}% of held-out text's"
    return f"{found.verdict}: {share}, {natural}"


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
