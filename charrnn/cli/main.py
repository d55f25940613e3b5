"""The ``charrnn`` command: finds the subcommand and turns errors into messages."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from importlib import import_module
from traceback import format_exc
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem

import charrnn
from charrnn.cli.flags import flags as as_typed
from charrnn.cli.streams import give_up, note, open_closed, say
from charrnn.compute import check_memory_limit, wait_briefly
from charrnn.errors import UserError, foreign, nearest
from charrnn.files import UNWRITABLE

# the short help is here so that `charrnn --help` need not load a command or torch
COMMANDS = {
    "train": "Train a model on a text.",
    "sample": "Write text with a trained model.",
    "eval": "Score a text with a trained model.",
    "inspect": "Show the contents of a checkpoint.",
    "novelty": "Measure how much of a text is copied from the training text.",
    "import": "Convert a checkpoint of the original char-rnn.",
    "prepare": "Prepare a named data set.",
    "models": "List the models for -model.",
    "recipes": "List the recipes for -config.",
    "plot": "Draw the learning curves of runs.",
    "completion": "Print a script that completes commands, flags, models and files in your shell.",
}


HELP = {"help_option_names": ["-h", "-help", "--help"]}


class Commands(click.Group):
    """The group of all commands. It imports a command's module only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"charrnn.cli.{cmd_name}").command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args[0] not in COMMANDS:
            hint = nearest(args[0], list(COMMANDS))
            raise click.UsageError(f"unknown command {args[0]!r}{hint}; charrnn -h lists the commands", ctx)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        commands = [CompletionItem(name, help=text) for name, text in COMMANDS.items() if name.startswith(incomplete)]
        return commands + as_typed(click.Command.shell_complete(self, ctx, incomplete), incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Commands, context_settings=HELP)
@click.version_option(charrnn.__version__, "-version", "--version", prog_name="charrnn")
def cli() -> None:
    """Train, sample and evaluate recurrent character-level language models.

    Start with: charrnn train
    """
    check_memory_limit()


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with 0, 1 after an error, 2 for wrong usage, or 130 if interrupted."""
    open_closed()
    wait_briefly()  # before anything can load torch
    try:
        code = run(args)
    except BaseException as error:  # a bug, or an error of a model's own; it may quote an untrusted file
        if not isinstance(error, Exception) and not foreign(error):
            raise
        for line in format_exc().splitlines():
            note(line)
        code = 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # the terminal is gone
            give_up(stream)
    sys.exit(code)


def run(args: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code. Print an error that the user can fix as one line on stderr."""
    try:
        result = cli.main(args, prog_name="charrnn", standalone_mode=False)
        code = result if isinstance(result, int) else 0
        with suppress(OSError) if code else nullcontext():  # if the terminal is gone, keep the exit code of the signal
            sys.stdout.flush()
        return code
    except (KeyboardInterrupt, click.Abort):
        return 130
    except BrokenPipeError as error:  # the program that reads the output has closed the pipe
        if foreign(error):
            raise
        give_up(sys.stdout)
        return 0
    except click.exceptions.NoArgsIsHelpError as error:
        say(error.format_message())
        return 2
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        return complain(error.format_message(), error.exit_code, context.command_path if context else "charrnn")
    except Exception as error:
        message = mistake(error)
        if not message:
            raise
        return complain(message)


def mistake(error: Exception) -> str:
    """Return the message for an error that the user can fix, or '' for a bug in charrnn or in a model."""
    match error:
        case UserError():
            return str(error)
        case OSError() | UnicodeEncodeError() if foreign(error):
            pass
        case OSError(errno=number, filename=None) if number in UNWRITABLE:  # for a named file, a UserError is raised
            give_up(sys.stdout)
            return f"cannot write the output: {error.strerror}; send it elsewhere"
        case UnicodeEncodeError() if is_of_stdout(error):
            character = error.object[error.start]
            remedy = "set PYTHONIOENCODING=utf-8:surrogateescape in the environment"
            return f"{character!a} cannot be printed in {sys.stdout.encoding}, the output's encoding: {remedy}"
        case MemoryError() | RuntimeError():
            from charrnn.compute import ran_out

            if ran_out(error):
                return "out of memory: try a smaller text or -batch_size, or -gpuid -1 for the CPU"
    return ""


def is_of_stdout(error: UnicodeEncodeError) -> bool:
    """Return whether writing the text to stdout raises this error."""
    try:
        error.object.encode(sys.stdout.encoding, sys.stdout.errors or "strict")
    except UnicodeEncodeError as again:
        return again.encoding == error.encoding
    return False


def complain(message: str, code: int = 1, command: str = "charrnn") -> int:
    note(f"{command}: {message}")
    return code
