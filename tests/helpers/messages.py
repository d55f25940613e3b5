"""Collect the program's error messages and the strings in its tests from the source code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
# the exceptions and functions that take a message for the user
RAISED = ("UserError", "Diverged", "diverged", "Malformed", "UsageError", "BadParameter")


@dataclass(frozen=True)
class Message:
    """One error message: where it is raised, and the constant parts of its text."""

    place: str
    parts: tuple[str, ...]


def messages() -> Iterator[Message]:
    """Yield every error message that is a string literal at the place where it is raised."""
    for path in sorted((ROOT / folder for folder in ("charrnn", "models")), key=str):
        for file in sorted(path.rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                if isinstance(node, ast.Call) and node.args and ast.unparse(node.func).split(".")[-1] in RAISED:
                    for parts in _parts(node.args[0]):
                        if any(map(str.strip, parts)):
                            yield Message(f"{file.relative_to(ROOT)}:{node.lineno}", parts)


def _parts(node: ast.expr) -> Iterator[tuple[str, ...]]:
    """Yield the constant parts of a string, or of each branch of a conditional expression."""
    match node:
        case ast.Constant(value=str(text)):
            yield (text,)
        case ast.JoinedStr(values=values):
            yield tuple(part.value for part in values if isinstance(part, ast.Constant))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            yield from ((*one, *two) for one in _parts(left) for two in _parts(right))
        case ast.IfExp(body=body, orelse=orelse):
            yield from (*_parts(body), *_parts(orelse))


def strings_of_tests() -> Iterator[str]:
    """Yield every string in the tests, without docstrings, and without the escapes of regular expressions."""
    for file in sorted((ROOT / "tests").rglob("*.py")):
        tree = ast.parse(file.read_text("utf-8"))
        alone = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in alone:
                yield re.sub(r"\\(\W)", r"\1", node.value)


def untested(known: list[Message], strings: list[str], length: int = 12) -> list[Message]:
    """Return the messages that do not occur in any string.

    A message occurs in a string that contains ``length`` consecutive characters of one of its parts, or its longest
    part if all are shorter.
    """
    grams = {text[i : i + n] for text in strings for n in range(1, length + 1) for i in range(len(text) - n + 1)}

    def occurs(message: Message) -> bool:
        longest = min(length, max(len(part.strip()) for part in message.parts))
        return any(
            part[i : i + longest] in grams
            for part in map(str.strip, message.parts)
            for i in range(len(part) - longest + 1)
        )

    return [message for message in known if not occurs(message)]
