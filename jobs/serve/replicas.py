"""Replicas of a model on Ray Serve: each scores one batch while the next waits at its door, and one that ends is replaced.

The queue, the routes and all that HTTP asks for stay in the process of the command (`jobs.serve.batching`) whatever the number
of replicas: a batch goes to whichever is free, and a batch whose replica ended goes to another.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from actors.scorer import ScorerSpec
from jobs import cluster
from jobs.serve.batching import Answers, Lost, Unready
from jobs.serve.inprocess import InProcess, scorer_spec
from jobs.terminal import say, warn
from pipeline.config import ModelConfig, ServeConfig
from pipeline.errors import ConfigError, RunError, last_line
from pipeline.tokens import TokenizedTurn

PER_REPLICA = 2  # batches: the one that is computed, and the one that comes next
LOAD_OF_ONE = 1.5  # batches at a replica, above which there are to be more: as a rule one waits
UP_AFTER_S, DOWN_AFTER_S = 10.0, 120.0
TRIES = 3  # to load a model, before the command ends
LOOK_EVERY_S = 1.0  # how many replicas there are, and whether each lives


class Replica:
    """A scorer in a process of Ray Serve's."""

    def __init__(self, spec: ScorerSpec):
        spec.limit_threads()
        self._scorer = InProcess(spec)

    def shape(self) -> tuple[int, str]:
        return self._scorer.batch_tokens, self._scorer.layout

    def score(self, turns: Sequence[TokenizedTurn]) -> Answers:
        return self._scorer.score(turns)


class Replicas:
    """All replicas of a model as one scorer, which takes several batches at once.

    Args:
        handle: of the deployment.
        running: asks Ray Serve how many replicas there are.
    """

    def __init__(self, handle: Any, running: Callable[[], int]):
        self._handle, self._running = handle, running
        self.batch_tokens, self.layout = handle.shape.remote().result()
        self.replicas: int = running()
        self._closed = threading.Event()
        threading.Thread(target=self._look, name="replicas", daemon=True).start()

    @property
    def at_once(self) -> int:
        return PER_REPLICA * self.replicas

    def score(self, turns: Sequence[TokenizedTurn]) -> Answers:
        """Raises Lost where the replica ended before it answered, Unready where Ray Serve has given up on all of them."""
        import ray.exceptions
        from ray.serve.exceptions import DeploymentUnavailableError, RayServeException

        bare = [replace(turn, prompt=[]) for turn in turns]  # what is scored, and no text
        try:
            answers: Answers = self._handle.score.remote(bare).result()
            return answers
        except ray.exceptions.RayTaskError:
            raise
        except DeploymentUnavailableError:
            raise Unready("the model has no replica now") from None
        except (RayServeException, ray.exceptions.RayError) as error:
            raise Lost(type(error).__name__) from None

    def _look(self) -> None:
        while not self._closed.wait(LOOK_EVERY_S):
            with contextlib.suppress(Exception):  # Ray Serve's controller may be on its way back
                self.replicas = self._running()

    def close(self) -> None:
        self._closed.set()


class Deployments:
    """The models of a server on Ray Serve, each an application of its own, named by the server's port."""

    def __init__(self, config: ServeConfig, port: int):
        """Raises ConfigError where this machine has no room for them."""
        self._config, self._port = config, port
        self._device = cluster.pick_device(config)
        self._gpus = config.scorer.gpus_per_actor if self._device == "cuda" else 0
        self._cpus = self._pick_cpus()
        self._scorers: list[Replicas] = []
        self._applications: list[str] = []
        self._one = threading.Lock()  # Ray Serve cannot be asked for two deployments at once

    def _pick_cpus(self) -> int:
        config, section = self._config, self._config.serve
        nodes = [node["Resources"] for node in cluster.usable_nodes(config.run)]
        models = len(config.models)
        cpus = config.scorer.cpus_per_actor or threads(nodes, section.most_replicas * models, self._gpus)
        least, there = section.least_replicas * models, room(nodes, cpus, self._gpus)
        if there < least:
            short = (
                f"has room for {there} replicas of {cpus} CPUs and {self._gpus} GPUs, and serve.replicas or "
                f"serve.min_replicas asks for {least}; lower it, scorer.cpus_per_actor or scorer.gpus_per_actor"
            )
            if not cluster.joins_cluster(config.run):
                raise ConfigError(f"this machine {short}")
            warn(f"the cluster {short}, or add nodes: a model is ready once its replicas have room")
        return cpus

    def open(self, name: str, model: ModelConfig) -> Replicas:
        """Starts a model's replicas, and waits for them. Raises RunError where none can load it."""
        from ray import serve

        application = f"endoreward-{self._port}-{name}"
        self._applications.append(application)
        spec = scorer_spec(self._config, model, self._device, self._gpus, self._cpus)
        try:
            with self._one:
                deployment = serve.deployment(name=name, **self._options())(Replica).bind(spec)
                handle = serve.run(deployment, name=application, route_prefix=None)
        except RuntimeError as error:
            known = serve.status().applications.get(application)
            why = known.deployments[name].message if known and name in known.deployments else ""  # a traceback
            raise RunError(f"the replicas of {name} do not start: {last_line(why or error)}") from None

        def running() -> int:
            states: dict[Any, int] = dict(serve.status().applications[application].deployments[name].replica_states)
            return states.get("RUNNING", 0)

        scorer = Replicas(handle, running)
        self._scorers.append(scorer)
        say(f"{name} is loaded ({scorer.layout} on {self._device}, {scorer.replicas} replicas)")
        return scorer

    def _options(self) -> Mapping[str, Any]:
        section = self._config.serve
        asked: dict[str, Any] = {"num_cpus": self._cpus, "num_gpus": self._gpus, **cluster.placed(self._config.run)}
        count: dict[str, Any] = {"num_replicas": section.replicas}
        if section.max_replicas is not None:
            count = {
                "autoscaling_config": {
                    "min_replicas": section.min_replicas,
                    "max_replicas": section.max_replicas,
                    "target_ongoing_requests": LOAD_OF_ONE,
                    "look_back_period_s": UP_AFTER_S,
                    "metrics_interval_s": UP_AFTER_S / 2,
                    "upscale_delay_s": UP_AFTER_S,
                    "downscale_delay_s": DOWN_AFTER_S,
                }
            }
        return {
            **count,
            "max_ongoing_requests": PER_REPLICA,
            "max_constructor_retry_count": TRIES,
            "health_check_period_s": LOOK_EVERY_S,
            "graceful_shutdown_timeout_s": section.shutdown_s,
            "ray_actor_options": asked,
        }

    def close(self, stays: bool) -> None:
        """Ends the replicas of a cluster that stays, and Ray Serve where that has nothing more; another ends as a whole."""
        from ray import serve

        for scorer in self._scorers:
            scorer.close()
        for application in self._applications if stays else ():
            serve.delete(application)
        if stays and not serve.status().applications:
            serve.shutdown()


def room(nodes: Sequence[Mapping[str, float]], cpus: int, gpus: int) -> int:
    """Replicas that nodes of these resources hold, each on one node."""
    there = ((int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes)
    return sum(min(on_node // cpus, on_gpus // gpus if gpus else on_node) for on_node, on_gpus in there)


def threads(nodes: Sequence[Mapping[str, float]], replicas: int, gpus: int) -> int:
    """CPUs of a replica where none are configured: 1 beside a GPU, else as many as all of them can have."""
    most = max((int(node.get("CPU", 0)) for node in nodes), default=1)
    return next((cpus for cpus in range(1 if gpus else most, 1, -1) if room(nodes, cpus, 0) >= replicas), 1)


@contextlib.contextmanager
def deployments(config: ServeConfig, port: int) -> Iterator[Deployments]:
    """Ray Serve for as long as the block runs; what others run on the same cluster stays. Raises ConfigError, RunError."""
    with cluster.cluster(config.run):
        from ray import serve

        for name in ("ray.serve", "ray.serve._private"):
            logging.getLogger(name).setLevel(logging.ERROR)
        serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR", "enable_access_log": False})
        opened = Deployments(config, port)
        try:
            yield opened
        finally:
            opened.close(cluster.joins_cluster(config.run))
