"""The notebooks match their paired programs. `make test` executes them with nbmake."""

from __future__ import annotations

from pathlib import Path

import jupytext
import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))


def cells(path: Path) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells]


def test_every_notebook_has_a_program_and_vice_versa() -> None:
    assert (
        NAMES
        == sorted(path.stem for path in FOLDER.glob("*.ipynb"))
        == [
            "evaluate_and_predict",
            "first_steps",
            "migrating",
        ]
    )


@pytest.mark.parametrize("name", NAMES)
def test_notebook_and_program_have_the_same_cells(name: str) -> None:
    program, notebook = FOLDER / f"{name}.py", FOLDER / f"{name}.ipynb"
    assert cells(program) == cells(notebook), f"Run: jupytext --sync {program}"


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_have_no_outputs(name: str) -> None:
    code = [cell for cell in jupytext.read(FOLDER / f"{name}.ipynb").cells if cell.cell_type == "code"]
    assert [(cell.outputs, cell.execution_count) for cell in code] == [([], None)] * len(code)


def test_make_test_executes_them() -> None:
    assert "-m pytest --nbmake examples/notebooks" in (FOLDER.parents[1] / "Makefile").read_text()
