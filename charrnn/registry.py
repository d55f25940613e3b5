"""Find the file of a model, load it once, and build the model that it defines."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
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

# words in torch's errors for a tensor with more elements, or a side longer, than 64 bits can count
OVERFLOW = ("Storage size calculation overflowed", "Overflow when unpacking long")


@dataclass(frozen=True)
class ModelFile:
    """A model's file, with a top-level ``create``. It is read once, and executed only when its module is needed."""

    name: str
    path: Path
    # where it was found, for messages
    origin: str

    @cached_property
    def source(self) -> bytes:
        """The file's content. Raises UserError if it cannot be read."""
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read the model {self.path}: {error.strerror}") from None

    @cached_property
    def tree(self) -> ast.Module | None:
        """The file's syntax tree; None if it cannot be read or is not Python."""
        try:
            return ast.parse(self.source)
        except (UserError, SyntaxError, ValueError):
            return None

    @property
    def has_create(self) -> bool:
        """Whether a top-level statement defines ``create``."""
        return self.tree is not None and any("create" in _names(node) for node in self.tree.body)

    @property
    def summary(self) -> str:
        """The first line of the file's docstring."""
        return ((self.tree and ast.get_docstring(self.tree)) or "").partition("\n")[0]

    @property
    def outline(self) -> list[Option]:
        """The model's own options with only their names and help texts, read from the source without executing it."""
        body = self.tree.body if self.tree else []
        creates = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == "create"]
        return [Option(a.arg, str, "", help=_text(a.annotation)) for node in creates for a in node.args.kwonlyargs]

    @cached_property
    def module(self) -> ModuleType:
        """The module. It is executed again only if the file's content changes, and its errors pass through unchanged.

        It is always compiled from the source. Python trusts a .pyc if the size of the source and its time in whole
        seconds are the same, so a file changed twice within a second could run in its old version.
        """
        path = self.path.resolve()
        digest = hashlib.sha256(self.source + os.fsencode(path)).hexdigest()[:16]
        name = f"charrnn_model_{self.name}_{digest}"
        if name in sys.modules:
            return sys.modules[name]
        code = compile(self.source, str(path), "exec", dont_inherit=True)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and pickle look up modules here
        try:
            exec(code, module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
        return module

    @cached_property
    def options(self) -> dict[str, Option]:
        """The model's own options by name: the parameters after the ``*`` in the signature of its ``create``.

        Raises UserError if an option has the name of a flag of `charrnn train`, has no default, or has a type
        other than int, float, str, bool, a Literal or an Optional of these.
        """
        create = self.module.create
        hints = get_type_hints(create, include_extras=True)
        options = {}
        for parameter in inspect.signature(create).parameters.values():
            if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
                continue
            option = parameter.name
            if option in training_options() or option in RESERVED:
                raise UserError(f"{self.path} declares the option {option}, which charrnn train already has: rename it")
            if parameter.default is inspect.Parameter.empty:
                raise UserError(f"{self.path} declares the option {option} without a default: give it one")
            annotation, text = _split(hints.get(option, type(parameter.default)))
            try:
                options[option] = make_option(option, annotation, parameter.default, help=text)
            except TypeError as error:
                raise UserError(
                    f"{self.path} declares an option with a type that flags do not support: {error}"
                ) from None
        return options

    def create(self, input_size: int, rnn_size: int, n_layers: int, dropout: float, **own: Any) -> nn.Module:
        """Build the model with fresh weights. ``own`` sets its own options; those left out have their defaults.

        Raises UserError for an unknown or impossible option.
        """
        from torch import nn

        for option in own:
            if option not in self.options:
                raise UserError(f"the model {self.name} has no option {option}{nearest(option, list(self.options))}")
        values = {option: self.options[option].convert(value) for option, value in own.items()}
        try:
            model = self.module.create(input_size, rnn_size, n_layers, dropout, **values)
        except ValueError as error:
            raise UserError(f"the model {self.name} cannot be built: {error}") from None
        if not isinstance(model, nn.Module):
            raise UserError(f"{self.path}: create must return a torch.nn.Module, not {type(model).__name__}")
        return model

    def skeleton(self, input_size: int, rnn_size: int, n_layers: int, dropout: float, **own: Any) -> nn.Module | None:
        """Build the model on torch's meta device, with the names, shapes and types of its weights but no values.

        Returns None if the model cannot be built there. Raises UserError as ``create`` does, and if a size overflows.
        """
        import torch

        try:
            with torch.device("meta"):
                return self.create(input_size, rnn_size, n_layers, dropout, **own)
        except (NotImplementedError, RuntimeError, TypeError) as error:
            if any(words in str(error) for words in OVERFLOW):
                raise UserError(
                    f"-rnn_size {rnn_size}: a model {self.name} of this size does not fit into any memory"
                ) from None
            return None

    def check(self, rnn_size: int, n_layers: int, dropout: float, **own: Any) -> nn.Module | None:
        """Return the skeleton for a vocabulary of one token; None if the model has no skeleton.

        Raises UserError for impossible options. Takes almost no time or memory, and needs no vocabulary.
        """
        return self.skeleton(1, rnn_size, n_layers, dropout, **own)


def built_in_folder() -> Path:
    """Return the folder of the built-in models: inside the installed package, or next to it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "models"
    return inside if inside.is_dir() else package.parent / "models"


def models() -> dict[str, ModelFile]:
    """Return all available models by name, built-in ones first. Executes no model file."""
    found: dict[str, ModelFile] = {}
    for file in _candidates():
        if file.name not in found and file.has_create:
            found[file.name] = file
    return found


def find(name: str) -> ModelFile:
    """Return the model with this name. Raises UserError if no file has this name, or if two do and differ."""
    if not name.isidentifier():
        raise UserError(f"-model {name}: a model's name is a plain word, the name of its file without .py")
    # a file with a syntax error counts too: loading it shows the error
    files = [file for file in _candidates() if file.name == name and (file.has_create or file.tree is None)]
    if not files:
        known = list(models())
        raise UserError(f"unknown model {name}{nearest(name, known)}; known models are {', '.join(known)}")
    first = files[0]
    for other in files[1:]:
        if other.source != first.source:
            raise UserError(
                f"two files are called {name}: {first.path} ({first.origin}) and {other.path} ({other.origin}). Rename "
                "one; to change a built-in model, work in a checkout and pip install -e ."
            )
    return first


def _candidates() -> Iterator[ModelFile]:
    """Yield every file that may be a model."""
    folders = [(built_in_folder(), BUILT_IN), (Path("models"), "the working directory")]
    folders += [(Path(p), "$CHARRNN_MODELS") for p in os.environ.get("CHARRNN_MODELS", "").split(os.pathsep) if p]
    for folder, origin in folders:
        for path in sorted(folder.glob("*.py")):
            if path.stem.isidentifier() and not path.stem.startswith("_") and os.path.isfile(path):
                yield ModelFile(path.stem, path, origin)
    for point in _entry_points(tuple(sys.path)):
        if located := _located(point):
            yield ModelFile(point.name, located, f"the package {point.dist.name if point.dist else point.module}")


@cache
def _entry_points(path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Return the models that installed packages declare. Cached, since it searches every package on the path."""
    return tuple(entry_points(group="charrnn.models"))


def _located(point: EntryPoint) -> Path | None:
    """Return the file of an entry point's module; None if it is not found.

    Does not execute the module. For an editable install, its parent packages may be imported.
    """
    relative = Path(*point.module.split("."))
    for candidate in (relative.with_suffix(".py"), relative / "__init__.py"):
        if point.dist and (path := Path(str(point.dist.locate_file(candidate)))).is_file():
            return path
    try:  # an editable install: only the import system knows where it is
        spec = importlib.util.find_spec(point.module)
    except ImportError:
        return None
    return Path(spec.origin) if spec and spec.origin else None


def _names(node: ast.stmt) -> set[str]:
    """Return the names that a top-level statement defines."""
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
    """Return the help text in the source of ``Annotated[type, "help"]``, or ''."""
    match annotation:
        case ast.Subscript(slice=ast.Tuple(elts=[_, ast.Constant(value=str(text)), *_])):
            return text
    return ""


def _split(annotation: Any) -> tuple[Any, str]:
    """Return the type and the help text in ``Annotated[type, "help"]``; the help is '' for a plain type."""
    if get_origin(annotation) is not Annotated:
        return annotation, ""
    inner, *notes = get_args(annotation)
    return inner, next((note for note in notes if isinstance(note, str)), "")
