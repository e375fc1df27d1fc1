"""Estimators with two ranks in two plain processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def on_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes Estimators of two ranks without Ray: ``on_ranks(model_fn, params=..., **run_config)``."""
    from support.two_processes import use_two_processes

    use_two_processes(monkeypatch)

    def make(model_fn: Callable[..., Any], *, params: Any = None, model_dir: Any = None, **config: Any) -> Any:
        from ray.train import ScalingConfig

        from ray_estimator import Estimator, RunConfig

        run_config = RunConfig(scaling_config=ScalingConfig(num_workers=2), **config)
        return Estimator(model_fn, model_dir or tmp_path / "model", run_config, params)

    return make
