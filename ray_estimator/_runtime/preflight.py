"""The check of model_dir on a cluster. Imports little, since a worker imports it before anything else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray.util import get_node_ip_address
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_estimator._storage.preflight import Preflight
from ray_estimator.errors import ModelDirAccessError


def check_model_dir(preflight: Preflight, runtime_env: Mapping[str, Any] | None, timeout_secs: float | None) -> None:
    """Check model_dir from the driver and from a node that can run workers; a local path from every such node.

    Args:
        preflight: The check.
        runtime_env: The workers' runtime environment.
        timeout_secs: Limit for the tasks on the nodes. None: no limit.

    Raises:
        ModelDirAccessError: One of them cannot use model_dir, or sees a different directory.
    """
    nodes = _worker_nodes()
    is_local = preflight.storage.local_path(preflight.model_dir) is not None
    with preflight.file_from("the driver") as name:
        refs = [_check_on(node, runtime_env).remote(preflight, name) for node in (nodes if is_local else nodes[:1])]
        try:
            errors = ray.get(refs, timeout=timeout_secs)
        except ray.exceptions.GetTimeoutError:
            for ref in refs:
                ray.cancel(ref, force=True)
            reason = f"the check there did not finish within start_timeout_secs={timeout_secs:g}"
            raise ModelDirAccessError(preflight.model_dir, "a worker", reason) from None
        for error in filter(None, errors):
            raise error


def _worker_nodes() -> list[str]:
    """Return the nodes with CPUs or GPUs except the driver's; the driver's if there are no others."""
    driver_node = ray.get_runtime_context().get_node_id()
    nodes = [node for node in ray.nodes() if node["Alive"] and {"CPU", "GPU"} & node["Resources"].keys()]
    return [node["NodeID"] for node in nodes if node["NodeID"] != driver_node] or [driver_node]


def _check_on(node: str, runtime_env: Mapping[str, Any] | None) -> Any:
    # No CPU, so that it never queues; soft, so that it runs elsewhere if the node dies.
    strategy = NodeAffinitySchedulingStrategy(node, soft=True)
    return ray.remote(_check).options(num_cpus=0, runtime_env=runtime_env, scheduling_strategy=strategy)


def _check(preflight: Preflight, name: str) -> ModelDirAccessError | None:
    where = f"a worker on node {get_node_ip_address()}"
    try:
        preflight.look_for(name, where)
        with preflight.file_from(where):
            return None
    except ModelDirAccessError as error:
        return error
