"""Read Python sources: files, and the code cells of notebooks."""

from __future__ import annotations

import ast
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SKIPPED = {"__pycache__", "node_modules", "site-packages"}
_CELLS_OF_PYTHON = ("%%time", "%%timeit", "%%capture")
_IPYTHON_LINE = re.compile(r"(\s*)([%!?]|[\w.]+\?{1,2}\s*$)")


@dataclass(frozen=True, order=True)
class Place:
    """A line of a source.

    Attributes:
        cell: Number of the notebook's cell, from 1; 0 in a file.
        line: Number of the line, from 1.
    """

    cell: int
    line: int

    def __str__(self) -> str:
        return f"cell {self.cell}, line {self.line}" if self.cell else str(self.line)


@dataclass(frozen=True)
class Source:
    """A parsed file.

    Attributes:
        path: The file.
        tree: The syntax tree, without parts that could not be parsed.
        places: The place of each line of `tree`.
        errors: Syntax errors and their places.
    """

    path: Path
    tree: ast.Module
    places: tuple[Place, ...]
    errors: tuple[tuple[Place, str], ...]

    def place(self, node: ast.AST) -> Place:
        """Return the place where a node of `tree` starts."""
        return self.places[getattr(node, "lineno", 1) - 1]


def files_below(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the .py and .ipynb files in `paths`, each once, without those in hidden directories and environments.

    Raises:
        FileNotFoundError: One of `paths` does not exist.
    """
    seen = set()
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(str(path))
        for file in [path] if path.is_file() else _walk(path):
            if file.resolve() not in seen:
                seen.add(file.resolve())
                yield file


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if _is_of_user(Path(parent, name)))
        yield from (Path(parent, name) for name in sorted(names) if name.endswith((".py", ".ipynb")))


def _is_of_user(folder: Path) -> bool:
    return not (folder.name.startswith(".") or folder.name in _SKIPPED or (folder / "pyvenv.cfg").exists())


def read(path: Path) -> Source:
    """Read and parse a file."""
    try:
        parts = list(_cells(path)) if path.suffix == ".ipynb" else [(0, path.read_bytes())]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return Source(path, ast.Module([], []), (Place(0, 1),), ((Place(0, 1), f"it is not a notebook ({error})"),))
    lines: list[str] = []
    places: list[Place] = []
    errors: list[tuple[Place, str]] = []
    for cell, code in parts:
        text, defect = _parsable(code)
        if defect is not None:
            errors.append((Place(cell, defect[0]), defect[1]))
        lines += text
        places += [Place(cell, line) for line in range(1, len(text) + 1)]
    return Source(path, _parse("\n".join(lines)), (*places, Place(0, 1)), tuple(errors))


def _cells(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the code cells, without IPython's own syntax."""
    cells: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for number, cell in enumerate(cells, start=1):
        code = "".join(cell["source"])
        if cell["cell_type"] == "code" and (not code.startswith("%%") or code.startswith(_CELLS_OF_PYTHON)):
            yield (
                number,
                "\n".join(_IPYTHON_LINE.sub(r"\1pass  # \2", line, count=1) for line in code.split("\n")).encode(),
            )


def _parsable(code: bytes) -> tuple[list[str], tuple[int, str] | None]:
    """Return the lines of the code and None, or no lines and the line and message of its syntax error."""
    try:
        _parse(code)
    except (SyntaxError, ValueError) as error:
        return [], (getattr(error, "lineno", None) or 1, getattr(error, "msg", str(error)))
    # Like `ast`, which does not treat a form feed as the end of a line.
    text = code.decode(errors="replace").removeprefix("\ufeff")
    return re.split(r"\r\n|\r|\n", text), None


def _parse(code: str | bytes) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Old sources contain invalid escapes, which cause warnings.
        return ast.parse(code)
