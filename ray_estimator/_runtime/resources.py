"""What training workers take, so that Ray Data keeps a CPU; where model_dir may be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_DATA_CPUS = 1.0


def resources_per_worker(
    num_workers: int, use_gpu: bool, asked: dict[str, float] | None, cluster_cpus: float, reads_rows: bool
) -> dict[str, Any] | None:
    """What each worker asks for; None leaves the choice to Ray.

    Args:
        num_workers: Workers of the group.
        use_gpu: Whether they run on GPUs, which by Ray's default take no CPU.
        asked: What the user's scaling_config says, if it does.
        cluster_cpus: CPUs of the whole cluster.
        reads_rows: Whether the input is a Ray Dataset, whose tasks need a CPU outside the group.

    Raises:
        ValueError: What the user asks for fits, but leaves Ray Data no CPU.
    """
    if not reads_rows:
        return asked
    if asked is not None:
        taken = num_workers * asked.get("CPU", 0.0)
        if taken <= cluster_cpus < taken + _DATA_CPUS:
            raise ValueError(
                f"scaling_config takes {taken:g} of the cluster's {cluster_cpus:g} CPUs ({num_workers} workers of "
                f"{asked.get('CPU', 0.0):g}), and leaves {cluster_cpus - taken:g} to Ray Data, which needs "
                f"{_DATA_CPUS:g} to read the dataset: training would wait for ever. Lower resources_per_worker, or "
                "leave it out and it is fitted to the cluster."
            )
        return asked
    # A cluster without a CPU is one at rest: its autoscaler brings what Ray asks for.
    if use_gpu or cluster_cpus == 0 or num_workers + _DATA_CPUS <= cluster_cpus:
        return None
    share = math.floor(max(cluster_cpus - _DATA_CPUS, 0.0) / num_workers * 100) / 100
    return {"CPU": max(share, 0.01)}


def require_outside_this_process(model_dir: str) -> None:
    """Refuses a model_dir in the memory of the driver.

    Raises:
        ValueError: `model_dir` is such a one.
    """
    if model_dir.startswith("memory://"):
        raise ValueError(
            f"model_dir is {model_dir}, which is in the memory of this process, where no worker can see it. Pass "
            "Estimator(model_dir=...) a directory or the URL of an object store; or run in this process: "
            "RunConfig(scaling_config=ray.train.ScalingConfig(num_workers=0))."
        )


def require_shared(model_dir: str, *, is_temporary: bool, num_nodes: int) -> None:
    """Refuses a model_dir that nobody chose where other nodes could not see it.

    Raises:
        ValueError: `model_dir` is a temporary directory of this node, and the cluster has several.
    """
    if is_temporary and num_nodes > 1:
        raise ValueError(
            f"The cluster has {num_nodes} nodes, but model_dir is {model_dir}, a temporary directory of this one. Pass "
            "Estimator(model_dir=...): a URL of an object store, or a directory that all nodes share."
        )


def amounts(resources: Mapping[str, float]) -> dict[str, float]:
    """Resources as a person reads them: without the ones by which Ray names its nodes."""
    return {name: amount for name, amount in sorted(resources.items()) if not name.startswith("node:")}
