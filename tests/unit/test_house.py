"""The repository: imports, make targets, bootstrap, CI, changelog, map of the code."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    outer = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "PYTHON"}
    return subprocess.run(command, cwd=cwd, env=outer | environment, capture_output=True, text=True, timeout=120)


def test_importing_the_package_imports_neither_tensorflow_nor_keras_nor_ray() -> None:
    heavy = {"tensorflow", "keras", "tf_keras", "ray", "typer", "ray_estimator.cli"}
    code = f"import sys, ray_estimator; print(*sorted({heavy!r} & set(sys.modules)))"

    done = run(sys.executable, "-c", code)

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("target", "command"), [("demo", "python examples/digits.py"), ("test", "python -m pytest tests")]
)
def test_make_sets_up_the_environment_before_it_runs_the_command(target: str, command: str) -> None:
    done = run("make", "--dry-run", "--always-make", target)

    assert done.returncode == 0, done.stderr
    assert 0 <= done.stdout.find("tools/bootstrap.sh") < done.stdout.find(command)


def test_bootstrap_accepts_the_python_versions_of_the_package() -> None:
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    low, high = re.findall(r"3\.(\d+)", requires)

    script = (ROOT / "tools" / "bootstrap.sh").read_text()

    assert f"(3, {low}) <= sys.version_info < (3, {high})" in script
    assert set(re.findall(r"python3\.(\d+) ", script)) == {str(minor) for minor in range(int(low), int(high))}


def test_bootstrap_rejects_an_interpreter_that_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "bootstrap.sh", tmp_path / "tools")

    done = run("sh", "tools/bootstrap.sh", cwd=tmp_path, PYTHON="false")

    assert done.returncode == 1
    assert "PYTHON=false does not run" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_ci_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"

    assert os.access(script, os.X_OK)
    assert script.read_text().endswith("exec make test\n")


def test_the_changelog_has_an_unreleased_section() -> None:
    assert "\n## [Unreleased]\n" in (ROOT / "CHANGELOG.md").read_text()


def test_the_map_in_contributing_lists_every_package_and_private_root_module() -> None:
    package = ROOT / "ray_estimator"
    folders = {f"{path.parent.relative_to(package)}/" for path in package.rglob("__init__.py")} - {"./"}
    modules = {path.name for path in package.glob("_*.py") if not path.name.startswith("__")}

    section = (ROOT / "CONTRIBUTING.md").read_text().partition("## Map of the code")[2].partition("\n## ")[0]

    assert sorted(re.findall(r"^\| `(.*?)` \|", section, flags=re.M)) == sorted(folders | modules)
