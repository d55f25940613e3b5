"""charrnn completion"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from charrnn.cli.flags import Command
from charrnn.cli.streams import put

SHELLS = ("bash", "zsh", "fish")

HELP = """Print a script that completes commands, flags, models and files in your shell.

\b
bash:  echo 'eval "$(charrnn completion bash)"' >> ~/.bashrc
zsh:   echo 'eval "$(charrnn completion zsh)"' >> ~/.zshrc
fish:  charrnn completion fish > ~/.config/fish/completions/charrnn.fish
"""


def completion(shell: str) -> None:
    found = get_completion_class(shell)
    assert found is not None
    # the script asks charrnn for completions through this variable; click derives its name from the program's
    put(found(click.get_current_context().find_root().command, {}, "charrnn", "_CHARRNN_COMPLETE").source())


command = Command("completion", [click.Argument(["shell"], type=click.Choice(SHELLS))], callback=completion, help=HELP)
