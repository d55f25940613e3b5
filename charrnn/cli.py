"""The ``charrnn`` command: finds the subcommand and turns errors into messages."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

import charrnn
from charrnn.errors import UserError
from charrnn.options import nearest

# the short help stands here so that `charrnn --help` need not load a command, nor torch
COMMANDS = {
    "train": "Train a model on a text.",
    "sample": "Write text with a trained model.",
    "eval": "Score a text with a trained model.",
    "prepare": "Make a named data set.",
    "models": "List the models that -model can name.",
}
HELP = {"help_option_names": ["-h", "-help", "--help"]}


class Commands(click.Group):
    """Loads a command's module only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"charrnn.commands.{cmd_name}").command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args[0] not in COMMANDS:
            raise click.UsageError(f"there is no command {args[0]!r}{nearest(args[0], list(COMMANDS))}", ctx)
        return super().resolve_command(ctx, args)

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
    sys.exit(run(args))


def run(args: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code; a user's mistake is one line on stderr."""
    try:
        result = cli.main(args, prog_name="charrnn", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        return 2
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        return complain(error.format_message(), error.exit_code, context.command_path if context else "charrnn")
    except UserError as error:
        return complain(str(error), 1)
    except BrokenPipeError:
        # whoever read our output has seen enough; without this Python complains again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, click.Abort):
        return 130


def complain(message: str, code: int, command: str = "charrnn") -> int:
    print(f"{command}: {message}", file=sys.stderr)
    return code
