"""Recipes: settings with a name. TOML files that come with the program, and any run's settings as such a file."""

from __future__ import annotations

import codecs
import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from charrnn.errors import UserError, nearest, printable
from charrnn.settings.training import GROUPS, training_options


def read_toml(path: Path) -> dict[str, Any]:
    """The settings of a TOML file: top-level keys with the names of the flags. Raises UserError."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise UserError(f"cannot read the settings in {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, or thousands of digits or brackets
        raise UserError(f"{path} is not a TOML file: {error}") from None


def folder() -> Path:
    """``recipes`` inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def recipes() -> dict[str, Path]:
    """Every recipe's file, by name."""
    return {path.stem: path for path in sorted(folder().glob("*.toml"))}


def summary(path: Path) -> str:
    """What a recipe says it is: its first line, a comment."""
    with path.open(encoding="utf-8") as lines:
        return next(lines, "").lstrip("#").strip()


def find(config: str) -> Path:
    """The file that -config names: one of that path, or else the recipe of that name.

    Raises UserError for a plain name that is neither, and for a path to nothing that ends in a recipe's name; whether
    any other path can be read shows when it is.
    """
    path = Path(config)
    if os.path.exists(config) and not os.path.isdir(config):
        return path
    known = recipes()
    name = path.name.removesuffix(".toml")
    if path.name == config and (recipe := known.get(name)):
        return recipe
    if name in known and not os.path.lexists(config):  # a path from the documentation, outside a checkout
        raise UserError(f"-config {config}: there is no such file; -config {name}, without a folder, is the recipe")
    if path.name == config and not path.suffix and not os.path.isdir(config):
        hint = nearest(config, list(known))
        raise UserError(f"-config {config}: there is no such file or recipe{hint}: charrnn recipes lists them")
    return path


def as_toml(values: Mapping[str, Any], sources: Mapping[str, str], encoding: str = "utf-8") -> str:
    """The settings as a TOML file that -config takes, each with its source in a comment.

    values, sources: by the names of the flags, the training options' first. Of -data_dir and -input, which exclude
    each other, the one without effect is a comment too. encoding: of the output; TOML is UTF-8, so under any other
    it is ASCII alone, with escapes. Raises UserError for a text that is not UTF-8.
    """
    idle = "data_dir" if values["input"] else "input"
    lines = {name: f"{'# ' if name == idle else ''}{name} = {as_value(name, value)}" for name, value in values.items()}
    width = min(48, max(map(len, lines.values())))
    groups: dict[str, list[str]] = {}
    for name, line in lines.items():
        group = training_options()[name].group if name in training_options() else "model"
        groups.setdefault(group, []).append(f"{line:{width}}  # {printable(sources[name], keep='')}")
    text = "\n\n".join("\n".join([f"# {GROUPS[group]}", *found]) for group, found in groups.items()) + "\n"
    return text if codecs.lookup(encoding).name == "utf-8" else "".join(map(in_ascii, text))


def in_ascii(character: str) -> str:
    """The character, or its escape in a TOML string."""
    number = ord(character)
    return character if number < 0x80 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def as_value(name: str, value: Any) -> str:
    """A setting's value in TOML, which has no null: the flags' own word for that is none."""
    match value:
        case None:
            return '"none"'
        case int() if not value and name in training_options() and training_options()[name].zero:
            return f'"{training_options()[name].zero}"'
        case bool():
            return str(value).lower()
        case tuple() | list():
            return f"[{', '.join(as_value(name, item) for item in value)}]"
        case str():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise UserError(f"-{name} {value!a}: TOML cannot hold a name that is not UTF-8") from None
            return json.dumps(value, ensure_ascii=False).replace("\x7f", r"\u007f")
    return repr(value)
