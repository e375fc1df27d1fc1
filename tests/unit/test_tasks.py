"""How many tasks run at a time, their resources, and their environment."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from ray_estimator import RunConfig
from ray_estimator._runtime.tasks.task import Tasks


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, 16),  # twice the 8 that fit
        ({"task_resources": {"CPU": 3}}, 4),
        ({"task_resources": {"GPU": 1}}, 4),
        ({"task_resources": {"CPU": 0, "GPU": 2}}, 2),
        ({"task_resources": {"CPU": 64}}, 2),  # it waits to be scheduled, with a log line
        ({"max_tasks_in_flight": 1}, 1),
        ({"max_tasks_in_flight": 50, "task_resources": {"GPU": 1}}, 50),
    ],
)
def test_tasks_in_flight_are_bounded_by_the_scarcest_resource_or_by_the_user(
    monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], expected: int
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 2.0})

    assert Tasks(RunConfig(**config)).max_in_flight() == expected


def test_task_resources_become_options_of_ray() -> None:
    requested = {"CPU": 2, "GPU": 0.5, "memory": 10**9, "FPGA": 1}
    options = Tasks(RunConfig(task_resources=requested)).options()

    assert (options["num_cpus"], options["num_gpus"], options["memory"]) == (2, 0.5, 10**9)
    assert options["resources"] == {"FPGA": 1}


def test_a_task_that_drives_ray_data_takes_no_cpu() -> None:
    assert Tasks(RunConfig(task_resources={"CPU": 4})).options(drives_data=True)["num_cpus"] == 0


@pytest.mark.parametrize(("free", "expected"), [({"CPU": 2.0, "GPU": 1.0}, True), ({"CPU": 2.0}, False), ({}, False)])
def test_there_is_room_if_all_requested_resources_are_free(
    monkeypatch: pytest.MonkeyPatch, free: dict[str, float], expected: bool
) -> None:
    monkeypatch.setattr(ray, "available_resources", lambda: free)

    assert Tasks(RunConfig(task_resources={"GPU": 1})).has_room() is expected


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
def test_the_environment_is_the_users_and_legacy_keras_if_configured(
    fields: dict[str, Any], expected: dict[str, Any] | None
) -> None:
    assert Tasks(RunConfig(**fields)).runtime_env == expected
