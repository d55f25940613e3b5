"""Parse the commands in a page of the documentation, and run its walk-through.

In a page, a fenced block marked ``sh`` holds commands, and one marked ``text`` holds output. Two kinds of comments,
invisible to readers, control the test.

``<!-- run -->`` before an ``sh`` block: the block is a step of a walk-through. The steps of a page run in order, in one
initially empty folder. ``<!-- run: exit 1 -->``: the step ends with that exit code.

``<!-- output -->`` before a ``text`` block: the output of the previous step, stdout and stderr as on a terminal. A
line ``...`` stands for any lines, and ``...`` inside a line for any part of it. ``<!-- output: about -->``: numbers
may differ, since they depend on the processor.

A block in another language may begin with a comment that holds only a path (``# models/mine.py``). The block is written
to that path for the steps after it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import click
from markdown_it import MarkdownIt
from markdown_it.token import Token

from charrnn.cli.flags import Command, exclude, given
from charrnn.cli.main import COMMANDS, cli
from charrnn.settings import evaluation
from tests.helpers.command import environment

ROOT = Path(__file__).parent.parent.parent
COMMENT = re.compile(r"<!--\s*(.*?)\s*-->")
OWN_FILE = re.compile(r"# ([\w./-]+\.\w+)\n")
NUMBER = re.compile(r"\d[\d,:]*(\.\d+)?(e[+-]\d+)?")
SEPARATORS = frozenset("();<>|&")
LOOP = re.compile(r"for (\w+) in (\S+).*?; do")
# commands that may precede charrnn, and shell keywords
BEFORE = re.compile(r"nohup|time|nice|exec|do|then|-n|\d+|\w+=.*|python3?|-m")


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: Path
    line: int  # number of its first line, from 1
    language: str
    text: str
    mark: str  # the comment before it, or ''

    @property
    def where(self) -> str:
        return f"{self.page}, line {self.line}"

    @property
    def path(self) -> str:
        """The path of the file that the block shows, or ''."""
        found = OWN_FILE.match(self.text)
        return found[1] if found and self.language not in ("sh", "console", "text") else ""


def tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    found, mark = [], ""
    for token in tokens(page):
        if token.type == "fence":
            line = token.map[0] + 1 if token.map else 0
            found.append(Block(page, line, token.info.strip(), token.content, mark))
        comment = COMMENT.search(token.content) if token.type == "html_block" else None
        mark = comment[1] if comment else ""
    return found


def spans(page: Path) -> Iterator[str]:
    """Yield the code spans in the text of a page."""
    for token in tokens(page):
        yield from (child.content for child in token.children or () if child.type == "code_inline")


def headings(page: Path) -> set[str]:
    """Return the anchors of a page's sections, as GitHub derives them from the headings."""
    found = set()
    for heading, inline in zip(tokens(page), tokens(page)[1:], strict=False):
        if heading.type == "heading_open":
            words = "".join(child.content for child in inline.children or ())
            found.add(re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-"))
    return found


def links(page: Path) -> Iterator[str]:
    for token in tokens(page):
        for child in token.children or ():
            target = child.attrGet("href") or child.attrGet("src")
            if target:
                yield str(target)


def commands(shell: str) -> Iterator[list[str]]:
    """Yield the words of each ``charrnn`` command in shell lines, without the shell syntax around it."""
    shell = re.sub(r"\\\n", " ", shell)
    first = dict(LOOP.findall(shell))
    shell = re.sub(r"\$\{?(\w+)\}?", lambda match: first.get(match[1], match[0]), shell)
    shell = re.sub(r"(?<=\s)\d?(>{1,2}|<)(&\d|\s*[^\s|;&]+)", "", shell)  # redirections
    for line in shell.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if not SEPARATORS.issuperset(word):
                words.append(word)
                continue
            start = next((i for i, word in enumerate(words) if not BEFORE.fullmatch(word)), len(words))
            if words[start : start + 1] == ["charrnn"]:
                yield words[start + 1 :]
            words = []


def check(words: list[str], folder: Path) -> None:
    """Parse the words of a ``charrnn`` command in a folder, without running it.

    Raises click.ClickException or UserError for a command, flag, value, model or recipe that does not exist. The
    reader's own files need not exist: checkpoints to start from are left out, and so are settings files that are
    not in the folder.
    """
    parent = click.Context(cli, info_name="charrnn", **cli.context_settings)
    if words and words[0] in ("-version", "--version", "-h", "-help", "--help"):
        assert not words[1:]
        return
    _, command, rest = cli.resolve_command(parent, words or ["?"])
    assert isinstance(command, Command) and command.name in COMMANDS
    with chdir(folder), patch.dict(os.environ):  # parsing a train command sets environment variables
        rest = without_own_files(command, rest, parent)
        try:
            context = command.make_context(command.name, rest, parent)
        except click.exceptions.Exit:  # the help was printed
            return
        with context:
            module = import_module(f"charrnn.cli.{command.name}")
            exclude(*(evaluation.EXCLUSIVE if command.name == "eval" else ()))
            exclude(*getattr(module, "CONFLICTS", getattr(module, "EXCLUSIVE", ())))


def without_own_files(command: Command, words: list[str], parent: click.Context) -> list[str]:
    rest = list(words)
    if command.name == "train":
        for name, value in given(words, command.arity(click.Context(command, parent=parent))):
            flag = name.lstrip("-")
            settings = flag == "config" and "." in value and not value.startswith("recipes/")
            if flag in ("resume", "init_from") or (settings and not Path(value).exists()):
                i = rest.index(name)
                del rest[i : i + 2]
    return rest


def write_files(page: Path, folder: Path) -> None:
    """Write the files that the steps of a page need to a folder: those that it shows, its models and the recipes."""
    for block in blocks(page):
        if block.path:
            write_file(block, folder)
    package = page.parent / "pyproject.toml"
    project = tomllib.loads(package.read_text(encoding="utf-8")).get("project", {}) if package.exists() else {}
    for model, module in project.get("entry-points", {}).get("charrnn.models", {}).items():
        (folder / "models").mkdir(exist_ok=True)
        shutil.copy(page.parent / f"{module}.py", folder / "models" / f"{model}.py")
    if (ROOT / "recipes").is_dir():
        (folder / "recipes").symlink_to(ROOT / "recipes")


def write_file(block: Block, folder: Path) -> None:
    path = folder / block.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text, encoding="utf-8")


def walk(page: Path, folder: Path) -> int:
    """Run the steps of a page in a folder. Return the number of steps. Raises AssertionError if a step fails."""
    home = folder / "home"
    home.mkdir()
    shims = folder / "bin"
    shims.mkdir()
    for name, start in (("charrnn", "-m charrnn"), ("python", "")):
        (shims / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {start} "$@"\n')
        (shims / name).chmod(0o755)
    env = environment(PATH=f"{shims}{os.pathsep}{os.environ['PATH']}", PYTHONUNBUFFERED="1")
    steps, printed = 0, ""
    for block in blocks(page):
        if block.path:
            write_file(block, home)
        elif block.mark.startswith("run"):
            assert block.language == "sh", f"{block.where}: only sh blocks can be run"
            code = int(block.mark.partition("exit ")[2] or 0)
            done = subprocess.run(
                ["bash", "-c", f"set -eo pipefail\n{block.text}"],
                cwd=home, env=env, text=True, encoding="utf-8", timeout=300,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            printed = done.stdout
            steps += 1
            assert done.returncode == code, f"{block.where}: exit code {done.returncode}, not {code}\n{printed}"
        elif block.mark in ("output", "output: about"):
            assert steps, f"{block.where}: output before any command was run"
            same = is_output(block.text, printed, about=block.mark == "output: about")
            assert same, f"{block.where}: the command printed\n{printed}"
    return steps


def is_output(shown: str, printed: str, about: bool = False) -> bool:
    """Return whether a page's output matches what was printed; ``...`` matches any lines or any part of a line.

    about: any number matches any other.
    """
    if about:
        shown, printed = (NUMBER.sub("1", text) for text in (shown, printed))
    pattern = ""
    for line in shown.rstrip().splitlines():
        if line.strip() == "...":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += ".*?".join(map(re.escape, line.rstrip().split("..."))) + r"[^\S\n]*\n"
    return re.fullmatch(pattern, printed.rstrip() + "\n") is not None
