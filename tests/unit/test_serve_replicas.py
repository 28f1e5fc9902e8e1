"""A replica behind a handle of Ray Serve, in its own mode for tests, which starts no Ray; on Ray: tests/integration."""

from pathlib import Path

import numpy as np
import pytest
import ray
from serving import Client, described, served
from tiny import save_model

import endoreward
from jobs.serve.batching import Lost, Unready
from jobs.serve.inprocess import scorer_spec
from jobs.serve.replicas import PER_REPLICA, Replica, Replicas, room, threads
from jobs.serve.run import desk_of, open_renderers
from pipeline.config import ModelConfig


@pytest.mark.slow  # the import of Ray Serve
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pydantic, within Ray Serve
def test_a_server_whose_batches_go_through_a_handle(tmp_path: Path) -> None:
    from ray import serve

    config = described(save_model(tmp_path / "m"))
    running = [2]

    def open_model(name: str, model: ModelConfig) -> Replicas:
        deployment = serve.deployment(name=name)(Replica).bind(scorer_spec(config, model, "cpu"))
        return Replicas(
            serve.run(deployment, name=name, route_prefix=None, _local_testing_mode=True), lambda: running[0]
        )

    desk = desk_of(config, open_renderers(config), open_model, batches=2 * PER_REPLICA)
    with served(config, desk=desk) as client:
        texts = ["cd", "abcd", "d a"]
        label = endoreward.Scorer.from_pretrained(config.model.name, device="cpu").score("ab", texts)
        answers = client.post("/v1/rewards", {"inputs": [{"prompt": "ab", "responses": texts}]}).json["data"]
        np.testing.assert_allclose([row["reward"] for row in answers], [each.reward for each in label], rtol=1e-5)
        _without_replicas(client, running)
    assert not ray.is_initialized()


def _without_replicas(client: Client, running: list[int]) -> None:
    """A request gets 503 and when to come back, which `remote` does."""
    running[0] = 0
    while client.get("/health").status == 200:
        pass
    answer = client.post("/v1/rewards", {"inputs": [{"prompt": "ab", "responses": ["cd"]}]})
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    assert answer.sentence == "the model is being loaded, or has no replica now; try again"
    running[0] = 1
    while client.get("/health").status == 503:
        pass
    assert client.post("/v1/rewards", {"inputs": [{"prompt": "ab", "responses": ["cd"]}]}).status == 200


@pytest.mark.slow  # the import of Ray Serve
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_ray_serve_raises_says_who_may_answer_yet() -> None:
    """Where the model did not deploy nobody; where a call or its replica ended another replica."""
    from ray import serve
    from ray.serve._private.common import DeploymentID
    from ray.serve.exceptions import DeploymentUnavailableError, RayServeException, RequestCancelledError

    class Refusing:
        error: Exception = ValueError("the model's")

        def shape(self) -> tuple[int, str]:
            return 10, "none"

        def score(self, turns: object) -> None:
            raise self.error

    class Raised:
        """A handle whose call ends with Ray Serve's own error, which none of its replicas raised."""

        def __init__(self, error: Exception):
            self.error, self.score = error, self

        def remote(self, turns: object) -> "Raised":
            return self

        def result(self) -> None:
            raise self.error

    handle = serve.run(serve.deployment(Refusing).bind(), name="refusing", _local_testing_mode=True)
    replicas = Replicas(handle, lambda: 1)
    with pytest.raises(ValueError, match="the model's"):
        replicas.score([])
    for error, expected in (
        (DeploymentUnavailableError(DeploymentID("m")), Unready),
        (RequestCancelledError("7"), Lost),
        (RayServeException("its replica left"), Lost),
    ):
        replicas._handle = Raised(error)
        with pytest.raises(expected):
            replicas.score([])
    replicas.close()


@pytest.mark.parametrize(
    ("nodes", "replicas", "gpus", "cpus", "there"),
    [
        ([(2, 0)], 1, 0, 2, 1),
        ([(2, 0)], 2, 0, 1, 2),
        ([(2, 0)], 3, 0, 1, 2),  # no room for all
        ([(3, 0), (3, 0)], 3, 0, 1, 6),  # of 2 CPUs each, two would fit
        ([(8, 0), (4, 0)], 3, 0, 4, 3),
        ([(16, 8), (4, 0)], 4, 1, 1, 8),
        ([(16, 8)], 4, 4, 1, 2),
    ],
)
def test_replicas_share_the_cpus(nodes: list[tuple[int, int]], replicas: int, gpus: int, cpus: int, there: int) -> None:
    resources = [{"CPU": float(of_cpus), "GPU": float(of_gpus)} for of_cpus, of_gpus in nodes]
    assert threads(resources, replicas, gpus) == cpus and room(resources, cpus, gpus) == there
