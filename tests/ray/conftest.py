"""Estimators with workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def on_ray(cluster: Any, tmp_path: Path) -> Callable[..., Any]:
    """Makes Estimators with workers: ``on_ray(model_fn, num_workers=2, params=..., **run_config)``."""

    def make(
        model_fn: Callable[..., Any],
        num_workers: int = 2,
        *,
        params: Any = None,
        model_dir: Any = None,
        resources_per_worker: Any = None,
        max_failures: int = 0,
        **config: Any,
    ) -> Any:
        from ray.train import FailureConfig, ScalingConfig

        from ray_estimator import Estimator, RunConfig

        config.setdefault("step_timeout_secs", 60)
        config.setdefault("start_timeout_secs", 60)
        run_config = RunConfig(
            scaling_config=ScalingConfig(num_workers=num_workers, resources_per_worker=resources_per_worker),
            failure_config=FailureConfig(max_failures=max_failures),
            **config,
        )
        return Estimator(model_fn, model_dir or tmp_path / "model", run_config, params)

    return make
