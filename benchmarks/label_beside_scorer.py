"""What `label` adds to scoring: the run between its first and its last record, beside the scorer alone on the same rows.

    python benchmarks/label_beside_scorer.py MODEL [--pairs 160] [--shard-rows 16]
    python benchmarks/label_beside_scorer.py MODEL --pairs 2000 --shard-rows 128 # as the claim has it: half an hour

The corpus is the first pairs of HH (harmless-base, test; `../shared`). `label` runs as a person runs it, from cold, with one
actor that has all threads. When its records are on the disk, the rows of all but the first shard are scored here once more, by
the same `Scorer` with the same threads: what the run took longer from its first record to its last is what reading, rendering,
tokenising, Ray and commits cost beside it. Both are wall time, so the machine has to be quiet.
"""

import argparse
import gzip
import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from machine import CONSOLE, ROOT, shared, table, verdict

from pipeline.config import InputConfig, TokensConfig
from pipeline.corpus import Shard, detect, find_files, plan_file, read_shards
from pipeline.models.scoring import Scorer
from pipeline.rewards.labelling import prepare
from pipeline.store.commit import shard_name
from pipeline.tokens import Renderer, TokenizedTurn

MOST_LOST, FIRST_WITHIN = 0.05, 12.0  # a share; seconds
CONTEXT = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a folder; for SmolLM2-135M-Instruct see ../shared/models/get_smollm2.py")
    parser.add_argument("--pairs", type=int, default=160)
    parser.add_argument("--shard-rows", type=int, default=16)
    options = parser.parse_args()
    whole = shared("data", "hh-rlhf", "harmless-base-test.jsonl.gz")
    if options.pairs <= options.shard_rows:
        raise SystemExit("--pairs has to be several times --shard-rows: what is measured begins with the second shard")
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "hh.jsonl")
        with gzip.open(whole, "rt") as lines:
            rows = list(itertools.islice(lines, options.pairs))
        if len(rows) < options.pairs:
            raise SystemExit(f"{whole} has {len(rows):,} pairs; lower --pairs")
        corpus.write_text("".join(rows))
        first, last, name = labelled(options, corpus, Path(folder, "labels"))
        shards = turns_by_shard(options, corpus)
    rest = [turn for shard, turns in shards.items() if shard_name(shard) != name for turn in turns]
    model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    scorer = Scorer(model)
    scorer.score(rest[:4])
    began = time.perf_counter()
    scorer.score(rest)
    alone = time.perf_counter() - began
    lost = 1 - alone / (last - first)
    tokens = sum(len(turn.response_ids) for turn in rest)
    title = f"{options.pairs} pairs of HH in shards of {options.shard_rows}, {Path(options.model).name}"
    shown = table(title, "", "seconds", "response tokens per second")
    shown.add_row("label, from the first record to the last", f"{last - first:.1f}", f"{tokens / (last - first):,.0f}")
    shown.add_row("the scorer alone on the same rows", f"{alone:.1f}", f"{tokens / alone:,.0f}")
    shown.add_row("label, from the command to its first record", f"{first:.1f}", "")
    CONSOLE.print(shown)
    verdict(
        {
            f"label loses under {MOST_LOST:.0%} against the scorer alone: {lost:.1%}": lost < MOST_LOST,
            f"its first labels are there within {FIRST_WITHIN:.0f} s: {first:.1f} s": first < FIRST_WITHIN,
        }
    )


def labelled(options: argparse.Namespace, corpus: Path, output: Path) -> tuple[float, float, str]:
    """Run `label`; seconds to its first and its last record, and the name of the first."""
    settings = {
        "input.shard_rows": options.shard_rows,
        "run.num_cpus": os.cpu_count(),
        "scorer.max_actors": 1,
        "scorer.cpus_per_actor": torch.get_num_threads(),
        "model.dtype": "float32",
        "tokens.max_length": CONTEXT,
    }
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "jobs", "label", "--model", options.model, "--input", corpus, "--output", output]
    began, seen = time.perf_counter(), dict[str, float]()
    with tempfile.TemporaryFile() as log:
        run = subprocess.Popen([*map(str, command), *words], cwd=ROOT, stdout=log, stderr=log)
        while run.poll() is None:
            now = time.perf_counter() - began
            for record in output.glob("records/*-*.json"):  # of shards, and of input files
                if not record.name.startswith("input-"):
                    seen.setdefault(record.stem, now)
            time.sleep(0.2 if seen else 0.02)  # a listing of many records takes its share of a core
        if run.returncode:
            log.seek(0)
            raise SystemExit(log.read().decode())
    times = sorted((at, name) for name, at in seen.items())
    return times[0][0], times[-1][0], times[0][1]


def turns_by_shard(options: argparse.Namespace, corpus: Path) -> dict[Shard, list[TokenizedTurn]]:
    """The same rows, read and tokenised as `label` does it."""
    [file] = find_files([str(corpus)])
    plan = plan_file(file, shard_rows=options.shard_rows)
    renderer = Renderer(transformers.AutoTokenizer.from_pretrained(options.model), TokensConfig(), CONTEXT)
    shards = {}
    for shard, rows in read_shards(file, "auto", plan.shards):
        shape = detect([row for _, row in rows if isinstance(row, dict)], InputConfig(), file.name)
        shards[shard] = prepare(shard, 0, rows, shape, renderer, "last").tokens
    return shards


if __name__ == "__main__":
    main()
