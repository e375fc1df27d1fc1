"""`ray-estimator doctor`: checks of this machine, of stores, and of sources."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from ray_estimator.cli import diagnosis
from ray_estimator.cli.app import app
from ray_estimator.cli.findings import KINDS
from ray_estimator.cli.scanning import scan

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def doctor(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["doctor", *map(str, arguments)])


def said(*arguments: str | Path) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(doctor(*arguments, "--json").stdout)
    return answer


def check(name: str, *arguments: str | Path) -> dict[str, str]:
    (found,) = (each for each in said(*arguments)["checks"] if each["name"] == name)
    return found


# This machine


def test_this_machine_has_no_problems() -> None:
    result = doctor()

    assert result.exit_code == 0, result.output
    assert re.search(r"^ok tensorflow: 2\.\d+\.\d+", result.stdout, flags=re.M)
    assert "-- cluster: not checked" in result.stdout


def test_tested_versions_are_those_of_the_lock_and_oldest_ones_those_of_the_package() -> None:
    lock = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "cluster/requirements.txt").read_text(), flags=re.M))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = dict(re.findall(r"^(\w+)[^>]*>=([\d.]+)$", "\n".join(project["dependencies"]), flags=re.M))

    for name, (low, tested) in diagnosis.TESTED.items():
        assert tested == lock[name]
        assert low == oldest.get(name, low)
    assert set(diagnosis.TESTED) - set(oldest) == {"keras"}  # TensorFlow asks for it.
    low, high = re.findall(r"3\.(\d+)", project["requires-python"])
    assert (3, int(low)) == diagnosis.OLDEST_PYTHON
    assert (3, int(high) - 1) == diagnosis.NEWEST_PYTHON


@pytest.mark.parametrize(
    ("oldest", "tested", "status", "words"),
    [
        ("9999", "9999.1", "problem", "is older than 9999"),
        ("1.0", "1.0.1", "note", "newer than the tested 1.0.1"),
        ("1.0", "9999.0", "ok", "tested: 9999.0"),
    ],
)
def test_versions_are_compared(
    oldest: str, tested: str, status: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(diagnosis.TESTED, "pyarrow", (oldest, tested))

    result = doctor()

    found = check("pyarrow")
    assert (found["status"], words in found["detail"]) == (status, True)
    assert (found["fix"] == f"pip install 'pyarrow>={oldest}'") == (status == "problem")
    assert result.exit_code == (status == "problem")


def test_a_missing_package_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(diagnosis.TESTED, "no-such-package-of-anybody", ("1.0", "1.0"))

    assert check("no-such-package-of-anybody")["detail"] == "not installed"


def test_gpus_that_tensorflow_does_not_see_are_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for bus in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / bus).mkdir()
    monkeypatch.setattr(diagnosis, "_NVIDIA", tmp_path)

    found = check("GPUs here")

    assert (found["status"], found["detail"]) == ("problem", "TensorFlow sees 0 of 2")
    assert "tensorflow[and-cuda]" in found["fix"]


# Stores and clusters


def test_a_model_dir_is_checked_from_this_process(tmp_path: Path) -> None:
    result = doctor("--model-dir", tmp_path)

    assert result.exit_code == 0
    assert f"ok model_dir from here: {tmp_path}: written, read" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_model_dir_that_cannot_be_used_is_a_problem_and_credentials_are_not_shown(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    options = '{"secret": "t0psecret"}'

    result = doctor("--model-dir", tmp_path / "file" / "model", "--storage-options", options)

    assert result.exit_code == 1
    assert "NotADirectoryError" in result.stdout
    assert "t0psecret" not in result.output


def test_a_store_without_its_package_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "adlfs", None)  # As if it were not installed.

    found = check("model_dir from here", "--model-dir", "abfs://box/run")

    assert found["status"] == "problem"
    assert "pip install 'ray-estimator[azure]'" in found["fix"]


@pytest.mark.parametrize("address", ["ray://head:10001", "http://localhost:8265", "local"])
def test_addresses_that_no_driver_connects_to_are_explained(address: str) -> None:
    found = check("cluster", "--address", address)

    assert found["status"] == "problem"
    assert "ray job submit" in found["fix"]


def test_a_cluster_that_does_not_respond_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")

    found = check("cluster", "--timeout", "1")

    assert (found["status"], found["detail"]) == ("problem", "127.0.0.1:1: no answer within 1 s (--timeout)")


# Usage


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no/such/path.py"], "Not found: no/such/path.py"),
        (["--storage-options", "{"], "must be JSON"),
        (["--storage-options", "[1]"], "must be a JSON object"),
        (["--timeout", "0"], "--timeout"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_invalid_arguments_exit_with_2(arguments: list[str], words: str) -> None:
    result = doctor(*arguments)

    assert result.exit_code == 2
    assert words in result.output


def test_the_installed_command_is_the_module() -> None:
    script = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["ray-estimator"]
    module, _, function = script.partition(":")
    code = f"import sys; sys.argv = ['ray-estimator', '--help']; from {module} import {function}; {function}()"

    by_script = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    by_module = subprocess.run(
        [sys.executable, "-m", "ray_estimator", "--help"], capture_output=True, text=True, timeout=60, check=True
    )

    assert by_script.stdout == by_module.stdout
    assert "Usage: ray-estimator [OPTIONS] COMMAND" in by_module.stdout
    for words in ("doctor", "inspect", "Exit codes:\n    0  no problems\n    1  "):
        assert words in by_module.stdout


# Sources

BREAKS = yaml.safe_load((DATA / "breaks.yaml").read_text())


@pytest.mark.parametrize("case", BREAKS.values(), ids=list(BREAKS))
def test_code_that_breaks_is_found_with_its_lines_and_fix(case: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(case["source"])

    (found,) = scan([tmp_path]).found

    assert found.finding.kind == case["kind"]
    assert case["what"] in found.finding.what
    assert case["fix"] in found.finding.fix
    assert [place.line for place in found.places] == case["lines"]


def test_every_kind_of_finding_has_an_example() -> None:
    assert {case["kind"] for case in BREAKS.values()} == set(KINDS)


WORKS = yaml.safe_load((DATA / "works.yaml").read_text())


@pytest.mark.parametrize("source", WORKS.values(), ids=list(WORKS))
def test_code_that_works_has_no_findings(source: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(source)

    assert scan([tmp_path]).found == ()


def test_programs_of_the_tests_have_no_findings() -> None:
    # Programs as users of tf.estimator wrote them, the one that calls install() for them, and the examples. Those with
    # layers of Keras 2 are run with legacy_keras, as their test says.
    programs = ROOT / "tests" / "programs"

    scanned = scan([programs, ROOT / "examples"])

    assert scanned.files > 10
    assert [f"{each.at}: {each.finding.what}" for each in scanned.found] == []


def test_private_names_in_the_models_of_tensorflow_estimator_are_found() -> None:
    import importlib.util

    (package,) = importlib.util.find_spec("tensorflow_estimator").submodule_search_locations  # type: ignore[union-attr]
    folder = Path(package) / "python" / "estimator" / "canned"

    kinds = {each.finding.kind for each in scan([folder / "dnn.py"]).found}

    assert {"private name", "tf.estimator"} <= kinds


def notebook(*cells: str) -> str:
    return json.dumps({"cells": [{"cell_type": "code", "source": cell.splitlines(keepends=True)} for cell in cells]})


def test_cells_of_a_notebook_are_scanned_together_and_reported_by_number(tmp_path: Path) -> None:
    cells = [
        "%matplotlib inline\n!pip install x\nimport tensorflow as tf\ntf?",
        "%%bash\ntf.contrib",
        "%%time\ntf.Session()",
    ]
    (tmp_path / "steps.ipynb").write_text(notebook(*cells, "if True:\n    %load x\ntf.layers.dense"))

    result = doctor(tmp_path)

    assert result.exit_code == 1
    assert f"{tmp_path}/steps.ipynb, cell 3, line 2: Names of TensorFlow 1" in result.stdout
    assert f"{tmp_path}/steps.ipynb, cell 4, line 3: tf.layers.dense needs Keras 2" in result.stdout
    assert "1 file scanned, 2 findings." in result.stdout


def test_an_invalid_notebook_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "broken.ipynb").write_text("[]")

    (found,) = scan([tmp_path]).found

    assert "it is not a notebook" in found.finding.what


def test_many_files_have_a_summary_and_environments_are_skipped(tmp_path: Path) -> None:
    for name in ("a/one.py", "a/two.py", ".venv/lib.py", "env/lib.py", "site-packages/lib.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("import tensorflow as tf\ntf.contrib.rnn\ntf.Session\n")
    (tmp_path / "env" / "pyvenv.cfg").write_text("")
    (tmp_path / "clean.py").write_text("import tensorflow as tf\n")

    result = doctor(tmp_path, tmp_path / "a" / "one.py")

    assert "3 files scanned, 4 findings." in result.stdout
    rows = [line.split() for line in result.stdout.splitlines() if line.startswith("│")]
    assert [row[-2] for row in rows] == ["2", "2"]


def test_json_has_all_places(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(BREAKS["TensorFlow 1"]["source"])

    answer = said(tmp_path)

    (finding,) = answer["findings"]
    assert answer["files"] == 1
    assert finding["places"] == [{"cell": 0, "line": 2}, {"cell": 0, "line": 3}]
    assert set(finding) == {"file", "places", "kind", "what", "fix"}
