"""charrnn train"""

from __future__ import annotations

import signal
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from charrnn import registry
from charrnn.cli.flags import Command, Flag, exclude, given, one_by_one, switch
from charrnn.errors import foreign
from charrnn.settings import recipes
from charrnn.settings.option import Option
from charrnn.settings.resolve import Configuration, Sources, resolve
from charrnn.settings.training import training_options

if TYPE_CHECKING:
    from charrnn.training.run import Viewer
    from charrnn.training.setup import Setup

CONFIG = Option(
    "config",
    str,
    "",
    "TOML file with any of these settings, or the name of a recipe (charrnn recipes lists them); flags override it",
    group="bookkeeping",
    names="recipe",
)


RESUME = Option("resume", str, "", "continue the run of this checkpoint exactly", group="bookkeeping", names="file")


# read before the other flags are parsed, since they determine the model, which has its own flags
LOADED = [Flag(option, expose_value=False) for option in (CONFIG, RESUME)]


DRY_RUN = switch("dry_run", "show the time and memory that the run would take, without training or writing anything")


PRINT_CONFIG = switch("print_config", "print every setting and its source, as a file for -config, without training")


EXCLUSIVE = (("dry_run", "print_config"),)


SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


HELP = """Train a model on a text.

Without flags this trains an LSTM on Shakespeare. To train on your own text, save it as FOLDER/input.txt and pass
-data_dir FOLDER. Each validation saves a checkpoint to -checkpoint_dir and shows a sample.
"""


class TrainCommand(Command):
    """Finds the model before it parses the flags, because the model declares its own flags."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        args = one_by_one(args, "input")
        flags = {name.lstrip("-"): value for name, value in given(args, self.arity(ctx))}
        if ctx.resilient_parsing:  # completing a command line must not load a model
            model = flags.get("model", "")
            known = registry.models()
            own = known[model].outline if model in known else []
        else:
            from charrnn.training.setup import load

            ctx.obj = sources = load(flags, flags.get("config"), flags.get("resume"))
            model = sources.model.name
            own = list(sources.model.options.values())
        ctx.meta["own"] = [Flag(replace(option, group=f"Model {model}")) for option in own]
        return super().parse_args(ctx, args)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        own: list[click.Parameter] = ctx.meta.get("own", [])
        return super().get_params(ctx) + own


@click.pass_obj
def train(sources: Sources, /, dry_run: bool, print_config: bool, **flags: Any) -> int:
    exclude(*EXCLUSIVE)
    settings = resolve({name: value for name, value in flags.items() if value is not None}, sources)
    if print_config:
        return show_settings(settings)

    from charrnn.checkpoints.folder import RunFolder
    from charrnn.cli.display import shown
    from charrnn.cli.streams import note
    from charrnn.training.setup import prepare

    setup = prepare(settings, note, keep=not dry_run)
    if dry_run:
        return try_out(setup)
    note(setup.summary())
    with RunFolder.of(setup.options).alone(), setup.enough_memory(), shown(setup) as display:
        return follow(setup, display)


def show_settings(settings: Configuration) -> int:
    from charrnn.cli.streams import note

    for line in settings.notes:
        note(line)
    values = {name: getattr(settings.options, name) for name in training_options()} | settings.model_options
    # TOML is UTF-8, whatever the encoding of the terminal
    sys.stdout.buffer.write(recipes.as_toml(values, settings.sources).encode())
    return 0


def try_out(setup: Setup) -> int:
    from charrnn.cli.display import table
    from charrnn.training.dry_run import dry_run

    table(("item", "value"), dry_run(setup).rows())
    return 0


def follow(setup: Setup, display: Viewer) -> int:
    """Train to the end or to a signal, showing and saving the results. Return the exit code."""
    from charrnn.training.run import Run, stopping

    run = Run(setup, display.note)
    # leave SIGHUP ignored under nohup
    heeded = [n for n in SIGNALS if n == signal.SIGINT or signal.getsignal(n) is not signal.SIG_IGN]
    with stopping(run, heeded, display) as signals:
        try:
            for _ in run.follow(display):
                pass
            if not signals:
                display.ended(run.finish().lines())
                return 0
            saved = run.save_last()
            display.note(f"stopped; saved to {saved}. To continue: charrnn train -resume {saved}")
        except OSError as error:  # the terminal or pipe that we write to is gone; unwritable files raise UserError
            if foreign(error):
                raise
            run.save_last()
            if not signals:
                raise
    return 128 + signals[0]


command = TrainCommand(
    "train",
    [*map(Flag, training_options().values()), *LOADED, DRY_RUN, PRINT_CONFIG],
    callback=train,
    help=HELP,
)
