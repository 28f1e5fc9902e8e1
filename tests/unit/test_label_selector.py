"""`run.label_selector`: what is taken is what Ray takes, and means what Ray's autoscaler takes it for."""

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray._private.label_utils import validate_label_key, validate_label_selector_value
from ray.autoscaler.v2.scheduler import SchedulingNode
from ray.autoscaler.v2.utils import ResourceRequestUtil

from jobs import cluster
from pipeline.config import ClusterConfig, LabelConfig, load_config_as
from pipeline.config.running import CONDITION, LABEL, selects
from pipeline.errors import ConfigError
from pipeline.report.toml import to_toml
from pipeline.rl.config import RlConfig
from pipeline.training.config import TrainConfig

MARKET = "ray.io/market-type"


@given(st.from_regex(LABEL, fullmatch=True), st.from_regex(CONDITION, fullmatch=True))
def test_ray_takes_what_we_take(label: str, condition: str) -> None:
    ClusterConfig(label_selector={label: condition})
    assert validate_label_key(label) is None
    assert validate_label_selector_value(condition) is None


@pytest.mark.parametrize("label", ["", "a b", "-a", "a/b/c", "a" * 64])
def test_what_is_no_label_is_refused(label: str) -> None:
    assert validate_label_key(label) is not None
    with pytest.raises(ValueError, match="no label's name"):
        ClusterConfig(label_selector={label: "x"})


@pytest.mark.parametrize("condition", ["", "a b", "!!a", "in()", "in(a,", "a,b", "!in(a b)", "a" * 64])
def test_what_is_no_condition_is_refused(condition: str) -> None:
    """The empty one too, which Ray takes: it would select nodes whose label has no value."""
    assert condition == "" or validate_label_selector_value(condition) is not None
    with pytest.raises(ValueError, match="no condition"):
        ClusterConfig(label_selector={"market": condition})


@pytest.mark.parametrize("condition", ["spot", "!spot", "in(spot, reserved)", "!in(spot,reserved)", "in(x)", "!x"])
@pytest.mark.parametrize("labels", [{}, {MARKET: "spot"}, {MARKET: "reserved"}, {MARKET: "x", "zone": "spot"}])
def test_it_selects_the_nodes_that_rays_autoscaler_would(condition: str, labels: dict[str, str]) -> None:
    negated = condition.startswith("!")
    values = condition.lstrip("!").removeprefix("in(").removesuffix(")").replace(" ", "").split(",")
    operator = 2 if negated else 1  # LABEL_OPERATOR_NOT_IN, LABEL_OPERATOR_IN
    request = ResourceRequestUtil.make({"CPU": 1}, label_selectors=[[(MARKET, operator, values)]])
    node: Any = SchedulingNode.__new__(SchedulingNode)
    node.labels = labels
    assert selects({MARKET: condition}, labels) == bool(node._satisfies_label_constraints([request]))


def test_all_conditions_count_and_none_is_any_node() -> None:
    labels = {MARKET: "spot", "zone": "a"}
    assert selects({}, {}) and selects({MARKET: "spot", "zone": "!b"}, labels)
    assert not selects({MARKET: "spot", "zone": "!a"}, labels)


@pytest.mark.parametrize("kind", [LabelConfig, TrainConfig, RlConfig])
def test_it_is_set_in_a_file_and_by_hand_and_written_out_again(kind: type[LabelConfig]) -> None:
    config = load_config_as(kind, None, [], ['run.label_selector={"ray.io/market-type" = "spot", zone = "!a"}'])
    assert config.run.label_selector == {MARKET: "spot", "zone": "!a"}
    assert kind.model_validate(tomllib.loads(to_toml(config.model_dump()))) == config
    with pytest.raises(ConfigError, match=r"run\.label_selector.*no condition"):
        load_config_as(kind, None, [], ['run.label_selector={zone="a b"}'])


def test_a_local_ray_has_no_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(ConfigError, match=r"run\.label_selector: a local Ray has no labelled nodes"):
        cluster.joins_cluster(ClusterConfig(label_selector={MARKET: "spot"}))
    assert cluster.joins_cluster(ClusterConfig(label_selector={MARKET: "spot"}, ray_address="auto"))


def test_only_labelled_nodes_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def node(gpus: int, alive: bool = True, **labels: str) -> dict[str, Any]:
        return {"Alive": alive, "Labels": labels, "Resources": {"CPU": 8.0, "GPU": float(gpus)}}

    nodes = [node(1, kind="spot"), node(1, kind="spot"), node(4), node(8, alive=False, kind="spot")]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    spot = ClusterConfig(label_selector={"kind": "spot"})
    assert (cluster.usable(spot, "GPU"), cluster.usable(ClusterConfig(), "GPU")) == (2, 6)
    assert cluster.placed(spot) == {"label_selector": {"kind": "spot"}} and cluster.placed(ClusterConfig()) == {}
    run = {"run": {"label_selector": {"kind": "spot"}}, "scorer": {"device": "cuda"}}
    assert cluster.pick_pool(LabelConfig.model_validate(run), "cuda").max_actors == 2
    none = {"run": {"label_selector": {"kind": "x"}}}
    assert cluster.pick_device(LabelConfig.model_validate(none)) == "cpu"
