"""A driver that uses Ray Client is rejected before it connects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray
import ray.util.client
from ray.train import ScalingConfig

from ray_estimator import Estimator, RunConfig


def model_fn(features: Any) -> Any:
    raise AssertionError("model_fn was called.")


@pytest.mark.parametrize("how", ["by RAY_ADDRESS", "connected"])
def test_ray_client_is_rejected_with_what_to_do(how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ray, "init", lambda: pytest.fail("Ray was connected to."))
    if how == "connected":
        monkeypatch.setattr(ray.util.client.ray, "is_connected", lambda: True)
    else:
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    config = RunConfig(scaling_config=ScalingConfig(num_workers=1))
    with pytest.raises(RuntimeError, match=r"Ray Client \(ray://\).*ray job submit"):
        Estimator(model_fn, tmp_path, config).evaluate(lambda: None, allow_untrained=True)
