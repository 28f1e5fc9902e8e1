"""What a training run measures, a row for each optimiser step: metrics.jsonl, and the trackers that people watch.

A row is `{"step": 1, "loss": 0.69, "rewards/accuracies": 0.5, ...}` with TRL's names; what was measured on prompts kept
from training has `eval_` in front and stands in the row of its step. metrics.jsonl is the record: the page, the model
card and a resumed run read it. Trackers get the same rows and are never read back.

Left out: two writers at once. A worker that outlived its driver does no harm on a local disk; on an object store its last
upload stands until the next of the worker that took over, which comes within seconds and at the end.
"""

import contextlib
import hashlib
import importlib.util
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from io import FileIO
from typing import Any, Self, TypeGuard

from pipeline import storage
from pipeline.errors import ConfigError, RunError, StoreError
from pipeline.store import documents
from pipeline.training.config import TrackingConfig

MetricRow = dict[str, Any]

EVAL = "eval_"  # in front of what was measured on prompts kept from training
REWRITE_S = 5.0  # least time between two uploads of the whole file
IDLE_SHARE = 20  # and they take a twentieth of the time at most
ENDS_SHARE, MOST_OF_AN_END = 20, 50  # the start of a curve is its first twentieth, but 50 values at most


# The file


class MetricsFile:
    """metrics.jsonl as the first worker writes it.

    Local: every row is in the file when `append` returns; `flush` brings them to the disk. Object store, which cannot
    append: rows are kept in memory and the file is uploaded whole every few seconds, in `flush` and in `close`.
    """

    def __init__(self, uri: str):
        self.uri = uri
        self._file: FileIO | None = None  # local, open at its end
        self._lines: list[bytes] | None = None  # all of them, of an object store
        self._unsaved, self._next_upload = False, 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row. What is None is left out; what is not finite becomes null, since JSON has no word for it.

        Raises:
            RunError: when the disk is full or cannot be written.
        """
        if self._file is None and self._lines is None:
            self.truncate(math.inf)
        line = _encode(row)
        if self._lines is not None:
            self._lines.append(line)
            self._unsaved = True
            if time.monotonic() >= self._next_upload:
                self.flush()
        elif self._file is not None:
            with self._said():
                while line:
                    line = line[self._file.write(line) :]

    def flush(self) -> None:
        """Make what was appended safe: on the disk, or uploaded. Raises RunError as `append` does."""
        if self._file is not None:
            with self._said():
                os.fsync(self._file.fileno())
        elif self._lines is not None and self._unsaved:
            started = time.monotonic()
            documents.write_bytes(self.uri, b"".join(self._lines))
            ended = time.monotonic()
            self._unsaved, self._next_upload = False, ended + max(REWRITE_S, IDLE_SHARE * (ended - started))

    def truncate(self, step: float) -> None:
        """Take away the rows after `step`, and a half-written last line: a run goes on from a checkpoint of that step.

        A new file takes the place of the old one, so that who still has the old one open writes to nobody.

        Raises:
            StoreError: for a damaged line that is not the last.
        """
        self.flush()
        lines = [line for line, row in _lines(self.uri) if row["step"] <= step]
        documents.write_bytes(self.uri, b"".join(lines))
        if not storage.is_local(self.uri):
            self._lines = lines
            return
        if self._file is not None:
            self._file.close()
        self._file = open(storage.locate(self.uri)[1], "ab", buffering=0)  # noqa: SIM115 - and holds nothing back

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        """Turns what the disk says into a sentence."""
        try:
            yield
        except OSError as error:
            raise RunError(
                f"cannot write {self.uri}: {error.strerror or error}; mend it and run the same again, which goes on from the "
                "last checkpoint"
            ) from error

    def close(self) -> None:
        self.flush()
        if self._file is not None:
            self._file.close()
        self._file = self._lines = None


def read_metrics(uri: str) -> list[MetricRow]:
    """The rows of a metrics.jsonl, also of a run that is still writing it; none where there is no file.

    A half-written last line is left out. A value that was not finite is NaN.

    Raises:
        StoreError: for a damaged line that is not the last.
    """
    return [{name: math.nan if value is None else value for name, value in row.items()} for _, row in _lines(uri)]


class Follower:
    """Sees the rows of a metrics.jsonl as they come, from where it is when this is made: for who watches a run.

    Rows that are taken away and written once more, after a kill, are seen once more.

    Attributes:
        step: of the last row that was seen, 0 without one.
    """

    def __init__(self, uri: str):
        self.uri = uri
        self._seen: list[int] = []  # a hash of each line
        self._last, self._end = b"", 0  # the last of them, and where it ends in the file
        self.step = 0
        self.new()

    def new(self) -> list[MetricRow]:
        """The rows since it was last asked. A line that is not whole, or damaged, comes later or never."""
        further = self._read_on()
        before = 0 if further is None else len(self._seen)
        content = self._read_whole() if further is None else further
        lines = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)
        hashes = [hash(line) for line in lines]
        pairs = enumerate(zip(self._seen[before:], hashes, strict=False))
        known = next((i for i, (old, new) in pairs if old != new), min(len(self._seen) - before, len(lines)))
        self._seen = self._seen[:before] + hashes
        self._end = sum(map(len, lines)) + (self._end if before else 0)
        self._last = lines[-1] if lines else self._last if before else b""
        rows = []
        for line in lines[known:]:
            with contextlib.suppress(ValueError):
                rows.append({name: math.nan if value is None else value for name, value in json.loads(line).items()})
        self.step = int(rows[-1]["step"]) if rows else self.step
        return rows

    def _read_on(self) -> bytes | None:
        """What follows the last line that was seen; None where that is not where it was, or was not yet."""
        begin = self._end - len(self._last)
        if not self._last:
            return None
        try:
            filesystem, path = storage.locate(self.uri)
            with filesystem.open_input_file(path) as file:
                content: bytes = file.read_at(max(0, file.size() - begin), begin)
        except FileNotFoundError:
            return None
        return content.removeprefix(self._last) if content.startswith(self._last) else None

    def _read_whole(self) -> bytes:
        try:
            return storage.read_bytes(self.uri)
        except FileNotFoundError:
            return b""


def _encode(row: Mapping[str, Any]) -> bytes:
    plain = {name: _plain(value) for name, value in row.items() if value is not None}
    return json.dumps(plain, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _plain(value: Any) -> Any:
    """As JSON has it: text and lists as they are, a number that of a tensor or an array of one element too; None where it
    is not finite."""
    if isinstance(value, int | str | list):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def _lines(uri: str) -> Iterator[tuple[bytes, MetricRow]]:
    """Each line that is whole, its end included, and the row it holds."""
    try:
        lines = storage.read_bytes(uri).splitlines()
    except FileNotFoundError:
        return
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            row["step"] += 0  # a number, or no row of ours
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                return
            raise StoreError(
                f"{uri}, line {number}: no row of metrics; delete this line, the others are kept"
            ) from None
        yield line + b"\n", row


# What they say


def finite(metrics: Iterable[MetricRow], name: str) -> list[tuple[int, float]]:
    """(step, value) of each row that has a finite number of this name."""
    return [
        (row["step"], float(value)) for row in metrics if _is_number(value := row.get(name)) and math.isfinite(value)
    ]


def numbers(metrics: Iterable[MetricRow]) -> list[str]:
    """Names of all that was measured as a number, in the order in which it came."""
    names: dict[str, None] = {}
    for row in metrics:
        names |= dict.fromkeys(name for name in row if name not in names and _is_number(row[name]))
    return [name for name in names if name != "step"]


def ends(metrics: list[MetricRow], name: str) -> tuple[float, float] | None:
    """The start and the end of a curve: means over its first and its last twentieth, 50 values at most; None without."""
    values = [value for _, value in finite(metrics, name)]
    if not values:
        return None
    count = end_size(len(values))
    return math.fsum(values[:count]) / count, math.fsum(values[-count:]) / count


def end_size(values: int) -> int:
    """How many of `values` make an end of a curve: at least one."""
    return max(1, min(values // ENDS_SHARE, MOST_OF_AN_END))


def _is_number(value: Any) -> TypeGuard[float]:
    return type(value) in (float, int)  # as JSON gives them, and no bool


# Trackers


def check_tracking(config: TrackingConfig) -> None:
    """Raises ConfigError where a tracker that is asked for cannot be had; before anything starts."""
    if config.wandb is not None and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            "tracking.wandb needs the package wandb, which is not installed: pip install wandb, or leave tracking.wandb out"
        )


class Trackers:
    """TensorBoard and Weights & Biases, whichever `config` asks for; with none of them it does nothing.

    Names are `train/<name>` and, for what was measured on prompts kept from training, `eval/<name>`.

    Args:
        output: the run's directory: event files go to its `tensorboard`. An object store gets none.
        run: the description of the run; its `config` goes to Weights & Biases, and nothing else of the machine.
        step: what the run goes on from. TensorBoard drops the points after it. On Weights & Biases the run is the same
            one, and steps that are done again stand beside what they were.

    Raises:
        ConfigError: when Weights & Biases is not installed, or cannot be reached or logged in to.
    """

    def __init__(self, config: TrackingConfig, output: str, run: Mapping[str, Any], step: int = 0):
        check_tracking(config)
        self._board: Any = None
        self._wandb: Any = None
        folder = storage.locate(output)[1] if storage.is_local(output) else None
        if config.tensorboard and folder is not None:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(
                os.path.join(folder, "tensorboard"),
                purge_step=step + 1,
                flush_secs=10,
                filename_suffix=f".{step:012d}.{os.getpid()}",  # a restart within the same second has its own file
            )
        if config.wandb is not None:
            self._wandb = _start_wandb(config.wandb, folder, output, run)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def log(self, row: Mapping[str, Any]) -> None:
        """A row of metrics.jsonl, as it is appended there."""
        plain = {name: _plain(value) for name, value in row.items() if value is not None and name != "step"}
        named = {_tracked(name): value for name, value in plain.items() if _is_number(value)}
        if self._board is not None:
            for name, value in named.items():
                self._board.add_scalar(name, value, row["step"])
        if self._wandb is not None:
            self._wandb.log(named | {"step": row["step"]})

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()
        self._board = self._wandb = None


def _tracked(name: str) -> str:
    return f"eval/{name.removeprefix(EVAL)}" if name.startswith(EVAL) else f"train/{name}"


def _start_wandb(project: str, folder: str | None, output: str, run: Mapping[str, Any]) -> Any:
    import wandb

    if folder is not None:
        os.makedirs(folder, exist_ok=True)
    same = f"{run.get('created')} {output}"  # a run that goes on is the same run
    try:
        started = wandb.init(
            project=project,
            dir=folder,
            id=hashlib.sha256(same.encode()).hexdigest()[:16],
            name=f"{run['objective']} {output.rstrip('/').rpartition('/')[2]}",
            config=dict(run["config"]),
            allow_val_change=True,
            resume="allow",
            settings=wandb.Settings(
                console="off", disable_code=True, disable_git=True, x_disable_meta=True, x_disable_machine_info=True
            ),
        )
    except wandb.errors.Error as error:
        raise ConfigError(
            f"tracking.wandb = {project}: {error}; set WANDB_API_KEY, or WANDB_MODE=offline to upload the run later"
        ) from error
    started.define_metric("step")
    started.define_metric("*", step_metric="step")
    return started
