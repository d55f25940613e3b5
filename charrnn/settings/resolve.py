"""Where the settings of a training run come from: defaults, a checkpoint, a TOML file, flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from charrnn.errors import UserError, nearest
from charrnn.settings.option import Option
from charrnn.settings.training import DEPENDS_ON, HARMLESS, TrainingOptions, _check_together, training_options


class Saved(Protocol):
    """What a checkpoint says of its run's settings."""

    options: TrainingOptions
    model_options: dict[str, Any]


class Model(Protocol):
    """What is asked of a model: its name and its own options."""

    @property
    def name(self) -> str: ...

    @property
    def options(self) -> dict[str, Option]: ...


TEXT = {"data_dir", "input"}


ARCHITECTURE = ("model", "rnn_size", "num_layers")


@dataclass
class Configuration:
    """The settings of a run.

    start: the checkpoint that -init_from named; resume: the one that -resume named; each read once.
    sources: where the value of each setting comes from. notes: what the user should hear about the choice.
    """

    options: TrainingOptions
    # the registry's ModelFile
    model: Any
    model_options: dict[str, Any]
    start: Any = None
    resume: Any = None
    sources: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def resolve(
    given: Mapping[str, Any],
    file: Mapping[str, Any],
    model: Model,
    start: Saved | None = None,
    going_on: Saved | None = None,
    config: str | None = None,
    resume: str | None = None,
) -> Configuration:
    """Every setting: a flag wins over the file, the file over the defaults.

    start: the checkpoint of -init_from, whose model and sizes hold; going_on: that of
    -resume, of which all but harmless settings hold. Raises UserError.
    """
    for source in (file, given):
        if source.keys() >= TEXT:
            raise UserError("-input names a text itself, -data_dir a folder with it: give one of them")
    if TEXT & given.keys():
        file = {name: value for name, value in file.items() if name not in TEXT}
    chosen = {**file, **given}
    if resume and chosen.get("init_from"):
        raise UserError("-resume goes on with a run, -init_from begins a new one: give one of them")
    known = training_options() | model.options
    for name in chosen:
        if name not in known:
            where = f"{config}: " if given.get(name) is None else ""
            raise UserError(f"{where}there is no setting {name}{nearest(name, list(known))} for the model {model.name}")
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
    model_options = {name: values.get(name, o.default) for name, o in known.items() if name not in training_options()}
    _check_together(options)
    return Configuration(options, model, model_options, start, going_on, sources, notes)


def model_of(chosen: Mapping[str, Any], saved: Saved | None) -> str:
    """The model that these settings lead to."""
    name: str = training_options()["model"].convert(chosen.get("model", TrainingOptions.model))
    return saved.options.model if saved else name


def _refuse_changes(values: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    harmless = HARMLESS.difference(DEPENDS_ON.get(saved["lr_schedule"], ()))
    changed = [name for name, value in values.items() if name not in harmless and value != saved.get(name)]
    if changed:
        differences = ", ".join(f"-{name} {values[name]} (was {saved.get(name)})" for name in changed)
        raise UserError(f"a resumed run cannot change {differences}: leave it out, or begin a new run with -init_from")
