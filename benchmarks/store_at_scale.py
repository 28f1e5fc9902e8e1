"""A label store of very many rows, without a model and without Ray: what its driver and its readers cost.

    python benchmarks/store_at_scale.py [--rows 50_000] [--committers 2] [--keep FOLDER] [--records-only]

Rows are made up: one label of four tokens each, in shards of 128. Committers are processes that do what a worker of `label`
does at the end of a shard, so parts and records are real. The driver does what the driver of `label` does: it plans, takes
each record as it is committed, is killed at half, and begins anew. After it each reader is a process of its own. Memory is the
largest resident size above that after the imports. With --records-only there are no parts, so that ten million rows take
minutes: what the driver does, and `status`.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import islice, pairwise
from pathlib import Path

import numpy as np

from jobs.label.plan import pending
from jobs.stores.compact import compact
from jobs.stores.inspect_store import status, validate
from jobs.stores.sweep import sweep
from pipeline.corpus import FilePlan, InputFile, Shape, Shard, Shards
from pipeline.store import Label, LabelStore, Record, RecordIndex, StoredInput, Survey, commit, documents, fingerprint
from pipeline.store.commit import Part, ids_digest
from pipeline.store.manifest import Manifest
from pipeline.store.schema import labels_table
from pipeline.store.summary import ShardStats

SHARD_ROWS = 128
DESCRIPTION = {"format": 2, "reward.alpha": 1.0, "reward.gamma": 1.0, "reward.aggregation": "sum"}
SHAPE = Shape(responses=(("response", None),), prompt="prompt")
MOST_MEMORY, RESUME_WITHIN = 300, 60  # MB; seconds
PHASES = ("first half", "resume", "status", "validate", "sweep", "compact", "resume a compacted", "validate a compacted",
          "sweep a compacted")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--committers", type=int, default=os.cpu_count())
    parser.add_argument("--workers", type=int, default=16, help="of validate")
    parser.add_argument("--keep", help="a folder for the store, which stays; default: one that goes")
    parser.add_argument("--records-only", action="store_true")
    parser.add_argument("--phase", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.phase:
        run_phase(options)
        return
    from machine import CONSOLE, table, verdict  # with torch, which no phase needs

    folder = options.keep or tempfile.mkdtemp()
    try:
        rows = []
        phases = PHASES[: 3 if options.records_only else None]
        for phase in phases:
            rows.append(measure(options, phase, os.path.join(folder, "store")))
            CONSOLE.print(f"{phase}: {rows[-1]['seconds']:,.1f} s, {rows[-1]['memory']:,.0f} MB")
    finally:
        if not options.keep:
            shutil.rmtree(folder)
    shown = table(
        f"{options.rows:,} rows in shards of {SHARD_ROWS}", "", "seconds", "CPU ms a shard", "memory, MB", "files"
    )
    for phase, figures in zip(phases, rows, strict=True):
        shown.add_row(
            phase,
            f"{figures['seconds']:,.1f}",
            f"{1000 * figures['cpu'] / figures['shards']:,.2f}",
            f"{figures['memory']:,.0f}",
            f"{figures['files']:,}",
        )
    CONSOLE.print(shown)
    by = dict(zip(phases, rows, strict=True))
    before_work = by["resume"]["planned"]
    verdict(
        {
            f"no process takes more than {MOST_MEMORY} MB": max(each["memory"] for each in rows) < MOST_MEMORY,
            f"it is known within {RESUME_WITHIN} s what is left ({before_work:,.1f} s)": before_work < RESUME_WITHIN,
        }
    )


def measure(options: argparse.Namespace, phase: str, store: str) -> dict[str, float]:
    """The figures of one phase, in a process of its own."""
    command = [sys.executable, __file__, "--phase", phase, "--keep", store, "--rows", str(options.rows)]
    command += ["--committers", str(options.committers), "--workers", str(options.workers)]
    command += ["--records-only"] * options.records_only
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    if not done.stdout.strip():
        sys.exit(f"{phase}: ended with {done.returncode}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def run_phase(options: argparse.Namespace) -> None:
    began, cpu, memory, planned = time.perf_counter(), time.process_time(), _resident("VmRSS"), 0.0
    shards = -(-options.rows // SHARD_ROWS)
    whole, half = LabelStore(options.keep), shards // 2

    def figures() -> dict[str, float]:
        files = sum(len(names) for _, _, names in os.walk(options.keep))
        return {
            "seconds": time.perf_counter() - began,
            "cpu": time.process_time() - cpu,
            "memory": _resident("VmHWM") - memory,
            "shards": shards,
            "files": files,
            "planned": planned,
        }

    phase = options.phase.removesuffix(" a compacted")
    if phase == "first half":
        whole.open_for_writing(DESCRIPTION)
        whole.add_input(stored_input(options.rows))
        for done in run(whole, options, Survey()):
            if done >= half:
                print(json.dumps(figures()), flush=True)
                os.killpg(0, signal.SIGKILL)  # its committers too: a session of its own, of `measure`
    elif phase == "resume":
        whole.open_for_writing(DESCRIPTION)
        pending(whole, whole.inputs(), False)
        planned = time.perf_counter() - began
        survey = Survey()
        for _ in run(whole, options, survey):
            pass
        survey = whole.survey(survey)
        manifest = Manifest.of(whole, survey=survey, config={}, inputs=[], notes=[], timing=None, versions={})
        manifest.write_plain(whole.at("manifest.json"))
    elif phase == "status":
        status(options.keep)
    elif phase == "validate":
        if validate(options.keep, options.workers) != 0:
            sys.exit(1)
    elif phase == "sweep":
        sweep(options.keep, [1.0])
    elif phase == "compact":
        compact(options.keep)
    print(json.dumps(figures()))


def run(store: LabelStore, options: argparse.Namespace, survey: Survey) -> Iterator[int]:
    """Commit what is left, as a run does; yields how many shards are committed in all."""
    committers, work_of = options.committers, record_made_up if options.records_only else commit_made_up
    index, digest = RecordIndex(store), fingerprint.digest(DESCRIPTION)
    done = len(store.done())
    backlog = pending(store, store.inputs(), False)
    left = (shard for work in backlog for shard in work.shards)
    with ProcessPoolExecutor(committers) as pool:
        while batch := list(islice(left, 64 * committers)):
            tasks = [pool.submit(work_of, store.uri, shards, digest) for shards in _split(batch, committers)]
            for task in as_completed(tasks):
                for record in task.result():
                    survey.add(record)
                    index.add(record)
                    done += 1
            yield done
    index.close()


def commit_made_up(store: str, shards: list[Shard], digest: str) -> list[Record]:
    return [commit(store, shard, digest, 0, list(map(made_up, _rows(shard))), []) for shard in shards]


def record_made_up(store: str, shards: list[Shard], digest: str) -> list[Record]:
    """Records of parts that are not there, and that nothing is waited for."""
    labels = list(map(made_up, _rows(shards[0])))
    stats, ids = ShardStats.of(labels_table(labels)), ids_digest([label.id for label in labels])
    records = []
    for shard in shards:
        record = Record(shard, digest, 0, Part(shard.rows, ids[::-1], ids), Part(0, None, ids_digest([])), {}, stats)
        Path(store, "records", f"{record.name}.json").write_bytes(documents.encode(record.to_json()))
        records.append(record)
    return records


def made_up(row: int) -> Label:
    logprobs = -np.array([1, 1, 1, 1 + row % 7 / 8], dtype=np.float32)
    rewards = np.array([-1, -1, -1, 1 + logprobs[3]], dtype=np.float32)  # log pi + V less the V after it, all V = 1
    return Label(
        id=f"rows.jsonl:{row}:response:0:0",
        prompt_id=f"rows.jsonl:{row}",
        preference=None,
        response_index=0,
        prompt=[{"role": "user", "content": f"question {row}"}],
        response=f"answer {row}",
        reward=float(rewards.sum()),
        num_tokens=4,
        num_prompt_tokens=3,
        truncated=False,
        token_ids=[1, 2, row % 1000, 3],
        turn=0,
        token_logprobs=logprobs,
        token_values=np.ones(4, dtype=np.float32),
        token_rewards=rewards,
        rubric=None,
        extra_info="{}",
        prompt_token_ids=[5, 6, 7],
    )


def stored_input(rows: int) -> StoredInput:
    """An input file that nobody can reach, of so many rows."""
    bounds = [*range(0, rows, SHARD_ROWS), rows]
    shards = Shards("rows.jsonl")
    for index, (begin, end) in enumerate(pairwise(bounds)):
        shards.add(begin, end, end - begin, None, None, hashlib.sha256(str(index).encode()).hexdigest())
    plan = FilePlan("rows.jsonl", rows, "0" * 64, shards)
    return StoredInput(InputFile("rows.jsonl", "/no/such/rows.jsonl", 0, 0), "jsonl", SHAPE, plan)


def _rows(shard: Shard) -> range:
    return range(shard.start, shard.stop)


def _split(shards: list[Shard], parts: int) -> list[list[Shard]]:
    return [shards[part::parts] for part in range(parts) if shards[part::parts]]


def _resident(field: str) -> float:
    """MB of this process: now (VmRSS), or at most so far (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


if __name__ == "__main__":
    main()
