"""`endoreward sample`: a policy writes several responses to each prompt of a corpus; out comes a corpus for `label`.

describe   policy, prompts, how responses are drawn                                  (pipeline.rewards.labellers.prompts)
label      OUTPUT/_store, a label store: streamed, committed by shard, resumed       (jobs.label.label_run)
write      OUTPUT/samples-*.jsonl from the store, a row for each prompt, and OUTPUT/_samples.json, what they come to

A folder is read without the names that begin with `_`, so OUTPUT is an input as it stands. The samples are JSON lines:
prompts that are now text and now messages, and whatever else the input's columns hold, need no common type there. Each
input file has samples of its own, so that prompts added later change no file that was labelled already.
"""

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterator

from pydantic import Field

from jobs import terminal
from jobs.cluster import joins_cluster, pick_device, warn_of_local_output
from jobs.label.label_run import LabelRun, LateCluster
from jobs.label.places import require, with_absolute_places
from jobs.label.plan import find_inputs
from jobs.label.preview import show_inputs, show_runs
from jobs.stores.finalize import counted
from jobs.stores.inspect_store import error_rows
from pipeline import storage
from pipeline.config import SampleConfig
from pipeline.corpus import InputFile
from pipeline.errors import InputError, RunError, StoreError
from pipeline.report.toml import to_toml
from pipeline.rewards.labellers import PromptSampler
from pipeline.rewards.labellers.prompts import STORED, Samples, prompt_shape, sampled
from pipeline.store import LabelStore, Survey, documents, places, shard_name, typed
from pipeline.store.manifest import Manifest

STORE = "_store"
SUMMARY = "_samples.json"
PREFIX = "samples-"
FILE_BYTES = 64 << 20  # about this much of a file of samples is held in memory
SHOWN_CHARACTERS = 600


class SamplesSummary(typed.Document):
    """`_samples.json`: which files of samples are this program's, and what they come to; no figures while they are written."""

    REMEDY = "put it back from a copy, or move the samples away and run the same again"

    contents: str = ""  # digest of what they were made of; empty while not all are there
    files: list[str]
    prompts: int = 0
    responses: int = 0
    distinct: int = 0  # responses that differ from the others to their prompt
    tokens: int = 0  # of the responses
    cut_off: int = 0  # responses
    empty: int = 0
    errors: dict[str, int] = Field(default_factory=dict)  # by reason


def sample(config: SampleConfig, *, retry_errors: bool = False, command: str = "", dry_run: bool = False) -> int:
    """Run the job. Returns the exit code; raises EndorewardError.

    Args:
        command: what the manifest says was run.
        dry_run: check everything, show what would be asked, and write nothing.
    """
    require(policy=config.model.name, prompts=config.input.paths, output=config.output.path)
    config = with_absolute_places(config)
    output = config.output.path
    files = find_inputs(config.input, output)
    places.check(output, places.SAMPLES)
    with contextlib.ExitStack() as stack:
        ray = LateCluster(config, stack)
        if joins_cluster(config.run):  # only the cluster knows its devices
            ray.open()
            warn_of_local_output(output)
        labeller = PromptSampler(config, config.model)
        run = LabelRun.open(labeller, storage.join(output, STORE), pick_device(config), files, prompt_shape)
        check_names([stored.file for stored in run.inputs])
        show_inputs(run.inputs)
        if dry_run:
            terminal.say(to_toml(config.model_dump()))
            show_runs({"samples": run}, retry_errors)
            return 0
        run.complete(ray, command, retry_errors=retry_errors, quiet=True)
    if is_written(run.store, output):
        return 0
    summary = write_samples(run.store, output)
    _show(summary, run.store, config)
    return 0


def check_names(files: list[InputFile]) -> None:
    """Raises InputError where the samples of two input files would have one name."""
    owners: dict[str, str] = {}
    for file in files:
        other = owners.setdefault(samples_name(file.name, 0), file.name)
        if other != file.name:
            raise InputError(
                f"the samples of {other} and of {file.name} would both be called {samples_name(file.name, 0)}; sample "
                "them into two outputs"
            )


def samples_name(file: str, number: int) -> str:
    """The name of a file of samples; `number` counts those of one input file.

    >>> samples_name("train/a.parquet", 2)
    'samples-00002-train-a.parquet.jsonl'
    """
    name = file.replace("/", "-")
    return f"{PREFIX}{number:05d}-{name}" + ("" if name.endswith(".jsonl") else ".jsonl")


def _contents(survey: Survey) -> str:
    """A digest of all that the samples are made of."""
    digests = (f"{shard.name} {shard.labels.sha256}" for shard in survey.shards)
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def is_written(store: LabelStore, output: str) -> bool:
    """Whether all samples of the store as it is now are there."""
    uri = storage.join(output, SUMMARY)
    if not storage.exists(uri):
        return False
    summary = SamplesSummary.read(uri)
    names = storage.list_names(output)
    return summary.contents == _contents(store.survey()) and all(name in names for name in summary.files)


def write_samples(store: LabelStore, output: str) -> SamplesSummary:
    """Write the samples of a store and their summary, which comes last; each file is whole or not there. An input file
    that another run began and left unfinished has none yet. Raises RunError where not one prompt was answered.
    """
    survey = store.survey()
    committed = {shard.name: shard for shard in survey.shards}
    counts, files = Counter[str](), []
    owned = _Owned(output)
    for stored in store.inputs():
        shards = [shard_name(shard) for shard in stored.plan.shards]
        if not all(shard in committed for shard in shards):
            continue
        parts = store.read("labels", [committed[shard] for shard in shards], STORED)
        rows = (samples for _, labels in parts for samples in sampled(labels))
        for number, data in enumerate(_files(rows, counts)):
            files.append(samples_name(stored.file.name, number))
            owned.write(files[-1], data)
    errors = survey.errors
    if not files:
        raise RunError(f"not one prompt could be answered ({counted(errors)}); see {store.at('errors')}")
    owned.keep_only(files)
    summary = SamplesSummary(contents=_contents(survey), files=files, **counts, errors=dict(errors.most_common()))
    summary.write(storage.join(output, SUMMARY))
    return summary


class _Owned:
    """The files of samples that an output's summary names, which are this program's: only these are replaced or deleted. A
    name goes into the summary before there is a file of it."""

    def __init__(self, output: str):
        self.output, self.uri = output, storage.join(output, SUMMARY)
        self.files = SamplesSummary.read(self.uri).files if storage.exists(self.uri) else []

    def write(self, name: str, data: bytes) -> None:
        """Raises StoreError where a file of this name is somebody else's."""
        uri = storage.join(self.output, name)
        if name not in self.files:
            if storage.exists(uri) and storage.read_bytes(uri) != data:
                raise StoreError(
                    f"{uri} is in the way: no run wrote it, and so it is left as it is; move it away, and run the same again"
                )
            self.files = [*self.files, name]
            SamplesSummary(contents="", files=self.files).write(self.uri)  # none is whole yet
        documents.write_bytes(uri, data)

    def keep_only(self, names: list[str]) -> None:
        for name in set(self.files) - set(names):
            documents.remove(storage.join(self.output, name))


def _files(rows: Iterator[Samples], counts: Counter[str]) -> Iterator[bytes]:
    """The samples as files of JSON lines; adds what they come to to `counts`."""
    lines, size = [], 0
    for samples in rows:
        counts.update(samples.counts)
        # half a character cannot be UTF-8, and JSON has an escape for it
        line = json.dumps(samples.row, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
        lines.append(line)
        size += len(line)
        if size >= FILE_BYTES:
            yield b"".join(lines)
            lines, size = [], 0
    if lines:
        yield b"".join(lines)


def _show(summary: SamplesSummary, store: LabelStore, config: SampleConfig) -> None:
    """Print one response, the table, and what a person should know before labelling."""
    output, responses = config.output.path, summary.responses
    errors = Counter[str](summary.errors)
    first = next(sampled(store.sample(1, STORED))).row
    prompt = first["prompt"] if isinstance(first["prompt"], str) else first["prompt"][-1]["content"]
    terminal.say(f"\nexample\n  prompt:\n{_indented(prompt)}\n  one response:\n{_indented(first['responses'][0])}\n")
    rows = [
        ("Prompts", f"{summary.prompts:,}"),
        ("Responses", f"{responses:,}"),
        ("Distinct", f"{summary.distinct / responses:.1%}, each among those to its prompt"),
        ("Tokens", f"{summary.tokens / responses:,.1f} a response"),
        ("Cut off", f"{summary.cut_off:,} ({summary.cut_off / responses:.1%})"),
        *error_rows(errors),
    ]
    manifest = Manifest.find(store)
    if manifest and (timing := manifest.timing):
        speed = f"{timing.tokens_per_second_scoring:,.0f} tokens/s an actor, {timing.seconds:,.1f} s in all"
        rows.append(("Speed", speed))
    terminal.print_table(output, rows)
    if summary.cut_off:
        terminal.warn(
            f"{summary.cut_off:,} of {responses:,} responses were cut off before the policy ended them (column truncated); "
            f"label scores them as far as they go. Raise sample.max_new_tokens ({config.sample.max_new_tokens}), or leave "
            "them out"
        )
    if summary.empty:
        terminal.warn(f"{summary.empty:,} of {responses:,} responses are empty; label makes error rows of them")
    if errors:
        terminal.warn(f"prompts without a response: {errors.total():,} ({counted(errors)}); see {store.at('errors')}")


def _indented(text: str) -> str:
    shown = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} ..."
    return "\n".join(f"    {line}" for line in shown.splitlines())
