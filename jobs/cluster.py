"""The only place that opens a Ray cluster: a submitted job's, one at an address, or a local one."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

from jobs import terminal
from jobs.flow import Pool
from pipeline import storage
from pipeline.config import ClusterConfig, LabelConfig
from pipeline.errors import ConfigError


@contextlib.contextmanager
def cluster(run: ClusterConfig) -> Iterator[None]:
    """A connected Ray for as long as the block runs; its chatter is kept out of the terminal unless asked for.

    A Ray that this process has already, of a notebook or of a command before, is used as it is and left running.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    address = run.ray_address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"log_to_driver": run.verbose, "logging_level": logging.ERROR}
    if address is None:
        options |= {"address": "local", "num_cpus": run.num_cpus, "include_dashboard": False}
        terminal.say("starting Ray ...")
    else:
        options |= {"address": address}
        terminal.say(f"connecting to Ray at {address} ...")
    if not run.verbose:
        logging.getLogger("ray").setLevel(logging.ERROR)
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors reach us as exceptions
    try:
        with _quiet_stderr(run.verbose):
            ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"cannot reach a Ray cluster at {address or 'this machine'}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _quiet_stderr(verbose: bool) -> Iterator[None]:
    """Keep what Ray's C++ core prints of itself while it starts out of the terminal."""
    if verbose:
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def warn_of_local_output(output: str) -> None:
    """Commits run on any node, so a local output must be a disk that all nodes share. Call it connected."""
    import ray

    if not storage.is_local(output):
        return
    if sum(node["Alive"] for node in ray.nodes()) > 1:
        terminal.warn(
            f"output.path = {output} is local and this cluster has several nodes: unless they share that "
            "disk, every node keeps its own part of the store; give s3:// or gs://"
        )
    if "/runtime_resources/" in output:
        terminal.warn(
            f"output.path = {output} lies in the job's working directory, which goes with the job; give an "
            "absolute path"
        )


def joins_cluster(run: ClusterConfig) -> bool:
    """True when the run joins a cluster rather than starting a local Ray."""
    return bool(run.ray_address or os.environ.get("RAY_ADDRESS"))


def pick_device(config: LabelConfig) -> str:
    """ "cpu" or "cuda": as configured, else by what there is. Call it connected where the run joins a cluster."""
    if config.scorer.device != "auto":
        return config.scorer.device
    if joins_cluster(config.run):
        import ray

        return "cuda" if ray.cluster_resources().get("GPU", 0) >= 1 else "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def pick_pool(config: LabelConfig, device: str) -> Pool:
    """How many actors of what size. Call it connected.

    Raises ConfigError where no node is large enough for one actor and the cluster does not grow.
    """
    import ray

    scorer, resources = config.scorer, ray.cluster_resources()
    gpus = scorer.gpus_per_actor if device == "cuda" else 0
    node_cpus = [int(n["Resources"].get("CPU", 0)) for n in ray.nodes() if n["Alive"]]
    cpus = scorer.cpus_per_actor or (1 if gpus else min([c for c in node_cpus if c], default=1))
    most = scorer.max_actors or max(scorer.min_actors, int(resources.get("GPU", 0)) // gpus if gpus else 1)
    if not joins_cluster(config.run):
        room = int(resources.get("CPU", 0)) // cpus
        if gpus:
            room = min(room, int(resources.get("GPU", 0)) // gpus)
        if room < scorer.min_actors:
            raise ConfigError(
                f"this machine has room for {room} actors of {cpus} CPUs and {gpus} GPUs, scorer.min_actors asks for "
                f"{scorer.min_actors}; lower it, scorer.cpus_per_actor or scorer.gpus_per_actor"
            )
        most = min(most, room)
    return Pool(scorer.min_actors, most, cpus, gpus)
