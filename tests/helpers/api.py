"""The public interface as text, from the source: python -m tests.helpers.api > tests/public/api.txt."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = {
    "charrnn": "charrnn/__init__.py",
    "charrnn.testing": "charrnn/testing.py",
    "charrnn.model": "charrnn/model.py",
}


def interface() -> str:
    """Return the public names of all public modules, with signatures, fields and values, but without code."""
    return "\n\n".join(f"# {name}\n\n{describe((ROOT / path).read_text())}" for name, path in MODULES.items()) + "\n"


def describe(source: str) -> str:
    """Return the public names of one module: those of its ``__all__``, or those that it defines itself."""
    tree = ast.parse(source)
    listed = next(
        (
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and _names(node) == ["__all__"]
        ),
        None,
    )
    if listed is None:
        public = [node for node in tree.body if any(map(_is_public, _names(node)))]
    else:
        public = [node for node in tree.body if set(_names(node, imports=True)) & {*listed}]
    return "\n".join(ast.unparse(_bare(node)) for node in public)


def _names(node: ast.AST, imports: bool = False) -> list[str]:
    """Return the names that a statement defines."""
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Assign(targets=targets):
            return [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case ast.ImportFrom(names=names) if imports:
            return [name.asname or name.name for name in names]
    return []


def _bare(node: ast.stmt) -> ast.stmt:
    """Return a statement without docstrings, code and private members."""
    match node:
        case ast.FunctionDef():
            node.body = [ast.Expr(ast.Constant(...))]
        case ast.ClassDef():
            public = [part for part in node.body if any(_is_public(name) for name in _names(part))]
            node.body = [_bare(part) for part in public] or [ast.Expr(ast.Constant(...))]
    return node


def _is_public(name: str) -> bool:
    return not name.startswith("_") or name.endswith("__")


if __name__ == "__main__":
    print(interface(), end="")
