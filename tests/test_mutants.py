"""Mutants differ from the program in one place and are drawn by seed. The tests that call the changed code are run."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from tests.helpers import mutants
from tests.helpers.mutants import Calls, Mutant

SOURCE = '''\
class A:
    def one(self, a: int = 1, *, b=-2.5) -> "1 + 1":
        """1 + 1"""
        if a < b and not a:
            self.x = max(a, b)
        for i in [k for k in a if k]:
            continue
        a += f"{1 + 1}é" * 3
        raise two(i, a)


def two(x, y):
    print(x)
    return lambda: x
'''
EXPECTED = {
    *[("A.one", "1", after) for after in ("2", "0")],
    *[("A.one", "-2.5", "2.5"), ("A.one", "2.5", "5.0"), ("A.one", "2.5", "1.25")],
    *[("A.one", "a < b and (not a)", after) for after in ("a < b or not a", "not (a < b and (not a))")],
    *[("A.one", "a < b", "a <= b"), ("A.one", "not a", "a")],
    *[("A.one", "self.x = max(a, b)", "pass"), ("A.one", "max(a, b)", "min(a, b)"), ("A.one", "k", "True")],
    *[("A.one", "continue", "break"), ("A.one", "two(i, a)", "two(a, i)"), ("A.one", "raise two(i, a)", "pass")],
    *[("A.one", "a += f'{1 + 1}é' * 3", after) for after in ("a -= f'{1 + 1}é' * 3", "pass")],
    *[("A.one", "f'{1 + 1}é' * 3", "f'{1 + 1}é' / 3"), ("A.one", "3", "4"), ("A.one", "3", "2")],
    *[("two", "print(x)", "pass"), ("two", "return lambda: x", "return None")],
}


def test_each_mutant_changes_one_place_outside_annotations_and_strings() -> None:
    found = list(mutants.mutants("a.py", SOURCE))
    assert {(each.function, each.before, each.after) for each in found} == EXPECTED
    assert len(found) == len(EXPECTED) == len({each.source for each in found})
    for each in found:
        ast.parse(each.source)
        same = [line for line, old in zip(each.source.splitlines(), SOURCE.splitlines(), strict=True) if line == old]
        assert len(same) == len(SOURCE.splitlines()) - 1


def test_the_same_seed_draws_the_same_mutants_of_the_whole_program() -> None:
    one, two = (mutants.drawn(mutants.ROOT, 3, 40) for _ in range(2))
    assert one == two != mutants.drawn(mutants.ROOT, 4, 40)
    assert {each.path.split("/")[0] for each in mutants.drawn(mutants.ROOT, 3, 400)} == {"charrnn", "models"}


def test_the_quickest_tests_that_call_the_changed_function_are_chosen(tmp_path: Path) -> None:
    lines = [
        {"file": "tests/a.py", "calls": ["charrnn/x/m.py:shared"]},
        {"test": "tests/a.py::slow", "seconds": 3.0, "calls": ["charrnn/x/m.py:f"]},
        {"test": "tests/a.py::quick", "seconds": 1.0, "calls": ["charrnn/x/m.py:f"]},
        {"test": "tests/b.py::process", "calls": ["charrnn/x/m.py:f"]},
        {"test": "tests/b.py::process", "seconds": 2.0, "calls": ["charrnn/x/n.py:h"]},
        {"test": "tests/b.py::broken", "failed": True, "calls": ["charrnn/x/m.py:f"]},
    ]
    (tmp_path / "calls").write_text("\n".join(map(json.dumps, lines)))
    calls = Calls.load(tmp_path / "calls")

    def chosen(path: str, function: str, limit: float = 9) -> list[str]:
        return [test.partition("::")[2] for test in calls.of(Mutant(path, 1, function, "", "", ""), limit)]

    assert chosen("charrnn/x/m.py", "f") == ["quick", "process", "slow"]
    assert chosen("charrnn/x/m.py", "f", 3.5) == ["quick", "process"]
    assert chosen("charrnn/x/m.py", "shared") == ["quick", "slow"]
    assert chosen("charrnn/x/n.py", "outside of any") == ["process"]
    assert chosen("charrnn/x/other.py", "f") == ["quick", "process", "slow"], "the tests of the folder"


@pytest.mark.parametrize("broken", [True, False])
def test_a_mutant_for_which_a_test_fails_is_killed_and_the_file_is_restored(tmp_path: Path, broken: bool) -> None:
    tree = tmp_path / "tree"
    (tree / "charrnn").mkdir(parents=True)
    (tree / "pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["."]\n')
    (tree / "charrnn/m.py").write_text("def f(): return 1\n")
    (tree / "test_m.py").write_text("from charrnn.m import f\n\ndef test_f():\n    assert f() == 1\n")
    mutant = Mutant("charrnn/m.py", 1, "f", "1", "2", f"def f(): return {2 if broken else 1}\n")
    result = mutants.attempt(mutant, tree, ["test_m.py::test_f"])
    assert result["outcome"].startswith("killed: FAILED test_m.py::test_f" if broken else "alive")
    assert (tree / "charrnn/m.py").read_text() == "def f(): return 1\n"
    assert mutants.attempt(mutant, tree, [])["outcome"] == "no test calls it"
