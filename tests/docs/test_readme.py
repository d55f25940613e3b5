"""The README tells the truth: its help text is the program's own. Rewrite it with: python tests/test_readme.py"""

from __future__ import annotations

import re
from pathlib import Path

from tests.helpers.command import charrnn

README = Path(__file__).parent.parent.parent / "README.md"
BLOCK = re.compile(r"(<!-- charrnn (.*?) -->\n```\n)(.*?)(```\n)", re.DOTALL)


def with_current_help(text: str) -> str:
    """The README with each marked block as the command prints it now."""

    def current(match: re.Match[str]) -> str:
        printed = charrnn(*match[2].split(), cwd=README.parent).stdout.decode()
        return match[1] + printed + match[4]

    return BLOCK.sub(current, text)


def test_the_readmes_help_is_the_programs_own() -> None:
    text = README.read_text(encoding="utf-8")
    assert BLOCK.search(text)
    assert with_current_help(text) == text


if __name__ == "__main__":
    README.write_text(with_current_help(README.read_text(encoding="utf-8")), encoding="utf-8")
