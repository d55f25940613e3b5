"""A run's settings from its flags, its file and its checkpoint, each read once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charrnn import registry
from charrnn.settings import recipes
from charrnn.settings.resolve import Configuration, Sources, check_exclusive, resolve
from charrnn.settings.training import TrainingOptions, training_options

if TYPE_CHECKING:
    from charrnn.checkpoints.checkpoint import Checkpoint


def configure(flags: Mapping[str, Any], config: str | None = None, resume: str | None = None) -> Configuration:
    """Load what the flags name, and settle every setting. A flag that is None was not given. Raises UserError."""
    given = {name: value for name, value in flags.items() if value is not None}
    return resolve(given, load(given, config, resume))


def load(flags: Mapping[str, Any], config: str | None, resume: str | None) -> Sources:
    """Read the TOML file and the checkpoint that the flags name, and find the model. Raises UserError.

    The flags may be words of a command line that is not parsed yet, since the model has flags of its own.
    """
    file = recipes.read_toml(recipes.find(config)) if config else {}
    check_exclusive(flags, file, resume)
    chosen = {**file, **flags}
    start = _checkpoint(chosen["init_from"]) if chosen.get("init_from") else None
    resumed = _checkpoint(resume, newest=True) if resume else None
    saved = start or resumed
    name = saved.options.model if saved else chosen.get("model", TrainingOptions.model)
    model = registry.find(training_options()["model"].convert(name))
    return Sources(file, config, model, start, resumed, resume)


def _checkpoint(path: Any, newest: bool = False) -> Checkpoint:
    from charrnn.checkpoints.checkpoint import Checkpoint
    from charrnn.checkpoints.folder import find_newest

    return Checkpoint.load(find_newest(Path(path)) if newest else str(path))
