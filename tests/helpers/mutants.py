"""Break the program in one place at a time, and see whether a test fails.

``python -m tests.helpers.mutants record`` runs all tests once and records which test calls which functions. ``run
--count 150 --seed 1`` draws 150 mutants and, for each one, runs the tests that call the changed function, quickest
first, until one fails. Everything runs in copies of the working tree.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tests.helpers import calls

ROOT = calls.ROOT
KEPT = ROOT / ".pytest_cache" / "mutants"
PROGRAM = ("charrnn", "models")

PAIRS: list[tuple[type[ast.AST], type[ast.AST]]] = [
    *[(ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.In, ast.NotIn), (ast.Is, ast.IsNot)],
    *[(ast.And, ast.Or), (ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.BitAnd, ast.BitOr), (ast.Continue, ast.Break)],
]
ONE_WAY = {ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult}
SWAPPED: dict[type, type] = dict(PAIRS) | {b: a for a, b in PAIRS} | ONE_WAY
LIMIT = 400.0  # seconds for one mutant
KILLER = re.compile(r"killed: FAILED (.+?)(?: - |$)")
RENAMED = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Mutant:
    """A file of the program with one change."""

    path: str
    line: int
    # the enclosing function or method, or ''
    function: str
    before: str
    after: str
    source: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.before} -> {self.after}"


def mutants(path: str, source: str) -> Iterator[Mutant]:
    """Yield each mutant of a file."""
    data = source.encode()
    starts = [0]
    for line in data.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for parent, function in _nodes(ast.parse(source), ()):
        for node, changed in _changes(parent):
            before, after = ast.unparse(node), ast.unparse(changed)
            if before == after:
                continue
            text = f"({after})" if isinstance(node, ast.expr) else after
            begin, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
            mutated = (data[:begin] + text.encode() + data[end:]).decode()
            yield Mutant(path, node.lineno, ".".join(function), before, after, mutated)


def _nodes(node: ast.AST, function: tuple[str, ...], inside: bool = False) -> Iterator[tuple[ast.AST, tuple[str, ...]]]:
    """Yield each node below this one with the names of its enclosing classes and function.

    Leaves out annotations, and f-strings, since Python 3.11 gives no exact positions inside them.
    """
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if name in ("annotation", "returns") or not isinstance(child, ast.AST) or isinstance(child, ast.JoinedStr):
                continue
            yield child, function
            if isinstance(child, (ast.ClassDef, ast.FunctionDef)) and not inside:
                yield from _nodes(child, (*function, child.name), isinstance(child, ast.FunctionDef))
            else:
                yield from _nodes(child, function, inside)


def _changes(node: Any) -> Iterator[tuple[Any, ast.AST]]:
    """Yield parts of a node, each with its replacement in a mutant."""
    changed = copy.deepcopy(node)
    match changed:
        case ast.Compare(ops=[operator, *_]):
            changed.ops[0] = SWAPPED[type(operator)]()
            yield node, changed
        case ast.BoolOp(op=operator) | ast.BinOp(op=operator) | ast.AugAssign(op=operator) if type(operator) in SWAPPED:
            changed.op = SWAPPED[type(operator)]()
            yield node, changed
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield node, changed.operand
        case ast.Constant(value=bool(value)):
            yield node, ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield from ((node, ast.Constant(value + step)) for step in (1, -1))
        case ast.Constant(value=float(value)):
            yield from ((node, ast.Constant(value * factor)) for factor in (2, 0.5) if value)
        case ast.Call(func=ast.Name(id=name) as named) if name in RENAMED:
            named.id = RENAMED[name]
            yield node, changed
        case ast.Call(args=[first, second, *rest]) if not isinstance(first, ast.Starred):
            changed.args = [second, first, *rest]
            yield node, changed
        case ast.If() | ast.While() | ast.IfExp():
            yield node.test, ast.UnaryOp(ast.Not(), changed.test)
        case ast.comprehension():
            yield from ((condition, ast.Constant(True)) for condition in node.ifs)
        case ast.Return(value=ast.expr() as value) if ast.unparse(value) != "None":
            yield node, ast.Return(ast.Constant(None))
        case ast.Continue() | ast.Break():
            yield node, SWAPPED[type(changed)]()
    match changed:
        case ast.Expr(value=ast.Call() | ast.YieldFrom()) | ast.AugAssign() | ast.Raise() | ast.Delete():
            yield node, ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield node, ast.Pass()


def drawn(root: Path, seed: int, count: int) -> list[Mutant]:
    """Draw mutants of the program, each with the same probability."""
    files = sorted(path for folder in PROGRAM for path in (root / folder).rglob("*.py"))
    every = [each for path in files for each in mutants(path.relative_to(root).as_posix(), path.read_text("utf-8"))]
    return random.Random(seed).sample(every, count)


@dataclass
class Calls:
    """What ``record`` found."""

    # the tests that call each function (FILE:NAME) and each file
    tests: dict[str, set[str]]
    # the processor time of each test that passed
    seconds: dict[str, float]

    @classmethod
    def load(cls, path: Path) -> Calls:
        tests: dict[str, set[str]] = defaultdict(set)
        seconds: dict[str, float] = {}
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            if line.get("failed"):
                seconds.pop(line["test"], None)
            elif "seconds" in line:
                seconds[line["test"]] = line["seconds"]
        of_file: dict[str, list[str]] = defaultdict(list)
        for test in seconds:
            of_file[test.partition("::")[0]].append(test)
        for line in lines:
            these = of_file[line["file"]] if "file" in line else [line["test"]]
            for name in line["calls"]:
                tests[name].update(these)
                tests[name.partition(":")[0]].update(these)
        return cls(tests, seconds)

    def of(self, mutant: Mutant, limit: float) -> list[str]:
        """Return the tests that call the changed function, or else its file or folder.

        Those for its package come first, then the quickest. Stops before they add up to more than ``limit`` seconds.
        """
        folder, _, _ = mutant.path.rpartition("/")
        found = self.tests.get(f"{mutant.path}:{mutant.function}") or self.tests.get(mutant.path)
        found = found or set().union(*(tests for name, tests in self.tests.items() if name.startswith(folder)))
        package, _, _ = mutant.path.removeprefix("charrnn/").removesuffix(".py").partition("/")
        theirs = tuple(f"tests/{name}" for name in (package, f"test_{package}", package.removesuffix("s")))

        def order(test: str) -> tuple[bool, float, str]:
            return not test.startswith(theirs), self.seconds[test], test

        chosen: list[str] = []
        for test in sorted(found & self.seconds.keys(), key=order):
            limit -= self.seconds[test]
            if limit < 0:
                break
            chosen.append(test)
        return chosen


@contextmanager
def copied() -> Iterator[Path]:
    """Copy the files of the working tree that git does not ignore to a new folder."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        words = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
        listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (Path(folder) / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, Path(folder) / "tree" / name)
        yield Path(folder) / "tree"


def run_tests(tree: Path, arguments: list[str], limit: float | None = None, **env: str) -> tuple[int | None, str]:
    """Run pytest in a copy. Return its exit code, or None if it took more than ``limit`` seconds, and its output."""
    words = [sys.executable, "-m", "pytest", "-n", "0", f"--basetemp={tree.parent / 'temporary'}", *arguments]
    # no .pyc files: the next mutant of a file may have the same size and time
    env = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"} | env
    with (
        (tree.parent / "output").open("w+b") as output,
        subprocess.Popen(words, cwd=tree, env=env, stdout=output, stderr=output, start_new_session=True) as process,
    ):
        with suppress(subprocess.TimeoutExpired):
            process.wait(limit)
        code = process.poll()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with all processes that it started
        process.wait()
        output.seek(0)
        return code, output.read().decode(errors="replace")


def attempt(mutant: Mutant, tree: Path, tests: list[str]) -> dict[str, Any]:
    """Run tests on a mutant until one fails. Return the outcome, which is "alive" if none does."""
    if not tests:
        return {"outcome": "no test calls it"}
    file = tree / mutant.path
    original = file.read_bytes()
    file.write_text(mutant.source, encoding="utf-8")
    (tree.parent / "tests").write_text("\n".join(tests))
    began = time.monotonic()
    try:
        code, output = run_tests(tree, ["-x", f"@{tree.parent / 'tests'}"], LIMIT)
    finally:
        file.write_bytes(original)
    last = [line for line in output.splitlines() if line.startswith(("FAILED ", "ERROR"))][-1:] or output.splitlines()[
        -1:
    ]
    outcome = {0: "alive", None: "killed: too slow"}.get(code, f"killed: {''.join(last)[:300]}")
    return {"outcome": outcome, "tests": len(tests), "seconds": round(time.monotonic() - began)}


def record(arguments: list[str]) -> None:
    """Run the tests, or those that the pytest arguments select, and add their calls to the record."""
    KEPT.mkdir(parents=True, exist_ok=True)
    with copied() as tree:
        site = tree.parent / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(calls.SITE)
        found = {"CHARRNN_CALLS": str(KEPT / "calls.jsonl"), "PYTHONPATH": f"{site}{os.pathsep}{tree}"}
        _, output = run_tests(tree, ["-p", "tests.helpers.calls", *arguments], **found)
    print("\n".join(output.splitlines()[-5:]))


def run(seed: int, count: int, only: list[int], seconds: float, processes: int) -> None:
    """Try mutants, and print and save each outcome. At the end, run the failed tests on the original program."""
    chosen = dict(enumerate(drawn(ROOT, seed, count)))
    known = Calls.load(KEPT / "calls.jsonl")
    results = KEPT / f"seed-{seed}.jsonl"
    trees: SimpleQueue[Path] = SimpleQueue()
    lock = threading.Lock()

    def one(number: int) -> str:
        mutant, tree = chosen[number], trees.get()
        result = {"number": number, "mutant": str(mutant)} | attempt(mutant, tree, known.of(mutant, seconds))
        trees.put(tree)
        with lock, results.open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(json.dumps(result), flush=True)
        return str(result["outcome"])

    with ExitStack() as stack:
        for _ in range(processes):
            trees.put(stack.enter_context(copied()))
        tree = trees.get()
        there = set(run_tests(tree, ["--collect-only"])[1].splitlines())  # not those renamed since they were recorded
        known.seconds = {test: used for test, used in known.seconds.items() if test in there}
        trees.put(tree)
        with ThreadPoolExecutor(processes) as pool:
            outcomes = list(pool.map(one, only or chosen))
        print(Counter(outcome.partition(":")[0] for outcome in outcomes))
        killers = {match[1] for outcome in outcomes if (match := KILLER.match(outcome))}
        print(f"the {len(killers)} tests that failed, run on the original program:")
        print(run_tests(trees.get(), sorted(killers))[1].splitlines()[-1] if killers else "none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("record", help="other arguments are passed to pytest")
    options = commands.add_parser("run")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--count", type=int, default=150)
    options.add_argument("--only", type=int, nargs="*", default=[], help="try only the mutants with these numbers")
    options.add_argument("--seconds", type=float, default=60, help="limit on the time of one mutant's tests")
    options.add_argument("--processes", type=int, default=1)
    given, others = parser.parse_known_args()
    if given.command == "record":
        record(others)
    elif others:
        parser.error(f"unknown arguments: {' '.join(others)}")
    else:
        run(given.seed, given.count, given.only, given.seconds, given.processes)


if __name__ == "__main__":
    main()
