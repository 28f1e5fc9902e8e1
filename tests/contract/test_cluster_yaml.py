"""cluster.yaml is valid for the Ray cluster launcher, says what we claim of it, and holds no secret."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

PATH = Path(__file__).parents[2] / "cluster.yaml"


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load(PATH.read_text())


def test_it_is_valid(cluster: dict[str, Any]) -> None:
    validate_config(prepare_config(copy.deepcopy(cluster)))


def test_the_check_would_notice(cluster: dict[str, Any]) -> None:
    broken = copy.deepcopy(cluster)
    broken["max_worker"] = 1
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config(broken))


def test_a_cpu_head_and_gpu_workers_that_come_and_go(cluster: dict[str, Any]) -> None:
    types = dict(cluster["available_node_types"])
    assert cluster["head_node_type"] == "ray.head.default"  # the autoscaler looks for a type of this name
    head = types.pop("ray.head.default")
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert all(t["min_workers"] == 0 < t["max_workers"] <= cluster["max_workers"] for t in types.values())
    gpu = {name for name, t in types.items() if t["resources"]["GPU"] > 0}
    assert gpu == {"gpu", "gpu-spot"} and types.keys() - gpu == {"cpu"}


def test_spot_nodes_are_bought_as_what_their_label_says(cluster: dict[str, Any]) -> None:
    """The autoscaler starts a node of the type whose labels a run selects: read as it reads them."""
    types = AutoscalingConfig(copy.deepcopy(cluster), skip_content_hash=True).get_node_type_configs()
    assert types is not None
    markets = {name: each.labels.get("ray.io/market-type") for name, each in types.items()}
    assert markets == {"ray.head.default": None, "cpu": None, "gpu": "on-demand", "gpu-spot": "spot"}
    bought = {n: t["node_config"].get("InstanceMarketOptions") for n, t in cluster["available_node_types"].items()}
    assert {name for name, options in bought.items() if options == {"MarketType": "spot"}} == {"gpu-spot"}
    assert all(options is None for name, options in bought.items() if name != "gpu-spot")


def test_token_authentication_is_on_on_every_node(cluster: dict[str, Any]) -> None:
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert any("RAY_AUTH_MODE=token" in c and "ray start" in c for c in cluster[commands])
    assert "RAY_AUTH_MODE=disabled" not in PATH.read_text()
    assert any(target.endswith("/.ray/auth_token") for target in cluster["file_mounts"])


def test_no_secret_in_it(cluster: dict[str, Any]) -> None:
    secret = re.compile(r"password|passwd|secret|access_?key|api_?key|credential|private_?key|^token", re.IGNORECASE)
    assert not [key for key, _ in _entries(cluster) if secret.search(key)]
    long = re.compile(r"[A-Za-z0-9+/=_-]{32,}")
    assert not [value for _, value in _entries(cluster) if isinstance(value, str) and long.fullmatch(value)]


def test_the_images_carry_our_ray(cluster: dict[str, Any]) -> None:
    pinned = re.search(r"^ray==(.+)$", (PATH.parent / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    for image in ("head_image", "worker_image"):
        assert f":{pinned[1]}-" in cluster["docker"][image]


def _entries(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _entries(each, str(name))
    elif isinstance(value, list):
        for each in value:
            yield from _entries(each, key)
    else:
        yield key, value
