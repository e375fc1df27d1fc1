"""Inspect a cluster from a process of its own: `python -m ray_estimator._runtime.probe`.

Reads its request as JSON from standard input, and writes its answer as the last line of standard output. The parent
sets the deadline and can kill the process whatever Ray waits for; Ray's connection ends with it.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import ray

from ray_estimator._runtime.preflight import check_model_dir
from ray_estimator._storage.preflight import Preflight
from ray_estimator._storage.storage import Storage
from ray_estimator.errors import ModelDirAccessError


def main() -> None:
    """Connect, inspect, and write the answer."""
    request = json.load(sys.stdin)
    try:
        ray.init(address=request["address"], log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # ray.init raises many types, which the parent shows.
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        return
    print(json.dumps(_cluster() | {"model_dir": _model_dir(request)}))


def _cluster() -> dict[str, Any]:
    nodes = [node for node in ray.nodes() if node["Alive"]]
    total, free = ray.cluster_resources(), ray.available_resources()
    return {
        "ray": ray.__version__,
        "nodes": len(nodes),
        "nodes_with_gpus": sum("GPU" in node["Resources"] for node in nodes),
        **{name: {"all": total.get(name, 0.0), "free": free.get(name, 0.0)} for name in ("CPU", "GPU")},
    }


def _model_dir(request: dict[str, Any]) -> dict[str, Any] | None:
    """Check model_dir from the driver and workers; return the error, if any. None if the request has no model_dir."""
    if request["model_dir"] is None:
        return None
    storage = Storage(request["storage_options"])
    try:
        check_model_dir(Preflight(storage.normalize(request["model_dir"]), storage), None, request["timeout_secs"])
    except ModelDirAccessError as error:
        return {"error": str(error)}
    return {}


if __name__ == "__main__":
    main()
