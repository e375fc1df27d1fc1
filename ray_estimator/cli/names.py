"""Resolve the names in a source: after `import tensorflow as tf`, `tf.layers` is ``tensorflow.layers``."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

_ERRORS_IF_MISSING = {"ImportError", "ModuleNotFoundError", "AttributeError"}


@dataclass(frozen=True)
class Use:
    """A use of a name of a module.

    Attributes:
        path: Full path, such as ``tensorflow.compat.v1.layers.dense``.
        node: The node that uses it.
    """

    path: str
    node: ast.AST


@dataclass
class Names:
    """The names of one source.

    Attributes:
        aliases: Full path by name, for names of modules and their members.
        texts: String by name, for names of string constants.
        uses: Names of modules that are used or imported, except where the source handles that they are missing.
    """

    aliases: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    uses: list[Use] = field(default_factory=list)

    @classmethod
    def of(cls, tree: ast.AST) -> Names:
        """Return the names of a source."""
        bindings = _Bindings()
        bindings.visit(tree)
        aliases = {name: path for name, path in bindings.aliases.items() if name not in bindings.other}
        names = cls(aliases, {name: text for name, text in bindings.texts.items() if name not in bindings.other})
        uses = _Uses(names)
        uses.visit(tree)
        return names

    def path_of(self, node: ast.AST) -> str | None:
        """Return the full path that `node` resolves to; None if it is not a name of a module."""
        if isinstance(node, ast.Name):
            return self.aliases.get(node.id)
        if isinstance(node, ast.Attribute):
            parent = self.path_of(node.value)
            return None if parent is None else f"{parent}.{node.attr}"
        return None

    def text_of(self, node: ast.AST) -> str:
        """Return the start of the string that `node` evaluates to; empty if unknown."""
        if isinstance(node, ast.Constant):
            return node.value if isinstance(node.value, str) else ""
        if isinstance(node, ast.Name):
            return self.texts.get(node.id, "")
        if isinstance(node, ast.JoinedStr) and node.values:
            first = node.values[0]
            return self.text_of(first.value if isinstance(first, ast.FormattedValue) else first)
        if isinstance(node, ast.BinOp):
            return self.text_of(node.left)
        if isinstance(node, ast.List | ast.Tuple) and node.elts:
            return self.text_of(node.elts[0])
        if isinstance(node, ast.Call) and node.args and self.path_of(node.func) in ("os.path.join", "posixpath.join"):
            return self.text_of(node.args[0])
        return ""


def _imported(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, str, str]]:
    """Yield the bound name, its full path, and the imported path."""
    if isinstance(node, ast.Import):
        for name in node.names:
            root = name.name.partition(".")[0]
            yield name.asname or root, name.name if name.asname else root, name.name
    elif node.level == 0 and node.module:
        for name in node.names:
            path = node.module if name.name == "*" else f"{node.module}.{name.name}"
            yield name.asname or name.name, path, path


class _Bindings(ast.NodeVisitor):
    """Collect name bindings. Scopes are ignored: a name with another meaning anywhere in the source is not resolved."""

    def __init__(self) -> None:
        self.aliases: dict[str, str] = {}
        self.texts: dict[str, str] = {}
        self.other: set[str] = set()
        self._in_handler = 0

    def visit_Import(self, node: ast.Import) -> None:
        self._bind(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self._bind(node)

    def _bind(self, node: ast.Import | ast.ImportFrom) -> None:
        for name, path, _ in _imported(node):
            # An import in an exception handler is only the fallback of the one before.
            if not (self._in_handler and name in self.aliases):
                self.aliases[name] = path

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        self._in_handler += 1
        self.generic_visit(node)
        self._in_handler -= 1

    def visit_Assign(self, node: ast.Assign) -> None:
        target = node.targets[0]
        if len(node.targets) == 1 and isinstance(target, ast.Name) and self._is_alias(target.id, node.value):
            return
        self.generic_visit(node)

    def _is_alias(self, name: str, value: ast.AST) -> bool:
        path = Names(self.aliases).path_of(value)
        if path is not None:
            self.aliases[name] = path
        elif isinstance(value, ast.Constant) and isinstance(value.value, str) and name not in self.texts:
            self.texts[name] = value.value
            return name not in self.aliases
        return path is not None

    def visit_Name(self, node: ast.Name) -> None:
        if not isinstance(node.ctx, ast.Load):
            self.other.add(node.id)

    def visit_arg(self, node: ast.arg) -> None:
        self.other.add(node.arg)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.other.add(node.name)
        self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.other.add(node.name)
        self.generic_visit(node)


class _Uses(ast.NodeVisitor):
    def __init__(self, names: Names) -> None:
        self._names = names

    def visit_Import(self, node: ast.Import) -> None:
        self._names.uses += [Use(path, node) for _, _, path in _imported(node)]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self._names.uses += [Use(path, node) for _, _, path in _imported(node)]

    def visit_Attribute(self, node: ast.Attribute) -> None:
        path = self._names.path_of(node)
        if path is None:
            self.generic_visit(node)
        else:
            self._names.uses.append(Use(path, node))

    def visit_Try(self, node: ast.Try) -> None:
        if not _handles_missing_names(node):
            self.generic_visit(node)
            return
        for statement in (*node.orelse, *node.finalbody):
            self.visit(statement)


def _handles_missing_names(node: ast.Try) -> bool:
    """Whether a `try` statement handles a missing name."""
    caught = [name for handler in node.handlers for name in _caught(handler)]
    just_binds = all(isinstance(statement, ast.Import | ast.ImportFrom | ast.Assign) for statement in node.body)
    return bool(_ERRORS_IF_MISSING.intersection(caught)) or (just_binds and "Exception" in caught)


def _caught(handler: ast.ExceptHandler) -> Iterator[str]:
    if handler.type is None:
        yield "Exception"
        return
    types = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    yield from (each.id for each in types if isinstance(each, ast.Name))
