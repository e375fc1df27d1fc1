"""The Kubernetes manifests: schemas, the rules that only KubeRay's operator checks, and our own requirements."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from typing import Any

import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.manifests import (
    ALL,
    CRDS,
    NO_CRDS,
    OF_KUBERAY,
    OF_KUBERNETES,
    PATHS,
    ROOT,
    RUNTIME_ENV,
    Manifest,
    cluster_spec,
    complaints,
    containers,
    documents,
    groups,
    pods,
    schema_errors,
)

WITH_PODS = OF_KUBERAY | {name: each for name, each in ALL.items() if each["kind"] == "Deployment"}
CLUSTERS = {name: each for name, each in OF_KUBERAY.items() if cluster_spec(each) is not None}
JOBS = {name: each for name, each in OF_KUBERAY.items() if each["kind"] == "RayJob"}
CLUSTER, JOB = ALL["ray-cluster.yaml:RayCluster"], ALL["rayjob.yaml:RayJob"]
JOB_THERE = ALL["rayjob-existing-cluster.yaml:RayJob"]
MONITOR = ALL["pod-monitor.yaml:PodMonitor"]
DOCKERFILE = (ROOT / "cluster" / "Dockerfile").read_text()
LOCK = (ROOT / "cluster" / "requirements.txt").read_text()
PINS = {canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)$", LOCK, flags=re.M)}

needs_crds = pytest.mark.skipif(not CRDS.is_dir(), reason=NO_CRDS)


def each_of(manifests: dict[str, Manifest]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("manifest", manifests.values(), ids=list(manifests))


def broken(manifest: Manifest, change: Callable[[Manifest], Any]) -> Manifest:
    changed: Manifest = json.loads(json.dumps(manifest))  # A copy without YAML anchors.
    change(changed["spec"])
    return changed


# The schemas


def test_the_readme_names_every_manifest() -> None:
    names = {path.name for path in PATHS} | {"Dockerfile", "requirements.txt", "requirements.in", RUNTIME_ENV.name}
    readme = (ROOT / "cluster" / "README.md").read_text()

    assert names <= set(re.findall(r"[\w.-]+", readme))
    assert len(OF_KUBERAY) == 3
    assert {each["kind"] for each in OF_KUBERNETES.values()} == {"Deployment", "PersistentVolumeClaim"}


def test_ray_cluster_yaml_is_one_ray_cluster() -> None:
    (cluster,) = documents(ROOT / "ray-cluster.yaml")

    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")


@needs_crds
@each_of(OF_KUBERAY)
def test_resources_match_kuberays_schema(manifest: Manifest) -> None:
    assert schema_errors(manifest) == []


@needs_crds
@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec["headGroupSpec"].update(rayStartParam={}),
        lambda spec: spec["autoscalerOptions"].update(version="v3"),
        lambda spec: spec["headGroupSpec"].pop("template"),
        lambda spec: spec["workerGroupSpecs"][0].update(maxReplicas="many"),
        lambda spec: spec["headGroupSpec"]["template"]["spec"]["containers"][0]["envFrom"][0].update(secret="a"),
        lambda spec: spec["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"]["limits"].update(
            cpu="2 x"
        ),
    ],
    ids=["misspelt", "no such choice", "missing", "wrong type", "misspelt deep inside", "no quantity"],
)
def test_the_schema_rejects_invalid_manifests(change: Callable[[Manifest], Any]) -> None:
    assert len(schema_errors(broken(CLUSTER, change))) == 1


@each_of(OF_KUBERNETES)
def test_resources_match_the_kubernetes_schema(manifest: Manifest) -> None:
    for version in ("1.30", kubernetes_validate.latest_version()):
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_kubernetes_schema_rejects_invalid_manifests() -> None:
    changed = broken(ALL["notebook.yaml:Deployment"], lambda spec: spec["template"]["spec"].update(container=[]))

    with pytest.raises(kubernetes_validate.ValidationError, match="container"):
        kubernetes_validate.validate(changed, kubernetes_validate.latest_version(), strict=True)


# Rules that only the operator checks


@each_of(OF_KUBERAY)
def test_the_operator_has_no_complaints(manifest: Manifest) -> None:
    assert complaints(manifest) == []


def delete_by_rule(spec: Manifest, policy: str, **condition: str) -> None:
    spec.update(deletionStrategy={"deletionRules": [{"policy": policy, "condition": condition}]})


def only_delete_by_rule(spec: Manifest, policy: str, **condition: str) -> None:
    spec.pop("ttlSecondsAfterFinished", None)
    spec.pop("shutdownAfterJobFinishes", None)
    delete_by_rule(spec, policy, **condition)


def delete_workers_beside_the_autoscaler(spec: Manifest) -> None:
    only_delete_by_rule(spec, "DeleteWorkers", jobStatus="FAILED")
    spec["rayClusterSpec"]["enableInTreeAutoscaling"] = True


@pytest.mark.parametrize(
    ("manifest", "change", "complaint"),
    [
        (CLUSTER, lambda spec: spec.update(managedBy="me"), "managedBy"),
        (CLUSTER, lambda spec: spec.update(authOptions={}), "switches nothing on"),
        (CLUSTER, lambda spec: spec.pop("rayVersion"), "needs rayVersion"),
        (CLUSTER, lambda spec: spec["workerGroupSpecs"][0].update(suspend=True), "suspended with the autoscaler"),
        (CLUSTER, lambda spec: spec["workerGroupSpecs"][1].update(groupName="cpu"), "the same name"),
        (CLUSTER, lambda spec: spec["workerGroupSpecs"][0].update(minReplicas=9), "cpu: replicas lie between"),
        (CLUSTER, lambda spec: spec["headGroupSpec"].update(resources={"CPU": "1"}), "head: resources are either"),
        (CLUSTER, lambda spec: spec["headGroupSpec"]["rayStartParams"].update(labels="a=b"), "labels is refused"),
        (CLUSTER, lambda spec: spec["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}), "are strings"),
        (
            CLUSTER,
            lambda spec: spec["workerGroupSpecs"][0]["template"]["spec"].update(restartPolicy="Always"),
            "v2 needs restartPolicy Never",
        ),
        (
            CLUSTER,
            lambda spec: spec["workerGroupSpecs"][0]["template"]["spec"]["containers"].append({"name": "sidecar"}),
            "cpu: a group has one container",
        ),
        (JOB, lambda spec: spec.update(submissionMode="K8SJobMode"), "submissionMode is one of"),
        (JOB, lambda spec: spec.update(submissionMode="InteractiveMode"), "not for InteractiveMode"),
        (JOB, lambda spec: spec.update(submissionMode="SidecarMode"), "goes without submitterPodTemplate"),
        (JOB, lambda spec: spec.pop("rayClusterSpec"), "either rayClusterSpec or clusterSelector"),
        (JOB, lambda spec: spec.update(managedBy="kueue"), "managedBy"),
        (JOB, lambda spec: spec.pop("shutdownAfterJobFinishes"), "ttlSecondsAfterFinished needs"),
        (JOB, lambda spec: spec.update(activeDeadlineSeconds=600), "means nothing"),
        (JOB, lambda spec: spec.update(preRunningDeadlineSeconds=0), "deadlines are positive"),
        (JOB, lambda spec: spec.update(runtimeEnvYAML="pip"), "runtimeEnvYAML is a mapping"),
        (JOB, lambda spec: delete_by_rule(spec, "DeleteSelf", jobStatus="FAILED"), "exclude"),
        (JOB, lambda spec: spec.update(deletionStrategy={"onSuccess": {}}), "or onSuccess and onFailure"),
        (JOB, lambda spec: only_delete_by_rule(spec, "DeleteSelf"), "either jobStatus or jobDeploymentStatus"),
        (JOB, delete_workers_beside_the_autoscaler, "would bring them back"),
        (JOB_THERE, lambda spec: only_delete_by_rule(spec, "DeleteCluster", jobStatus="FAILED"), "that is there"),
        (JOB_THERE, lambda spec: spec.update(backoffLimit=1), "needs a cluster of the job's own"),
        (JOB_THERE, lambda spec: spec.update(suspend=True), "suspend needs"),
        (JOB_THERE, lambda spec: spec.update(clusterSelector={"name": "ray-estimator"}), "under ray.io/cluster"),
    ],
)
def test_what_the_operator_rejects_is_found(
    manifest: Manifest, change: Callable[[Manifest], Any], complaint: str
) -> None:
    (found,) = complaints(broken(manifest, change))

    assert complaint in found


@pytest.mark.parametrize(
    ("manifest", "length", "complaint"),
    [(CLUSTER, 54, "at most 53"), (JOB, 48, "at most 47"), (JOB, 0, "no DNS label")],
)
def test_names_leave_room_for_the_suffixes_of_the_operator(manifest: Manifest, length: int, complaint: str) -> None:
    renamed = manifest | {"metadata": {"name": "a" * length or "1st"}}

    (found,) = complaints(renamed)

    assert complaint in found


def test_fault_tolerance_is_configured_in_one_way() -> None:
    changed = broken(CLUSTER, lambda spec: spec.update(gcsFaultToleranceOptions={"redisAddress": "redis:6379"}))
    changed["metadata"] = changed["metadata"] | {"annotations": {"ray.io/ft-enabled": "true"}}

    (found,) = complaints(changed)

    assert "exclude each other" in found


# One version


def test_images_ray_version_and_the_tested_pin_are_one_version() -> None:
    versions = {cluster_spec(each)["rayVersion"] for each in CLUSTERS.values()}
    images = [container["image"] for each in WITH_PODS.values() for container in containers(each)]
    images += re.findall(r"^FROM (rayproject/\S+)", DOCKERFILE, flags=re.M)
    tags = {re.sub(r"(-gpu|\$\{VARIANT\})$", "", image.rpartition(":")[2]) for image in images}

    assert versions == {PINS["ray"]}
    assert tags == {f"{PINS['ray']}-py311"}
    assert set(re.findall(r"\b2\.\d+\.\d+-py\d+\b", DOCKERFILE + (ROOT / "cluster/README.md").read_text())) == tags


def test_the_lock_file_pins_the_dependencies_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = re.findall(r"--extra (\S+)", LOCK)
    wanted = project["dependencies"] + [each for extra in extras for each in project["optional-dependencies"][extra]]

    assert set(re.findall(r"EXTRAS=(\S+)", DOCKERFILE)[0].split(",")) <= set(extras) >= {"gpu", "legacy-keras"}
    for requirement in map(Requirement, wanted):
        assert PINS[canonicalize_name(requirement.name)] in requirement.specifier, requirement
    for package in re.findall(r"^RUN pip install .*requirements.txt ([a-z ]+)$", DOCKERFILE, flags=re.M)[0].split():
        assert package in PINS


def test_the_image_does_not_run_as_root() -> None:
    assert set(re.findall(r"^USER (\w+)", DOCKERFILE, flags=re.M)) == {"ray"}
    assert DOCKERFILE.rstrip().endswith("FROM train")


def test_the_runtime_env_installs_the_dependencies_except_ray() -> None:
    from ray.runtime_env import RuntimeEnv, RuntimeEnvConfig

    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {canonicalize_name(Requirement(each).name) for each in dependencies}

    environment = RuntimeEnv(**yaml.safe_load(RUNTIME_ENV.read_text()))

    packages = dict(each.split("==") for each in environment.pip_config()["packages"])
    assert environment["config"]["setup_timeout_seconds"] > 600  # Ray's default, which is too short for pip.
    assert set(environment["config"]) <= RuntimeEnvConfig.known_fields
    assert packages == {name: PINS[name] for name in packages}
    assert set(packages) - {"s3fs"} == names - {"ray"}
    assert "cluster/runtime-env.yaml" in (ROOT / "ray-cluster.yaml").read_text()


def test_commented_versions_are_the_pinned_ones() -> None:
    for path in [*PATHS, RUNTIME_ENV]:
        for version in re.findall(r"tensorflow\S*?==([\d.]+)", path.read_text()):
            assert version.rstrip(".") == PINS["tensorflow"], path


# Our requirements for every cluster


def test_the_cluster_has_a_cpu_and_a_gpu_group_that_scale_from_zero() -> None:
    workers = {group["groupName"]: group for group in groups(CLUSTER)[1:]}

    assert set(workers) == {"cpu", "gpu"}
    assert CLUSTER["spec"]["enableInTreeAutoscaling"] is True
    assert CLUSTER["spec"]["autoscalerOptions"]["version"] == "v2"
    for group in workers.values():
        assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]


@each_of(CLUSTERS)
def test_the_head_runs_no_tasks(manifest: Manifest) -> None:
    assert groups(manifest)[0]["rayStartParams"]["num-cpus"] == "0"


@each_of(CLUSTERS)
def test_the_cluster_requires_a_token(manifest: Manifest) -> None:
    assert cluster_spec(manifest)["authOptions"]["mode"] == "token"


@each_of(WITH_PODS)
def test_requests_of_containers_equal_their_limits(manifest: Manifest) -> None:
    options = (cluster_spec(manifest) or {}).get("autoscalerOptions") if manifest in OF_KUBERAY.values() else None
    for container in [*([options] if options else []), *containers(manifest)]:
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        assert container["resources"]["limits"] == container["resources"]["requests"]


@each_of(WITH_PODS)
def test_pods_run_without_privileges(manifest: Manifest) -> None:
    for pod in pods(manifest):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(manifest):
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_the_autoscaler_runs_without_privileges() -> None:
    context = CLUSTER["spec"]["autoscalerOptions"]["securityContext"]

    assert context == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


@each_of(CLUSTERS)
def test_only_pods_with_a_gpu_run_on_gpu_nodes(manifest: Manifest) -> None:
    for group in groups(manifest):
        pod = group["template"]["spec"]
        has_gpu = any("nvidia.com/gpu" in container["resources"]["limits"] for container in pod["containers"])
        tolerated = {toleration["key"] for toleration in pod.get("tolerations", [])}
        assert ("nvidia.com/gpu" in tolerated) == has_gpu == ("nvidia.com/gpu.present" in pod.get("nodeSelector", {}))
        assert pod["containers"][0]["image"].endswith("-gpu") == has_gpu


@each_of(WITH_PODS)
def test_every_pod_except_the_submitter_can_use_the_object_store(manifest: Manifest) -> None:
    working = [each for each in containers(manifest) if each["name"] != "ray-job-submitter"]

    for container in working:
        # Optional: with workload identity there is no Secret.
        assert container["envFrom"] == [{"secretRef": {"name": "object-store", "optional": True}}]


@each_of(CLUSTERS)
def test_pods_outlive_the_grace_period_of_a_stopped_driver(manifest: Manifest) -> None:
    head, *_ = groups(manifest)
    (container,) = head["template"]["spec"]["containers"]
    (wait,) = (int(each["value"]) for each in container["env"] if each["name"] == "RAY_JOB_STOP_WAIT_TIME_S")

    for group in groups(manifest):
        assert wait < group["template"]["spec"]["terminationGracePeriodSeconds"]


@each_of(CLUSTERS)
def test_the_ports_that_the_monitor_scrapes_are_named(manifest: Manifest) -> None:
    read = [endpoint["port"] for endpoint in MONITOR["spec"]["podMetricsEndpoints"]]
    head, *workers = groups(manifest)
    ports = [
        {port["name"] for port in group["template"]["spec"]["containers"][0]["ports"]} for group in (head, *workers)
    ]

    assert {*read, "gcs-server", "client", "dashboard"} == ports[0]  # Named ports replace the operator's defaults.
    assert all(each == {"metrics"} for each in ports[1:])


def test_the_notebook_joins_the_cluster_with_its_token() -> None:
    (container,) = containers(ALL["notebook.yaml:Deployment"])
    cluster = CLUSTER["metadata"]["name"]
    env = {each["name"]: each for each in container["env"]}

    assert f"ray start --address={cluster}-head-svc:6379 --num-cpus=0" in container["args"][0]
    assert env["RAY_ADDRESS"]["value"] == "auto"
    assert env["RAY_AUTH_MODE"]["value"] == "token"
    assert env["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": cluster, "key": "auth_token"}


# Jobs


@each_of(JOBS)
def test_jobs_run_the_example_with_valid_arguments_and_a_model_dir_on_a_store(manifest: Manifest) -> None:
    _, program, *arguments = manifest["spec"]["entrypoint"].split()
    example = ROOT / "examples" / program.rpartition("/")[2]
    folder = re.search(r"^COPY \S+ examples (\S+)$", DOCKERFILE, flags=re.M).group(1)  # type: ignore[union-attr]

    assert program == f"{folder}/{example.name}"
    assert set(re.findall(r"--[\w-]+", " ".join(arguments))) <= set(re.findall(r'"(--[\w-]+)"', example.read_text()))
    assert arguments[arguments.index("--model-dir") + 1].startswith("s3://")


def test_a_job_with_its_own_cluster_is_retried_and_ends() -> None:
    spec = JOB["spec"]

    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert 0 < spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]


def test_a_job_with_its_own_cluster_has_enough_cpus_for_its_workers() -> None:
    _, *workers = groups(JOB)
    limits = [group["template"]["spec"]["containers"][0]["resources"]["limits"] for group in workers]
    cpus = sum(group["replicas"] * int(limit["cpu"]) for group, limit in zip(workers, limits, strict=True))
    num_workers = int(re.search(r"--num-workers (\d+)", JOB["spec"]["entrypoint"]).group(1))  # type: ignore[union-attr]

    assert num_workers + 1 <= cpus  # Ray Data needs one.


def test_a_job_on_an_existing_cluster_names_it() -> None:
    assert JOB_THERE["spec"]["clusterSelector"] == {"ray.io/cluster": CLUSTER["metadata"]["name"]}
