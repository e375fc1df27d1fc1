"""A program for tf.estimator runs as it is on two workers, which import its functions from a module."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
pytestmark = pytest.mark.ray


def test_an_old_program_runs_with_install_alone(cluster: Any, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "RAY_ADDRESS": cluster.get_runtime_context().gcs_address,
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, HERE / "old_program.py", tmp_path / "model"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    shown = json.loads(done.stdout.splitlines()[-1])
    assert shown["result"]["global_step"] == 40
    assert shown["result"]["error"] < 0.1
    assert shown["rows"] == pytest.approx([0.0, 2.0, 4.0, 6.0], abs=0.3)
    assert (Path(shown["exported"]) / "saved_model.pb").is_file()
