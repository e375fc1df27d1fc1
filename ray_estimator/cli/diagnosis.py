"""`diagnose`: check this machine, a cluster and a store. Does not start Ray."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from packaging.version import Version

from ray_estimator._process.quiet import quiet_tensorflow
from ray_estimator._storage.preflight import Preflight
from ray_estimator._storage.storage import Storage
from ray_estimator.errors import ModelDirAccessError

OK, NOTE, PROBLEM = "ok", "note", "problem"

TESTED = {
    "ray": ("2.60", "2.60.0"),
    "tensorflow": ("2.21", "2.21.0"),
    "keras": ("3.12", "3.15.1"),
    "pyarrow": ("17", "26.0.1"),
    "fsspec": ("2025.2", "2026.9.0"),
}
"""The oldest supported version of each package, and the one that its tests ran with."""
OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)

_NVIDIA = Path("/proc/driver/nvidia/gpus")
_EXTRAS = {"s3": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure"}


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: Name of the check.
        status: `OK`, `NOTE` or `PROBLEM`.
        detail: What was found.
        fix: How to fix a problem.
    """

    name: str
    status: str
    detail: str
    fix: str = ""

    def to_json(self) -> dict[str, str]:
        """Return it for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Target:
    """The cluster and the store to check.

    Attributes:
        address: Address of a Ray cluster. None: no cluster.
        model_dir: Path or URL. None: no store.
        storage_options: fsspec options for `model_dir`.
        timeout_secs: Seconds to wait for the cluster.
    """

    address: str | None = None
    model_dir: str | None = None
    storage_options: Mapping[str, Any] | None = None
    timeout_secs: float = 60.0


def diagnose(target: Target) -> Iterator[Check]:
    """Yield each check when it is done."""
    yield _python()
    yield from (_package(name) for name in TESTED)
    yield from _optional_packages()
    yield _gpus(_NVIDIA)
    if target.address is None:
        yield Check(
            "cluster", NOTE, "not checked: set --address or RAY_ADDRESS, for example to `auto` for the local cluster"
        )
        yield from _store_from_here(target)
    else:
        yield from _cluster(target)


def _python() -> Check:
    found = platform.python_version()
    fits = OLDEST_PYTHON <= sys.version_info[:2] <= NEWEST_PYTHON
    wanted = " to ".join(".".join(map(str, version)) for version in (OLDEST_PYTHON, NEWEST_PYTHON))
    return Check("python", OK, found) if fits else Check("python", PROBLEM, found, f"Use Python {wanted}.")


def _package(name: str) -> Check:
    oldest, tested = TESTED[name]
    fix = f"pip install '{name}>={oldest}'"
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, PROBLEM, "not installed", fix)
    # The release without its suffix: the candidate 2.21.0rc1 counts as 2.21.0.
    release = Version(Version(found).base_version)
    if release < Version(oldest):
        return Check(name, PROBLEM, f"{found} is older than {oldest}", fix)
    if (release.major, release.minor) > (Version(tested).major, Version(tested).minor):
        return Check(name, NOTE, f"{found}, newer than the tested {tested}")
    return Check(name, OK, f"{found} (tested: {tested})")


def _optional_packages() -> Iterator[Check]:
    for name, purpose in (("tf_keras", "tf.compat.v1.layers"), ("tensorflow-estimator", "canned estimators and heads")):
        try:
            yield Check(name, OK, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Check(name, NOTE, f"not installed: only needed for {purpose}")


def _gpus(folder: Path) -> Check:
    """Check that TensorFlow sees the GPUs of this machine. `folder` has one entry for each."""
    there = len(list(folder.iterdir())) if folder.is_dir() else 0
    if there == 0:
        return Check("GPUs here", OK, "none")
    with quiet_tensorflow():
        from ray_estimator._engine.symbols import visible_gpus
    seen = visible_gpus()
    if seen == there:
        return Check("GPUs here", OK, f"{there}, and TensorFlow sees them")
    fix = "Install the extra gpu (pip install 'tensorflow[and-cuda]') and check CUDA_VISIBLE_DEVICES."
    return Check("GPUs here", PROBLEM, f"TensorFlow sees {seen} of {there}", fix)


def _store_from_here(target: Target) -> Iterator[Check]:
    if target.model_dir is None:
        return
    storage = Storage(target.storage_options)
    try:
        with Preflight(storage.normalize(target.model_dir), storage).file_from("this process"):
            pass
    except ModelDirAccessError as error:
        yield Check("model_dir from here", PROBLEM, str(error), _store_advice(target.model_dir))
    else:
        shown = storage.redacted(target.model_dir)
        yield Check("model_dir from here", OK, f"{shown}: written, read, listed and deleted")
        yield Check("model_dir from workers", NOTE, "not checked: set --address")


def _cluster(target: Target) -> Iterator[Check]:
    if re.match(r"ray://|https?://|local$", str(target.address)):
        fix = (
            "Run it in the cluster: ray job submit --address ... -- ray-estimator doctor --address auto. An http:// "
            "address is only the dashboard, Ray Data and Ray Train do not work with Ray Client (ray://), and local "
            "starts a new Ray."
        )
        yield Check("cluster", PROBLEM, f"{target.address} is not the address of a cluster", fix)
        yield from _store_from_here(target)
        return
    seen = _probe(target)
    if "error" in seen:
        fix = "Check that it is running and reachable. For token authentication set RAY_AUTH_MODE=token and the token."
        yield Check("cluster", PROBLEM, f"{target.address}: {seen['error']}", fix)
        yield from _store_from_here(target)
        return
    yield Check("cluster", OK, _described(seen))
    if target.model_dir is None:
        return
    error = (seen["model_dir"] or {}).get("error")
    if error is None:
        yield Check("model_dir", OK, "written, read, listed and deleted, from here and from workers")
    else:
        yield Check("model_dir", PROBLEM, error, _store_advice(target.model_dir))


def _probe(target: Target) -> dict[str, Any]:
    """Return what a process that connects to the cluster finds."""
    command = [sys.executable, "-m", "ray_estimator._runtime.probe"]
    try:
        # The target may hold credentials, so it is passed by standard input: every user can read command lines.
        done = subprocess.run(
            command, input=json.dumps(asdict(target)), capture_output=True, text=True, timeout=target.timeout_secs
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {target.timeout_secs:g} s (--timeout)"}
    try:
        seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        message = Storage(target.storage_options).redacted(done.stderr.strip()[-500:])
        return {"error": f"the process that connects exited with status {done.returncode}: {message}"}
    return seen


def _described(seen: Mapping[str, Any]) -> str:
    cpus, gpus = seen["CPU"], seen["GPU"]
    text = f"Ray {seen['ray']}, {_nodes(seen['nodes'])}, {cpus['all']:g} CPUs ({cpus['free']:g} free)"
    if gpus["all"]:
        return f"{text}, {gpus['all']:g} GPUs ({gpus['free']:g} free) on {_nodes(seen['nodes_with_gpus'])}"
    return f"{text}, no GPUs"


def _nodes(number: int) -> str:
    return "1 node" if number == 1 else f"{number} nodes"


def _store_advice(model_dir: str) -> str:
    scheme = model_dir.partition("://")[0] if "://" in model_dir else ""
    extra = _EXTRAS.get(scheme)
    if extra is None:
        return "Use a directory that all nodes can write to, or the URL of an object store."
    variables = " ".join(sorted(name for name in os.environ if name.startswith(("AWS_", "AZURE_", "GOOGLE_"))))
    return (
        f"pip install 'ray-estimator[{extra}]' on all nodes, and set credentials in the environment (set here: "
        f"{variables or 'none'}) or --storage-options."
    )
