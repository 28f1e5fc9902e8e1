"""A training run's workers from the driver's side: what room they need, how they are started, what they show of their steps.

Serves `train` and `rl`, which differ in what a worker does in a step (`jobs.train.recipe`, `jobs.rl.recipe`).
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from jobs import terminal
from jobs.cluster import environment, joins_cluster, placed, usable
from jobs.stores.metrics import StepMetrics
from pipeline import storage
from pipeline.config import ClusterConfig, ModelConfig
from pipeline.errors import ConfigError, RunError, StoreError, last_line
from pipeline.models.loading import load_settings
from pipeline.training.config import LearnerConfig, LearningConfig
from pipeline.training.metrics import Follower
from pipeline.training.run import CHECKPOINTS, RunFolder

if TYPE_CHECKING:
    from jobs.learning.loop import Recipe

POLL_S = 1.0
RESIZES_S = 30.0  # least time between two changes of the number of workers, where that may change
WATCHES_NODES = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"  # by another actor, for nodes that a cloud takes back
STARTS_WITHIN = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"  # else the number of workers is thought over
COUNTED_S = 20  # how often Ray Train looks which nodes elastic workers may have; one that is gone counts until then
COLLECTIVE_S = 7 * 24 * 3600
"""How long workers wait for each other. Ray notices the dead; what is slow is alive: the first worker measures on held-out
prompts, uploads a policy or waits for samplers to find room while the others stand in a collective."""


def absolute_model(named: ModelConfig) -> ModelConfig:
    """A local folder by its absolute path, a hub model by the commit that it resolves to now."""
    local = os.path.isdir(named.name)
    commit = None if local or not named.name else getattr(load_settings(named), "_commit_hash", None)
    return named.model_copy(update={"name": storage.absolute_folder(named.name), "revision": commit or named.revision})


def position_notes(config: LearningConfig, settings: Any, longest: int) -> list[str]:
    """What a person should know where the policy scales its positions by the longest sequence of a call.

    Args:
        settings: the policy's configuration.
        longest: tokens of the longest prompt and response together.
    """
    from pipeline.models.scoring.scorer import rope_limit  # late: torch

    limit = rope_limit(settings.get_text_config())
    if limit is None or longest <= limit:
        return []
    return [
        f"{config.policy.name} scales the positions of all that is computed together where one sequence has more than {limit} "
        f"tokens, and the longest here has {longest}: what shares a micro-batch with it is learnt from otherwise than it was "
        f"labelled or sampled; label or sample with tokens.max_length = {limit}"
    ]


def gpus_of(config: LearningConfig) -> int:
    """GPUs that there are now for this run. Call it connected where the run joins a cluster."""
    if joins_cluster(config.run):
        return int(usable(config.run, "GPU"))
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def cpus_of(config: LearningConfig) -> int:
    """CPUs that there are now for this run. Call it connected where the run joins a cluster."""
    if joins_cluster(config.run):
        return int(usable(config.run, "CPU"))
    return config.run.num_cpus or os.cpu_count() or 1


def pick_workers(config: LearningConfig, spare_gpus: int = 0) -> tuple[str, int]:
    """Device and number of workers. Call it connected where the run joins a cluster.

    Args:
        spare_gpus: how many are kept for other actors where the number is left open.

    Raises:
        ConfigError: where this machine has no room for the workers; a cluster may grow.
    """
    learner, gpus = config.learner, gpus_of(config)
    device = learner.device if learner.device != "auto" else "cuda" if gpus else "cpu"
    workers = learner.workers or (max(1, gpus - spare_gpus) if device == "cuda" else 1)
    cpus, per_worker = cpus_of(config), learner.cpus_per_worker
    fits = workers * per_worker <= cpus and (device == "cpu" or workers <= gpus)
    if not joins_cluster(config.run) and not fits:
        raise ConfigError(
            f"{workers} workers of {per_worker} CPUs{' and a GPU' if device == 'cuda' else ''} do not fit this machine "
            f"({cpus} CPUs, {gpus} GPUs); lower learner.workers or learner.cpus_per_worker"
        )
    return device, workers


def warn_of_room(run: ClusterConfig, who: str, cpus: int, gpus: float, remedy: str) -> None:
    """A cluster may grow or get free: what the run reserves is waited for. Call it connected.

    Args:
        run: says on which nodes.
        who: what needs `cpus` and `gpus`, such as "2 workers".
        remedy: what would make it less, such as "lower learner.workers".
    """
    import ray

    free = ray.available_resources()
    free_cpus, free_gpus = (min(free.get(resource, 0.0), usable(run, resource)) for resource in ("CPU", "GPU"))
    if free_cpus < cpus or free_gpus < gpus:
        nodes = f" on nodes with {run.label_selector}" if run.label_selector else ""
        terminal.warn(
            f"{who} need {cpus} CPUs and {gpus:g} GPUs, and the cluster has {free_cpus:g} and {free_gpus:g} free{nodes}: the "
            f"run waits until it has; {remedy}, or add nodes"
        )


def run_workers(recipe: "Recipe[Any]", folder: RunFolder, workers: int, gpus: float = 1.0) -> None:
    """Run the recipe's loop on every worker until all have ended.

    Args:
        gpus: that each worker reserves where they are on GPUs; less than one where others share it.

    Raises:
        RunError: where the run cannot go on.
    """
    import ray
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from jobs.learning.loop import work

    config, device = recipe.config, recipe.device
    filesystem, path = storage.locate(folder.uri)
    resources: dict[str, float] = {"CPU": config.learner.cpus_per_worker}
    if device == "cuda":
        resources["GPU"] = gpus
    trainer = TorchTrainer(
        work,
        train_loop_config={"recipe": ray.put(recipe)},  # Ray Train's controller, too, reads what stands here
        torch_config=TorchConfig(backend="nccl" if device == "cuda" else "gloo", timeout_s=COLLECTIVE_S),
        scaling_config=_scaling(
            config.learner,
            workers,
            use_gpu=device == "cuda",
            resources_per_worker=resources,
            **placed(config.run),
        ),
        run_config=ray.train.RunConfig(
            name=CHECKPOINTS,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=_failures(config.learner),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=config.checkpoint.keep),
        ),
    )
    _spare_actors(trainer)
    variables = _variables(config.learner, recipe.nodes_go)
    try:
        with _watched(folder, recipe.steps), _own_interrupts(), environment(variables):
            trainer.fit()
    except Exception as error:
        _raise_stopped(folder)
        if isinstance(error, ray.train.PreemptionError):
            raise RunError(
                "nodes of the workers were taken away more often than learner.max_preemption_failures = "
                f"{config.learner.max_preemption_failures}; what is in the last checkpoint is kept: run the same again to go "
                "on, with a larger number, or without one"
            ) from error
        raise RunError(
            f"the workers died more often than learner.max_failures = {config.learner.max_failures}: {last_line(error)}\n"
            "what is in the last checkpoint is kept; run the same again to go on, with --set run.verbose=true to see the "
            "workers' logs"
        ) from error
    _raise_stopped(folder)


def _variables(learner: LearnerConfig, nodes_go: bool) -> dict[str, str]:
    """What Ray Train is told by its environment alone."""
    variables = {} if nodes_go else {WATCHES_NODES: "0"}
    return variables | ({STARTS_WITHIN: str(COUNTED_S)} if learner.min_workers else {})


def _failures(learner: LearnerConfig) -> Any:
    """How often Ray Train starts workers again: those that die, and those whose nodes were taken away."""
    import ray.train

    taken = learner.max_preemption_failures
    limits: dict[str, Any] = {
        "max_failures": learner.max_failures,
        "max_preemption_failures": -1 if taken is None else taken,
    }
    return ray.train.FailureConfig(**limits)


def _scaling(learner: LearnerConfig, workers: int, **each: Any) -> Any:
    """How many workers, always or at most; `each` is what one of them asks for."""
    import ray.train

    if learner.min_workers:
        each |= {"elastic_resize_monitor_interval_s": RESIZES_S}
    each["num_workers"] = (learner.min_workers, workers) if learner.min_workers else workers
    return ray.train.ScalingConfig(**each)


@contextlib.contextmanager
def _own_interrupts() -> Iterator[None]:
    """Ray Train takes SIGINT for its controller and keeps it; what follows in this process, a notebook's, has it back."""
    own = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if own is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, own)


def _spare_actors(trainer: Any) -> None:
    """Do without actors of Ray Train that have nothing to do; each takes seconds to start, and there is no setting for them.

    One shares out Ray datasets, of which we give none. Another clears away the reservations of a run that died: it asks Ray's
    dashboard, and where there is none, it is waited for in vain, twelve seconds at the end of each run. (A local Ray of ours
    has none, and the reservations end with it.)
    """
    import ray

    spared = {"DatasetsCallback"}
    if not ray.init(ignore_reinit_error=True, configure_logging=False).dashboard_url:
        spared.add("PlacementGroupCleanerCallback")
    makes = trainer._create_default_callbacks
    trainer._create_default_callbacks = lambda: [each for each in makes() if type(each).__name__ not in spared]


def _raise_stopped(folder: RunFolder) -> None:
    stopped = folder.stopped()
    if stopped is not None:
        checkpoint = f"\nWhat is in the last checkpoint is kept in {folder.at(CHECKPOINTS)}" if folder.begun else ""
        raise RunError(stopped.sentence + checkpoint)


def learner_versions() -> dict[str, str]:
    return {name: version(name) for name in ("deepspeed", "peft")}


@contextlib.contextmanager
def _watched(folder: RunFolder, steps: int) -> Iterator[None]:
    """Shows what the workers write of their steps, on the terminal and to Prometheus, for as long as the block runs."""
    ended = threading.Event()

    def watch(progress: terminal.TrainProgress, metrics: StepMetrics) -> None:
        while True:
            over = ended.wait(POLL_S if storage.is_local(folder.uri) else 5 * POLL_S)
            with contextlib.suppress(StoreError, OSError):
                for row in rows.new():
                    progress.update(row)
                    metrics.update(row)
            if over:
                return

    rows = Follower(folder.at("metrics.jsonl"))
    with (
        terminal.TrainProgress(steps, rows.step) as progress,
        StepMetrics(folder.uri, steps, rows.step) as metrics,
    ):
        watcher = threading.Thread(target=watch, args=(progress, metrics), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
