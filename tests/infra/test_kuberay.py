"""infra/Dockerfile and infra/kuberay: mistakes that a cluster would refuse, and ones that it would accept.

kustomize (or kubectl, which contains it) renders the manifests. The schemas of KubeRay and Kubernetes check them, and
the jobs' own parsers check the options in them. nightly.sh runs with a real kubectl against a small Kubernetes API in
this file.
"""

import copy
import http.server
import json
import os
import re
import shlex
import shutil
import subprocess
import threading
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator
from packaging.requirements import Requirement

from jobs import predict
from jobs.common import config
from jobs.training.config import TrainConfig, presets
from tests.support.paths import ROOT, SHARED

KUBERAY = ROOT / "infra" / "kuberay"
SCHEMAS = SHARED / "kuberay-crds"
KUBERNETES = "1.36"  # version of the schemas, and of kubectl in the nightly pod
OVERLAYS = ["overlays/cpu-dev", "overlays/gpu", "raycronjob"]
CONFIGS = {"train": (TrainConfig, presets), "predict": (predict.PredictConfig, None)}
# Mappings that may have any keys.
FREE_MAPPINGS = {"annotations", "data", "labels", "limits", "nodeSelector", "rayStartParams", "requests"}

Manifest = dict[str, Any]


@cache
def render(overlay: str) -> list[Manifest]:
    if kustomize := shutil.which("kustomize"):
        command = [kustomize, "build"]
    elif kubectl := shutil.which("kubectl"):
        command = [kubectl, "kustomize"]
    else:
        pytest.skip("neither kustomize nor kubectl is installed")
    rendered = subprocess.run([*command, str(KUBERAY / overlay)], capture_output=True, text=True)
    assert rendered.returncode == 0, rendered.stderr
    return list(yaml.safe_load_all(rendered.stdout))


def find(overlay: str, kind: str, name: str) -> Manifest:
    (found,) = (
        manifest for manifest in render(overlay) if manifest["kind"] == kind and manifest["metadata"]["name"] == name
    )
    return found


def mappings(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Yield every mapping in a manifest with its path."""
    if isinstance(value, dict):
        yield path, value
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from mappings(part, (*path, key))


def pods(overlay: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the spec of every pod with a name for messages."""
    for manifest in render(overlay):
        for path, mapping in mappings(manifest):
            if "containers" in mapping:
                yield f"{manifest['kind']} {manifest['metadata']['name']}: {'.'.join(map(str, path))}", mapping


def clusters(overlay: str) -> Iterator[dict[str, Any]]:
    for manifest in render(overlay):
        for path, mapping in mappings(manifest):
            if path and path[-1] == "rayClusterSpec":
                yield mapping


# Schemas --------------------------------------------------------------------------------------------------------------


def closed(schema: Any) -> Any:
    """Return the schema with unknown keys forbidden."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {key: closed(part) for key, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        parts.setdefault("additionalProperties", False)
    return parts


@cache
def kuberay_schema(kind: str) -> Draft202012Validator:
    path = SCHEMAS / f"ray.io_{kind.lower()}s.yaml"
    if not path.exists():
        pytest.skip("needs ../shared")
    with path.open() as file:
        definition = yaml.load(file, Loader=yaml.CSafeLoader)
    (schema,) = (one["schema"] for one in definition["spec"]["versions"] if one["name"] == "v1")
    return Draft202012Validator(closed(schema["openAPIV3Schema"]))


def schema_error(manifest: Manifest) -> str | None:
    if manifest["apiVersion"] == "ray.io/v1":
        error = next(kuberay_schema(manifest["kind"]).iter_errors(manifest), None)
        return error and f"{error.json_path}: {error.message}"
    try:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error.message)
    return None


@pytest.mark.slow
@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("api", ["kuberay", "kubernetes"])
def test_manifests_fit_the_schemas(overlay: str, api: str) -> None:
    manifests = [one for one in render(overlay) if (one["apiVersion"] == "ray.io/v1") == (api == "kuberay")]
    errors = {f"{one['kind']} {one['metadata']['name']}": schema_error(one) for one in manifests}
    assert errors
    assert not [f"{name}: {error}" for name, error in errors.items() if error]


@pytest.mark.parametrize(
    ("overlay", "kind", "name"),
    [
        ("overlays/gpu", "RayJob", "train"),
        ("overlays/gpu", "CronJob", "nightly"),
        ("overlays/gpu", "Role", "nightly"),
        ("raycronjob", "RayCronJob", "nightly-predict"),
    ],
)
@pytest.mark.slow
def test_schemas_find_misspelled_keys(overlay: str, kind: str, name: str) -> None:
    manifest = find(overlay, kind, name)
    unnoticed = []
    for path, mapping in mappings(manifest):
        if not path or path[-1] in FREE_MAPPINGS or path[0] == "metadata":
            continue
        for key in mapping:
            misspelled = copy.deepcopy(manifest)
            target = misspelled
            for step in path:
                target = target[step]
            target[f"{key}x"] = target.pop(key)
            if not schema_error(misspelled):
                unnoticed.append((*path, key))
    assert not unnoticed


# Rules of RayJob that no schema contains -----------------------------------------------------------------------------


def broken_rules(spec: dict[str, Any]) -> list[str]:
    """Return the rules that a RayJob breaks and KubeRay would refuse, although its schema is right."""
    shuts_down = spec.get("shutdownAfterJobFinishes", False)
    selects = "clusterSelector" in spec
    rules = {
        "ttlSecondsAfterFinished needs shutdownAfterJobFinishes": spec.get("ttlSecondsAfterFinished", 0) > 0
        and not shuts_down,
        "suspend needs shutdownAfterJobFinishes": spec.get("suspend", False) and not shuts_down,
        "clusterSelector excludes backoffLimit": selects and spec.get("backoffLimit", 0) > 0,
        "clusterSelector excludes suspend": selects and spec.get("suspend", False),
        "either rayClusterSpec or clusterSelector": selects == ("rayClusterSpec" in spec),
    }
    return [rule for rule, is_broken in rules.items() if is_broken]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_rayjobs_break_no_rules(overlay: str) -> None:
    specs = [one["spec"] for one in render(overlay) if one["kind"] == "RayJob"]
    specs += [one["spec"]["jobTemplate"] for one in render(overlay) if one["kind"] == "RayCronJob"]
    assert len(specs) >= 2
    for spec in specs:
        assert broken_rules(spec) == []
        assert spec["shutdownAfterJobFinishes"]
        assert spec["ttlSecondsAfterFinished"] > 0
        assert spec["activeDeadlineSeconds"] > 0


@pytest.mark.parametrize(
    ("change", "rules"),
    [
        (
            {"shutdownAfterJobFinishes": False},
            ["ttlSecondsAfterFinished needs shutdownAfterJobFinishes", "suspend needs shutdownAfterJobFinishes"],
        ),
        (
            {"clusterSelector": {"ray.io/cluster": "shared"}, "backoffLimit": 1},
            [
                "clusterSelector excludes backoffLimit",
                "clusterSelector excludes suspend",
                "either rayClusterSpec or clusterSelector",
            ],
        ),
    ],
)
def test_broken_rules_are_found(change: dict[str, Any], rules: list[str]) -> None:
    assert broken_rules(find("overlays/gpu", "RayJob", "predict")["spec"] | change) == rules


# Programs and versions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("job", CONFIGS)
def test_jobs_accept_entrypoint_and_options(overlay: str, job: str, tmp_path: Path) -> None:
    spec = find(overlay, "RayJob", job)["spec"]
    interpreter, program, *arguments = shlex.split(spec["entrypoint"])
    assert (interpreter, program) == ("python", f"jobs/{job}.py")
    assert (ROOT / program).is_file()

    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (mount,) = head["containers"][0]["volumeMounts"]
    (volume,) = (volume for volume in head["volumes"] if volume["name"] == mount["name"])
    for name, text in find(overlay, "ConfigMap", volume["configMap"]["name"])["data"].items():
        (tmp_path / name).write_text(text)
    arguments = [argument.replace(mount["mountPath"], str(tmp_path)) for argument in arguments]

    config_type, presets = CONFIGS[job]
    options = config.parse(config_type, arguments, presets)
    assert options.output.startswith("s3://")
    if job == "predict":
        trained = config.parse(TrainConfig, ["--config", str(tmp_path / "train.yaml")], presets)
        assert options.checkpoint == f"{trained.run_uri}/best"


def test_versions_agree() -> None:
    dockerfile = (ROOT / "infra" / "Dockerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {one.name: one for one in map(Requirement, project["dependencies"])}
    (default_tag,) = re.findall(r"^ARG RAY_TAG=(\S+)$", dockerfile, re.MULTILINE)
    ray, python, _ = default_tag.split("-")
    assert str(needed.pop("ray").specifier) == f"=={ray}"
    assert f">={python[2]}.{python[3:]}" in project["requires-python"]
    for overlay, tag in [("overlays/gpu", default_tag), ("overlays/cpu-dev", f"{ray}-{python}-cpu")]:
        assert f"-t matting:{project['version']}-ray-{tag}" in dockerfile
        images = {
            container["image"] for name, pod in pods(overlay) if "RayJob" in name for container in pod["containers"]
        }
        assert [image.partition(":")[2] for image in images] == [f"{project['version']}-ray-{tag}"]
        assert [cluster["rayVersion"] for cluster in clusters(overlay)] == [ray, ray]

    (nightly,) = (pod for name, pod in pods("overlays/gpu") if name.startswith("CronJob"))
    assert nightly["containers"][0]["image"].startswith(f"alpine/kubectl:{KUBERNETES}.")

    lines = (ROOT / "infra" / "requirements.txt").read_text().splitlines()
    pins = {one.name: one for one in (Requirement(line) for line in lines if not line.startswith("#"))}
    assert pins.keys() == needed.keys()
    for name, pin in pins.items():
        (exact,) = pin.specifier
        assert exact.operator == "=="
        assert needed[name].specifier.contains(exact.version), name
        assert pin.extras == needed[name].extras, name


def test_image_copies_unignored_files_and_runs_unprivileged() -> None:
    lines = (ROOT / "infra" / "Dockerfile").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER")]
    assert users == ["1000:100"]
    copied = {source for line in lines if line.startswith("COPY") for source in line.split()[2:-1]}
    assert all((ROOT / source).exists() for source in copied)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == copied


# Permissions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_containers_are_restricted(overlay: str) -> None:
    for name, pod in pods(overlay):
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["securityContext"]["runAsUser"] > 0, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys(), name
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert_restricted(name, container)
    for cluster in clusters(overlay):
        assert_restricted("autoscaler", cluster["autoscalerOptions"])


def assert_restricted(name: str, container: dict[str, Any]) -> None:
    context = container["securityContext"]
    assert context["allowPrivilegeEscalation"] is False, name
    assert context["capabilities"] == {"drop": ["ALL"]}, name
    assert not {"privileged", "runAsUser"} & context.keys(), name
    for bound in ("requests", "limits"):
        assert {"cpu", "memory"} <= container["resources"][bound].keys(), name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nodes_have_the_account_of_their_job(overlay: str) -> None:
    for job in CONFIGS:
        cluster = find(overlay, "RayJob", job)["spec"]["rayClusterSpec"]
        nodes = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        assert {node["template"]["spec"]["serviceAccountName"] for node in nodes} == {f"matting-{job}"}
        # Only the autoscaler, on the head, uses the Kubernetes API.
        assert [node["template"]["spec"].get("automountServiceAccountToken", True) for node in nodes] == [
            True,
            *[False] * len(cluster["workerGroupSpecs"]),
        ]


def test_roles_trust_the_accounts() -> None:
    template = (ROOT / "infra" / "aws" / "storage.yaml").read_text()
    for job in CONFIGS:
        account = find("overlays/gpu", "ServiceAccount", f"matting-{job}")["metadata"]
        role = f"{job.capitalize()}Role"
        assert account["annotations"] == {
            "eks.amazonaws.com/role-arn": f"arn:aws:iam::000000000000:role/REPLACE-WITH-{role}Arn"
        }
        assert f"  {role}Arn: " in template
        (trusted,) = re.findall(
            rf"^  {job.capitalize()}ServiceAccount:\n(?:    .*\n)*?    Default: (\S+)$", template, re.MULTILINE
        )
        assert trusted == f"{account['namespace']}:{account['name']}"


@pytest.mark.parametrize("overlay", ["overlays/cpu-dev", "overlays/gpu"])
def test_nightly_runs_are_exclusive_and_restricted(overlay: str) -> None:
    assert find(overlay, "CronJob", "nightly")["spec"]["concurrencyPolicy"] == "Forbid"
    assert find(overlay, "RayJob", "predict")["spec"]["suspend"]
    roles = [one for one in render(overlay) if one["kind"] in ("Role", "ClusterRole")]
    assert [role["rules"] for role in roles] == [
        [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["get", "create"]}]
    ]
    bound = [one["subjects"] for one in render(overlay) if one["kind"] in ("RoleBinding", "ClusterRoleBinding")]
    assert bound == [[{"kind": "ServiceAccount", "name": "nightly", "namespace": "matting"}]]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_references_between_manifests_resolve(overlay: str) -> None:
    namespaces = {one["metadata"].get("namespace", one["metadata"]["name"]) for one in render(overlay)}
    assert namespaces == {"matting"}
    existing = {(one["kind"], one["metadata"]["name"]) for one in render(overlay)}
    named = set()
    for manifest in render(overlay):
        for path, mapping in mappings(manifest):
            if path and path[-1] in ("configMap", "configMapRef", "configMapKeyRef"):
                named.add(("ConfigMap", mapping["name"]))
            if "serviceAccountName" in mapping:
                named.add(("ServiceAccount", mapping["serviceAccountName"]))
            if path and path[-1] == "roleRef":
                named.add((mapping["kind"], mapping["name"]))
    assert len(named) >= 3
    assert named <= existing
    for name, pod in pods(overlay):
        mounted = {mount["name"] for container in pod["containers"] for mount in container.get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in pod.get("volumes", [])}, name


# Clusters -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_clusters_scale_and_heads_run_no_tasks(overlay: str) -> None:
    for cluster in clusters(overlay):
        assert cluster["enableInTreeAutoscaling"]
        assert cluster["autoscalerOptions"]["version"] == "v2"
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        groups = cluster["workerGroupSpecs"]
        # A job cannot start on an empty cluster.
        assert sum(group["minReplicas"] for group in groups) >= 1
        assert all(group["minReplicas"] < group["maxReplicas"] for group in groups)
        for node in [cluster["headGroupSpec"], *groups]:
            assert node["template"]["spec"]["restartPolicy"] == "Never"


def test_gpu_workers_prefer_spot() -> None:
    cluster = next(clusters("overlays/gpu"))
    groups = {group["groupName"]: copy.deepcopy(group) for group in cluster["workerGroupSpecs"]}
    kinds = {
        name: group["template"]["spec"].pop("nodeSelector")["karpenter.sh/capacity-type"]
        for name, group in groups.items()
    }
    assert kinds == {"cpu": "spot", "gpu-spot": "spot", "gpu-on-demand": "on-demand"}
    assert groups["gpu-spot"]["template"] == groups["gpu-on-demand"]["template"]
    assert groups["cpu"]["priority"] > groups["gpu-spot"]["priority"] > groups["gpu-on-demand"]["priority"]
    head = cluster["headGroupSpec"]["template"]["spec"]
    assert head["nodeSelector"] == {"karpenter.sh/capacity-type": "on-demand"}
    for pod in (group["template"]["spec"] for name, group in groups.items() if name != "cpu"):
        (container,) = pod["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_cpu_dev_needs_neither_gpus_nor_aws() -> None:
    text = yaml.safe_dump_all(render("overlays/cpu-dev"))
    assert not [word for word in ("nvidia", "karpenter", "amazonaws") if word in text]
    for cluster in clusters("overlays/cpu-dev"):
        for node in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
            (container,) = node["template"]["spec"]["containers"]
            assert container["envFrom"] == [{"secretRef": {"name": "object-store"}}]


def test_raycronjob_runs_the_same_job() -> None:
    template = find("raycronjob", "RayCronJob", "nightly-predict")["spec"]["jobTemplate"]
    assert template == find("overlays/gpu", "RayJob", "predict")["spec"] | {"suspend": False}
    assert "nightly" not in {one["metadata"]["name"] for one in render("raycronjob")}
    for overlay in ("overlays/cpu-dev", "overlays/gpu"):
        assert "RayCronJob" not in {one["kind"] for one in render(overlay)}


# The nightly script ---------------------------------------------------------------------------------------------------


class Kubernetes(http.server.ThreadingHTTPServer):
    """Small Kubernetes API for RayJobs. A created one passes through `states`, one per request."""

    def __init__(self, template: Manifest, states: list[str]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.rayjobs = {"predict": template}
        self.states = states
        self.created: list[Manifest] = []


class Handler(http.server.BaseHTTPRequestHandler):
    server: Kubernetes
    jobs = "/apis/ray.io/v1/namespaces/matting/rayjobs"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(f"{self.jobs}/"):
            name, states = path.removeprefix(f"{self.jobs}/"), self.server.states
            job = self.server.rayjobs.get(name)
            if job and name != "predict":
                state = states.pop(0) if len(states) > 1 else states[0]
                job["status"] = {"jobDeploymentStatus": state, "reason": "AppFailed", "message": "exit code 1"}
            self.answer(200 if job else 404, job or failure(404, "NotFound"))
        else:
            self.answer(200 if path in DISCOVERY else 404, DISCOVERY.get(path, failure(404, "NotFound")))

    def do_POST(self) -> None:
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path.partition("?")[0] == self.jobs
        self.server.created.append(copy.deepcopy(job))
        self.server.rayjobs[job["metadata"]["name"]] = job
        self.answer(201, job)

    def answer(self, code: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Log nothing."""


def failure(code: int, reason: str) -> Manifest:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason}


GROUP_VERSION = {"groupVersion": "ray.io/v1", "version": "v1"}
DISCOVERY = {
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": []},
    "/apis": {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [{"name": "ray.io", "versions": [GROUP_VERSION], "preferredVersion": GROUP_VERSION}],
    },
    # kubectl reads this before it creates an object, to learn whether the server validates fields.
    "/openapi/v3": {"paths": {"apis/ray.io/v1": {"serverRelativeURL": "/openapi/v3/apis/ray.io/v1"}}},
    "/openapi/v3/apis/ray.io/v1": {
        "openapi": "3.0.0",
        "paths": {
            "/apis/ray.io/v1/namespaces/{namespace}/rayjobs/{name}": {
                "patch": {
                    "x-kubernetes-group-version-kind": {"group": "ray.io", "version": "v1", "kind": "RayJob"},
                    "parameters": [{"name": "fieldValidation", "in": "query"}],
                }
            }
        },
    },
    "/apis/ray.io/v1": {
        "kind": "APIResourceList",
        "groupVersion": "ray.io/v1",
        "resources": [
            {
                "name": "rayjobs",
                "singularName": "rayjob",
                "namespaced": True,
                "kind": "RayJob",
                "verbs": ["get", "create"],
            }
        ],
    },
}


@pytest.fixture
def kubernetes() -> Iterator[Kubernetes]:
    template = copy.deepcopy(find("overlays/gpu", "RayJob", "predict"))
    template["metadata"] |= {"uid": "1234", "resourceVersion": "99", "generation": 3}
    template["metadata"]["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": "{}"}
    template["status"] = {"jobDeploymentStatus": "Suspended"}
    with Kubernetes(template, ["", "Initializing", "Running", "Complete"]) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def run_nightly(server: Kubernetes, home: Path) -> subprocess.CompletedProcess[str]:
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed")
    address = f"http://127.0.0.1:{server.server_address[1]}"
    settings = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "matting"}}],
        "clusters": [{"name": "test", "cluster": {"server": address}}],
        "users": [{"name": "test", "user": {}}],
    }
    (home / "config").write_text(json.dumps(settings))
    (cron,) = (pod for name, pod in pods("overlays/gpu") if name.startswith("CronJob"))
    given = {variable["name"] for variable in cron["containers"][0]["env"]}
    own = {"JOB_NAME": "nightly-29384720", "JOB_UID": "abcd", "POLL_SECONDS": "0", "HOME": str(home)}
    assert own.keys() == given
    environment = {"PATH": os.environ["PATH"], "KUBECONFIG": str(home / "config"), **own}
    (home / "nightly.sh").write_text(find("overlays/gpu", "ConfigMap", "nightly")["data"]["nightly.sh"])
    return subprocess.run(
        ["sh", str(home / "nightly.sh")], env=environment, capture_output=True, text=True, timeout=120
    )


def test_nightly_copies_the_rayjob_and_waits(kubernetes: Kubernetes, tmp_path: Path) -> None:
    done = run_nightly(kubernetes, tmp_path)
    assert done.returncode == 0, done.stderr
    assert kubernetes.states == ["Complete"]
    (created,) = kubernetes.created
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "nightly-29384720", "uid": "abcd"}
    assert created == {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": "nightly-29384720-ray", "namespace": "matting", "ownerReferences": [owner]},
        "spec": find("overlays/gpu", "RayJob", "predict")["spec"] | {"suspend": False},
    }


def test_failed_nightly_run_is_not_repeated_by_a_new_pod(kubernetes: Kubernetes, tmp_path: Path) -> None:
    kubernetes.states[:] = ["Running", "Failed"]
    for _ in range(2):
        done = run_nightly(kubernetes, tmp_path)
        assert done.returncode == 1
        assert "AppFailed: exit code 1" in done.stderr
    assert len(kubernetes.created) == 1


def test_nightly_fails_without_a_rayjob_to_copy(kubernetes: Kubernetes, tmp_path: Path) -> None:
    del kubernetes.rayjobs["predict"]
    done = run_nightly(kubernetes, tmp_path)
    assert done.returncode != 0
    assert "NotFound" in done.stderr
    assert not kubernetes.created
