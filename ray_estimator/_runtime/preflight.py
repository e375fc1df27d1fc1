"""The check of model_dir on a cluster. Light, since a worker imports it before anything else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray.util import get_node_ip_address
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_estimator._storage.preflight import Preflight
from ray_estimator.errors import ModelDirAccessError


def check_model_dir(preflight: Preflight, runtime_env: Mapping[str, Any] | None, timeout_secs: float | None) -> None:
    """Tries model_dir from the driver and from a node where workers may run; from each such node if it is local.

    Args:
        preflight: What to try.
        runtime_env: The workers' environment.
        timeout_secs: How long the workers may take; None for any time.

    Raises:
        ModelDirAccessError: It cannot be used from one of them, or they see different directories.
    """
    nodes = _nodes_of_workers()
    is_local = preflight.storage.local_path(preflight.model_dir) is not None
    with preflight.file_from("the driver") as name:
        refs = [_task_on(node, runtime_env).remote(preflight, name) for node in (nodes if is_local else nodes[:1])]
        try:
            errors = ray.get(refs, timeout=timeout_secs)
        except ray.exceptions.GetTimeoutError:
            for ref in refs:
                ray.cancel(ref, force=True)
            reason = f"a task there did not end within start_timeout_secs={timeout_secs:g}"
            raise ModelDirAccessError(preflight.model_dir, "a worker", reason) from None
        for error in filter(None, errors):
            raise error


def _nodes_of_workers() -> list[str]:
    """Nodes other than the driver's that have something to compute with; the driver's if there is no other."""
    here = ray.get_runtime_context().get_node_id()
    nodes = [node for node in ray.nodes() if node["Alive"] and {"CPU", "GPU"} & node["Resources"].keys()]
    return [node["NodeID"] for node in nodes if node["NodeID"] != here] or [here]


def _task_on(node: str, runtime_env: Mapping[str, Any] | None) -> Any:
    # Of no CPU, so that it waits for nobody; if the node is lost meanwhile, it runs on another one.
    there = NodeAffinitySchedulingStrategy(node, soft=True)
    return ray.remote(_try).options(num_cpus=0, runtime_env=runtime_env, scheduling_strategy=there)


def _try(preflight: Preflight, name: str) -> ModelDirAccessError | None:
    where = f"a worker on node {get_node_ip_address()}"
    try:
        preflight.look_for(name, where)
        with preflight.file_from(where):
            return None
    except ModelDirAccessError as error:
        return error
