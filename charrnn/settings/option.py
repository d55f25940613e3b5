"""One setting: its type, its range, its flag, and how a word becomes its value."""

from __future__ import annotations

import math
import os
import types
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from charrnn.errors import UserError

FLOAT32 = 3.4e38  # about the largest number of single precision


@dataclass(frozen=True)
class Interval:
    """The values that a number may take. Open ends exclude the bound."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"over {self.low:g}" if self.open_low else f"at least {self.low:g}"
        low, high = f"{self.low:.15g}", f"{self.high:.15g}"
        return f"in {'(' if self.open_low else '['}{low}, {high}{')' if self.open_high else ']'}"


Names = Literal["", "file", "folder", "model", "recipe"]


@dataclass(frozen=True)
class Option:
    """One setting, whether it comes from a flag, a TOML file, a checkpoint or a model's signature.

    repeatable: the flag may be given several times, and the value is a tuple. names: what a text stands for. zero: the
    word for a number of 0.
    """

    name: str
    type: type
    default: Any
    help: str = ""
    group: str = "model"
    choices: tuple[Any, ...] = ()
    optional: bool = False
    within: Interval = Interval()
    repeatable: bool = False
    names: Names = ""
    zero: str = ""

    def convert(self, value: Any) -> Any:
        """The value in the setting's own type; of a repeatable setting, a tuple of such values.

        Takes the words of a command line as well as the typed values of a TOML file or a checkpoint.
        Raises UserError, naming the setting, where the value is of another type or out of range.
        """
        if self.repeatable:
            values = value if isinstance(value, (list, tuple)) else (value,)
            return tuple(self.convert_one(item) for item in values)
        return self.convert_one(value)

    def convert_one(self, value: Any) -> Any:
        """One value of a repeatable setting, the value of any other."""
        if value is None or (self.optional and isinstance(value, str) and value.lower() == "none"):
            if self.optional:
                return None
            raise UserError(f"-{self.name} needs a value")
        converted = self._typed(value)
        if self.choices and converted not in self.choices:
            raise UserError(f"-{self.name} {shown(value)}: must be one of {', '.join(map(str, self.choices))}")
        if self.type in (int, float) and converted not in self.within:
            raise UserError(f"-{self.name} {shown(value)}: must be {self.within}")
        return converted

    def _typed(self, value: Any) -> Any:
        if self.type is bool:
            if isinstance(value, bool) or value in (0, 1):
                return bool(value)
            if isinstance(value, str) and value.lower() in ("0", "1", "true", "false"):
                return value.lower() in ("1", "true")
            raise UserError(f"-{self.name} {shown(value)}: must be 0 or 1")
        wanted = {int: "a whole number", float: "a number", str: "text"}[self.type]
        wrong = UserError(f"-{self.name} {shown(value)}: must be {wanted}{f' or {self.zero}' if self.zero else ''}")
        if self.zero and value == self.zero:
            return 0
        if self.type is str:
            if not isinstance(value, str) or not _can_be_a_path(value):
                raise wrong
            return value
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise wrong
        try:
            converted = self.type(value)
        except (ValueError, OverflowError):
            raise wrong from None
        if self.type is int and abs(converted) >= 2**63:
            raise UserError(f"-{self.name} {shown(value)}: must be a number of 64 bits")
        if not math.isfinite(converted) or (self.type is int and isinstance(value, float) and value != converted):
            raise wrong
        if self.type is float and abs(converted) > FLOAT32:
            raise UserError(f"-{self.name} {shown(value)}: must be a number that single precision can hold")
        return converted


def shown(value: Any) -> str:
    """A value as a message quotes it: its beginning."""
    text = str(value)
    return text if len(text) < 60 else f"{text[:50]}..."


def _can_be_a_path(text: str) -> bool:
    """Whether the operating system takes it as a name: settings are flags too, and most texts among them are names."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def make_option(name: str, annotation: Any, default: Any, **rest: Any) -> Option:
    """The Option for a resolved annotation: int, float, str, bool, Literal, or Optional of these.

    ``tuple[str, ...]`` makes a repeatable one. Raises TypeError for any other annotation.
    """
    optional = repeatable = False
    if get_origin(annotation) is tuple and get_args(annotation)[1:] == (...,):
        annotation, repeatable = get_args(annotation)[0], True
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [part for part in get_args(annotation) if part is not type(None)]
        optional = len(inner) < len(get_args(annotation))
        annotation = inner[0] if len(inner) == 1 else annotation
    choices: tuple[Any, ...] = ()
    if get_origin(annotation) is Literal:
        choices = get_args(annotation)
        annotation = type(choices[0]) if len({type(choice) for choice in choices}) == 1 else annotation
    if annotation not in (int, float, str, bool):
        raise TypeError(f"{name}: {annotation} is not int, float, str, bool, a Literal or an Optional of these")
    return Option(name, annotation, default, optional=optional, choices=choices, repeatable=repeatable, **rest)


def options_of(kind: type[Any]) -> dict[str, Option]:
    """Return every field of a dataclass of settings as an Option, in the order of declaration."""
    hints = get_type_hints(kind)
    return {f.name: make_option(f.name, hints[f.name], f.default, **f.metadata) for f in fields(kind)}


Settings = TypeVar("Settings")


def checked(kind: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Make a dataclass of settings from plain values.

    Raises UserError, naming the setting, if a value is of the wrong type or out of range.
    """
    options = options_of(kind)
    return kind(**{name: options[name].convert(value) for name, value in values.items()})


POSITIVE = Interval(low=0, open_low=True)


FROM_ZERO = Interval(low=0)


FROM_ONE = Interval(low=1, high=2**31 - 1)


FRACTION = Interval(low=0, high=1)


RATE = Interval(low=0, high=1, open_high=True)


Level = Literal["char", "word"]


Encoding = Literal["utf-8", "bytes"]
