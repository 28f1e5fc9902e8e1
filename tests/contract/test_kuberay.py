"""deploy/kuberay/: what KubeRay's operator and Ray's autoscaler read there is what we claim of it, and holds no secret.

The schemas of KubeRay's CRDs are not in this repository: where they lie beside it, the files are held against them, an unknown
field included, which `kubectl apply` refuses too.
"""

import copy
import gzip
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from ray.autoscaler._private.constants import AUTOSCALER_METRIC_PORT
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from pipeline import __version__
from pipeline.config import LabelConfig, load_config_as
from pipeline.rl.config import RlConfig
from pipeline.training.config import LearningConfig, TrainConfig

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kuberay"
FILES = {path.stem: path for path in sorted(FOLDER.glob("ray*.yaml"))}
KINDS = {"label": LabelConfig, "train": TrainConfig, "rl": RlConfig}
MARKET = "ray.io/market-type"

each_file = pytest.mark.parametrize("name", FILES)
each_job = pytest.mark.parametrize("command", KINDS)


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(FILES[name].read_text()))


def cluster_of(name: str) -> dict[str, Any]:
    """The RayClusterSpec of a file."""
    spec: dict[str, Any] = documents(name)[-1]["spec"]
    return spec.get("rayClusterSpec", spec)


def pods(name: str) -> list[dict[str, Any]]:
    cluster = cluster_of(name)
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def config_of(command: str, folder: Path) -> LabelConfig | LearningConfig:
    """The configuration in the ConfigMap of a job, as the command reads it."""
    [(name, text)] = documents(f"rayjob-{command}")[0]["data"].items()
    (folder / name).write_text(text)
    config = load_config_as(KINDS[command], str(folder / name), [], [])
    assert isinstance(config, LabelConfig | LearningConfig)
    return config


def test_there_are_three_jobs_and_a_cluster() -> None:
    assert set(FILES) == {"rayjob-label", "rayjob-train", "rayjob-rl", "raycluster"}


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """A CRD's schema as JSON Schema: a field that it does not name is refused, as the API server does."""
    strict_schema = {
        key: strict(value) if isinstance(value, dict) else value
        for key, value in schema.items()
        if not key.startswith("x-kubernetes-") and key not in ("properties", "format")
    }
    if "properties" in schema:
        strict_schema["properties"] = {name: strict(each) for name, each in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            strict_schema.setdefault("additionalProperties", False)
    return strict_schema


@pytest.fixture(scope="module")
def validators(shared: Path) -> dict[str, Draft202012Validator]:
    """Of the kinds that KubeRay defines, by name."""
    folder = shared / "kuberay"
    if not folder.is_dir():
        pytest.skip("KubeRay's CRDs, ../shared/kuberay, are not here")
    validators = {}
    for path in folder.glob("*.yaml.gz"):
        crd = yaml.safe_load(gzip.decompress(path.read_bytes()))
        [schema] = [v["schema"]["openAPIV3Schema"] for v in crd["spec"]["versions"] if v["name"] == "v1"]
        schema["properties"]["metadata"] = {"type": "object", "additionalProperties": True}
        validators[crd["spec"]["names"]["kind"]] = Draft202012Validator(strict(schema))
    assert validators.keys() == {"RayCluster", "RayJob"}
    return validators


@each_file
def test_it_fits_kuberays_schema(name: str, validators: dict[str, Draft202012Validator]) -> None:
    *_, document = documents(name)
    assert document["apiVersion"] == "ray.io/v1"
    found = [f"{list(error.path)}: {error.message}" for error in validators[document["kind"]].iter_errors(document)]
    assert not found


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("spec", "backOffLimit"), 2),  # no such field
        (("spec", "backoffLimit"), "2"),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "none"),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0, "imag"), "x"),
    ],
)
def test_the_schema_would_notice(
    place: tuple[str | int, ...], value: Any, validators: dict[str, Draft202012Validator]
) -> None:
    broken = copy.deepcopy(documents("rayjob-label")[-1])
    assert validators["RayJob"].is_valid(broken)
    inner: Any = broken
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    assert not validators["RayJob"].is_valid(broken)


@each_file
def test_rays_autoscaler_reads_what_we_mean(name: str) -> None:
    resource = {"metadata": {"name": name, "namespace": "default"}, "spec": cluster_of(name)}
    read = _derive_autoscaling_config_from_ray_cr(resource)
    types = dict(read["available_node_types"])
    head = types.pop(read["head_node_type"])
    assert head["resources"]["CPU"] == 0 and "GPU" not in head["resources"]
    assert all(each["min_workers"] == 0 < each["max_workers"] for each in types.values())
    on_gpus = {group for group, each in types.items() if each["resources"].get("GPU", 0) >= 1}
    assert on_gpus == {group for group in types if group.startswith("gpu")} != set()
    markets = {group: types[group]["labels"].get(MARKET) for group in on_gpus}
    assert markets == {group: "spot" if group == "gpu-spot" else "on-demand" for group in on_gpus}
    assert read["idle_timeout_minutes"] == 5


def test_the_cluster_that_stays_has_every_group_as_the_jobs_have_it() -> None:
    groups = {group["groupName"]: group for group in cluster_of("raycluster")["workerGroupSpecs"]}
    assert groups.keys() == {"cpu", "gpu", "gpu-spot"}
    for name in FILES:
        assert all(group == groups[group["groupName"]] for group in cluster_of(name)["workerGroupSpecs"]), name
        other = {key for key in cluster_of(name) if cluster_of(name)[key] != cluster_of("raycluster")[key]}
        assert other <= {"headGroupSpec", "workerGroupSpecs"}, name


@each_file
def test_versions_are_ours(name: str) -> None:
    [pinned] = re.findall(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert cluster_of(name)["rayVersion"] == pinned
    assert f"FROM rayproject/ray:{pinned}-" in (ROOT / "deploy" / "Dockerfile").read_text()
    images = {container["image"] for pod in pods(name) for container in pod["containers"]}
    assert len(images) == 1 and images.pop().endswith(f"/endoreward:{__version__}")


@each_file
def test_a_pod_gets_what_it_asks_for(name: str) -> None:
    """Requests are limits, so that the kernel kills nobody for what the node promised to others."""
    containers = [container for pod in pods(name) for container in pod["containers"]]
    for each in [*containers, cluster_of(name)["autoscalerOptions"]]:
        assert each["resources"]["requests"] == each["resources"]["limits"]
        assert {"cpu", "memory"} <= each["resources"]["limits"].keys()


@each_file
def test_nobody_gets_in_or_up(name: str) -> None:
    assert cluster_of(name)["authOptions"] == {"mode": "token"}
    for pod in pods(name):
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert "env" not in container, "what is secret comes from a Secret, by KubeRay or the pod's role"
    secret = re.compile(r"password|passwd|secret|access_?key|api_?key|credential|private_?key|token", re.IGNORECASE)
    assert [key for document in documents(name) for key in _keys(document) if secret.search(key)] == []


def _keys(value: Any) -> Iterator[str]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    yield from value if isinstance(value, dict) else ()
    for each in inner:
        yield from _keys(each)


@each_job
def test_a_job_is_tried_again_and_leaves_nothing_running(command: str) -> None:
    config_map, job = documents(f"rayjob-{command}")
    spec = job["spec"]
    assert spec["backoffLimit"] == 2 and spec["shutdownAfterJobFinishes"] is True
    [file] = config_map["data"]
    [head] = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    [mount] = head["volumeMounts"]
    assert spec["entrypoint"] == f"endoreward {command} {mount['mountPath']}/{file}"
    [volume] = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"]
    assert (volume["name"], volume["configMap"]["name"]) == (mount["name"], config_map["metadata"]["name"])


@each_job
def test_a_jobs_configuration_fits_its_cluster(command: str, tmp_path: Path) -> None:
    config = config_of(command, tmp_path)
    groups = {group["groupName"]: group for group in cluster_of(f"rayjob-{command}")["workerGroupSpecs"]}
    [group] = [group for name, group in groups.items() if name.startswith("gpu")]
    assert config.run.label_selector == group["labels"]
    cpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert config.output.path.startswith("s3://")
    if isinstance(config, LabelConfig):
        assert config.scorer.device == "cuda" and config.scorer.max_actors == group["maxReplicas"]
        return
    actors = config.sampler.actors + config.rewarder.actors if isinstance(config, RlConfig) else 0
    assert config.learner.device == "cuda" and config.learner.workers
    assert config.learner.workers + actors == group["maxReplicas"]
    assert config.learner.cpus_per_worker < cpus


def test_prometheus_scrapes_ports_that_pods_have() -> None:
    """Of Ray on every pod, of the autoscaler on heads, by the numbers that Ray has for them."""
    monitor = yaml.safe_load((FOLDER / "podmonitor.yaml").read_text())
    scraped = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
    for name in FILES:
        head, *workers = [{p["name"]: p["containerPort"] for p in pod["containers"][0]["ports"]} for pod in pods(name)]
        assert {port: head.get(port) for port in scraped} == {"metrics": 8080, "as-metrics": AUTOSCALER_METRIC_PORT}
        assert all(worker["metrics"] == 8080 for worker in workers)
