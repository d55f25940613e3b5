"""Flags in char-rnn's style, on top of click: ``-rnn_size 128``, with one dash or two."""

from __future__ import annotations

from collections.abc import Sequence
from glob import escape, glob
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from charrnn import registry
from charrnn.errors import UserError, nearest
from charrnn.settings import option, recipes
from charrnn.settings.option import Option
from charrnn.settings.training import GROUPS

# names of values in the help, by type or by kind
METAVARS = {int: "INT", float: "NUMBER", str: "TEXT", bool: "0|1"}
NAMED = {"file": "FILE", "folder": "DIR", "model": "NAME", "recipe": "FILE"}


class Kind(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
    """The type of a flag's value, as its Option defines it."""

    def __init__(self, option: Option) -> None:
        self.option = option
        self.name = "|".join(map(str, option.choices)) or NAMED.get(option.names, METAVARS[option.type])
        if option.zero:
            self.name = f"{option.zero}|{self.name}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self.option.convert_one(value)
        except UserError as error:
            raise click.UsageError(str(error), ctx) from None

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return values(self.option, incomplete)


class Flag(click.Option):
    """An Option as a flag. Its value is None if the flag is not given, so that a file can set it."""

    def __init__(self, option: Option, expose_value: bool = True) -> None:
        declarations = [f"-{option.name}", f"--{option.name}", option.name]
        kind = Kind(option)
        super().__init__(
            declarations,
            type=kind,
            default=None,
            metavar=kind.name,
            multiple=option.repeatable,
            help=option.help,
            expose_value=expose_value,
        )
        self.option = option

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        value = super().process_value(ctx, value)
        return None if value == () else value  # click returns () for a repeatable flag that is not given

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        option = self.option
        default = int(option.default) if option.type is bool and option.default is not None else option.default
        shown = f"{default:g}" if isinstance(default, float) else str(default or option.zero or default)
        note = f"  [{shown}]" if shown not in ("", "None", "()") else ""
        return f"-{option.name} {self.metavar}", option.help + note


def switch(name: str, help: str, variable: str | None = None) -> click.Option:
    """Return a flag that takes no value."""
    return click.Option([f"-{name}", f"--{name}", variable or name], is_flag=True, help=help)


class Command(click.Command):
    """A command whose flags may have one dash. Its error for a mistyped flag quotes the whole flag."""

    def __init__(self, name: str, params: Sequence[click.Parameter], **rest: Any) -> None:
        super().__init__(name, params=list(params), context_settings={"max_content_width": 110}, **rest)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:  # the command line is still being typed
            return super().parse_args(ctx, args)
        for name, _ in given(args, self.arity(ctx)):
            if name not in self.arity(ctx):
                known = sorted({spelling.lstrip("-") for spelling in self.arity(ctx)})
                close = nearest(name.lstrip("-"), known).replace("mean ", "mean -")
                raise click.UsageError(f"unknown flag {name}{close}; {ctx.command_path} -h lists the flags", ctx)
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        return flags(super().shell_complete(ctx, incomplete), incomplete)

    def arity(self, ctx: click.Context) -> dict[str, int]:
        """Return the number of words that follow each flag, for every spelling."""
        options = [p for p in self.get_params(ctx) if isinstance(p, click.Option)]
        return {spelling: 0 if p.is_flag else p.nargs for p in options for spelling in p.opts}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the flags under the headings of their groups."""
        flags = [p for p in self.get_params(ctx) if isinstance(p, Flag)]
        for group in dict.fromkeys(flag.option.group for flag in flags):
            with formatter.section(GROUPS.get(group, group)):
                formatter.write_dl([f.get_help_record(ctx) for f in flags if f.option.group == group])
        others = [p.get_help_record(ctx) for p in self.get_params(ctx) if type(p) is click.Option]
        if rows := [row for row in others if row]:
            with formatter.section("Other"):
                formatter.write_dl([(names.split(",")[0], text) for names, text in rows])


def given(args: Sequence[str], arity: dict[str, int]) -> list[tuple[str, str]]:
    """Return the flags on a command line, each with the word that follows it, or ''.

    A value is never mistaken for a flag: ``-primetext "-- he"`` is one flag with its value. A flag that ``arity``
    does not list is assumed to take one value.
    """
    found = []
    i = 0
    while i < len(args) and args[i] != "--":
        name, equals, value = args[i].partition("=")
        i += 1
        if len(name) < 2 or not name.startswith("-"):
            continue
        if not equals:
            words = arity.get(name, 1)
            value = args[i] if words and i < len(args) else ""
            i += words
        found.append((name, value))
    return found


def one_by_one(args: Sequence[str], name: str) -> list[str]:
    """Rewrite ``-NAME a b c``, a shell's expansion of ``-NAME *.txt``, as ``-NAME a -NAME b -NAME c``."""
    spelled, repeated = (f"-{name}", f"--{name}"), ""
    rest: list[str] = []
    for word in args:
        if repeated and not word.startswith("-") and rest[-1] != repeated:
            rest.append(repeated)
        elif word.startswith("-"):
            repeated = word if word in spelled else ""
        rest.append(word)
    return rest


def exclude(*pairs: tuple[str, str]) -> None:
    """Raise click.UsageError if the command line has both parameters of one of these pairs."""
    ctx = click.get_current_context()
    spelled = {p.name or "": p.opts[0] for p in ctx.command.get_params(ctx)}
    there = {n: flag for n, flag in spelled.items() if ctx.get_parameter_source(n) is ParameterSource.COMMANDLINE}
    try:
        option.exclude(pairs, there)
    except UserError as error:
        raise click.UsageError(str(error), ctx) from None


def with_defaults(options: Sequence[Option], values: dict[str, Any]) -> dict[str, Any]:
    """Return the values, with the default of each option that was not given."""
    return {o.name: o.default if values[o.name] is None else values[o.name] for o in options}


def values(option: Option, incomplete: str) -> list[CompletionItem]:
    """Return completions of a flag's value. The shell itself completes files and folders."""
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
    """Keep one spelling of each flag: with two dashes if two were typed, otherwise with one."""
    return [item for item in items if item.value.startswith("--") == incomplete.startswith("--")]
