"""charrnn train"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from charrnn import registry
from charrnn.cli.flags import Command, Flag, exclude, given, one_by_one
from charrnn.compute import wait_briefly
from charrnn.settings import recipes
from charrnn.settings.option import Option
from charrnn.settings.resolve import Configuration, Sources, resolve
from charrnn.settings.training import training_options
from charrnn.training.setup import load

if TYPE_CHECKING:
    from charrnn.cli.display import TrainingDisplay
    from charrnn.training.run import Run

CONFIG = Option(
    "config",
    str,
    "",
    "TOML file with any of these settings, or a name that charrnn recipes lists; flags win over it",
    group="bookkeeping",
    names="recipe",
)


RESUME = Option("resume", str, "", "go on with the run of this checkpoint, exactly", group="bookkeeping", names="file")


# read before the other flags are parsed, since the model that they lead to has flags of its own
LOADED = [Flag(option, expose_value=False) for option in (CONFIG, RESUME)]


DRY_RUN = click.Option(
    ["-dry_run", "--dry_run"], is_flag=True, help="say what the run would take, and train and write nothing"
)


PRINT_CONFIG = click.Option(
    ["-print_config", "--print_config"],
    is_flag=True,
    help="print every setting and where it comes from, as a file for -config, and train nothing",
)


EXCLUSIVE = (("dry_run", "print_config"),)


SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


HELP = """Train a model on a text.

With no flags at all: an LSTM on Shakespeare. Put your own text at FOLDER/input.txt and name the
folder with -data_dir. Checkpoints go to -checkpoint_dir; a sample is shown at each validation.
"""


class TrainCommand(Command):
    """Finds out the model first and adds the flags that the model declares, then parses once."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        wait_briefly()  # before the model's file loads torch
        args = one_by_one(args, "input")
        flags = {name.lstrip("-"): value for name, value in given(args, self.arity(ctx))}
        if ctx.resilient_parsing:  # to complete a command line no model is loaded
            model = flags.get("model", "")
            known = registry.models()
            own = known[model].outline if model in known else []
        else:
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
    if dry_run:
        return try_out(settings)

    from charrnn.cli.display import training_display
    from charrnn.cli.streams import note
    from charrnn.training.run import Run

    run = Run(settings, note)
    options = run.options
    note(
        f"{options.model} with {run.parameters:,} parameters on {run.training.device}; "
        f"{len(run.vocabulary):,} {run.vocabulary.units}, {len(run.training.train)} minibatches an epoch"
    )
    with alone(run), run.enough_memory():
        val_losses = list(run.training.val_losses.values())
        tokens = options.batch_size * options.seq_length
        return follow(run, training_display(options.print_every, tokens, val_losses, type(run.vocabulary)))


def show_settings(settings: Configuration) -> int:
    from charrnn.cli.streams import note

    for line in settings.notes:
        note(line)
    values = {name: getattr(settings.options, name) for name in training_options()} | settings.model_options
    print(recipes.as_toml(values, settings.sources, sys.stdout.encoding or "utf-8"), end="")
    return 0


def try_out(settings: Configuration) -> int:
    from charrnn.cli.display import table
    from charrnn.cli.streams import note
    from charrnn.training.dry_run import dry_run

    found = dry_run(settings, note)
    table(("what", "how much"), found.rows())
    return 0


def follow(run: Run, display: TrainingDisplay) -> int:
    """Train to the end or to a signal, showing and keeping what comes of it. Returns the exit code."""
    from charrnn.errors import UserError, printable

    run.report = display.note
    signals = stop_on_signals(run, display)
    advice = ""
    try:
        for record in run.records():
            display.show(record)
            if record.val_loss is not None:
                saved = run.save()
                display.validated(record, str(saved), printable(run.sample()) if run.options.sample_length else "")
                if advice != (advice := run.advice()) and advice:
                    display.note(advice)
            elif run.save_is_due():
                try:
                    run.save_last()
                except UserError as error:  # a full disk may have room again at the next save
                    display.note(f"{error}; training goes on")
        if not signals:
            display.ended(run.finish().lines())
            return 0
        saved = run.save_last()
        display.note(f"stopped; saved to {saved}. To go on: charrnn train -resume {saved}")
        return 128 + signals[0]
    except OSError:  # the terminal or the pipe that we write to is gone; files report a UserError
        run.save_last()
        if not signals:
            raise
        return 128 + signals[0]
    finally:
        with suppress(OSError):
            display.close()


@contextmanager
def alone(run: Run) -> Iterator[None]:
    """Refuse to write where another training is writing under the same name."""
    from charrnn.errors import UserError
    from charrnn.files import locked

    with ExitStack() as stack:
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
            free = stack.enter_context(locked(run.folder / f".lm_{run.name}.lock"))
        except OSError as error:
            raise UserError(f"cannot save to {run.folder}: {error.strerror}; name another -checkpoint_dir") from None
        if not free:
            raise UserError(
                f"another training is saving lm_{run.name}_... to {run.folder}: "
                "give this one its own -checkpoint_dir or -savefile"
            )
        yield


def stop_on_signals(run: Run, display: TrainingDisplay) -> list[int]:
    """The first Ctrl-C, or signal to end, stops the run after the iteration under way; a second one at once.

    Returns the list that the signal will be in.
    """
    received: list[int] = []

    def stop(number: int, _: object) -> None:
        received.append(number)
        run.training.stopping = True
        for signum in SIGNALS:
            if signal.getsignal(signum) is stop:
                signal.signal(signum, signal.SIG_DFL if signum != signal.SIGINT else signal.default_int_handler)
        with suppress(OSError, RuntimeError):  # the terminal is gone, or was being written to just now
            display.note("stopping after this iteration (Ctrl-C again: at once)")

    for signum in SIGNALS:
        if signum == signal.SIGINT or signal.getsignal(signum) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(signum, stop)
    return received


command = TrainCommand(
    "train",
    [*map(Flag, training_options().values()), *LOADED, DRY_RUN, PRINT_CONFIG],
    callback=train,
    help=HELP,
)
