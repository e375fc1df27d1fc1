"""Looks at a cluster, as a process of its own: `python -m ray_estimator._runtime.probe`.

Reads what to look at as JSON from standard input, and writes what it found as the last line of standard output. Whoever
started it sets the deadline, and can end it whatever Ray waits for; and Ray's connection ends with it.
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
    """Connects, looks, and says what it saw."""
    asked = json.load(sys.stdin)
    try:
        ray.init(address=asked["address"], log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # Ray raises what it likes when it cannot connect.
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        return
    print(json.dumps(_cluster() | {"model_dir": _model_dir(asked)}))


def _cluster() -> dict[str, Any]:
    nodes = [node for node in ray.nodes() if node["Alive"]]
    all_there, free = ray.cluster_resources(), ray.available_resources()
    return {
        "ray": ray.__version__,
        "nodes": len(nodes),
        "nodes_with_gpus": sum("GPU" in node["Resources"] for node in nodes),
        **{name: {"all": all_there.get(name, 0.0), "free": free.get(name, 0.0)} for name in ("CPU", "GPU")},
    }


def _model_dir(asked: dict[str, Any]) -> dict[str, Any] | None:
    """Whether the driver and workers can use a model_dir; None if none was named."""
    if asked["model_dir"] is None:
        return None
    storage = Storage(asked["storage_options"])
    try:
        check_model_dir(Preflight(storage.normalize(asked["model_dir"]), storage), None, asked["timeout_secs"])
    except ModelDirAccessError as error:
        return {"error": str(error)}
    return {}


if __name__ == "__main__":
    main()
