"""A label store of very many rows, without a model and without Ray: what its driver and its readers cost.

    python benchmarks/store_at_scale.py [--rows 50_000] [--committers 2] [--keep FOLDER] [--records-only]
    python benchmarks/store_at_scale.py --extrapolate 1_000_000 3_000_000 10_000_000

Rows are made up: one label of four tokens each, in shards of 128, in input files of a million rows. Committers are processes
that do what a worker of `label` does at the end of a shard, so parts and records are real. The driver does what the driver of
`label` does: it plans, takes each record as it is committed, is killed at half, and begins anew. After it each reader is a
process of its own. Memory is the largest resident size above that after the imports. With --records-only there are no parts,
so that ten million rows take minutes: what the driver does, and `status`. With --extrapolate that is done for several sizes,
and with parts for --rows; a straight line through each figure says what 100 million and a billion rows come to.
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

SHARD_ROWS, FILE_ROWS = 128, 128 * 7813  # a million rows in a file, or a little more
FAR = (100_000_000, 1_000_000_000)
DESCRIPTION = {"format": 2, "reward.alpha": 1.0, "reward.gamma": 1.0, "reward.aggregation": "sum"}
SHAPE = Shape(responses=(("response", None),), prompt="prompt")
MOST_MEMORY, RESUME_WITHIN = 300, 60  # MB; seconds
PHASES = ("first half", "resume", "status", "validate", "sweep", "compact", "resume a compacted", "validate a compacted",
          "sweep a compacted")  # fmt: skip


Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--committers", type=int, default=os.cpu_count())
    parser.add_argument("--workers", type=int, default=16, help="of validate")
    parser.add_argument("--keep", help="a folder for the store, which stays; default: one that goes")
    parser.add_argument("--records-only", action="store_true")
    parser.add_argument("--extrapolate", type=int, nargs="+", metavar="ROWS", help="from so many rows, of records only")
    parser.add_argument("--phase", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.phase:
        run_phase(options)
        return
    from machine import verdict  # with torch, which no phase needs

    measured = {}
    for rows in options.extrapolate or ():
        measured[rows] = all_phases(argparse.Namespace(**{**vars(options), "rows": rows, "records_only": True}))
    whole = all_phases(options)
    if options.extrapolate:
        show_extrapolated(extrapolated(measured, whole))
    runs = [*measured.values(), whole]
    before_work = max(run["resume"]["planned"] for run in runs)
    most = max(figures["memory"] for run in runs for figures in run.values())
    verdict(
        {
            f"no process takes more than {MOST_MEMORY} MB ({most:,.0f})": most < MOST_MEMORY,
            f"it is known within {RESUME_WITHIN} s what is left ({before_work:,.1f} s)": before_work < RESUME_WITHIN,
        }
    )


def all_phases(options: argparse.Namespace) -> dict[str, Figures]:
    """Measure each phase at one size, and show them."""
    from machine import CONSOLE, table

    folder = options.keep or tempfile.mkdtemp()
    by: dict[str, Figures] = {}
    try:
        for phase in PHASES[: 3 if options.records_only else None]:
            by[phase] = measure(options, phase, os.path.join(folder, "store"))
            CONSOLE.print(f"{phase}: {by[phase]['seconds']:,.1f} s, {by[phase]['memory']:,.0f} MB")
    finally:
        if not options.keep:
            shutil.rmtree(folder)
    title = f"{options.rows:,} rows in shards of {SHARD_ROWS}"
    shown = table(title, "", "seconds", "CPU ms a shard", "memory, MB", "files")
    for phase, figures in by.items():
        shown.add_row(
            phase, f"{figures['seconds']:,.1f}", f"{1000 * figures['cpu'] / figures['shards']:,.2f}",
            f"{figures['memory']:,.0f}", f"{figures['files']:,.0f}",
        )  # fmt: skip
    CONSOLE.print(shown)
    return by


def extrapolated(measured: dict[int, dict[str, Figures]], whole: dict[str, Figures]) -> list[tuple[str, list[float]]]:
    """What 100 million and a billion rows come to: name, then a figure of each size in FAR.

    Memory and CPU of the driver and of `status` are straight lines in shards, by least squares over the sizes in `measured`: a
    constant, which is the largest input file's plan as JSON, and so many bytes and milliseconds a shard. What reads parts
    does the same for each, a few at a time: its CPU a shard in `whole` times the shards.
    """
    lines: list[tuple[str, list[float]]] = []
    shards = np.array([figures["first half"]["shards"] for figures in measured.values()])
    far = [rows / SHARD_ROWS for rows in FAR]
    for phase in PHASES[:3]:
        for figure, name in (("memory", "memory, MB"), ("cpu", "CPU s")):
            slope, constant = np.polyfit(shards, [of_size[phase][figure] for of_size in measured.values()], 1)
            unit = f"{slope * 2**20:,.0f} bytes a shard" if figure == "memory" else f"{1000 * slope:,.2f} ms a shard"
            lines.append((f"{phase}: {name}, {unit}", [constant + slope * each for each in far]))
    slope, constant = np.polyfit(shards, [of_size["resume"]["planned"] for of_size in measured.values()], 1)
    lines.append(("what is left is known after, s", [constant + slope * each for each in far]))
    for phase in ("validate", "sweep", "compact"):
        each_ms = 1000 * whole[phase]["cpu"] / whole[phase]["shards"]
        lines.append((f"{phase}: CPU hours, {each_ms:,.2f} ms a shard", [each_ms * each / 3.6e6 for each in far]))
    lines.append(
        (
            "files before compact",
            [each * whole["status"]["files"] / whole["status"]["shards"] for each in far],
        )
    )
    return lines


def show_extrapolated(lines: list[tuple[str, list[float]]]) -> None:
    from machine import CONSOLE, table

    shown = table("Extrapolated, not measured", "", *(f"{rows:,} rows" for rows in FAR))
    for name, figures in lines:
        shown.add_row(name, *(f"{figure:,.{0 if figure > 100 else 1}f}" for figure in figures))
    CONSOLE.print(shown)


def measure(options: argparse.Namespace, phase: str, store: str) -> Figures:
    """The figures of one phase, in a process of its own."""
    command = [sys.executable, __file__, "--phase", phase, "--keep", store, "--rows", str(options.rows)]
    command += ["--committers", str(options.committers), "--workers", str(options.workers)]
    command += ["--records-only"] * options.records_only
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    if done.returncode not in (0, -signal.SIGKILL) or not done.stdout.strip():
        sys.exit(f"{phase}: ended with {done.returncode}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
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
        for begin in range(0, options.rows, FILE_ROWS):
            whole.add_input(stored_input(begin, min(options.rows - begin, FILE_ROWS)))
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


def run(store: LabelStore, options: argparse.Namespace, survey: Survey, batch: int = 64) -> Iterator[int]:
    """Commit what is left, as a run does, `batch` shards a committer at a time; yields how many are committed in all."""
    committers, work_of = options.committers, record_made_up if options.records_only else commit_made_up
    index, digest = RecordIndex(store), fingerprint.digest(DESCRIPTION)
    done = len(store.done())
    backlog = pending(store, store.inputs(), False)
    left = (shard for work in backlog for shard in work.shards)
    with ProcessPoolExecutor(committers) as pool:
        while together := list(islice(left, batch * committers)):
            tasks = [pool.submit(work_of, store.uri, shards, digest) for shards in _split(together, committers)]
            for task in as_completed(tasks):
                for record in task.result():
                    survey.add(record)
                    index.add(record)
                    done += 1
            yield done
    index.close()


def commit_made_up(store: str, shards: list[Shard], digest: str) -> list[Record]:
    return [commit(store, shard, digest, 0, _labels(shard), []) for shard in shards]


def record_made_up(store: str, shards: list[Shard], digest: str) -> list[Record]:
    """Records of parts that are not there, and that nothing is waited for."""
    labels = _labels(shards[0])
    stats, none = ShardStats.of(labels_table(labels)), Part(0, None, ids_digest([]))
    records = []
    for shard in shards:
        record = Record(shard, digest, 0, Part(shard.rows, *_digests(shard)), none, {}, stats)
        Path(store, "records", f"{record.name}.json").write_bytes(documents.encode(record.to_json()))
        records.append(record)
    return records


def _digests(shard: Shard) -> tuple[str, str]:
    """Of a part that is not there: as hard to compress as any."""
    made = hashlib.sha512(f"{shard.file} {shard.index}".encode()).hexdigest()
    return made[:64], made[64:]


def made_up(file: str, row: int) -> Label:
    logprobs = -np.array([1, 1, 1, 1 + row % 7 / 8], dtype=np.float32)
    rewards = np.array([-1, -1, -1, 1 + logprobs[3]], dtype=np.float32)  # log pi + V less the V after it, all V = 1
    return Label(
        id=f"{file}:{row}:response:0:0",
        prompt_id=f"{file}:{row}",
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


def stored_input(begin: int, rows: int) -> StoredInput:
    """An input file that nobody can reach, of so many rows."""
    name = f"rows-{begin // FILE_ROWS:05d}.jsonl"
    bounds = [*range(0, rows, SHARD_ROWS), rows]
    shards = Shards(name)
    for index, (start, stop) in enumerate(pairwise(bounds)):
        shards.add(start, stop, stop - start, None, None, hashlib.sha256(str(index).encode()).hexdigest())
    plan = FilePlan(name, rows, "0" * 64, shards)
    return StoredInput(InputFile(name, f"/no/such/{name}", 0, 0), "jsonl", SHAPE, plan)


def _labels(shard: Shard) -> list[Label]:
    return [made_up(shard.file, row) for row in range(shard.start, shard.stop)]


def _split(shards: list[Shard], parts: int) -> list[list[Shard]]:
    return [shards[part::parts] for part in range(parts) if shards[part::parts]]


def _resident(field: str) -> float:
    """MB of this process: now (VmRSS), or at most so far (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


if __name__ == "__main__":
    main()
