"""Canned estimators of the package tensorflow-estimator: the driver has Keras 3, its two workers legacy Keras."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_canned_estimator_trains_on_two_workers_as_on_one(cluster: Any, tmp_path: Path) -> None:
    address = cluster.get_runtime_context().gcs_address
    command = [sys.executable, HERE / "canned_program.py", tmp_path]
    environment = {**os.environ, "RAY_ADDRESS": address}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    shown = json.loads(done.stdout.splitlines()[-1])
    one, two = shown["dnn on one"]["weights"], shown["dnn on two"]["weights"]
    assert set(one) == set(two)
    for variable, values in one.items():
        for left, right in zip(flat(values), flat(two[variable]), strict=True):
            assert left == pytest.approx(right, abs=1e-5), variable
    assert one["global_step"] == shown["linear on two"]["weights"]["global_step"] == 10
    for name in ("dnn on two", "linear on two"):
        assert shown[name]["result"]["accuracy"] > 0.9
        assert len(shown[name]["rows"]) == 80


def flat(values: Any) -> list[float]:
    return [number for each in values for number in flat(each)] if isinstance(values, list) else [values]
