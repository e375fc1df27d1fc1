"""What every test needs: a quiet TensorFlow, a Ray without tokens, and small models."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

# Before anything imports them.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=5, help="how often a test kills what it tests (default: 5)")


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    """How often to kill a process at a random moment."""
    return int(request.config.getoption("--kills"))


@pytest.fixture
def in_process(tmp_path: Any) -> Callable[..., Any]:
    """Makes Estimators that run in this process: ``in_process(model_fn, params=..., save_summary_steps=...)``."""

    def make(model_fn: Callable[..., Any], *, params: Any = None, model_dir: Any = None, **config: Any) -> Any:
        from ray.train import ScalingConfig

        from ray_estimator import Estimator, RunConfig

        run_config = RunConfig(scaling_config=ScalingConfig(num_workers=0), **config)
        return Estimator(model_fn, model_dir or tmp_path / "model", run_config, params)

    return make
