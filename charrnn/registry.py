"""Models are files: finding them, loading one, and describing its own options."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

from charrnn.errors import UserError, nearest
from charrnn.settings.option import Option, make_option
from charrnn.settings.training import training_options

if TYPE_CHECKING:
    from torch import nn

# flags of `charrnn train` that are not settings of the run
RESERVED = ("config", "resume", "dry_run", "print_config", "help", "h")


BUILT_IN = "built in"


@dataclass(frozen=True)
class ModelFile:
    """A file with a top-level ``create``. origin: where it was found, in words. summary: its docstring's first line."""

    name: str
    path: Path
    origin: str
    summary: str


def built_in_folder() -> Path:
    """``models`` inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "models"
    return inside if inside.is_dir() else package.parent / "models"


def models() -> dict[str, ModelFile]:
    """Every model that can be named, by name, built-in ones first. No model file is executed."""
    found: dict[str, ModelFile] = {}
    for path, origin, name in _candidates():
        if name not in found and (file := _read(path, origin, name)):
            found[name] = file
    return found


def find(name: str) -> ModelFile:
    """The file of the model with that name. Raises UserError where there is none, or where two files contend for it."""
    if not name.isidentifier():
        raise UserError(f"-model {name}: a model's name is a plain word, the name of its file without .py")
    files = [
        file or ModelFile(name, path, origin, "")  # a file with a syntax error: loading it will say so
        for path, origin, found in _candidates()
        if found == name and ((file := _read(path, origin, name)) or not _parses(path))
    ]
    if not files:
        known = list(models())
        raise UserError(f"there is no model {name}{nearest(name, known)}: there are {', '.join(known)}")
    first = files[0]
    for other in files[1:]:
        if other.path.read_bytes() != first.path.read_bytes():
            raise UserError(
                f"two files are called {name}: {first.path} ({first.origin}) and {other.path} ({other.origin}). Rename "
                "one; to change a built-in model, work in a checkout and pip install -e ."
            )
    return first


def load(name: str) -> ModuleType:
    """The module of a model, executed once for each state of its file. Errors in the file come through as they are."""
    path = find(name).path.resolve()
    digest = hashlib.sha256(path.read_bytes() + os.fsencode(path)).hexdigest()[:16]
    module_name = f"charrnn_model_{name}_{digest}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickles look their module up here
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def describe(name: str) -> dict[str, Option]:
    """The model's own options, by name: what follows the ``*`` in the signature of its ``create``.

    Raises UserError for an option that `charrnn train` already has, that has no default, or of another type
    than int, float, str, bool, a Literal or an Optional of these.
    """
    create = load(name).create
    file = find(name).path
    hints = get_type_hints(create, include_extras=True)
    options = {}
    for parameter in inspect.signature(create).parameters.values():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        option = parameter.name
        if option in training_options() or option in RESERVED:
            raise UserError(f"{file} declares the option {option}, which charrnn train has already: rename it")
        if parameter.default is inspect.Parameter.empty:
            raise UserError(f"{file} declares the option {option} without a default: give it one")
        annotation, text = _split(hints.get(option, type(parameter.default)))
        try:
            options[option] = make_option(option, annotation, parameter.default, help=text)
        except TypeError as error:
            raise UserError(f"{file} declares an option of a type that no flag can have: {error}") from None
    return options


def outline(name: str) -> list[Option]:
    """The model's own options as far as its file tells without being executed: names and help, all as text."""
    try:
        tree = ast.parse(find(name).path.read_bytes())
    except (UserError, OSError, SyntaxError, ValueError):
        return []
    creates = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "create"]
    return [Option(a.arg, str, "", help=_text(a.annotation)) for node in creates for a in node.args.kwonlyargs]


def create(name: str, input_size: int, rnn_size: int, n_layers: int, dropout: float, **own: Any) -> nn.Module:
    """A new model. own: the model's own options. Raises UserError for options that are unknown or impossible."""
    from torch import nn

    options = describe(name)
    for option in own:
        if option not in options:
            raise UserError(f"the model {name} has no option {option}{nearest(option, list(options))}")
    values = {option: options[option].convert(value) for option, value in own.items()}
    try:
        model = load(name).create(input_size, rnn_size, n_layers, dropout, **values)
    except ValueError as error:
        raise UserError(f"the model {name} cannot be built: {error}") from None
    if not isinstance(model, nn.Module):
        raise UserError(f"{find(name).path}: create must return a torch.nn.Module, not {type(model).__name__}")
    return model


def check(name: str, rnn_size: int, n_layers: int, dropout: float, **own: Any) -> None:
    """Raises UserError for options that no vocabulary could make possible, without taking memory or time.

    A model that cannot be built without memory is left to ``create``.
    """
    skeleton(name, rnn_size + 1, rnn_size, n_layers, dropout, **own)


def skeleton(name: str, input_size: int, rnn_size: int, n_layers: int, dropout: float, **own: Any) -> nn.Module | None:
    """A new model without its numbers, on torch's meta device: names and shapes alone, in no memory.

    None where it cannot be built there. Raises UserError as ``create`` does, and for sizes that no memory holds.
    """
    import torch

    try:
        with torch.device("meta"):
            return create(name, input_size, rnn_size, n_layers, dropout, **own)
    except (NotImplementedError, RuntimeError, TypeError) as error:
        if "overflow" in str(error):
            raise UserError(f"a model {name} with -rnn_size {rnn_size} is too large for any memory") from None
        return None


def _candidates() -> Iterator[tuple[Path, str, str]]:
    """Path, origin and model name of every file that may be a model."""
    folders = [(built_in_folder(), BUILT_IN), (Path("models"), "the working directory")]
    folders += [(Path(p), "$CHARRNN_MODELS") for p in os.environ.get("CHARRNN_MODELS", "").split(os.pathsep) if p]
    for folder, origin in folders:
        for path in sorted(folder.glob("*.py")):
            if path.stem.isidentifier() and not path.stem.startswith("_"):
                yield path, origin, path.stem
    for point in _entry_points(tuple(sys.path)):
        if located := _located(point):
            yield located, f"the package {point.dist.name if point.dist else point.module}", point.name


@cache
def _entry_points(path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """What the packages on the import path declare: read once, since every package's files are looked through."""
    return tuple(entry_points(group="charrnn.models"))


def _located(point: EntryPoint) -> Path | None:
    """The file of an entry point's module, found without executing it where the package lists its files."""
    relative = Path(*point.module.split("."))
    for candidate in (relative.with_suffix(".py"), relative / "__init__.py"):
        if point.dist and (path := Path(str(point.dist.locate_file(candidate)))).is_file():
            return path
    try:  # an editable install: only the import system knows where it is
        spec = importlib.util.find_spec(point.module)
    except ImportError:
        return None
    return Path(spec.origin) if spec and spec.origin else None


def _read(path: Path, origin: str, name: str) -> ModelFile | None:
    """The model in a file, or None where the file has no top-level ``create`` or is not Python."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
    if not any("create" in _names(node) for node in tree.body):
        return None
    return ModelFile(name, path, origin, (ast.get_docstring(tree) or "").partition("\n")[0])


def _parses(path: Path) -> bool:
    try:
        ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def _names(node: ast.stmt) -> set[str]:
    """The names that a top-level statement defines."""
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
            return {alias.asname or alias.name for alias in aliases}
        case ast.Assign(targets=targets):
            return {target.id for target in targets if isinstance(target, ast.Name)}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
    return set()


def _text(annotation: ast.expr | None) -> str:
    """The help text in the source of ``Annotated[type, "help"]``."""
    match annotation:
        case ast.Subscript(slice=ast.Tuple(elts=[_, ast.Constant(value=str(text)), *_])):
            return text
    return ""


def _split(annotation: Any) -> tuple[Any, str]:
    """The type and the help text in ``Annotated[type, "help"]``."""
    if get_origin(annotation) is not Annotated:
        return annotation, ""
    inner, *notes = get_args(annotation)
    return inner, next((note for note in notes if isinstance(note, str)), "")
