"""All settings of a training run.

``TrainingOptions`` is the one source of every training setting: the flags of ``charrnn train``, the keys of a TOML file
and the settings in a checkpoint all follow from it. A model adds its own from the signature of its ``create``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from charrnn.errors import UserError
from charrnn.settings.option import (
    ANY,
    FRACTION,
    FROM_ONE,
    FROM_ZERO,
    RATE,
    Encoding,
    Interval,
    Level,
    Names,
    Option,
    options_of,
)

Schedule = Literal["constant", "epoch_decay", "plateau", "cosine", "onecycle"]


GROUPS = {
    "data": "Data",
    "model": "Model",
    "optimisation": "Optimisation",
    "bookkeeping": "Bookkeeping",
    "device": "Device",
}


def setting(
    default: Any,
    help: str,
    group: str,
    within: Interval = ANY,
    names: Names = "",
    zero: str = "",
    on_resume: Literal["fixed", "free"] = "fixed",
    fixed_by: tuple[Schedule, ...] = (),
) -> Any:
    """Return a dataclass field for a setting, with the metadata for its Option.

    A resumed run may change a setting that is ``free``. Such a setting changes no weights, or only their rounding. With
    a learning rate schedule in ``fixed_by``, however, it changes them, so it is fixed.
    """
    metadata = dict(locals())
    return field(default=metadata.pop("default"), metadata=metadata)


@dataclass
class TrainingOptions:
    """Every setting of a training run, with char-rnn's names and defaults."""

    data_dir: str = setting(
        "data/tinyshakespeare",
        "folder with input.txt, or with train.txt and val.txt (and test.txt)",
        "data",
        names="folder",
        on_resume="free",
    )
    task: Literal["text", "addition"] = setting(
        "text", "predict every character, or only the sums of charrnn prepare addition", "data"
    )
    input: tuple[str, ...] = setting(
        (),
        "text file or pattern; may be repeated; the files are joined in order of name",
        "data",
        names="file",
        on_resume="free",
    )
    level: Level = setting("char", "one token per character, or per word, separated by white space", "data")
    unk: str = setting(
        "", "with -level word: token for words that are not in train.txt; empty = such words are errors", "data"
    )
    encoding: Encoding = setting("utf-8", "how the text is encoded; bytes = one token per byte", "data")
    train_frac: float = setting(0.95, "share of input.txt to train on", "data", Interval(0, 1, open_low=True))
    val_frac: float = setting(0.05, "share of input.txt to validate on; the rest is for testing", "data", FRACTION)

    model: str = setting("lstm", "a built-in model, or your own file models/NAME.py", "model", names="model")
    rnn_size: int = setting(128, "units in each layer", "model", Interval(1, 2**20))
    num_layers: int = setting(2, "number of layers", "model", Interval(1, 1000))
    dropout: float = setting(0.0, "share of units dropped between layers during training; 0 = none", "model", RATE)
    init_from: str = setting(
        "", "start from the weights of this checkpoint, with its model and sizes", "model", names="file"
    )

    optimizer: Literal["rmsprop", "adam", "sgd"] = setting("rmsprop", "rule that updates the weights", "optimisation")
    learning_rate: float = setting(2e-3, "learning rate; with onecycle, the peak", "optimisation", FROM_ZERO)
    lr_schedule: Schedule = setting("epoch_decay", "how the learning rate changes over the run", "optimisation")
    learning_rate_decay: float = setting(
        0.97,
        "epoch_decay: multiply the learning rate by this after each epoch",
        "optimisation",
        Interval(0, 1, open_low=True),
    )
    learning_rate_decay_after: int = setting(
        10, "epoch_decay: number of epochs at the full learning rate", "optimisation", FROM_ZERO
    )
    plateau_factor: float = setting(
        0.5, "plateau: multiply the learning rate by this to lower it", "optimisation", Interval(0, 1, True, True)
    )
    plateau_patience: int = setting(
        2,
        "plateau: lower the learning rate after this many validations in a row without a new best",
        "optimisation",
        FROM_ONE,
    )
    warm_up: float = setting(0.3, "onecycle: share of the run in which the learning rate rises", "optimisation", RATE)
    decay_rate: float = setting(0.95, "rmsprop: decay of the mean square gradient", "optimisation", RATE)
    beta1: float = setting(0.9, "adam: decay of the mean gradient", "optimisation", RATE)
    beta2: float = setting(0.999, "adam: decay of the mean square gradient", "optimisation", RATE)
    seq_length: int = setting(50, "time steps to backpropagate through", "optimisation", FROM_ONE)
    batch_size: int = setting(50, "rows of text to train on at once", "optimisation", FROM_ONE)
    max_epochs: float = setting(
        50.0,
        "passes over the training text; fractions allowed",
        "optimisation",
        Interval(0, 1e9, open_low=True),
        on_resume="free",
        fixed_by=("cosine", "onecycle"),
    )
    early_stop: int = setting(
        0,
        "stop after this many validations in a row without a new best; 0 = never",
        "optimisation",
        FROM_ZERO,
        on_resume="free",
    )
    grad_clip: float = setting(5.0, "clip each element of the gradient to +-this; 0 = off", "optimisation", FROM_ZERO)
    max_grad_norm: float = setting(0.0, "scale the gradient down to this norm; 0 = off", "optimisation", FROM_ZERO)
    weight_decay: float = setting(
        0.0, "L2 penalty on the weights, added to the gradient before clipping", "optimisation", FROM_ZERO
    )

    seed: int = setting(123, "seed of all random numbers", "bookkeeping", Interval(0, 2**63 - 1))
    print_every: int = setting(1, "print a line every N iterations", "bookkeeping", FROM_ONE, on_resume="free")
    eval_val_every: int = setting(
        1000, "validate every N iterations", "bookkeeping", FROM_ONE, on_resume="free", fixed_by=("plateau",)
    )
    save_every: int = setting(
        0,
        "save lm_SAVEFILE_last.pt every N iterations; 0 = only every -save_minutes",
        "bookkeeping",
        FROM_ZERO,
        on_resume="free",
    )
    save_minutes: float = setting(
        10.0, "save lm_SAVEFILE_last.pt every N minutes; 0 = off", "bookkeeping", FROM_ZERO, on_resume="free"
    )
    keep: int = setting(
        0, "validated checkpoints to keep in addition to the best; 0 = all", "bookkeeping", FROM_ZERO, on_resume="free"
    )
    on_nan: Literal["stop", "rollback"] = setting(
        "stop",
        "if the loss becomes NaN or explodes: stop, or return to the last checkpoint with half the learning rate",
        "bookkeeping",
    )
    sample_length: int = setting(
        200,
        "characters or words to sample and show at each validation; 0 = none",
        "bookkeeping",
        Interval(0, 10**6),
        on_resume="free",
    )
    checkpoint_dir: str = setting("cv", "folder for checkpoints", "bookkeeping", names="folder", on_resume="free")
    savefile: str = setting(
        "",
        "name of the run in lm_SAVEFILE_epoch...; empty = the model's name",
        "bookkeeping",
        on_resume="free",
    )
    log_dir: str = setting(
        "",
        "folder for TensorBoard events; empty = none; give it again with -resume",
        "bookkeeping",
        names="folder",
        on_resume="free",
    )

    gpuid: int = setting(0, "number of the GPU; -1 = CPU", "device", Interval(low=-1), on_resume="free")
    precision: Literal["float32", "float64", "tf32", "bf16"] = setting(
        "float32",
        "number format of weights and arithmetic; tf32 and bf16 keep float32 weights and multiply in lower precision",
        "device",
    )
    threads: int = setting(
        0, "CPU threads; auto = the fastest number, found by timing", "device", Interval(0, 1024), zero="auto"
    )
    kernels: Literal["auto", "torch", "compiled"] = setting(
        "auto",
        "kernels for gru, rnn and rhn on a CPU; auto = the faster ones, found by timing",
        "device",
        on_resume="free",
    )
    accurate_gpu_timing: bool = setting(
        False, "wait for the GPU at every iteration: exact times, but slower", "device", on_resume="free"
    )
    opencl: bool = setting(False, "char-rnn's switch for OpenCL, which PyTorch does not support", "device")

    @property
    def run_name(self) -> str:
        """The NAME in the run's file names, lm_NAME_..."""
        return self.savefile or self.model

    def check(self) -> None:
        """Raise UserError for settings that cannot be combined or are not available."""
        check_fractions(self.train_frac, self.val_frac)
        if self.task == "addition" and self.level == "word":
            raise UserError("-task addition reads sums character by character: leave out -level word")
        if self.kernels == "compiled" and self.precision == "bf16":
            raise UserError("-kernels compiled computes in float32 or float64: leave out -precision bf16")
        if self.unk and self.level == "char":
            raise UserError(f"-unk {self.unk} needs -level word: add that, or leave out -unk")
        if self.unk and self.unk.split() != [self.unk]:
            raise UserError(f"-unk {self.unk!r}: must be one word")
        if self.opencl:
            raise UserError("-opencl 1: PyTorch does not support OpenCL; -gpuid 0 uses a CUDA or Apple GPU")
        if "/" in self.savefile or "\0" in self.savefile:
            raise UserError(f"-savefile {self.savefile}: must be a name, not a path; -checkpoint_dir sets the folder")


def training_options() -> dict[str, Option]:
    """Return every field of TrainingOptions as an Option, in the order of declaration."""
    return options_of(TrainingOptions)


def check_fractions(train_frac: float, val_frac: float) -> None:
    """Raise UserError unless both are between 0 and 1 and add up to at most 1."""
    for name, value in (("train_frac", train_frac), ("val_frac", val_frac)):
        if not 0 <= value <= 1:
            raise UserError(f"-{name} {value:g}: must be between 0 and 1")
    if train_frac + val_frac > 1 + 1e-9:
        raise UserError(f"-train_frac {train_frac:g} and -val_frac {val_frac:g} add up to more than 1: lower one")
