"""charrnn models"""

from __future__ import annotations

from charrnn import registry
from charrnn.cli.flags import Command


def models() -> None:
    from charrnn.cli.display import table

    rows = [(name, str(file.path), file.summary) for name, file in registry.models().items()]
    table(("model", "file", "description"), rows)


command = Command("models", [], callback=models, help="List the models for -model. None of their code is executed.")
