"""The environment of tasks."""

from __future__ import annotations

from typing import Any

import pytest

from ray_estimator._runtime.tasks import Tasks
from ray_estimator.config import RunConfig


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"legacy_keras": True}, {"env_vars": {"TF_USE_LEGACY_KERAS": "1"}}),
        (
            {"legacy_keras": True, "worker_runtime_env": {"pip": ["x"], "env_vars": {"A": "b"}}},
            {"pip": ["x"], "env_vars": {"TF_USE_LEGACY_KERAS": "1", "A": "b"}},
        ),
    ],
)
def test_the_environment_is_the_users_with_legacy_keras_where_asked(
    fields: dict[str, Any], expected: dict[str, Any] | None
) -> None:
    assert Tasks(RunConfig(**fields)).runtime_env == expected
