"""charrnn inspect"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from charrnn.cli.flags import Command
from charrnn.settings.training import training_options

HELP = """Show what a checkpoint holds: model, parameters, vocabulary, losses, settings, software.

CHECKPOINT is a file, or a folder, which stands for its checkpoint with the best validation loss. Nothing
in the file is executed, nor is the model's own file.
"""


MOST = 200  # words that are shown; -json has them all


def inspect(checkpoint: str, as_json: bool) -> None:
    import json

    from charrnn.checkpoints.folder import find
    from charrnn.reports.inspection import inspect as inspect_file

    found = inspect_file(find(Path(checkpoint)))
    if as_json:
        print(json.dumps(found))
        return
    show(found)


def words(value: Any) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value)


def show(found: dict[str, Any]) -> None:
    from charrnn.cli import display
    from charrnn.data.vocabulary import described
    from charrnn.errors import size
    from charrnn.reports import curve

    loss = "not validated" if found["val_loss"] is None else f"validation loss {found['val_loss']:.4f}"
    vocabulary = found["vocabulary"]
    level = vocabulary["level"]
    figure = "" if found["val_loss"] is None else f" ({described(found['val_loss'], level)})"
    display.heading(f"{found['model']} from epoch {found['epoch']:.2f}, {loss}{figure}")
    display.table(("file", found["checkpoint"]), [(name, str(value)) for name, value in found["model_options"].items()])

    total, parts = found["parameters"]["total"], found["parameters"]["parts"]
    display.heading(f"{total:,} parameters, {size(found['parameters']['bytes'])}")
    display.table(
        ("part", "parameters", "share"), [(part, f"{count:,}", f"{count / total:.1%}") for part, count in parts.items()]
    )

    unit = "word" if level == "word" else "character"
    tokens = sorted(vocabulary[f"{unit}s"], key=lambda token: -(token["count"] or 0))
    counted = "how often each was in the text" if tokens[0]["count"] else "not counted when it was trained"
    most = f", the first {MOST}" if len(tokens) > MOST and level == "word" else ""
    display.heading(f"{vocabulary['size']:,} {unit}s ({vocabulary['encoding']}), {counted}{most}")
    shown = tokens[:MOST] if most else tokens
    display.flow([f"{token[unit]} {token['count']:,}" if token["count"] else token[unit] for token in shown])

    train, validation = found["losses"]["train"], found["losses"]["validation"]
    if train:
        display.heading(f"loss in nats per {unit} by iteration: . training, o validation")
        points = [(i, y) for i, y in enumerate(train, 1) if y is not None]
        validated = [(i, y) for i, y in validation.items() if y is not None]
        display.lines(curve.draw({".": points, "o": validated}, min(display.width(), 100), 15))

    display.heading("settings")
    usual = training_options()
    rows = [(name, words(value), "" if value == usual[name].default else words(usual[name].default))
            for name, value in found["settings"].items()]  # fmt: skip
    display.table(("setting", "value", "default"), rows)
    display.heading("software")
    display.table(("of", "version"), list(found["software"].items()) or [("not recorded", "")])


command = Command(
    "inspect",
    [
        click.Argument(["checkpoint"], type=click.Path()),
        click.Option(["-json", "--json", "as_json"], is_flag=True, help="print one JSON object"),
    ],
    callback=inspect,
    help=HELP,
)
