"""Every command and code block of README.md and docs/*.md runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [README, *(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))]
pytestmark = pytest.mark.ray


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.M | re.S)


def run(command: list[str], timeout: float) -> str:
    # Without RAY_ADDRESS the program starts its own cluster.
    environment = {name: value for name, value in os.environ.items() if name not in {"RAY_ADDRESS", "PYTHONPATH"}}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_the_python_blocks_run_in_their_order(tmp_path: Path) -> None:
    program = tmp_path / "readme.py"
    program.write_text("\n".join(block for page in PAGES for block in blocks(page, "python")))
    shown = run([sys.executable, str(program)], timeout=280)
    assert "'global_step': 400" in shown or "'global_step': np.int64(400)" in shown
    assert "{'price': " in shown
    assert "['flat', 'house']" in shown
    assert re.search(r"^600 \['.*/export/best_exporter/\d{10}'\]$", shown, flags=re.M)
    assert "tf.Tensor" in shown


def test_make_demo_shows_the_main_job() -> None:
    assert "$ make demo" in README
    shown = run(["make", "demo"], timeout=280)
    accuracy = float(re.findall(r"^accuracy ([\d.]+)", shown, flags=re.M)[0])
    assert accuracy >= 0.95
    assert "it gives the same results as predict" in shown
    assert re.search(r"^model_dir /", shown, flags=re.M)


def test_the_commands_are_those_of_the_makefile() -> None:
    commands = [
        line[2:].partition("#")[0].strip() for block in blocks(README, "console") for line in block.splitlines()
    ]
    assert commands == ["make demo", "make test"]
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M)
    assert {"demo", "test", "benchmarks"} <= set(targets)
