"""One setting: its type, its range, and the conversion of words and plain values to its type."""

from __future__ import annotations

import math
import os
import types
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from charrnn.errors import UserError

FLOAT32 = 3.4e38  # about the largest single-precision number


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
        """Return the words that follow "must be" in a message."""
        low = f"{'above' if self.open_low else 'at least'} {self.low:,.15g}"
        if self.high == math.inf:
            return low
        if self.open_low or self.open_high:
            return f"{low} and {'below' if self.open_high else 'at most'} {self.high:,.15g}"
        return f"between {self.low:,.15g} and {self.high:,.15g}"


ANY = Interval()

# the kind of thing that a text setting names
Names = Literal["", "file", "folder", "model", "recipe"]


@dataclass(frozen=True)
class Option:
    """One setting, whether it comes from a flag, a TOML file, a checkpoint or a model's signature."""

    name: str
    type: type
    default: Any
    help: str = ""
    # a key of GROUPS, or a heading
    group: str = "model"
    # empty: any value of the type
    choices: tuple[Any, ...] = ()
    # whether None, written "none", is allowed
    optional: bool = False
    within: Interval = ANY
    # the flag may be given several times; the value is a tuple
    repeatable: bool = False
    names: Names = ""
    # a word that means 0, such as auto
    zero: str = ""
    # whether a resumed run may change it, and the learning rate schedules with which it may not
    on_resume: Literal["fixed", "free"] = "fixed"
    fixed_by: tuple[str, ...] = ()

    def convert(self, value: Any) -> Any:
        """Return the value in the setting's own type; for a repeatable setting, a tuple of such values.

        Takes the words of a command line as well as the typed values of a TOML file or a checkpoint.
        Raises UserError, naming the setting, if the value is of the wrong type or out of range.
        """
        if self.repeatable:
            values = value if isinstance(value, (list, tuple)) else (value,)
            return tuple(self.convert_one(item) for item in values)
        return self.convert_one(value)

    def convert_one(self, value: Any) -> Any:
        """Convert one value, even if the setting is repeatable. Raises UserError as ``convert`` does."""
        if value is None or (self.optional and isinstance(value, str) and value.lower() == "none"):
            if self.optional:
                return None
            raise UserError(f"-{self.name} needs a value")
        if self.zero and value == self.zero:
            return 0
        convert, wanted = CONVERTERS[self.type]
        try:
            converted = convert(value)
        except (KeyError, ValueError, OverflowError):
            raise self._wrong(value, f"{wanted} or {self.zero}" if self.zero else wanted) from None
        if self.choices and converted not in self.choices:
            raise self._wrong(value, f"one of {', '.join(map(str, self.choices))}")
        if self.type in (int, float) and converted not in self.within:
            raise self._wrong(value, str(self.within))
        if self.type is int and abs(converted) >= 2**63:
            raise self._wrong(value, "a 64-bit number")
        if self.type is float and abs(converted) > FLOAT32:
            raise self._wrong(value, "a number that fits into single precision")
        return converted

    def _wrong(self, value: Any, wanted: str) -> UserError:
        return UserError(f"-{self.name} {shown(value)}: must be {wanted}")

    def is_free(self, lr_schedule: str) -> bool:
        """Whether a resumed run with this learning rate schedule may change the setting."""
        return self.on_resume == "free" and lr_schedule not in self.fixed_by


def _to_bool(value: Any) -> bool:
    if isinstance(value, str):
        return {"0": False, "1": True, "false": False, "true": True}[value.lower()]
    if value in (0, 1):
        return bool(value)
    raise ValueError


def _to_int(value: Any) -> int:
    converted = int(_plain(value))
    if isinstance(value, float) and value != converted:
        raise ValueError
    return converted


def _to_float(value: Any) -> float:
    converted = float(_plain(value))
    if not math.isfinite(converted):
        raise ValueError
    return converted


def _plain(value: Any) -> int | float | str:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError
    return value


def _to_text(value: Any) -> str:
    """Return the text. Raises ValueError if it cannot be a file name, since most text settings name files."""
    if not isinstance(value, str) or b"\0" in os.fsencode(value):  # raises UnicodeEncodeError, a ValueError
        raise ValueError
    return value


# the converter for each type, and the words after "must be" if it raises KeyError, ValueError or OverflowError
CONVERTERS: dict[type, tuple[Callable[[Any], Any], str]] = {
    bool: (_to_bool, "0 or 1"),
    int: (_to_int, "a whole number"),
    float: (_to_float, "a number"),
    str: (_to_text, "text"),
}


def shown(value: Any) -> str:
    """Return a value as text, shortened for a message."""
    text = str(value)
    return text if len(text) < 60 else f"{text[:50]}..."


def make_option(name: str, annotation: Any, default: Any, **rest: Any) -> Option:
    """Return the Option for a resolved annotation: int, float, str, bool, Literal, or Optional of these.

    ``tuple[str, ...]`` makes it repeatable. Raises TypeError for any other annotation.
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


@cache
def options_of(kind: type[Any]) -> dict[str, Option]:
    """Return every field of a dataclass of settings as an Option, in the order of declaration."""
    hints = get_type_hints(kind)
    return {f.name: make_option(f.name, hints[f.name], f.default, **f.metadata) for f in fields(kind)}


Settings = TypeVar("Settings", bound=Hashable)


def checked(kind: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Make a dataclass of settings from plain values.

    Raises UserError, naming the setting, if a value is of the wrong type or out of range.
    """
    options = options_of(kind)
    return kind(**{name: options[name].convert(value) for name, value in values.items()})


def changed(settings: Any) -> dict[str, str]:
    """Return the flag of each setting that differs from its default, by name."""
    return {f.name: f"-{f.name}" for f in fields(settings) if getattr(settings, f.name) != f.default}


def exclude(pairs: Iterable[tuple[str, str]], given: Mapping[str, str]) -> None:
    """Raise UserError if both settings of a pair are given. ``given`` maps names to flags."""
    for one, other in pairs:
        if one in given and other in given:
            raise UserError(f"{given[one]} and {given[other]} cannot be combined: give only one of them")


POSITIVE = Interval(low=0, open_low=True)
FROM_ZERO = Interval(low=0)
FROM_ONE = Interval(low=1, high=2**31 - 1)
FRACTION = Interval(low=0, high=1)
RATE = Interval(low=0, high=1, open_high=True)

Level = Literal["char", "word"]
Encoding = Literal["utf-8", "bytes"]
