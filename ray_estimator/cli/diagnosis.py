"""Whether this machine, a cluster and a store are ready: `diagnose`. Starts no Ray."""

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
"""The oldest version that the package takes, and the one that its tests have run with."""
OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)

_NVIDIA = Path("/proc/driver/nvidia/gpus")
_EXTRAS = {"s3": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure"}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What.
        status: `OK`, `NOTE` or `PROBLEM`.
        detail: What was seen.
        cure: What to do about a problem.
    """

    name: str
    status: str
    detail: str
    cure: str = ""

    def to_json(self) -> dict[str, str]:
        """As JSON takes it."""
        return asdict(self)


@dataclass(frozen=True)
class Target:
    """What to look at beside this machine.

    Attributes:
        address: Of a Ray cluster; None for none.
        model_dir: Path or URL; None for none.
        storage_options: fsspec's, for `model_dir`.
        timeout_secs: How long the cluster may take to answer.
    """

    address: str | None = None
    model_dir: str | None = None
    storage_options: Mapping[str, Any] | None = None
    timeout_secs: float = 60.0


def diagnose(target: Target) -> Iterator[Check]:
    """Looks at everything, in the order in which it is read; each check comes when it is done."""
    yield _python()
    yield from (_package(name) for name in TESTED)
    yield from _optional_packages()
    yield _gpus(_NVIDIA)
    if target.address is None:
        yield Check(
            "cluster", NOTE, "not asked for: --address or RAY_ADDRESS names one, `auto` the one on this machine"
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
    cure = f"pip install '{name}>={oldest}'"
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, PROBLEM, "not installed", cure)
    if _release(found) < _release(oldest):
        return Check(name, PROBLEM, f"{found} is older than {oldest}", cure)
    if _release(found)[:2] > _release(tested)[:2]:
        return Check(name, NOTE, f"{found}, newer than the tested {tested}")
    return Check(name, OK, f"{found} (tested: {tested})")


def _release(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: those of 2.22.0rc1 are 2, 22, 0."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, numbers.group().split("."))) if numbers else ()


def _optional_packages() -> Iterator[Check]:
    for name, purpose in (("tf_keras", "tf.compat.v1.layers"), ("tensorflow-estimator", "canned estimators and heads")):
        try:
            yield Check(name, OK, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Check(name, NOTE, f"not installed: only for {purpose}")


def _gpus(folder: Path) -> Check:
    """Whether TensorFlow sees the GPUs of this machine, which `folder` has an entry for each."""
    there = len(list(folder.iterdir())) if folder.is_dir() else 0
    if there == 0:
        return Check("GPUs here", OK, "none")
    with quiet_tensorflow():
        from ray_estimator._engine.symbols import visible_gpus
    seen = visible_gpus()
    if seen == there:
        return Check("GPUs here", OK, f"{there}, and TensorFlow sees them")
    cure = "pip install 'tensorflow[and-cuda]', which is the extra gpu; and look at CUDA_VISIBLE_DEVICES."
    return Check("GPUs here", PROBLEM, f"TensorFlow sees {seen} of {there}", cure)


def _store_from_here(target: Target) -> Iterator[Check]:
    if target.model_dir is None:
        return
    storage = Storage(target.storage_options)
    try:
        with Preflight(storage.normalize(target.model_dir), storage).file_from("this process"):
            pass
    except ModelDirAccessError as error:
        yield Check("model_dir from here", PROBLEM, str(error), _cure_for_store(target.model_dir))
    else:
        shown = storage.redacted(target.model_dir)
        yield Check("model_dir from here", OK, f"{shown}: written, read back, listed and cleared")
        yield Check("model_dir from workers", NOTE, "not tried: name a cluster with --address")


def _cluster(target: Target) -> Iterator[Check]:
    if re.match(r"ray://|https?://|local$", str(target.address)):
        cure = (
            "Run it there: ray job submit --address ... -- ray-estimator doctor --address auto. Under http:// only the "
            "dashboard answers, by Ray Client (ray://) Ray Data and Ray Train do not work, and local starts a Ray."
        )
        yield Check("cluster", PROBLEM, f"{target.address} is no address to connect to", cure)
        yield from _store_from_here(target)
        return
    seen = _seen(target)
    if "error" in seen:
        cure = "Is it running, and reachable from here? With token authentication: RAY_AUTH_MODE=token and the token."
        yield Check("cluster", PROBLEM, f"{target.address}: {seen['error']}", cure)
        yield from _store_from_here(target)
        return
    yield Check("cluster", OK, _in_words(seen))
    if target.model_dir is None:
        return
    error = (seen["model_dir"] or {}).get("error")
    if error is None:
        yield Check("model_dir", OK, "written, read back, listed and cleared, from here and from workers")
    else:
        yield Check("model_dir", PROBLEM, error, _cure_for_store(target.model_dir))


def _seen(target: Target) -> dict[str, Any]:
    """What a process that connects to the cluster sees there."""
    command = [sys.executable, "-m", "ray_estimator._runtime.probe"]
    try:
        # What to look at goes by standard input: everybody can read a command line, and credentials may be in it.
        done = subprocess.run(
            command, input=json.dumps(asdict(target)), capture_output=True, text=True, timeout=target.timeout_secs
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {target.timeout_secs:g} s (--timeout)"}
    try:
        seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        said = Storage(target.storage_options).redacted(done.stderr.strip()[-500:])
        return {"error": f"the process that connects ended with status {done.returncode}: {said}"}
    return seen


def _in_words(seen: Mapping[str, Any]) -> str:
    cpus, gpus = seen["CPU"], seen["GPU"]
    words = f"Ray {seen['ray']}, {_nodes(seen['nodes'])}, {cpus['all']:g} CPUs ({cpus['free']:g} free)"
    if gpus["all"]:
        return f"{words}, {gpus['all']:g} GPUs ({gpus['free']:g} free) on {_nodes(seen['nodes_with_gpus'])}"
    return f"{words}, no GPUs"


def _nodes(number: int) -> str:
    return "1 node" if number == 1 else f"{number} nodes"


def _cure_for_store(model_dir: str) -> str:
    scheme = model_dir.partition("://")[0] if "://" in model_dir else ""
    extra = _EXTRAS.get(scheme)
    if extra is None:
        return "Choose a directory that exists everywhere and may be written to, or a URL of an object store."
    variables = " ".join(sorted(name for name in os.environ if name.startswith(("AWS_", "AZURE_", "GOOGLE_"))))
    return (
        f"pip install 'ray-estimator[{extra}]', on all nodes; and give credentials in the environment (set here: "
        f"{variables or 'none'}) or --storage-options."
    )
