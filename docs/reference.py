"""Prints the page of all commands and flags, made from them: python docs/reference.py > docs/reference.md"""

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

This page is made from the program: `charrnn COMMAND -h` says the same, in fewer words. A flag may have one dash or two.
One that takes `0|1` takes `true` and `false` as well. `-h`, `-help` and `--help` show the help of a command, and
`charrnn -version` prints the version.

Every setting of `charrnn train`, those of the model too, can also stand in a TOML file, under the name of its flag
without the dash, and is kept in the checkpoint.
"""
TABLE = ("| flag | default | meaning |", "| --- | --- | --- |")
ENDLESS = 2**31 - 1  # a bound that only keeps a number in its machine type says nothing to a reader


def page() -> str:
    """The whole page."""
    context = click.Context(cli, info_name="charrnn")
    return "\n".join([HEAD, *(line for name in COMMANDS for line in section(name, context)), *models()])


def section(name: str, context: click.Context) -> Iterator[str]:
    """One command: its help text, and a table of flags for each of their groups."""
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
    """The flags that each built-in model adds to `charrnn train`."""
    yield "## Flags of the models\n"
    yield "They belong to `charrnn train` with that `-model`. A model of your own adds its own in the same way.\n"
    for file in registry.models().values():
        own = list(file.options.values()) if file.origin == registry.BUILT_IN else []
        if own:
            yield f"### `-model {file.name}`\n"
            yield file.summary + "\n"
            yield from table(own)


def prose(help: str) -> Iterator[str]:
    """The paragraphs of a help text; one that click must not wrap is one that Markdown must not wrap."""
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
    """The default as one would write it on the command line; nothing where the help text has to explain it."""
    value = option.default
    if value is None or value in ("", ()):
        return ""
    return f"{value:g}" if isinstance(value, float) else str(int(value)) if isinstance(value, bool) else str(value)


def bounds(option: Option) -> str:
    """The values that a number may take, in words."""
    within = option.within
    if within.high >= ENDLESS:
        within = replace(within, high=float("inf"), open_high=False)
    return "" if within == Interval() else str(within)[0].upper() + str(within)[1:]


if __name__ == "__main__":
    print(page(), end="")
