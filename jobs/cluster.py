"""The only place that opens a Ray cluster: a submitted job's, one at an address, or a local one."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from jobs import terminal
from pipeline import storage
from pipeline.config import ClusterConfig, LabelConfig, ServeConfig
from pipeline.config.running import selects
from pipeline.config.section import refuse_secrets
from pipeline.errors import ConfigError, RunError, last_line

LISTENS_WITHIN_S = 5.0
ANSWERS_WITHIN_S = 40.0
JOB_SETTINGS = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""With it a process joins a cluster as the submitted job."""
DEVICES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")  # of any GPU that torch calls cuda
CONNECT = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR'); ray.nodes()"

ON_DEMAND = {"RAY_prestart_worker_first_driver": "0"}
"""Of a Ray that is started here: a worker is started when there is something for it, not one for each CPU beforehand."""

_started_here = False  # whether the Ray that this process has is a local one that `cluster` started


READ_CPUS, PREPARE_CPUS, LEFT_CPUS = 0.05, 0.1, 0.25
"""CPUs of a task that reads and of one that prepares, where an actor's node has no CPU to spare; an actor asks for LEFT_CPUS
less than it has threads, so that a reader and two that prepare find room beside it: on two CPUs as on a large cluster."""
PREPARES, MOST_READS = 4, 8  # tasks at once: that prepare, for each actor, and that read, in all


@dataclass(frozen=True)
class Pool:
    """The actors: how many, and what each asks of the cluster. `spare`: whether a node has CPUs beside its actors'."""

    min_actors: int
    max_actors: int
    cpus: int
    gpus: int
    spare: bool = False
    left: float = LEFT_CPUS  # CPUs of each that an actor does not ask for

    @property
    def actor_cpus(self) -> float:
        return self.cpus - self.left

    @property
    def prepare_cpus(self) -> float:
        return 1.0 if self.spare else PREPARE_CPUS

    @property
    def reads(self) -> int:
        """Tasks that read at once. Few: one that waits for those that prepare keeps its CPUs from them."""
        return min(self.max_actors, MOST_READS)

    @property
    def prepares(self) -> int:
        return self.max_actors * PREPARES


@contextlib.contextmanager
def cluster(run: ClusterConfig, *, data: bool = True) -> Iterator[None]:
    """A connected Ray for as long as the block runs; its chatter is kept out of the terminal unless asked for.

    Args:
        data: whether what runs may import Ray Data, as Ray Train does; on a cluster anything may.

    A Ray that this process has already, of a notebook or of a command before, is used as it is and left running. What is
    set of the process's logging and signals is taken back at the end.

    Raises:
        ConfigError: for an address that cannot be one, or where nothing listens.
        RunError: where a cluster does not answer.
    """
    global _started_here
    import ray

    if ray.is_initialized():
        yield
        return
    address = _address(run)
    if data or address is not None:
        import ray.data  # sets up its own logging as it is imported, which must not come after what is set here
    options: dict[str, Any] = {"log_to_driver": run.verbose, "logging_level": logging.ERROR}
    if address is None:
        options |= {"address": "local", "num_cpus": run.num_cpus, "include_dashboard": False}
        terminal.say("starting Ray ...")
    else:
        options |= {"address": address}
        terminal.say(f"connecting to Ray at {address} ...")
        require_answer(address)
    with _logging_and_signals_as_before():
        if not run.verbose:
            logging.getLogger("ray").setLevel(logging.ERROR)
            logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors reach us as exceptions
        try:
            with _quiet_stderr(run.verbose), environment(ON_DEMAND if address is None else {}):
                ray.init(**options)
        except Exception as error:
            ray.shutdown()
            if address is None:
                raise RunError(f"Ray cannot be started on this machine: {last_line(error)}") from error
            raise ConfigError(f"cannot reach a Ray cluster at {address}: {last_line(error)}") from error
        _started_here = address is None
        try:
            yield
        finally:
            _started_here = False
            ray.shutdown()


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Variables that processes started in the block have, unless they are set to something else."""
    ours = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def _address(run: ClusterConfig) -> str | None:
    """The cluster that is to be joined, None for a Ray of one's own. Raises ConfigError for credentials in RAY_ADDRESS, and
    for labels, which no node of one's own has."""
    address = run.ray_address or os.environ.get("RAY_ADDRESS") or "local"
    try:
        refuse_secrets(address)
    except ValueError as error:
        raise ConfigError(f"RAY_ADDRESS: {error}") from None
    if address == "local" and run.label_selector:
        raise ConfigError(
            "run.label_selector: a local Ray has no labelled nodes, and no actor would ever start; leave it out, or name a "
            "cluster in run.ray_address or RAY_ADDRESS"
        )
    return None if address == "local" else address


def require_answer(address: str) -> None:
    """Connect once in a process that can be killed: of itself Ray tries for minutes, deaf to signals, where a head is silent
    or its raylet is dead.

    Raises:
        ConfigError: for an address that cannot be one, or where nothing listens.
        RunError: where it does not answer.
    """
    listens = _require_listener(address)
    without_job = {name: value for name, value in os.environ.items() if name != JOB_SETTINGS}
    silent = (
        f"the Ray cluster at {address} takes connections and does not answer: its head hangs or has lost its raylet; start it "
        "again, or give another address in run.ray_address or RAY_ADDRESS"
    )
    try:
        tried = subprocess.run(
            [sys.executable, "-c", CONNECT, address],
            env=without_job,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=ANSWERS_WITHIN_S,
        )
    except subprocess.TimeoutExpired:
        raise RunError(silent) from None
    if tried.returncode == 0:
        return
    line = last_line(Exception(tried.stderr))
    if "AuthToken" in tried.stderr or "AuthenticationError" in tried.stderr:
        raise ConfigError(
            f"the Ray cluster at {address} asks for a token, and the one of this process is missing or another: set "
            "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file with the head's token (on the head ~/.ray/auth_token, or "
            "what RAY_AUTH_TOKEN_PATH names there)"
        )
    if (listens and line.startswith("ConnectionError")) or tried.returncode < 0:
        raise RunError(f"{silent} ({line})")
    raise ConfigError(f"cannot reach a Ray cluster at {address}: {line}")


def _require_listener(address: str) -> bool:
    """Whether the address names a port, which then takes connections. Raises ConfigError where nothing listens there, or
    RunError where nobody says so."""
    try:
        place = urlsplit(address if "://" in address else f"ray://{address}")
        host, port = place.hostname, place.port
    except ValueError as error:
        raise ConfigError(f"run.ray_address or RAY_ADDRESS = {address!r} is no address: {error}") from None
    if host is None or port is None:
        return False  # `auto`, or what Ray refuses itself
    try:
        socket.create_connection((host, port), timeout=LISTENS_WITHIN_S).close()
    except TimeoutError:
        raise RunError(
            f"the Ray cluster at {address} does not answer: no connection within {LISTENS_WITHIN_S:g} s; see whether its head "
            "runs and can be reached from here, or give another address in run.ray_address or RAY_ADDRESS"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"cannot reach a Ray cluster at {address}: {error.strerror or error}; start it, or give another address in "
            "run.ray_address or RAY_ADDRESS"
        ) from None
    return True


@contextlib.contextmanager
def _logging_and_signals_as_before() -> Iterator[None]:
    """Take back what Ray and we set of the process: levels and handlers of its loggers, what SIGTERM does."""
    loggers = [logging.getLogger(name) for name in ("ray", "ray.data")]
    before = [(each, each.level, list(each.handlers), each.propagate) for each in loggers]
    in_main = threading.current_thread() is threading.main_thread()  # elsewhere Ray sets no handler either
    on_term = signal.getsignal(signal.SIGTERM) if in_main else None
    try:
        yield
    finally:
        for logger, level, handlers, propagate in before:
            logger.setLevel(level)
            logger.handlers[:], logger.propagate = handlers, propagate
        if in_main and on_term is not None:  # None: one that was not set by Python
            signal.signal(signal.SIGTERM, on_term)


@contextlib.contextmanager
def _quiet_stderr(verbose: bool) -> Iterator[None]:
    """Keep what Ray's C++ core prints of itself while it starts out of the terminal."""
    if verbose:
        yield
        return
    sys.stderr.flush()
    copy = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(copy, 2)
            os.close(copy)


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
    """True when the run uses a Ray that it does not start: one that this process has already, or one at an address."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return not _started_here
    return _address(run) is not None


def usable_nodes(run: ClusterConfig) -> list[dict[str, Any]]:
    """The nodes that are there now and fulfil `run.label_selector`, as `ray.nodes()` has them. Call it connected."""
    import ray

    return [node for node in ray.nodes() if node["Alive"] and selects(run.label_selector, node["Labels"])]


def usable(run: ClusterConfig, resource: str) -> float:
    """How much of a resource, such as "GPU", these nodes have together, free or not. Call it connected."""
    return sum((node["Resources"].get(resource, 0.0) for node in usable_nodes(run)), 0.0)


def placed(run: ClusterConfig) -> dict[str, Any]:
    """Options of an actor that has it run on the nodes of `run.label_selector` alone."""
    return {"label_selector": dict(run.label_selector)} if run.label_selector else {}


def pick_device(config: LabelConfig | ServeConfig) -> str:
    """ "cpu" or "cuda": as configured, else by what there is. Call it connected where the run joins a cluster."""
    if config.scorer.device != "auto":
        return config.scorer.device
    if joins_cluster(config.run):
        return "cuda" if usable(config.run, "GPU") >= 1 else "cpu"
    return "cuda" if _sees_cuda() else "cpu"


def _sees_cuda() -> bool:
    """Asked of torch in another process, where there may be a device at all: this one may do without torch."""
    if sys.platform == "linux" and not any(map(os.path.exists, DEVICES)):
        return False
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def pick_pool(config: LabelConfig, device: str) -> Pool:
    """How many actors of what size. Call it connected.

    Raises ConfigError where this machine has no room for them. A cluster may grow, and is waited for with a warning.
    """
    _refuse_client()
    scorer = config.scorer
    gpus = scorer.gpus_per_actor if device == "cuda" else 0
    there_now = [node["Resources"] for node in usable_nodes(config.run)]
    nodes = [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in there_now]
    cpus = scorer.cpus_per_actor or (1 if gpus else min([there for there, _ in nodes if there], default=1))
    most = scorer.max_actors or max(scorer.min_actors, int(usable(config.run, "GPU")) // gpus if gpus else 1)
    room = sum(min(there // cpus, on_gpus // gpus if gpus else there) for there, on_gpus in nodes)  # each on one node
    short = (
        f"has room for {room} actors of {cpus} CPUs and {gpus} GPUs, scorer.min_actors asks for {scorer.min_actors}; lower "
        "it, scorer.cpus_per_actor or scorer.gpus_per_actor"
    )
    if not joins_cluster(config.run):
        if room < scorer.min_actors:
            raise ConfigError(f"this machine {short}")
        most = min(most, room)
    elif room < scorer.min_actors:
        terminal.warn(f"the cluster {short}, or add nodes: the run waits until it has")
    spare = any(there - cpus * (on_gpus // gpus if gpus else there // cpus) >= 2 for there, on_gpus in nodes)
    left = LEFT_CPUS if gpus else min([LEFT_CPUS, *(_left(there, cpus) for there, _ in nodes if there >= cpus)])
    return Pool(scorer.min_actors, most, cpus, gpus, spare, left)


def _left(there: int, cpus: int) -> float:
    """How much less than `cpus` each actor may ask for on a node of `there` CPUs, so that what they leave holds no other."""
    return 0.9 * (cpus - there / (there // cpus + 1))


def _refuse_client() -> None:
    """Raises ConfigError for a process that joined by a ray:// address, which Ray Data does not bear."""
    import ray

    if ray.util.client.ray.is_connected():
        raise ConfigError(
            "a ray:// address cannot carry the labelling flow: submit the command to the cluster (ray job submit), or run it "
            "on one of its nodes with RAY_ADDRESS=HOST:6379"
        )


def alive_nodes() -> set[str]:
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def pending_nodes() -> int | None:
    """Nodes that the autoscaler has asked for and that have not joined. None where there is no autoscaler, or one that does
    not tell Ray: what comes before `RAY_enable_autoscaler_v2`."""
    import ray
    from ray.autoscaler.v2.sdk import get_cluster_status

    try:
        status = get_cluster_status(ray.get_runtime_context().gcs_address, timeout=2)
    except Exception as error:  # whatever Ray raises: the run goes on without the figure
        logging.getLogger(__name__).info("the autoscaler cannot be asked: %s", error)
        return None
    if status.stats.autoscaler_version in (None, "0"):
        return None
    return len(status.pending_nodes) + sum(launch.count for launch in status.pending_launches)


def draining_nodes() -> set[str]:
    """Nodes that are about to go: preempted, or taken away by the autoscaler. Ray has no public name for this yet."""
    from ray._private.state import state

    asked = getattr(state, "get_draining_nodes", None)
    return set(asked()) if asked else set()
