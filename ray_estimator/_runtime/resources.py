"""Resources of training workers, with a CPU left for Ray Data, and model_dirs that workers cannot share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_DATA_CPUS = 1.0


def resources_per_worker(
    num_workers: int, use_gpu: bool, requested: dict[str, float] | None, cluster_cpus: float, reads_rows: bool
) -> dict[str, Any] | None:
    """Return the resources of each worker; None for Ray's defaults.

    Args:
        num_workers: Number of workers in the group.
        use_gpu: Whether they run on GPUs; by Ray's defaults they then take no CPU.
        requested: Resources in the user's scaling_config, if any.
        cluster_cpus: CPUs of the whole cluster.
        reads_rows: Whether the input is a Ray Dataset, whose tasks need a CPU outside the group.

    Raises:
        ValueError: The requested resources fit, but leave no CPU for Ray Data.
    """
    if not reads_rows:
        return requested
    if requested is not None:
        used = num_workers * requested.get("CPU", 0.0)
        if used <= cluster_cpus < used + _DATA_CPUS:
            raise ValueError(
                f"scaling_config uses {used:g} of the cluster's {cluster_cpus:g} CPUs ({num_workers} workers of "
                f"{requested.get('CPU', 0.0):g}) and leaves {cluster_cpus - used:g} for Ray Data, which needs "
                f"{_DATA_CPUS:g} to read the dataset; training would never start. Lower resources_per_worker, or omit "
                "it to fit the cluster automatically."
            )
        return requested
    # A cluster without CPUs is scaled to zero: its autoscaler adds what Ray asks for.
    if use_gpu or cluster_cpus == 0 or num_workers + _DATA_CPUS <= cluster_cpus:
        return None
    share = math.floor(max(cluster_cpus - _DATA_CPUS, 0.0) / num_workers * 100) / 100
    return {"CPU": max(share, 0.01)}


def require_outside_this_process(model_dir: str) -> None:
    """Reject a model_dir in the driver's memory.

    Raises:
        ValueError: `model_dir` is a memory:// URL.
    """
    if model_dir.startswith("memory://"):
        raise ValueError(
            f"model_dir is in the memory of this process, where workers cannot read it, got {model_dir!r}. Pass "
            "Estimator(model_dir=...) a shared directory or the URL of an object store, or run in this process with "
            "RunConfig(scaling_config=ray.train.ScalingConfig(num_workers=0))."
        )


def require_shared(model_dir: str, *, is_temporary: bool, num_nodes: int) -> None:
    """Reject a default model_dir that other nodes cannot see.

    Raises:
        ValueError: `model_dir` is a temporary directory of this node, and the cluster has several nodes.
    """
    if is_temporary and num_nodes > 1:
        raise ValueError(
            f"The cluster has {num_nodes} nodes, but model_dir is a temporary directory of this one, got "
            f"{model_dir!r}. Pass Estimator(model_dir=...): the URL of an object store, or a directory that all nodes "
            "share."
        )


def readable(resources: Mapping[str, float]) -> dict[str, float]:
    """Return resources for messages: sorted, without the ones that stand for Ray's nodes."""
    return {name: amount for name, amount in sorted(resources.items()) if not name.startswith("node:")}
