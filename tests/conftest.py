"""What every test needs: a quiet TensorFlow, a Ray without tokens, and small models."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Before anything imports them.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=1, help="how often a test kills what it tests (default: 1)")


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    """How often to kill a process at a random moment."""
    return int(request.config.getoption("--kills"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """One local Ray of four logical CPUs for all tests that need one; gives the module `ray`."""
    import ray

    # Workers inherit it, and so can import what tests define.
    tests = Path(__file__).parent
    os.environ["PYTHONPATH"] = os.pathsep.join([str(tests), str(tests / "ray"), os.environ.get("PYTHONPATH", "")])
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="warning")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    yield ray
    ray.shutdown()


@pytest.fixture
def in_process(tmp_path: Any) -> Callable[..., Any]:
    """Makes Estimators that run in this process: ``in_process(model_fn, params=..., save_summary_steps=...)``."""

    def make(model_fn: Callable[..., Any], *, params: Any = None, model_dir: Any = None, **config: Any) -> Any:
        from ray.train import ScalingConfig

        from ray_estimator import Estimator, RunConfig

        run_config = RunConfig(scaling_config=ScalingConfig(num_workers=0), **config)
        return Estimator(model_fn, model_dir or tmp_path / "model", run_config, params)

    return make
