"""The Kubernetes manifests: KubeRay's schema, and the rules that only its controller or Ray would tell."""

from __future__ import annotations

import copy
import functools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CRDS = ROOT.parent / "shared" / "crds"
MANIFESTS = [ROOT / "ray-cluster.yaml", *sorted((ROOT / "cluster").glob("*.yaml"))]
NAME_LIMITS = {"RayCluster": 53, "RayJob": 47, "RayCronJob": 36}
SUBMISSION_MODES = {"K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"}

# The C loader reads the megabyte-sized schemas in a tenth of the time.
YamlLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def documents(path: Path) -> list[dict[str, Any]]:
    with path.open() as file:
        return [document for document in yaml.load_all(file, Loader=YamlLoader) if document]


RESOURCES = {
    f"{path.name}:{document['kind']}": document
    for path in MANIFESTS
    for document in documents(path)
    if document["kind"] in {"RayCluster", "RayJob"}
}
JOBS = {name: resource for name, resource in RESOURCES.items() if resource["kind"] == "RayJob"}

every_resource = pytest.mark.parametrize("resource", RESOURCES.values(), ids=RESOURCES)
every_job = pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)


def cluster_spec(resource: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = resource["spec"]
    return spec["rayClusterSpec"] if resource["kind"] == "RayJob" else spec


def groups(resource: dict[str, Any]) -> list[dict[str, Any]]:
    spec = cluster_spec(resource)
    return [spec["headGroupSpec"], *spec.get("workerGroupSpecs", [])]


def containers(resource: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for group in groups(resource):
        yield from group["template"]["spec"]["containers"]


def test_ray_cluster_yaml_is_one_ray_cluster() -> None:
    (cluster,) = documents(ROOT / "ray-cluster.yaml")

    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_every_document_says_what_it_is(path: Path) -> None:
    for document in documents(path):
        assert document["apiVersion"]
        assert document["kind"]
        limit = NAME_LIMITS.get(document["kind"], 63)
        assert re.fullmatch(rf"[a-z]([-a-z0-9]{{0,{limit - 2}}}[a-z0-9])?", document["metadata"]["name"])


@every_resource
def test_images_carry_the_ray_version_and_the_oldest_minor_that_the_package_takes(resource: dict[str, Any]) -> None:
    version = cluster_spec(resource)["rayVersion"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (ray,) = (requirement for requirement in project["dependencies"] if requirement.startswith("ray["))

    assert f">={version.rpartition('.')[0]}" in ray
    for container in containers(resource):
        assert re.fullmatch(rf".+:{re.escape(version)}-py31[123](-gpu)?", container["image"]), container["image"]


def test_every_image_has_the_same_ray_and_python() -> None:
    images = [container["image"] for resource in RESOURCES.values() for container in containers(resource)]
    images += re.findall(r"^FROM (\S+)", (ROOT / "cluster" / "Dockerfile").read_text(), flags=re.MULTILINE)

    tags = {re.sub(r"(-gpu|\$\{VARIANT\})$", "", image.rpartition(":")[2]) for image in images}

    assert len(tags) == 1, tags


@every_resource
def test_containers_request_what_they_are_limited_to(resource: dict[str, Any]) -> None:
    autoscaler = cluster_spec(resource)["autoscalerOptions"]
    for container in [autoscaler, *containers(resource)]:
        assert container["resources"]["limits"]
        assert container["resources"]["limits"] == container["resources"]["requests"]


@every_resource
def test_the_first_container_of_a_group_is_the_only_one(resource: dict[str, Any]) -> None:
    for group in groups(resource):
        assert len(group["template"]["spec"]["containers"]) == 1


@every_resource
def test_worker_groups_scale_from_zero_within_their_bounds(resource: dict[str, Any]) -> None:
    for group in groups(resource)[1:]:
        assert group["minReplicas"] == group["replicas"] == 0
        assert group["minReplicas"] < group["maxReplicas"]


@every_resource
def test_the_head_takes_no_work(resource: dict[str, Any]) -> None:
    assert groups(resource)[0]["rayStartParams"]["num-cpus"] == "0"


@every_resource
def test_pods_suit_autoscaler_v2(resource: dict[str, Any]) -> None:
    assert cluster_spec(resource)["enableInTreeAutoscaling"] is True
    assert cluster_spec(resource)["autoscalerOptions"]["version"] == "v2"
    for group in groups(resource):
        assert group["template"]["spec"]["restartPolicy"] == "Never"


@every_resource
def test_the_cluster_asks_for_a_token(resource: dict[str, Any]) -> None:
    # An empty authOptions switches nothing on, whatever the field's description says.
    assert cluster_spec(resource)["authOptions"]["mode"] == "token"


@every_resource
def test_pods_run_without_privileges(resource: dict[str, Any]) -> None:
    for group in groups(resource):
        assert group["template"]["spec"]["securityContext"]["runAsNonRoot"] is True
    for container in [cluster_spec(resource)["autoscalerOptions"], *containers(resource)]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@every_resource
def test_pods_with_a_gpu_and_no_others_tolerate_the_gpu_taint(resource: dict[str, Any]) -> None:
    for group in groups(resource):
        pod = group["template"]["spec"]
        has_gpu = any("nvidia.com/gpu" in container["resources"]["limits"] for container in pod["containers"])
        tolerated = {toleration["key"] for toleration in pod.get("tolerations", [])}
        assert ("nvidia.com/gpu" in tolerated) == has_gpu


@every_job
def test_jobs_use_a_submission_mode_that_exists(job: dict[str, Any]) -> None:
    # The CRD has no enum: the API server takes a misspelt mode.
    assert job["spec"]["submissionMode"] in SUBMISSION_MODES


@every_job
def test_a_jobs_time_to_live_goes_with_the_end_of_its_cluster(job: dict[str, Any]) -> None:
    spec = job["spec"]
    if spec.get("ttlSecondsAfterFinished", 0) > 0 or spec.get("suspend"):
        assert spec["shutdownAfterJobFinishes"] is True


@every_job
def test_jobs_retry_on_clusters_of_their_own(job: dict[str, Any]) -> None:
    spec = job["spec"]
    assert ("rayClusterSpec" in spec) != ("clusterSelector" in spec)
    if spec.get("backoffLimit", 0) > 0:
        assert "rayClusterSpec" in spec
        assert spec["submissionMode"] != "InteractiveMode"


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema that refuses what an API server refuses under strict field validation, CEL rules aside.

    Fields with a default are not required, because the server fills them in first.
    """
    keywords = {"type", "enum", "pattern", "minimum", "minLength", "maxLength"}
    kept: dict[str, Any] = {key: value for key, value in schema.items() if key in keywords}
    if schema.get("x-kubernetes-int-or-string"):
        return kept | {"type": ["integer", "string"]}
    if "items" in schema:
        kept["items"] = closed(schema["items"])
    properties = schema.get("properties", {})
    if properties:
        kept["properties"] = {name: closed(field) for name, field in properties.items()}
        kept["required"] = [name for name in schema.get("required", []) if "default" not in properties[name]]
        kept["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    if isinstance(schema.get("additionalProperties"), dict):
        kept["additionalProperties"] = closed(schema["additionalProperties"])
    return kept


@functools.cache
def validator(api_version: str, kind: str) -> jsonschema.Draft202012Validator:
    group, _, version = api_version.partition("/")
    (path,) = CRDS.glob(f"{group}_{kind.lower()}s.*.yaml")
    (definition,) = documents(path)
    (schema,) = (
        each["schema"]["openAPIV3Schema"] for each in definition["spec"]["versions"] if each["name"] == version
    )
    strict = closed(schema)
    strict["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(strict)


needs_crds = pytest.mark.skipif(not CRDS.is_dir(), reason="KubeRay's CRDs are not in ../shared/crds")


@needs_crds
@every_resource
def test_resources_fit_kuberays_schema(resource: dict[str, Any]) -> None:
    errors = validator(resource["apiVersion"], resource["kind"]).iter_errors(resource)

    assert [f"{error.json_path}: {error.message}" for error in errors] == []


@needs_crds
@every_resource
def test_the_schema_refuses_a_misspelt_field_a_wrong_choice_and_a_missing_template(resource: dict[str, Any]) -> None:
    broken = copy.deepcopy(resource)
    spec = cluster_spec(broken)
    spec["autoscalerOptions"]["version"] = "v3"
    spec["workerGroupSpecs"][0]["maxReplica"] = 1
    del spec["headGroupSpec"]["template"]

    messages = [error.message for error in validator(broken["apiVersion"], broken["kind"]).iter_errors(broken)]

    assert len(messages) == 3, messages
