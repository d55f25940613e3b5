"""The ``charrnn`` command: finds the subcommand and turns errors into messages."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from importlib import import_module
from typing import Any, NoReturn, TextIO

import click
from click.shell_completion import CompletionItem

import charrnn
from charrnn.cli.flags import flags as as_typed
from charrnn.errors import UserError, nearest, printable

# the short help stands here so that `charrnn --help` need not load a command, nor torch
COMMANDS = {
    "train": "Train a model on a text.",
    "sample": "Write text with a trained model.",
    "eval": "Score a text with a trained model.",
    "inspect": "Show the contents of a checkpoint.",
    "novelty": "Measure how much of a text is copied from the training text.",
    "import": "Convert a checkpoint of the original char-rnn.",
    "prepare": "Make a named data set.",
    "models": "List the models for -model.",
    "recipes": "List the recipes for -config.",
    "plot": "Draw the learning curves of runs.",
    "completion": "Print the script that completes commands, flags, models and files in your shell.",
}


UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # a full disk, a limit, a broken one


HELP = {"help_option_names": ["-h", "-help", "--help"]}


class Commands(click.Group):
    """Loads a command's module only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"charrnn.cli.{cmd_name}").command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args[0] not in COMMANDS:
            raise click.UsageError(f"there is no command {args[0]!r}{nearest(args[0], list(COMMANDS))}", ctx)
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

    Begin with: charrnn train
    """


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0, 1 after an error, 2 for wrong usage, 130 when interrupted."""
    code = run(args)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # the terminal is gone
            give_up(stream)
    sys.exit(code)


def run(args: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code; a user's mistake is one line on stderr."""
    try:
        result = cli.main(args, prog_name="charrnn", standalone_mode=False)
        code = result if isinstance(result, int) else 0
        with suppress(OSError) if code else nullcontext():  # a signal's code outlives the terminal
            sys.stdout.flush()
        return code
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        return 2
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        return complain(error.format_message(), error.exit_code, context.command_path if context else "charrnn")
    except UserError as error:
        return complain(str(error), 1)
    except BrokenPipeError:
        # whoever read our output has seen enough
        give_up(sys.stdout)
        return 0
    except OSError as error:
        # what a command reads and writes under a name is its own matter
        if error.errno not in UNWRITABLE or error.filename is not None:
            raise
        give_up(sys.stdout)
        return complain(f"cannot write the output: {error.strerror}; send it elsewhere", 1)
    except UnicodeEncodeError as error:
        character = error.object[error.start]
        if can_be_output(character):
            raise
        way_out = "PYTHONIOENCODING=utf-8:surrogateescape in the environment lets it pass"
        return complain(f"the output is {sys.stdout.encoding}, which has no {character!a}: {way_out}", 1)
    except (KeyboardInterrupt, click.Abort):
        return 130
    except (MemoryError, RuntimeError) as error:
        from charrnn.compute import ran_out

        if not ran_out(error):
            raise
        return complain("out of memory: a smaller text or -batch_size, or -gpuid -1 for the CPU, may do", 1)


def can_be_output(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "utf-8", sys.stdout.errors or "strict")
    except UnicodeEncodeError:
        return False
    return True


def give_up(stream: TextIO) -> None:
    """Discard what is still to be written. Otherwise Python tries again at exit, complains, and ends with 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def complain(message: str, code: int, command: str = "charrnn") -> int:
    # a message may quote an untrusted file, whose escape sequences must not reach the terminal
    print(f"{command}: {printable(message, keep='')}", file=sys.stderr)
    return code
