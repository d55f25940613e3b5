"""Completion of commands, flags, models and files in bash, zsh and fish, on click's own. Nothing here needs torch."""

from __future__ import annotations

from glob import escape, glob

import click
from click.shell_completion import CompletionItem, get_completion_class

from charrnn import recipes, registry
from charrnn.options import Option

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_CHARRNN_COMPLETE"  # by which the script asks the program, as click has it


def script(shell: str, command: click.Command) -> str:
    """What one of SHELLS has to read to complete ``charrnn``."""
    found = get_completion_class(shell)
    assert found is not None
    return found(command, {}, "charrnn", VARIABLE).source()


def values(option: Option, incomplete: str) -> list[CompletionItem]:
    """What may stand after a flag. Of files and folders the shell knows more than we do."""
    if option.names == "model":
        known = {name: file.summary for name, file in registry.models().items()}
        return [CompletionItem(name, help=text) for name, text in known.items() if name.startswith(incomplete)]
    if option.names == "recipe":
        named = [CompletionItem(name) for name in recipes.recipes() if name.startswith(incomplete)]
        if found := named + [CompletionItem(path) for path in sorted(glob(f"{escape(incomplete)}*.toml"))]:
            return found
    if option.names:
        return [CompletionItem(incomplete, type="dir" if option.names == "folder" else "file")]
    words = ["0", "1"] if option.type is bool else map(str, option.choices)
    return [CompletionItem(word) for word in words if word.startswith(incomplete)]


def flags(items: list[CompletionItem], incomplete: str) -> list[CompletionItem]:
    """Each flag once: with two dashes where two were typed."""
    return [item for item in items if item.value.startswith("--") == incomplete.startswith("--")]
