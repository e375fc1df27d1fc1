"""Draining nodes of a training run, without Ray running."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import ray

from ray_estimator._jobs.worker import GroupView
from ray_estimator._runtime import ray_private
from ray_estimator._runtime.train import preemption
from ray_estimator._runtime.train.preemption import DrainingNodes

VIEW = GroupView("first", 1, {}, {}, {}, (), nodes={0: "a", 1: "b", 2: "b"})


@pytest.fixture
def draining(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    nodes: set[str] = set()
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "driver"))
    monkeypatch.setattr(ray_private, "draining_nodes", lambda: set(nodes))
    monkeypatch.setattr(preemption, "_POLL_SECS", 0.0)
    return nodes


def test_a_draining_node_is_reported_once_with_its_ranks(draining: set[str]) -> None:
    nodes = DrainingNodes()
    assert nodes.newly_draining(VIEW) is None
    draining |= {"b", "unrelated"}
    assert nodes.newly_draining(VIEW) == "the node of rank 1, 2 is going away"
    assert nodes.newly_draining(VIEW) is None
    assert not nodes.include_driver
    draining.add("driver")
    assert nodes.newly_draining(VIEW) == "the node of the driver is going away"
    assert nodes.include_driver


def test_without_rays_answer_a_warning_says_once_what_is_lost_and_later_answers_count(
    draining: set[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = DrainingNodes()
    with monkeypatch.context() as patched:
        patched.delattr(ray._private.state.state.__class__, "get_draining_nodes")
        patched.setattr(ray_private, "draining_nodes", REAL)
        assert [nodes.newly_draining(VIEW) for _ in range(3)] == [None] * 3
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "get_draining_nodes" in record.message
    assert "preemption notices are missed" in record.message
    draining.add("a")
    assert nodes.newly_draining(VIEW) == "the node of rank 0 is going away"


REAL = ray_private.draining_nodes
