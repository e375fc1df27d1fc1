"""The Kubernetes manifests of this repository, and what tells whether they are right before any cluster sees them.

Three judges: KubeRay's own schemas, closed as an API server closes them; Kubernetes' schemas for its own kinds; and
`complaints`, which knows what only KubeRay's operator refuses, after the API server has taken it.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

ROOT = Path(__file__).resolve().parents[2]
CRDS = Path(os.environ.get("RAY_ESTIMATOR_CRDS") or ROOT.parent / "shared" / "crds")
NO_CRDS = f"There are no schemas of KubeRay in {CRDS}: set RAY_ESTIMATOR_CRDS (see CONTRIBUTING.md)"
RUNTIME_ENV = ROOT / "cluster" / "runtime-env.yaml"
PATHS = [ROOT / "ray-cluster.yaml", *(p for p in sorted((ROOT / "cluster").glob("*.yaml")) if p != RUNTIME_ENV)]

Manifest = dict[str, Any]

_NAME_LIMITS = {"RayCluster": 53, "RayJob": 47}
_SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
_MANAGERS = ("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")
_RESOURCES = {"num-cpus", "num-gpus", "memory", "resources"}

# The C loader reads the megabyte-sized schemas in a tenth of the time.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def documents(path: Path) -> list[Manifest]:
    with path.open() as file:
        return [document for document in yaml.load_all(file, Loader=_Loader) if document]


ALL = {f"{path.name}:{document['kind']}": document for path in PATHS for document in documents(path)}
OF_KUBERAY = {name: each for name, each in ALL.items() if each["apiVersion"].startswith("ray.io/")}
OF_KUBERNETES = {name: each for name, each in ALL.items() if each["apiVersion"] in ("v1", "apps/v1")}


def cluster_spec(resource: Manifest) -> Manifest | None:
    """The cluster that KubeRay makes for it; None if it uses one that is there."""
    return resource["spec"] if resource["kind"] == "RayCluster" else resource["spec"].get("rayClusterSpec")


def groups(resource: Manifest) -> list[Manifest]:
    """The groups of pods of a cluster, the head first."""
    spec = cluster_spec(resource)
    return [] if spec is None else [spec["headGroupSpec"], *spec.get("workerGroupSpecs", [])]


def pods(manifest: Manifest) -> Iterator[Manifest]:
    """The specs of all pods that come of a manifest."""
    if manifest["kind"] == "Deployment":
        yield manifest["spec"]["template"]["spec"]
    if manifest["apiVersion"].startswith("ray.io/"):
        yield from (group["template"]["spec"] for group in groups(manifest))
        if "submitterPodTemplate" in manifest["spec"]:
            yield manifest["spec"]["submitterPodTemplate"]["spec"]


def containers(manifest: Manifest) -> Iterator[Manifest]:
    for pod in pods(manifest):
        yield from pod["containers"]


# KubeRay's schemas


def schema_errors(resource: Manifest) -> list[str]:
    """What an API server would refuse under strict field validation, CEL rules aside."""
    errors = _validator(resource["apiVersion"], resource["kind"]).iter_errors(resource)
    return [f"{error.json_path}: {error.message}" for error in errors]


@functools.cache
def _validator(api_version: str, kind: str) -> jsonschema.Draft202012Validator:
    group, _, version = api_version.partition("/")
    (path,) = CRDS.glob(f"{group}_{kind.lower()}s.*.yaml")
    (definition,) = documents(path)
    (schema,) = (
        each["schema"]["openAPIV3Schema"] for each in definition["spec"]["versions"] if each["name"] == version
    )
    strict = _closed(schema)
    strict["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(strict)


_KEYWORDS = {"type", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems"}


def _closed(schema: Manifest) -> Manifest:
    """The schema without room for unknown fields.

    Fields with a default are not required, because the server fills them in first.
    """
    kept: Manifest = {key: value for key, value in schema.items() if key in _KEYWORDS}
    if schema.get("x-kubernetes-int-or-string"):
        return kept | {"type": ["integer", "string"]}
    if "items" in schema:
        kept["items"] = _closed(schema["items"])
    properties = schema.get("properties", {})
    if properties:
        kept["properties"] = {name: _closed(field) for name, field in properties.items()}
        kept["required"] = [name for name in schema.get("required", []) if "default" not in properties[name]]
        kept["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    if isinstance(schema.get("additionalProperties"), dict):
        kept["additionalProperties"] = _closed(schema["additionalProperties"])
    return kept


# What only the operator checks


def complaints(resource: Manifest) -> list[str]:
    """What the operator would refuse in a RayCluster or RayJob, or would misunderstand without a word."""
    found = list(_about_names(resource))
    spec = cluster_spec(resource)
    if spec is not None:
        found += _about_cluster(spec, resource["metadata"].get("annotations", {}))
        for group in groups(resource):
            found += _about_group(group, group.get("groupName", "head"))
    if resource["kind"] == "RayJob":
        found += [
            *_about_job(resource["spec"]),
            *_about_deletion(resource["spec"]),
            *_about_deadlines(resource["spec"]),
        ]
    return found


def _about_names(resource: Manifest) -> Iterator[str]:
    name, limit = resource["metadata"]["name"], _NAME_LIMITS[resource["kind"]]
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"the name {name!r} is no DNS label"
    if len(name) > limit:
        yield f"the name of a {resource['kind']} has at most {limit} characters"
    if resource["spec"].get("managedBy", _MANAGERS[0]) not in _MANAGERS:
        yield f"managedBy is one of {_MANAGERS}"


def _about_cluster(spec: Manifest, annotations: Manifest) -> Iterator[str]:
    names = [group["groupName"] for group in spec.get("workerGroupSpecs", [])]
    if len(set(names)) < len(names):
        yield "two worker groups have the same name"
    if "authOptions" in spec:
        if spec["authOptions"].get("mode") != "token":
            yield "authOptions without mode: token switches nothing on, whatever the field's description says"
        if not spec.get("rayVersion"):
            yield "token authentication needs rayVersion"
    if spec.get("enableInTreeAutoscaling"):
        yield from _about_autoscaling(spec)
    if "ray.io/ft-enabled" in annotations and "gcsFaultToleranceOptions" in spec:
        yield "ray.io/ft-enabled and gcsFaultToleranceOptions exclude each other"


def _about_autoscaling(spec: Manifest) -> Iterator[str]:
    if spec.get("autoscalerOptions", {}).get("version") == "v2":
        for group in (spec["headGroupSpec"], *spec.get("workerGroupSpecs", [])):
            if group["template"]["spec"].get("restartPolicy", "Never") != "Never":
                yield "autoscaler v2 needs restartPolicy Never in every group"
    if any(group.get("suspend") for group in spec.get("workerGroupSpecs", [])):
        yield "no worker group can be suspended with the autoscaler"


def _about_group(group: Manifest, name: str) -> Iterator[str]:
    params = group.get("rayStartParams", {})
    pod = group["template"]["spec"]
    if len(pod["containers"]) != 1:
        yield f"{name}: a group has one container, that of Ray"
    if _RESOURCES & set(params) and group.get("resources"):
        yield f"{name}: resources are either in rayStartParams or in resources"
    if "labels" in params:
        yield f"{name}: rayStartParams.labels is refused, use labels"
    if any(not isinstance(value, str) for value in params.values()):
        yield f"{name}: rayStartParams are strings"
    if not group.get("minReplicas", 0) <= group.get("replicas", 0) <= group.get("maxReplicas", 2**31 - 1):
        yield f"{name}: replicas lie between minReplicas and maxReplicas"


def _about_job(spec: Manifest) -> Iterator[str]:
    mode, selects = spec.get("submissionMode", "K8sJobMode"), bool(spec.get("clusterSelector"))
    if mode not in _SUBMISSION_MODES:  # The schema has no enum: the API server takes a misspelt mode.
        yield f"submissionMode is one of {_SUBMISSION_MODES}"
    if selects == ("rayClusterSpec" in spec):
        yield "either rayClusterSpec or clusterSelector"
    if selects and not spec["clusterSelector"].get("ray.io/cluster"):
        yield "clusterSelector names a cluster under ray.io/cluster"
    if spec.get("backoffLimit", 0) > 0 and selects:
        yield "backoffLimit needs a cluster of the job's own, not a clusterSelector"
    if spec.get("backoffLimit", 0) > 0 and mode == "InteractiveMode":
        yield "backoffLimit is not for InteractiveMode"
    if spec.get("suspend") and (selects or not spec.get("shutdownAfterJobFinishes")):
        yield "suspend needs shutdownAfterJobFinishes and a cluster of the job's own"
    if mode == "SidecarMode":
        for field in ("clusterSelector", "submitterPodTemplate", "submitterConfig"):
            if field in spec:
                yield f"SidecarMode goes without {field}"
    if not isinstance(yaml.safe_load(spec.get("runtimeEnvYAML", "{}")), dict):
        yield "runtimeEnvYAML is a mapping"


def _about_deletion(spec: Manifest) -> Iterator[str]:
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not spec.get("shutdownAfterJobFinishes"):
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    strategy = spec.get("deletionStrategy")
    if strategy is None:
        return
    legacy = [name for name in ("onSuccess", "onFailure") if name in strategy]
    rules = strategy.get("deletionRules", [])
    if bool(rules) == bool(legacy) or len(legacy) == 1:
        yield "deletionStrategy has either deletionRules, or onSuccess and onFailure"
    if rules and (spec.get("shutdownAfterJobFinishes") or spec.get("ttlSecondsAfterFinished")):
        yield "deletionRules exclude shutdownAfterJobFinishes and ttlSecondsAfterFinished"
    for rule in rules:
        if len({"jobStatus", "jobDeploymentStatus"} & set(rule.get("condition", {}))) != 1:
            yield "a deletion condition has either jobStatus or jobDeploymentStatus"
        if rule["policy"] in ("DeleteCluster", "DeleteWorkers") and spec.get("clusterSelector"):
            yield f"{rule['policy']} is not for a cluster that is there"
        if rule["policy"] == "DeleteWorkers" and spec.get("rayClusterSpec", {}).get("enableInTreeAutoscaling"):
            yield "DeleteWorkers is not for the autoscaler, which would bring them back"


def _about_deadlines(spec: Manifest) -> Iterator[str]:
    deadline, before_running = spec.get("activeDeadlineSeconds"), spec.get("preRunningDeadlineSeconds")
    for seconds in (deadline, before_running):
        if seconds is not None and seconds <= 0:
            yield "deadlines are positive"
    if None not in (deadline, before_running) and before_running >= deadline:
        yield "preRunningDeadlineSeconds beyond activeDeadlineSeconds means nothing"
