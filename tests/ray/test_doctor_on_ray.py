"""`ray-estimator doctor` on a cluster: from a process of its own, which leaves no trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ray_estimator.cli.app import app

pytestmark = pytest.mark.ray


def test_a_cluster_is_described_and_a_model_dir_tried_from_its_workers(cluster: Any, tmp_path: Path) -> None:
    address = cluster.get_runtime_context().gcs_address

    result = CliRunner().invoke(app, ["doctor", "--address", address, "--model-dir", str(tmp_path)])

    assert result.exit_code == 0, result.output
    assert f"ok cluster: Ray {cluster.__version__}, 1 node, 4 CPUs (" in result.stdout
    assert "ok model_dir: written, read, listed and deleted, from here and from workers" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_model_dir_that_is_only_in_one_process_is_a_problem(cluster: Any) -> None:
    address = cluster.get_runtime_context().gcs_address

    # The driver's memory is not the worker's.
    result = CliRunner().invoke(app, ["doctor", "--address", address, "--model-dir", "memory://alone/run"])

    assert result.exit_code == 1
    assert "!! model_dir: model_dir memory://alone/run cannot be used from a worker on node" in result.stdout
