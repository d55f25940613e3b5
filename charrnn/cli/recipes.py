"""charrnn recipes"""

from __future__ import annotations

from charrnn.cli.flags import Command
from charrnn.settings import recipes as known


def recipes() -> None:
    from charrnn.cli.display import table

    table(("recipe", "description"), [(name, known.summary(path)) for name, path in known.recipes().items()])


HELP = """List the recipes for -config.

A recipe is a named set of settings. charrnn train -config NAME trains with it; add -print_config to see the settings.
"""


command = Command("recipes", [], callback=recipes, help=HELP)
