"""Print the page of all commands and flags: python docs/reference.py > docs/reference.md"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace

import click

from charrnn import registry
from charrnn.cli.flags import Flag
from charrnn.cli.main import COMMANDS, cli
from charrnn.settings.option import Interval, Option
from charrnn.settings.training import GROUPS

HEAD = """\
# Commands and flags

All commands, with every flag, its default and its meaning. The page is generated from the program;
`charrnn COMMAND -h` prints a shorter version.

A flag may have one dash or two. A flag that takes `0|1` also takes `true` and `false`. `-h`, `-help`
and `--help` show the help of a command, and `charrnn -version` prints the version.

You can put every setting of `charrnn train`, including the model's own, in a TOML file, under the
name of its flag without the dash. Checkpoints store all settings.
"""
TABLE = ("| flag | default | meaning |", "| --- | --- | --- |")
ENDLESS = 2**31 - 1  # an upper bound this high only keeps a number within its machine type: leave it out of the page


def page() -> str:
    """Return the whole page as Markdown."""
    context = click.Context(cli, info_name="charrnn")
    return "\n".join([HEAD, *(line for name in COMMANDS for line in section(name, context)), *models()])


def section(name: str, context: click.Context) -> Iterator[str]:
    """Yield the lines of one command: its help text, and a table for each group of flags."""
    command = cli.get_command(context, name)
    assert command is not None
    inner = click.Context(command, parent=context, info_name=name)
    yield f"## `charrnn {name}`\n"
    yield f"```text\n{command.get_usage(inner).removeprefix('Usage: ')}\n```\n"
    yield from prose(command.help or "")
    flags = [p.option for p in command.params if isinstance(p, Flag)]
    for group in dict.fromkeys(option.group for option in flags):
        yield f"**{GROUPS.get(group, group)}**\n"
        yield from table([option for option in flags if option.group == group])
    switches = [p for p in command.params if type(p) is click.Option and not p.hidden]
    if switches:
        yield "**Other**\n"
        yield "\n".join([*TABLE, *(row(p.opts[0], "", p.help or "") for p in switches)]) + "\n"


def models() -> Iterator[str]:
    """Yield the flags that each built-in model adds to `charrnn train`."""
    yield "## Flags of the models\n"
    yield "`charrnn train` has these flags with that `-model`. A model of your own adds flags in the same way.\n"
    for file in registry.models().values():
        own = list(file.options.values()) if file.origin == registry.BUILT_IN else []
        if own:
            yield f"### `-model {file.name}`\n"
            yield file.summary + "\n"
            yield from table(own)


def prose(help: str) -> Iterator[str]:
    """Yield the paragraphs of a help text. Those that click must not wrap become code blocks."""
    for paragraph in inspect.cleandoc(help).split("\n\n"):
        yield f"```text\n{paragraph[2:]}\n```\n" if paragraph.startswith("\b\n") else paragraph + "\n"


def table(options: list[Option]) -> Iterator[str]:
    rows = [
        row(f"-{o.name} {Flag(o).metavar}", default(o), ". ".join(filter(None, (o.help, bounds(o))))) for o in options
    ]
    yield "\n".join([*TABLE, *rows]) + "\n"


def row(flag: str, default: str, meaning: str) -> str:
    cells = (f"`{flag}`", default and f"`{default}`", meaning.replace("  [", " ["))
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def default(option: Option) -> str:
    """Return the default as written on the command line, or '' if the help text explains it."""
    value = option.default
    if value is None or value in ("", ()):
        return ""
    return f"{value:g}" if isinstance(value, float) else str(int(value)) if isinstance(value, bool) else str(value)


def bounds(option: Option) -> str:
    """Return the values that a number may take, in words."""
    within = option.within
    if within.high >= ENDLESS:
        within = replace(within, high=float("inf"), open_high=False)
    return "" if within == Interval() else str(within)[0].upper() + str(within)[1:]


if __name__ == "__main__":
    print(page(), end="")
