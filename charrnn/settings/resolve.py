"""Resolve the settings of a training run from its flags, its TOML file, its checkpoint and the defaults."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from charrnn.errors import UserError, nearest
from charrnn.settings.option import Option
from charrnn.settings.training import TrainingOptions, training_options


@dataclass(frozen=True)
class Sources:
    """The sources of a run's settings besides its flags, each found and read once.

    Types are Any where they belong to packages that import this one.
    """

    # the content of the TOML file, and its name in messages
    file: Mapping[str, Any]
    config: str | None
    # the registry's ModelFile; its own options are settings too
    model: Any
    # the checkpoint that -init_from names
    start: Any = None
    # the checkpoint for -resume, which is the newest one if a folder was given, and the name of its file
    resume: Any = None
    resume_name: str | None = None


@dataclass(frozen=True)
class Configuration:
    """Every setting of a run, with the model's file and the checkpoint that it begins from."""

    options: TrainingOptions
    model: Any
    model_options: dict[str, Any]
    start: Any
    resume: Any
    # the source of each setting, by name
    sources: dict[str, str]
    # remarks for the user
    notes: tuple[str, ...]


# two ways to name the text; either one on the command line replaces both in the file
TEXT = {"data_dir", "input"}

# with -init_from, the checkpoint determines these
ARCHITECTURE = ("model", "rnn_size", "num_layers")


def check_exclusive(flags: Mapping[str, Any], file: Mapping[str, Any], resume: str | None) -> None:
    """Raise UserError if two settings are given that cannot be combined."""
    for given in (file, flags):
        if given.keys() >= TEXT:
            raise UserError("-input names the text itself and -data_dir its folder: give only one of them")
    if resume and {**file, **flags}.get("init_from"):
        raise UserError("-resume continues a run and -init_from begins a new one: give only one of them")


def resolve(flags: Mapping[str, Any], loaded: Sources) -> Configuration:
    """Resolve every setting: flags override the file, the file a checkpoint, and a checkpoint the defaults.

    Raises UserError for an unknown setting, a wrong value, or a change that a resumed run cannot make.
    """
    known = training_options() | loaded.model.options
    flags = converted(flags, known, f"the model {loaded.model.name}")
    replaced = flags.keys() | (TEXT if TEXT & flags.keys() else set())
    file = {name: value for name, value in loaded.file.items() if name not in replaced}
    file = converted(file, known, f"the model {loaded.model.name}", f"{loaded.config}: ")
    saved, fixed, notes = inherited({**file, **flags}, loaded)
    checkpoint = f"checkpoint {loaded.resume_name or flags.get('init_from') or file.get('init_from')}"
    values, sources = layered(
        [
            ("default", {name: option.default for name, option in known.items()}),
            (checkpoint, saved),
            (str(loaded.config), file),
            ("flag", flags),
            (checkpoint, fixed),
        ]
    )
    options = TrainingOptions(**{name: values[name] for name in training_options()})
    options.check()
    model_options = {name: values[name] for name in loaded.model.options}
    return Configuration(options, loaded.model, model_options, loaded.start, loaded.resume, sources, notes)


def converted(given: Mapping[str, Any], known: Mapping[str, Option], whose: str, where: str = "") -> dict[str, Any]:
    """Return each value in its setting's own type. Raises UserError for unknown settings and wrong values."""
    for name in given:
        if name not in known:
            raise UserError(f"{where}{whose} has no setting {name}{nearest(name, list(known))}")
    return {name: known[name].convert(value) for name, value in given.items()}


def inherited(given: Mapping[str, Any], loaded: Sources) -> tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]:
    """Return a checkpoint's settings: those that can be overridden, those that cannot, and notes for the user.

    Raises UserError if a given value changes a setting that a resumed run must keep.
    """
    if start := loaded.start:
        fixed = {name: getattr(start.options, name) for name in ARCHITECTURE}
        changed = [name for name, value in fixed.items() if given.get(name, value) != value]
        notes = tuple(f"{name} is {fixed[name]}, as in {given['init_from']}" for name in changed)
        return start.model_options, fixed, notes
    if resume := loaded.resume:
        saved = asdict(resume.options) | resume.model_options
        refuse_changes(given, saved)
        if "data_dir" in given:
            saved["input"] = ()
        notes = (f"resuming from {loaded.resume_name}, iteration {resume.iteration}",)
        if saved["log_dir"] and "log_dir" not in given:
            notes += (f"not writing TensorBoard events: to continue those in {saved['log_dir']}, add -log_dir",)
        saved["log_dir"] = ""  # a stranger may have written it
        if saved["kernels"] == "auto":  # written by a version without the compiled kernels
            saved["kernels"] = "torch"
        return saved, {}, notes
    return {}, {}, ()


def refuse_changes(given: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    free = {name for name, option in training_options().items() if option.is_free(saved["lr_schedule"])}
    changed = [name for name, value in given.items() if name not in free and value != saved.get(name)]
    if changed:
        differences = ", ".join(f"-{name} {given[name]} (was {saved.get(name)})" for name in changed)
        raise UserError(f"a resumed run cannot change {differences}: leave it out, or begin a new run with -init_from")


def layered(layers: Iterable[tuple[str, Mapping[str, Any]]]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return each setting's value and source; later layers win over earlier ones."""
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for source, layer in layers:
        values |= layer
        sources |= dict.fromkeys(layer, source)
    return values, sources
