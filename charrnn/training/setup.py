"""A run's settings from its flags, its file and its checkpoint, each read once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charrnn import registry
from charrnn.errors import UserError
from charrnn.settings import recipes
from charrnn.settings.resolve import Configuration, resolve
from charrnn.settings.resolve import model_of as _model_of

if TYPE_CHECKING:
    from charrnn.checkpoints.checkpoint import Checkpoint


def configure(flags: Mapping[str, Any], config: str | None = None, resume: str | None = None) -> Configuration:
    """Load the checkpoints that the settings name, and resolve every setting. Raises UserError."""
    file = recipes.read_toml(recipes.find(config)) if config else {}
    given = {name: value for name, value in flags.items() if value is not None}
    chosen = file | given
    if not (file.keys() >= {"data_dir", "input"} or given.keys() >= {"data_dir", "input"}):
        if resume and chosen.get("init_from"):
            raise UserError("-resume goes on with a run, -init_from begins a new one: give one of them")
        start, going_on = _load(chosen.get("init_from")), _load(resume, newest=True)
    else:
        start = going_on = None
    model = registry.find(_model_of(chosen, start or going_on))
    return resolve(given, file, model, start, going_on, config, resume)


def model_of(flags: dict[str, str]) -> str:
    """The model that these flags lead to, before they are parsed for good: the model has flags of its own."""
    chosen = (recipes.read_toml(recipes.find(flags["config"])) if flags.get("config") else {}) | flags
    return _model_of(chosen, _load(chosen.get("init_from")) or _load(flags.get("resume"), newest=True))


def _load(path: Any, newest: bool = False) -> Checkpoint | None:
    if not path:
        return None
    from charrnn.checkpoints.checkpoint import Checkpoint
    from charrnn.checkpoints.folder import find_newest

    return Checkpoint.load(find_newest(Path(path)) if newest else str(path))
