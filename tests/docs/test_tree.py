"""The tree in CONTRIBUTING is complete, and its order of imports is the one that the tests check."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.helpers.pages import ROOT, blocks

CONTRIBUTING = ROOT / "CONTRIBUTING.md"
LINE = re.compile(r"( *)(\S+?)(/?)(?:\s{2,}\S.*)?")


def tree() -> str:
    return next(block.text for block in blocks(CONTRIBUTING) if block.text.startswith("models/\n"))


def files(drawn: str) -> Iterator[str]:
    """Yield the path of each file in the tree. A folder with a description stands for its __init__.py."""
    folders: list[str] = []
    for line in drawn.splitlines():
        match = LINE.fullmatch(line)
        assert match, line
        indent, name, folder = match.groups()
        described = line.strip() != name + folder
        del folders[len(indent) // 2 :]
        path = "/".join([*folders, name])
        if folder:
            folders.append(name)
            path += "/__init__.py"
        else:
            assert described, f"{line.strip()}: no description"
        if described:
            yield path


def test_the_tree_lists_every_file_once_and_no_others() -> None:
    there = [
        path.relative_to(ROOT).as_posix()
        for folder in ("models", "charrnn")
        for path in (ROOT / folder).rglob("*.py")
        if "__pycache__" not in path.parts
    ]
    drawn = list(files(tree()))
    assert len(drawn) == len(set(drawn))
    assert set(there) - set(drawn) == set(), "not in the tree of CONTRIBUTING.md"
    assert set(drawn) - set(there) == set(), "only in the tree of CONTRIBUTING.md"


def test_the_order_of_imports_is_the_tested_one() -> None:
    architecture = (ROOT / "tests" / "test_architecture.py").read_text(encoding="utf-8")
    order = re.search(r'^ORDER = """(.*?)"""', architecture, re.DOTALL | re.MULTILINE)
    assert order
    assert " ".join(order[1].split()) in " ".join(CONTRIBUTING.read_text(encoding="utf-8").split())


def test_the_files_of_a_tree_are_read() -> None:
    drawn = "charrnn/\n  a.py   first\n  data/  texts\n    b.py  second\n  c.py  third"
    assert list(files(drawn)) == ["charrnn/a.py", "charrnn/data/__init__.py", "charrnn/data/b.py", "charrnn/c.py"]
