"""TOML files of settings: recipes, which come with the program, and the user's own files."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unicodedata import category

from charrnn.errors import CONTROL, UserError, nearest, printable
from charrnn.settings.training import GROUPS, training_options


def read_toml(path: Path) -> dict[str, Any]:
    """Return the settings in a TOML file, whose keys are the names of flags. Raises UserError."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise UserError(f"cannot read the settings in {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, or thousands of digits or brackets
        raise UserError(f"{path} is not a TOML file: {error}") from None


def folder() -> Path:
    """Return ``recipes`` inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def recipes() -> dict[str, Path]:
    """Return the file of every recipe, by name."""
    return {path.stem: path for path in sorted(folder().glob("*.toml"))}


def summary(path: Path) -> str:
    """Return the first line of a recipe, a comment that describes it."""
    with path.open(encoding="utf-8") as lines:
        return next(lines, "").lstrip("#").strip()


def find(config: str) -> Path:
    """Return the file that -config names: the file with this path, or else the recipe with this name.

    Raises UserError for a plain name that is neither, and for a missing file with the name of a recipe. Any other
    path is returned without a check; reading it will fail if it is wrong.
    """
    path = Path(config)
    if os.path.exists(config) and not os.path.isdir(config):
        return path
    known = recipes()
    name = path.name.removesuffix(".toml")
    if path.name == config and (recipe := known.get(name)):
        return recipe
    if name in known and not os.path.lexists(config):  # a path that exists only in a checkout
        raise UserError(f"-config {config}: no such file; for the recipe use -config {name}")
    if path.name == config and not path.suffix and not os.path.isdir(config):
        hint = nearest(config, list(known))
        raise UserError(f"-config {config}: no such file or recipe{hint}; charrnn recipes lists the recipes")
    return path


def as_toml(values: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    """Return the settings as a TOML file for -config, each with its source in a comment.

    Both mappings are keyed by the names of the flags. -data_dir and -input cannot be combined, so the one without
    effect is commented out. Raises UserError for a value that is not UTF-8.
    """
    idle = "data_dir" if values["input"] else "input"
    lines = {name: f"{'# ' if name == idle else ''}{name} = {as_value(name, value)}" for name, value in values.items()}
    width = min(48, max(map(len, lines.values())))
    groups: dict[str, list[str]] = {}
    for name, line in lines.items():
        group = training_options()[name].group if name in training_options() else "model"
        groups.setdefault(group, []).append(f"{line:{width}}  # {printable(sources[name], keep='')}")
    return "\n\n".join("\n".join([f"# {GROUPS[group]}", *found]) for group, found in groups.items()) + "\n"


def as_value(name: str, value: Any) -> str:
    """Return a setting's value in TOML, which has no null: None becomes "none", as on the command line."""
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
            quoted = json.dumps(value, ensure_ascii=False)
            # the control characters that JSON leaves as they are; a terminal may be where this is printed
            return "".join(rf"\U{ord(c):08x}" if category(c) in CONTROL else c for c in quoted)
    return repr(value)
