"""Settings: what one is, and the list of all training settings.

``TrainingOptions`` is the one source of every training setting. The flags of ``charrnn train``, the keys
of a TOML file and the settings in a checkpoint are all made from it; a model adds its own from the
signature of its ``create``, described in the same words (``Option``).
"""

from __future__ import annotations

import math
import os
import types
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from charrnn.errors import UserError
from charrnn.vocabulary import Encoding, Level

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


def setting(
    default: Any, help: str, group: str, within: Interval | None = None, names: Names = "", zero: str = ""
) -> Any:
    """A field of TrainingOptions, with all that a flag needs to know."""
    metadata = {"help": help, "group": group, "within": within or Interval(), "names": names, "zero": zero}
    return field(default=default, metadata=metadata)


Schedule = Literal["constant", "epoch_decay", "plateau", "cosine", "onecycle"]

POSITIVE = Interval(low=0, open_low=True)
FROM_ZERO = Interval(low=0)
FROM_ONE = Interval(low=1, high=2**31 - 1)
FRACTION = Interval(low=0, high=1)
RATE = Interval(low=0, high=1, open_high=True)

GROUPS = {
    "data": "Data",
    "model": "Model",
    "optimisation": "Optimisation",
    "bookkeeping": "Bookkeeping",
    "device": "Device",
}


@dataclass
class TrainingOptions:
    """Every setting of a training run, with char-rnn's names and defaults."""

    data_dir: str = setting(
        "data/tinyshakespeare",
        "folder with input.txt, or train.txt and val.txt (and test.txt)",
        "data",
        names="folder",
    )
    task: Literal["text", "addition"] = setting(
        "text", "predict every character, or only the sums of charrnn prepare addition", "data"
    )
    input: tuple[str, ...] = setting(
        (), "text file, or several or a pattern, joined in the order of their names", "data", names="file"
    )
    level: Level = setting("char", "one token per character, or per word between white space", "data")
    unk: str = setting("", "level word: token that stands for words train.txt lacks; empty = they are an error", "data")
    encoding: Encoding = setting("utf-8", "of the text; bytes = one token per byte", "data")
    train_frac: float = setting(0.95, "share of input.txt to train on", "data", Interval(0, 1, open_low=True))
    val_frac: float = setting(0.05, "share of input.txt to validate on; the rest is for testing", "data", FRACTION)

    model: str = setting("lstm", "a built-in model, or a file models/NAME.py of your own", "model", names="model")
    rnn_size: int = setting(128, "units in each layer", "model", Interval(1, 2**20))
    num_layers: int = setting(2, "number of layers", "model", Interval(1, 1000))
    dropout: float = setting(0.0, "share of units dropped between layers in training; 0 = none", "model", RATE)
    init_from: str = setting(
        "", "start from the weights of this checkpoint, with its model and sizes", "model", names="file"
    )

    optimizer: Literal["rmsprop", "adam", "sgd"] = setting("rmsprop", "rule that updates the weights", "optimisation")
    learning_rate: float = setting(2e-3, "step size; with onecycle its peak", "optimisation", FROM_ZERO)
    lr_schedule: Schedule = setting("epoch_decay", "how the step size changes over the run", "optimisation")
    learning_rate_decay: float = setting(
        0.97, "epoch_decay: factor on the rate at each epoch's end", "optimisation", POSITIVE
    )
    learning_rate_decay_after: int = setting(
        10, "epoch_decay: number of epochs at the full rate", "optimisation", FROM_ZERO
    )
    plateau_factor: float = setting(0.5, "plateau: factor on the rate", "optimisation", Interval(0, 1, True, True))
    plateau_patience: int = setting(
        2, "plateau: validations in a row without a new best after which it falls", "optimisation", FROM_ONE
    )
    warm_up: float = setting(0.3, "onecycle: share of the run in which the rate rises", "optimisation", RATE)
    decay_rate: float = setting(0.95, "memory of rmsprop's mean square", "optimisation", RATE)
    beta1: float = setting(0.9, "memory of adam's mean gradient", "optimisation", RATE)
    beta2: float = setting(0.999, "memory of adam's mean square", "optimisation", RATE)
    seq_length: int = setting(50, "time steps to backpropagate through", "optimisation", FROM_ONE)
    batch_size: int = setting(50, "rows of text read side by side", "optimisation", FROM_ONE)
    max_epochs: float = setting(
        50.0, "passes over the training text; fractions allowed", "optimisation", Interval(0, 1e9, open_low=True)
    )
    early_stop: int = setting(
        0, "end after this many validations in a row without a new best; 0 = never", "optimisation", FROM_ZERO
    )
    grad_clip: float = setting(5.0, "clip each element of the gradient to +-this; 0 = off", "optimisation", FROM_ZERO)
    max_grad_norm: float = setting(0.0, "scale the gradient down to this norm; 0 = off", "optimisation", FROM_ZERO)
    weight_decay: float = setting(0.0, "L2 penalty, part of the clipped gradient", "optimisation", FROM_ZERO)

    seed: int = setting(123, "seed of all random numbers", "bookkeeping", Interval(0, 2**63 - 1))
    print_every: int = setting(1, "iterations from one printed line to the next", "bookkeeping", FROM_ONE)
    eval_val_every: int = setting(1000, "iterations from one validation to the next", "bookkeeping", FROM_ONE)
    save_every: int = setting(
        0,
        "iterations from one save of lm_SAVEFILE_last.pt to the next; 0 = by the clock alone",
        "bookkeeping",
        FROM_ZERO,
    )
    save_minutes: float = setting(10.0, "minutes between such saves; 0 = none by the clock", "bookkeeping", FROM_ZERO)
    keep: int = setting(0, "validated checkpoints to keep, besides the best; 0 = all", "bookkeeping", FROM_ZERO)
    on_nan: Literal["stop", "rollback"] = setting(
        "stop", "what a broken loss leads to; rollback = back to the last save, at half the rate", "bookkeeping"
    )
    sample_length: int = setting(
        200, "characters or words of sample shown at each validation; 0 = none", "bookkeeping", Interval(0, 10**6)
    )
    checkpoint_dir: str = setting("cv", "folder for checkpoints", "bookkeeping", names="folder")
    savefile: str = setting("", "lm_SAVEFILE_epoch... names the checkpoints; empty = the model's name", "bookkeeping")
    log_dir: str = setting("", "folder for TensorBoard's events; empty = none", "bookkeeping", names="folder")

    gpuid: int = setting(0, "number of the GPU; -1 = CPU", "device", Interval(low=-1))
    precision: Literal["float32", "float64", "tf32", "bf16"] = setting(
        "float32", "of weights and arithmetic; tf32, bf16 = float32 with shorter factors in products", "device"
    )
    threads: int = setting(
        0, "CPU threads; auto = as many as are fastest, found by trying", "device", Interval(0, 1024), zero="auto"
    )
    kernels: Literal["auto", "torch", "compiled"] = setting(
        "auto", "what computes gru, rnn and rhn on a CPU; auto = the faster, found by trying", "device"
    )
    accurate_gpu_timing: bool = setting(False, "wait for the GPU at every iteration: exact times, slower", "device")
    opencl: bool = setting(False, "char-rnn's OpenCL switch: not available on PyTorch", "device")


@cache
def training_options() -> dict[str, Option]:
    """Every field of TrainingOptions as an Option, in the order of declaration."""
    hints = get_type_hints(TrainingOptions)
    assert all(f.default is not MISSING for f in fields(TrainingOptions))
    return {f.name: make_option(f.name, hints[f.name], f.default, **f.metadata) for f in fields(TrainingOptions)}


def check_fractions(train_frac: float, val_frac: float) -> None:
    """Raises UserError unless both are fractions of one whole."""
    for name, value in (("train_frac", train_frac), ("val_frac", val_frac)):
        if not 0 <= value <= 1:
            raise UserError(f"-{name} {value:g}: must be in [0, 1]")
    if train_frac + val_frac > 1 + 1e-9:
        raise UserError(f"-train_frac {train_frac:g} and -val_frac {val_frac:g} are more than 1 together: lower one")


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint at the known name most like a mistyped one, or '' where none is like it."""
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""
