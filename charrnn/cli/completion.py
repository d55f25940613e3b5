"""charrnn completion"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from charrnn.cli.flags import SHELLS, VARIABLE, Command

HELP = """Print a script that completes commands, flags, models and files in your shell.

\b
bash:  echo 'eval "$(charrnn completion bash)"' >> ~/.bashrc
zsh:   echo 'eval "$(charrnn completion zsh)"' >> ~/.zshrc
fish:  charrnn completion fish > ~/.config/fish/completions/charrnn.fish
"""


def completion(shell: str) -> None:
    print(script(shell, click.get_current_context().find_root().command))


command = Command(
    "completion",
    [click.Argument(["shell"], type=click.Choice(SHELLS))],
    callback=completion,
    help=HELP,
)


def script(shell: str, command: click.Command) -> str:
    """Return the script that one of SHELLS must run to complete ``charrnn``."""
    found = get_completion_class(shell)
    assert found is not None
    return found(command, {}, "charrnn", VARIABLE).source()
