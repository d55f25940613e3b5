"""Where the settings of a training run come from: defaults, a checkpoint, a TOML file, flags."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charrnn import recipes, registry
from charrnn.errors import UserError
from charrnn.options import TrainingOptions, check_fractions, nearest, training_options
from charrnn.schedules import DEPENDS_ON

if TYPE_CHECKING:
    from charrnn.checkpoint import Checkpoint

TEXT = {"data_dir", "input"}
ARCHITECTURE = ("model", "rnn_size", "num_layers")

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


@dataclass
class Configuration:
    """The settings of a run.

    start: the checkpoint that -init_from named; resume: the one that -resume named; each read once.
    sources: where the value of each setting comes from. notes: what the user should hear about the choice.
    """

    options: TrainingOptions
    model_options: dict[str, Any]
    start: Checkpoint | None = None
    resume: Checkpoint | None = None
    sources: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_toml(path: Path) -> dict[str, Any]:
    """The settings of a TOML file: top-level keys with the names of the flags. Raises UserError."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise UserError(f"cannot read the settings in {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, or thousands of digits or brackets
        raise UserError(f"{path} is not a TOML file: {error}") from None


def configure(flags: Mapping[str, Any], config: str | None = None, resume: str | None = None) -> Configuration:
    """Resolve every setting: a flag wins over the file, the file over the defaults.

    With init_from, the model, its sizes and its own options are the checkpoint's, as in char-rnn; the
    model's own options that change no weights can still be set. With resume, every setting is the
    checkpoint's, save harmless ones. Raises UserError for an unknown key, a value out of range, a setting
    that a resumed run cannot change, or a checkpoint that cannot be read.
    """
    file = read_toml(recipes.find(config)) if config else {}
    given = {name: value for name, value in flags.items() if value is not None}
    for source in (file, given):
        if source.keys() >= TEXT:
            raise UserError("-input names a text itself, -data_dir a folder with it: give one of them")
    if TEXT & given.keys():
        file = {name: value for name, value in file.items() if name not in TEXT}
    chosen = file | given
    if resume and chosen.get("init_from"):
        raise UserError("-resume goes on with a run, -init_from begins a new one: give one of them")
    start, going_on = _load(chosen.get("init_from")), _load(resume, newest=True)
    model = _model(chosen, start, going_on)
    known = training_options() | registry.describe(model)
    for name in chosen:
        if name not in known:
            where = f"{config}: " if flags.get(name) is None else ""
            raise UserError(f"{where}there is no setting {name}{nearest(name, list(known))} for the model {model}")
    values = {name: known[name].convert(value) for name, value in chosen.items()}
    notes = []
    sources = dict.fromkeys(known, "default") | dict.fromkeys(file, str(config)) | dict.fromkeys(given, "flag")
    if start:
        fixed = {name: getattr(start.options, name) for name in ARCHITECTURE}
        notes = [f"{n} is {v}, as in {values['init_from']}" for n, v in fixed.items() if values.get(n, v) != v]
        inherited = fixed.keys() | (start.model_options.keys() - values.keys())
        sources |= dict.fromkeys(inherited, f"checkpoint {values['init_from']}")
        values = start.model_options | values | fixed
    if going_on:
        saved = asdict(going_on.options) | going_on.model_options
        _refuse_changes(values, saved)
        if "data_dir" in values:
            saved["input"] = ()
        if saved["kernels"] == "auto":  # from before there was a choice
            saved["kernels"] = "torch"
        sources |= dict.fromkeys(saved.keys() - values.keys(), f"checkpoint {resume}")
        values = saved | values
    options = TrainingOptions(**{name: values[name] for name in training_options() if name in values})
    own = {name: values.get(name, o.default) for name, o in known.items() if name not in training_options()}
    _check_together(options)
    return Configuration(options, own, start, going_on, sources, notes)


def model_of(flags: dict[str, str]) -> str:
    """The model that these flags lead to, before they are parsed for good: the model has flags of its own."""
    chosen = (read_toml(recipes.find(flags["config"])) if flags.get("config") else {}) | flags
    return _model(chosen, _load(chosen.get("init_from")), _load(flags.get("resume"), newest=True))


def _model(chosen: Mapping[str, Any], start: Checkpoint | None, going_on: Checkpoint | None) -> str:
    saved = start or going_on
    name: str = training_options()["model"].convert(chosen.get("model", TrainingOptions.model))
    return saved.options.model if saved else name


def _refuse_changes(values: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    harmless = HARMLESS.difference(DEPENDS_ON.get(saved["lr_schedule"], ()))
    changed = [name for name, value in values.items() if name not in harmless and value != saved.get(name)]
    if changed:
        differences = ", ".join(f"-{name} {values[name]} (was {saved.get(name)})" for name in changed)
        raise UserError(f"a resumed run cannot change {differences}: leave it out, or begin a new run with -init_from")


def _load(path: Any, newest: bool = False) -> Checkpoint | None:
    if not path:
        return None
    from charrnn.checkpoint import Checkpoint, find_newest

    return Checkpoint.load(find_newest(Path(path)) if newest else str(path))


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
