"""Settings: what one is, and the list of all training settings.

``TrainingOptions`` is the one source of every training setting. The flags of ``charrnn train``, the keys
of a TOML file and the settings in a checkpoint are all made from it; a model adds its own from the
signature of its ``create``, described in the same words (``Option``).
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from typing import Any, Literal, get_type_hints

from charrnn.errors import UserError
from charrnn.settings.option import (
    FRACTION,
    FROM_ONE,
    FROM_ZERO,
    POSITIVE,
    RATE,
    Encoding,
    Interval,
    Level,
    Names,
    Option,
    make_option,
)

# what a resumed run may change: none of it changes the weights that come out, or, gpuid and kernels, but their rounding
HARMLESS = {
    "data_dir",
    "max_epochs",
    "print_every",
    "eval_val_every",
    "save_every",
    "save_minutes",
    "keep",
    "sample_length",
    "checkpoint_dir",
    "savefile",
    "log_dir",
    "early_stop",
    "input",
    "gpuid",
    "kernels",
    "accurate_gpu_timing",
}


def _check_together(options: TrainingOptions) -> None:
    check_fractions(options.train_frac, options.val_frac)
    if options.task == "addition" and options.level == "word":
        raise UserError("-task addition reads sums character by character: leave out -level word")
    if options.kernels == "compiled" and options.precision == "bf16":
        raise UserError("-kernels compiled computes in float32 or float64: leave out -precision bf16")
    if options.unk and options.level == "char":
        raise UserError(f"-unk {options.unk} stands for unknown words: add -level word, or leave it out")
    if options.unk and options.unk.split() != [options.unk]:
        raise UserError(f"-unk {options.unk!r}: must be one word")
    if options.opencl:
        raise UserError("-opencl 1: PyTorch has no OpenCL; -gpuid 0 uses a CUDA or Apple GPU")
    if "/" in options.savefile or "\0" in options.savefile:
        raise UserError(f"-savefile {options.savefile}: a name, not a path; -checkpoint_dir sets the folder")


def setting(
    default: Any, help: str, group: str, within: Interval | None = None, names: Names = "", zero: str = ""
) -> Any:
    """A field of TrainingOptions, with all that a flag needs to know."""
    metadata = {"help": help, "group": group, "within": within or Interval(), "names": names, "zero": zero}
    return field(default=default, metadata=metadata)


Schedule = Literal["constant", "epoch_decay", "plateau", "cosine", "onecycle"]


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


# what the rate depends on besides the settings of the optimizer: a resumed run cannot change it
DEPENDS_ON = {"plateau": ("eval_val_every",), "cosine": ("max_epochs",), "onecycle": ("max_epochs",)}
