"""charrnn recipes"""

from __future__ import annotations

from charrnn.cli.flags import Command
from charrnn.settings import recipes as known


def recipes() -> None:
    from charrnn.cli.display import table

    table(("recipe", "what it is"), [(name, known.summary(path)) for name, path in known.recipes().items()])


HELP = """List the settings that -config can name.

charrnn train -config NAME trains with them, and with -print_config shows them.
"""


command = Command("recipes", [], callback=recipes, help=HELP)
