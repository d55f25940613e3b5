"""charrnn completion"""

from __future__ import annotations

import click

from charrnn.commands.flags import Command
from charrnn.completion import SHELLS, script

HELP = """Print the script that completes commands, flags, models and files in your shell.

\b
bash:  echo 'eval "$(charrnn completion bash)"' >> ~/.bashrc
zsh:   echo 'eval "$(charrnn completion zsh)"' >> ~/.zshrc
fish:  charrnn completion fish > ~/.config/fish/completions/charrnn.fish
"""


def completion(shell: str) -> None:
    from charrnn.cli import cli  # here, as cli is what loads this module

    print(script(shell, cli))


command = Command(
    "completion",
    [click.Argument(["shell"], type=click.Choice(SHELLS))],
    callback=completion,
    help=HELP,
)
