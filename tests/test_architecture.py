"""Packages import in one direction only, and large or optional libraries are loaded only where they are needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import charrnn
from charrnn import registry
from charrnn.cli.main import COMMANDS
from charrnn.kernels import backend

PACKAGE = Path(charrnn.__file__).parent
MODULES = {".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts): p for p in PACKAGE.rglob("*.py")}

# a package imports only packages further left; bars separate levels, and packages of one level do not import each other
ORDER = """
    errors files model kernels | compute settings | registry data | testing checkpoints
    | sampling evaluation reports | training | cli | __main__
"""
LEVEL = {name: level for level, names in enumerate(ORDER.split("|")) for name in names.split()}

# packages that must load fast, so they may not load torch or numpy
LIGHT = ("charrnn.settings", "charrnn.data.datasets", "charrnn.errors", "charrnn.files", "charrnn.registry")

FAST = ("numba", "scipy", "threadpoolctl")  # the [fast] extra, for the compiled kernels only


def imported(path: Path, everywhere: bool) -> Iterator[str]:
    """Yield the modules that a file imports: at its top level only, or everywhere. Leaves out imports that are only for
    type annotations."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if everywhere else iter(tree.body)
    typing_only = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in nodes:
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_under(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def test_there_are_no_circular_imports() -> None:
    graph = {
        name: {other for other in imported(path, everywhere=False) if other in MODULES and other != name}
        for name, path in MODULES.items()
        if path.name != "__init__.py"
    }
    list(TopologicalSorter(graph).static_order())


def test_a_package_imports_only_packages_further_left() -> None:
    for name, path in MODULES.items():
        mine = name.split(".")[1]
        for other in imported(path, everywhere=True) if mine != "__init__" else ():
            theirs = other.split(".")[1] if other.startswith("charrnn.") else mine
            assert theirs == mine or LEVEL.get(theirs, 0) < LEVEL[mine], (name, other)


def test_every_top_level_package_and_module_is_in_the_order() -> None:
    assert {name.split(".")[1] for name in MODULES} - {"__init__"} == LEVEL.keys()


def test_no_test_file_imports_another_test_file() -> None:
    for path in Path(__file__).parent.rglob("*.py"):
        for other in imported(path, everywhere=True):
            assert not any(part.startswith("test_") for part in other.split(".")), (path, other)


@pytest.mark.parametrize("package", LIGHT)
def test_light_packages_load_neither_torch_nor_numpy(package: str) -> None:
    for name, path in MODULES.items():
        if is_under(name, package):
            tops = {other.partition(".")[0] for other in imported(path, everywhere=False)}
            assert not tops & {"torch", "numpy"}, name


def test_only_the_command_line_imports_click_and_rich() -> None:
    for name, path in MODULES.items():
        tops = {other.partition(".")[0] for other in imported(path, everywhere=True)}
        assert is_under(name, "charrnn.cli") or not tops & {"click", "rich"}, name


def test_kernels_import_only_torch_and_numpy_and_models_only_torch_and_kernels() -> None:
    allowed = (*sys.stdlib_module_names, "torch")
    hot = (*allowed, "numpy")
    assert set(backend.NEEDED) == set(FAST)
    for name, path in MODULES.items():
        if is_under(name, "charrnn.kernels"):
            extra = FAST if is_under(name, "charrnn.kernels.compiled") or name == "charrnn.kernels.backend" else ()
            for other in imported(path, everywhere=True):
                top = other.partition(".")[0]
                assert top in (*hot, *extra) or is_under(other, "charrnn.kernels"), (name, other)
    for file in registry.models().values():
        if file.origin == registry.BUILT_IN:
            for other in imported(file.path, everywhere=True):
                assert other.partition(".")[0] in allowed or is_under(other, "charrnn.kernels"), (file.name, other)


@pytest.mark.parametrize("command", COMMANDS)
def test_loading_a_command_does_not_load_torch(command: str) -> None:
    words = "import importlib, sys; importlib.import_module(sys.argv[1]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", words, f"charrnn.cli.{command}"]).returncode == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_the_summary_of_a_command_is_the_first_line_of_its_help(command: str) -> None:
    words = "import importlib, sys; print(importlib.import_module(f'charrnn.cli.{sys.argv[1]}').command.help)"
    done = subprocess.run([sys.executable, "-c", words, command], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0].startswith(COMMANDS[command].rstrip("."))


@pytest.mark.parametrize("module", [name for name in MODULES if not is_under(name, "charrnn.kernels.compiled")])
def test_the_fast_extra_is_imported_only_when_needed_and_only_by_the_kernels_backend(module: str) -> None:
    top = {other.partition(".")[0] for other in imported(MODULES[module], everywhere=False)}
    assert not top & set(FAST)
    if module != "charrnn.kernels.backend":
        assert not {other.partition(".")[0] for other in imported(MODULES[module], everywhere=True)} & set(FAST)
