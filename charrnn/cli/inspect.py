"""charrnn inspect"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from charrnn.cli import display
from charrnn.cli.flags import Command, switch
from charrnn.cli.streams import put
from charrnn.errors import size
from charrnn.reports import curve
from charrnn.settings.training import training_options

if TYPE_CHECKING:
    from charrnn.reports.inspection import Inspection

HELP = """Show the contents of a checkpoint: model, parameters, vocabulary, losses, settings, software.

CHECKPOINT is a file or a folder. In a folder, the checkpoint with the lowest validation loss is used. No code in
the checkpoint or in the model's file is executed.
"""


def inspect(checkpoint: str, as_json: bool) -> None:
    import json

    from charrnn.checkpoints.folder import find_best
    from charrnn.reports.inspection import inspect as inspect_file

    found = inspect_file(find_best(Path(checkpoint)))
    if as_json:
        put(json.dumps(found.as_dict()))
        return
    for section in (show_model, show_parameters, show_vocabulary, show_losses, show_settings, show_software):
        section(found)


def show_model(found: Inspection) -> None:
    saved, loss = found.saved, found.val_loss
    score = "not validated"
    if loss is not None:
        score = f"validation loss {loss:.4f} ({saved.vocabulary.figure(loss).text})"
    display.heading(f"{saved.options.model} from epoch {saved.epoch:.2f}, {score}")
    display.table(("file", str(found.path)), [(name, str(value)) for name, value in saved.model_options.items()])


def show_parameters(found: Inspection) -> None:
    sizes = found.parameters
    rows = [(part, f"{count:,}", f"{count / sizes.total:.1%}") for part, count in sizes.parts.items()]
    display.heading(f"{sizes.total:,} parameters, {size(sizes.bytes)}")
    display.table(("part", "parameters", "share"), rows)


def show_vocabulary(found: Inspection) -> None:
    """Show the tokens, the most frequent first."""
    vocabulary = found.saved.vocabulary
    tokens = sorted(found.tokens, key=lambda token: -(token.count or 0))
    counted = "with their counts in the training text" if tokens[0].count else "their counts were not recorded"
    shown = tokens[: vocabulary.overview]
    cut = f", the first {len(shown)}" if len(shown) < len(tokens) else ""
    display.heading(f"{len(tokens):,} {vocabulary.units} ({vocabulary.encoding}), {counted}{cut}")
    display.flow([f"{token.name} {token.count:,}" if token.count else token.name for token in shown])


def show_losses(found: Inspection) -> None:
    if not found.losses:
        return
    display.heading(f"loss in nats per {found.saved.vocabulary.unit} by iteration: . training, o validation")
    training = [(i, loss) for i, loss in enumerate(found.losses, 1) if loss is not None]
    validation = [(i, loss) for i, loss in found.val_losses.items() if loss is not None]
    display.lines(curve.draw({".": training, "o": validation}, min(display.width(), 100), 15))


def show_settings(found: Inspection) -> None:
    """Show every setting, with its default if that differs."""
    rows = []
    for name, option in training_options().items():
        value = getattr(found.saved.options, name)
        rows.append((name, words(value), "" if value == option.default else words(option.default)))
    display.heading("settings")
    display.table(("setting", "value", "default"), rows)


def show_software(found: Inspection) -> None:
    display.heading("software")
    display.table(("name", "version"), list(found.saved.software.items()) or [("not recorded", "")])


def words(value: Any) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value)


command = Command(
    "inspect",
    [
        click.Argument(["checkpoint"], type=click.Path()),
        switch("json", "print one JSON object", "as_json"),
    ],
    callback=inspect,
    help=HELP,
)
