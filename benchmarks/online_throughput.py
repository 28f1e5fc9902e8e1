"""Seconds per step and peak memory of `endoreward rl` with grpo beside TRL's GRPOTrainer, in one run.

Same model, prompts, endogenous reward, samples of a step, longest response, learning rate and AdamW, float32. The loss is
dapo's with k3 in it, use_bias_correction_kl = False, one step of the optimizer for each batch. The cores are as many:

    endoreward    the command as it is: a sampler of one thread for each core, a rewarder and a learner of one; take turns
    trl           one process, that many threads; GRPOTrainer on transformers' `generate`, no gradient checkpointing
    trl, 1 thread the same on one: with a small model threads cost more than they bring
    endoreward, vllm  with --vllm PYTHON, of an environment with vLLM: the command with sampler.engine = vllm, which by itself
                      corrects for another engine and so forwards a batch once more; needs --model, of heads that vLLM has

Ours, under transformers, is held against the faster of TRL's.

TRL's reward function is made of our own parts: the scorer's packed forward pass on the ids that were sampled, equal samples
scored once. It is less than what our rewarder does: that has the reference's log-probabilities from the same pass, for which
TRL holds, and forwards, another copy of the model. `--set` changes our command, such as `learner.cpus_per_worker=2`.

Micro-batches are cut by `learner.budget_tokens`; TRL's have the largest number of samples that divides a step and keeps
the longest prompt and response, all of them padded, under the same budget.

Speed: whole commands, each side in turn and in an order that changes, a seed of prompts and samples for each turn. Steps are
counted after the warm-up, from the end of one to the end of the next, TRL ends a step where it logs; ours ends before its row
is written, which takes less than a hundredth of it. CPU seconds are of all processes, Ray's included: the cores that were busy
between two looks at /proc, over the counted steps, times the mean of these. What a command takes besides its steps (imports,
Ray, models, export, report) is its rest. On both sides the allocator keeps what is freed, so that page faults cost little, and
threads that wait do not spin unless OMP_WAIT_POLICY says so.

Memory: a short run of each side that is not timed, with the system's allocator. Proportional set sizes of all of a
command's processes, what several of them share divided between them, added up twice a second; the highest sum, by who holds
it. On a machine where others run the same libraries, the part of these is too small, for either side.

That both learn the same shows in the reward of the last steps: equal within three standard errors, each step one value.

Models are the embedded one, and a Llama with random weights and random prompts, whose responses nearly all have the full
length; `--model` with `--prompts` takes others. Needs trl (the `bench` extra), psutil (`dev`) and Linux. Left out: GPUs, vLLM
on TRL's side, which does not run on a CPU (the README says why, of engines.py), several learners, measuring on held-out
prompts, checkpoints but for our last.
"""

import argparse
import contextlib
import importlib.util
import json
import logging
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from machine import CONSOLE, ROOT, table, verdict
from throughput import ALLOCATOR
from training_throughput import END, PAD, Shape, build

from pipeline.config import load_config_as
from pipeline.models.loading import load_tokenizer
from pipeline.models.scores import Scores
from pipeline.rl.config import RlConfig
from pipeline.rl.prompts import read_prompts
from pipeline.rl.rollouts import Prompt
from pipeline.rl.sources.endogenous import earned
from pipeline.rl.sources.models import Models
from pipeline.tokens import TokenizedTurn
from pipeline.training.metrics import MetricRow, MetricsFile, read_metrics

EMBEDDED = ROOT / "examples" / "addition"
MB = 1e6
WARMUP = 3  # steps
LAST = 5  # steps whose reward is compared
FASTER = 1.3  # than TRL: the aim
LOOK_S = 0.5  # between two looks at a command's processes
OURS, VLLM, THEIRS, SINGLE = "endoreward", "endoreward, vllm", "trl", "trl, 1 thread"
METRICS = "metrics.jsonl"  # both sides write it


class Case(NamedTuple):
    shape: Shape | None  # None: the embedded model
    new_tokens: int
    steps: int


CASES = {
    "embedded": Case(None, 48, 15),
    "random": Case(Shape(256, 6, 8_000), 32, 9),
}


@dataclass(frozen=True)
class Work:
    """What a command is told."""

    model: str  # a folder
    prompts: str  # a file
    batch: int  # prompts of a step
    group: int  # responses to each
    new_tokens: int
    steps: int
    rate: float  # of learning
    kl: float  # its coefficient
    threads: int
    seed: int
    output: str
    vllm: str | None = None  # a Python that has it, for that side

    @property
    def settings(self) -> dict[str, Any]:
        """Fields of the run's configuration."""
        return {
            "policy.name": self.model,
            "input.paths": [self.prompts],
            "output.path": self.output,
            "rl.algorithm": "grpo",
            "rl.batch_size": self.batch,
            "rl.group_size": self.group,
            "rl.max_new_tokens": self.new_tokens,
            "rl.max_steps": self.steps,
            "rl.learning_rate": self.rate,
            "rl.schedule": "constant",
            "rl.warmup": 0.0,
            "rl.kl_coefficient": self.kl,
            "rl.kl_in": "loss",
            "rl.seed": self.seed,
            "learner.dtype": "float32",
            "learner.device": "cpu",
            "run.num_cpus": self.threads,
        }

    @property
    def metrics(self) -> list[MetricRow]:
        return read_metrics(f"{self.output}/{METRICS}")


@dataclass(frozen=True)
class Turn:
    """What one command came to."""

    rows: list[MetricRow]  # of its metrics
    seconds: float  # of the whole command
    cores: float  # that were busy in the counted steps; NaN where these were too short to tell
    memory: dict[str, float]  # bytes at the peak, by who holds them; empty where it was timed

    @property
    def steps(self) -> list[float]:
        """Seconds of each counted step."""
        return [row["step_time"] for row in self.rows[WARMUP:]]

    @property
    def rest(self) -> float:
        """Seconds outside of all steps."""
        return self.seconds - sum(row["step_time"] for row in self.rows)


# TRL's side: a process of its own


def theirs(work: Work) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import datasets
    from trl import GRPOConfig, GRPOTrainer

    datasets.disable_progress_bars()
    torch.set_num_threads(work.threads)
    config = load_config_as(RlConfig, None, list(work.settings.items()), [])
    tokenizer = load_tokenizer(config.policy)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    prompts = read_prompts(config, config.input.paths, "input.paths").prompts
    rows = datasets.Dataset.from_list([{"prompt": str(p.messages[0]["content"]), "ids": p.ids} for p in prompts])
    _require_same_ids(tokenizer, rows)
    micro = samples_of_micro_batch(work, prompts, config.learner.micro_tokens)
    spent: dict[str, float] = defaultdict(float)

    class Clocked(GRPOTrainer):
        def _generate(self, *given: Any) -> Any:
            with _adding(spent, "time/sampling"):
                return super()._generate(*given)

        def _calculate_rewards(self, *given: Any) -> Any:
            with _adding(spent, "time/rewarding"):
                return super()._calculate_rewards(*given)

        def _get_per_token_logps_and_entropies(self, model: Any, *given: Any, **named: Any) -> Any:
            with _adding(spent, "time/reference" if model is self.ref_model else "forward"):
                return super()._get_per_token_logps_and_entropies(model, *given, **named)

    options = GRPOConfig(
        output_dir=work.output, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", disable_tqdm=True,
        save_strategy="no", logging_steps=1, dataloader_pin_memory=False, max_steps=work.steps, learning_rate=work.rate,
        lr_scheduler_type="constant", per_device_train_batch_size=micro,
        gradient_accumulation_steps=work.batch * work.group // micro, num_generations=work.group,
        max_completion_length=work.new_tokens, loss_type="dapo", beta=work.kl, use_bias_correction_kl=False, seed=work.seed,
        model_init_kwargs={"dtype": "float32"},
    )  # fmt: skip
    trainer = Clocked(
        model=work.model, reward_funcs=Endogenous(config), args=options, train_dataset=rows, processing_class=tokenizer
    )
    trainer.add_callback(_writer(work, spent))
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    trainer.train()
    trainer.save_model(f"{work.output}/hf")


class Endogenous:
    """The reward of the model as it was before the run, as TRL wants it."""

    __name__ = "endogenous"

    def __init__(self, config: RlConfig):
        self.config, self.model = config, config.policy
        self.models = Models("cpu", "float32", 0, config.reward.alpha, config.rewarder.budget_tokens)
        self.models.open(self.model)

    def __call__(self, ids: list[list[int]], completion_ids: list[list[int]], **_: Any) -> list[float]:
        turns = [TokenizedTurn(prompt, response, []) for prompt, response in zip(ids, completion_ids, strict=True)]
        found = self.models.score(self.model, turns)
        self.models.forget()
        return [earned(scores, self.config.reward).reward for scores in found if isinstance(scores, Scores)]


def _require_same_ids(tokenizer: Any, rows: Any) -> None:
    if tokenizer(text=rows["prompt"][:])["input_ids"] != rows["ids"][:]:
        raise RuntimeError("TRL does not see the prompts as the tokens that we see; take a model without a template")


def samples_of_micro_batch(work: Work, prompts: Sequence[Prompt], budget: int) -> int:
    """The largest divisor of a step's samples that never has more positions than the budget."""
    samples, longest = work.batch * work.group, max(len(prompt.ids) for prompt in prompts) + work.new_tokens
    fitting = [size for size in range(1, samples + 1) if samples % size == 0 and size * longest <= budget]
    return max(fitting, default=1)


@contextlib.contextmanager
def _adding(spent: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    spent[name] += time.perf_counter() - began


def _writer(work: Work, spent: dict[str, float]) -> Any:
    """Writes the metrics of a step as our command does."""

    class Writer(transformers.TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.file = MetricsFile(f"{work.output}/{METRICS}")
            self.ended = time.perf_counter()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" not in logs:
                return
            began, self.ended = self.ended, time.perf_counter()
            spent.pop("forward", None)  # is part of learning
            row = {"step": state.global_step, "step_time": self.ended - began, **spent}
            row["time/learning"] = row["step_time"] - sum(spent.values())
            spent.clear()
            self.file.append(row | {name: logs[name] for name in ("reward", "completions/mean_length")})

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.file.close()

    return Writer()


# A command, watched


def command(side: str, work: Work, further: Sequence[str]) -> list[str]:
    if side in (THEIRS, SINGLE):
        return [sys.executable, str(Path(__file__).resolve()), "--theirs", json.dumps(asdict(work))]
    told = [f"{name}={json.dumps(value)}" for name, value in work.settings.items()] + list(further)
    python, engine = (work.vllm, ["sampler.engine=vllm"]) if side == VLLM else (sys.executable, [])
    return [str(python), "-m", "jobs", "rl", *(word for each in told + engine for word in ("--set", each))]


def run(side: str, work: Work, further: Sequence[str], *, memory: bool) -> Turn:
    """A whole command, whose memory or whose time is measured. Ends the benchmark with what it said where it fails."""
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ, **({} if memory else ALLOCATOR)}
    for name in ("OMP_NUM_THREADS", "RAY_ADDRESS"):
        environment.pop(name, None)
    if side in (THEIRS, SINGLE):
        environment["OMP_NUM_THREADS"] = str(work.threads)  # Ray sets that of its workers
    began = time.perf_counter()
    with open(f"{work.output}.log", "w+") as log:
        process = subprocess.Popen(
            command(side, work, further), cwd=ROOT, env=environment, stdout=log, stderr=log, text=True
        )
        try:
            looks, held = _watch(process, work, memory)
        finally:
            process.terminate()
            process.wait()
        seconds = time.perf_counter() - began
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"{side} failed:\n{log.read()[-4000:]}")
    return Turn(work.metrics, seconds, _busy(looks, work.steps), held)


class Look(NamedTuple):
    at: float  # seconds
    steps: int  # that were done
    cpu: float  # seconds of all processes


def _watch(process: subprocess.Popen[str], work: Work, memory: bool) -> tuple[list[Look], dict[str, float]]:
    """Looks at the processes until the command ends, and the most memory that was held at one of them."""
    import psutil

    looks: list[Look] = []
    most: dict[str, float] = {}
    root = psutil.Process(process.pid)
    while process.poll() is None:
        cpu, held = 0.0, defaultdict[str, float](float)
        with contextlib.suppress(psutil.Error):
            for each in (root, *root.children(recursive=True)):
                with contextlib.suppress(psutil.Error):  # those that have just ended
                    cpu += sum(each.cpu_times()[:2])
                    if memory:
                        held[_holder(each, root)] += each.memory_full_info().pss
        looks.append(Look(time.perf_counter(), len(work.metrics), cpu))
        most = max(most, held, key=lambda sizes: sum(sizes.values()))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LOOK_S)
    return looks, most


HOLDERS = {"ray::RayTrainWorker": "learner", "ray::PolicySampler": "samplers", "ray::RewardActor": "rewarder"}
COMMAND, RAY = "the command itself", "Ray's own processes"


def _holder(process: Any, root: Any) -> str:
    if process == root:
        return COMMAND
    title = " ".join(process.cmdline())
    return next((name for begin, name in HOLDERS.items() if title.startswith(begin)), RAY)


def _busy(looks: Sequence[Look], steps: int) -> float:
    """Cores that were busy in the counted steps."""
    counted = [look for look in looks if WARMUP <= look.steps < steps]
    if len(counted) < 2:
        return math.nan
    first, last = counted[0], counted[-1]
    return (last.cpu - first.cpu) / (last.at - first.at)


# The comparison


@dataclass
class Found:
    """What one side comes to."""

    turns: list[Turn]
    memory: dict[str, float]  # bytes at the peak, by who holds them

    @property
    def steps(self) -> list[float]:
        """Seconds of each counted step."""
        return [seconds for turn in self.turns for seconds in turn.steps]

    @property
    def cpu(self) -> float:
        """CPU seconds of a step."""
        return statistics.median(turn.cores * statistics.fmean(turn.steps) for turn in self.turns)

    @property
    def rest(self) -> float:
        return statistics.median(turn.rest for turn in self.turns)

    @property
    def peak(self) -> float:
        return sum(self.memory.values())

    def rewards(self, which: slice) -> list[float]:
        """The mean reward of some steps of every turn."""
        return [row["reward"] for turn in self.turns for row in turn.rows[which]]


def measure(work: Work, turns: int, further: Sequence[str]) -> dict[str, Found]:
    """Memory, one side after another; then speed, the sides in turns and in an order that changes."""
    sides = {OURS: work, THEIRS: work} | ({SINGLE: replace(work, threads=1)} if work.threads > 1 else {})
    sides |= {VLLM: work} if work.vllm else {}
    found = {side: Found([], {}) for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        for side, told in sides.items():
            short = replace(told, steps=WARMUP + 1, output=f"{folder}/{side}-memory")
            found[side].memory = run(side, short, further, memory=True).memory
        for turn in range(turns):
            for side, told in list(sides.items())[:: -1 if turn % 2 else 1]:
                told = replace(told, seed=turn, output=f"{folder}/{side}-{turn}")
                found[side].turns.append(run(side, told, further, memory=False))
    return found


def compare(name: str, work: Work, turns: int, further: Sequence[str]) -> dict[str, bool]:
    """Print the tables of a case. Returns its claims."""
    found = measure(work, turns, further)
    mine = found[OURS]
    its = min((found[side] for side in (THEIRS, SINGLE) if side in found), key=lambda one: statistics.median(one.steps))
    tokens = statistics.fmean(row["completions/mean_length"] for turn in mine.turns for row in turn.rows)
    shown = table(
        f"{name}: {work.batch} prompts x {work.group} responses of {tokens:.0f} tokens (at most {work.new_tokens}), "
        f"{turns} turns of {work.steps} steps, {WARMUP} of them warm-up, on {work.threads} threads",
        "", "s/step", "range", "CPU s/step", "rest, s", "peak MB", f"reward, first {WARMUP}", f"last {LAST}",
    )  # fmt: skip
    for side, one in found.items():
        first, last = (statistics.fmean(one.rewards(which)) for which in (slice(WARMUP), slice(-LAST, None)))
        shown.add_row(
            side, f"{statistics.median(one.steps):.2f}", f"{min(one.steps):.2f} to {max(one.steps):.2f}",
            f"{one.cpu:.2f}", f"{one.rest:.0f}", f"{one.peak / MB:,.0f}", f"{first:.2f}", f"{last:.2f}",
        )  # fmt: skip
    ratios = [
        statistics.median(theirs.steps) / statistics.median(ours.steps)
        for ours, theirs in zip(mine.turns, its.turns, strict=True)
    ]
    ratio, workers = statistics.median(ratios), sum(mine.memory.get(name, 0.0) for name in HOLDERS.values())
    CONSOLE.print(shown)
    CONSOLE.print(
        f"The faster TRL's over ours: {ratio:.2f} in seconds per step ({min(ratios):.2f} to {max(ratios):.2f} in the turns; "
        f"the aim is {FASTER:g}), {its.cpu / mine.cpu:.2f} in CPU seconds. Our peak memory over its: "
        f"{mine.peak / its.peak:.1f}, of learner, samplers and rewarder {workers / its.peak:.1f}.\n"
    )
    if VLLM in found:
        other = statistics.median(found[VLLM].steps) / statistics.median(mine.steps)
        CONSOLE.print(f"Ours with vLLM over ours with transformers: {other:.2f} in seconds per step.\n")
    CONSOLE.print(parts(found))
    CONSOLE.print(holders(found))
    apart = standard_errors(*(one.rewards(slice(-LAST, None)) for one in (mine, its)))
    return {
        f"{name}: a step takes no longer than TRL's (TRL's over ours {ratio:.2f})": ratio >= 1.0,
        f"{name}: the reward of the last steps is TRL's within 3 standard errors ({apart:.1f})": apart <= 3.0,
    }


def standard_errors(first: Sequence[float], second: Sequence[float]) -> float:
    """By how many, of the difference, two means differ (Welch 1947)."""
    error = math.sqrt(sum(statistics.variance(values) / len(values) for values in (first, second)))
    return abs(statistics.fmean(first) - statistics.fmean(second)) / error


PARTS = ("time/sampling", "time/rewarding", "time/reference", "time/learning", "time/weights")


def parts(found: dict[str, Found]) -> Any:
    """Where the seconds of a step go."""
    shown = table("means of the counted steps, s", "", *(part[5:] for part in PARTS), "between")
    for side, one in found.items():
        rows = [row for turn in one.turns for row in turn.rows[WARMUP:]]
        means = [statistics.fmean(row.get(part, 0.0) for row in rows) for part in PARTS]
        between = statistics.fmean(one.steps) - sum(means)
        cells = [f"{mean:.3f}" if part in rows[0] else "" for part, mean in zip(PARTS, means, strict=True)]
        shown.add_row(side, *cells, f"{between:.3f}")
    shown.caption = "our rewarding has the reference within; between: Ray's messages, advantages, metrics"
    return shown


def holders(found: dict[str, Found]) -> Any:
    """Who holds the memory at its peak."""
    shown = table("memory at the peak, MB", "", *found)
    for name in (*HOLDERS.values(), COMMAND, RAY):
        cells = [f"{one.memory[name] / MB:,.0f}" if name in one.memory else "" for one in found.values()]
        shown.add_row(name, *cells)
    return shown


# The models


def write_random(case: Case, folder: str, lengths: Sequence[int], count: int) -> tuple[str, str]:
    """A Llama with random weights whose words are numbers, and random prompts for it. Returns folder and file."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    assert case.shape is not None
    build(case.shape, folder)
    words = {"<pad>": PAD, "<end>": END} | {str(number): number for number in range(END + 1, case.shape.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=str(END + 1)))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", model_max_length=1024
    ).save_pretrained(folder)
    rng = np.random.default_rng(0)
    prompts = Path(folder, "prompts.jsonl")
    with prompts.open("w") as file:
        for _ in range(count):
            ids = rng.integers(END + 1, case.shape.vocabulary, rng.integers(lengths[0], lengths[1] + 1))
            print(json.dumps({"prompt": " ".join(map(str, ids))}), file=file)
    return folder, str(prompts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--theirs", help=argparse.SUPPRESS)
    parser.add_argument("--case", choices=CASES, action="append", help="default: all")
    parser.add_argument("--model", help="a folder, in the place of the embedded model; leaves the random one out")
    parser.add_argument("--prompts", default=str(EMBEDDED / "practice.jsonl"), help="a file, for --model")
    parser.add_argument(
        "--lengths", type=int, nargs=2, default=(8, 32), help="of random prompts: least and most tokens"
    )
    parser.add_argument("--turns", type=int, default=3, help="of each side")
    parser.add_argument("--steps", type=int, help=f"of a turn, {WARMUP} of them warm-up; default: by the case")
    parser.add_argument("--batch", type=int, default=16, help="prompts of a step")
    parser.add_argument("--group", type=int, default=8, help="responses to each")
    parser.add_argument("--new-tokens", type=int, help="longest response; default: by the case")
    parser.add_argument("--rate", type=float, default=1e-4, help="of learning")
    parser.add_argument("--kl", type=float, default=0.01, help="its coefficient; 0: neither side holds a reference")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each side")
    parser.add_argument("--vllm", metavar="PYTHON", help="of an environment with vLLM: a further side; needs --model")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", help="for our command; repeatable")
    options = parser.parse_args()
    if options.theirs:
        theirs(Work(**json.loads(options.theirs)))
        return
    for package, extra in (("trl", "bench"), ("psutil", "dev")):
        if importlib.util.find_spec(package) is None:
            CONSOLE.print(f'skipped: {package} is not installed; pip install -e ".\\[{extra}]"')
            return
    if not Path("/proc/self/smaps_rollup").exists():
        CONSOLE.print("skipped: memory is read from /proc, which this system does not have")
        return
    torch.set_num_threads(options.threads)  # as the tables say
    if options.steps is not None and options.steps < WARMUP + 2:
        parser.error(f"--steps: at least {WARMUP + 2}, {WARMUP} of them are warm-up")

    if options.vllm and not options.model:
        parser.error("--vllm needs --model: vLLM has no kernel for the heads of the embedded model on a CPU")
    claims: dict[str, bool] = {}
    for name in ["embedded"] if options.model else options.case or CASES:
        case = CASES[name]
        with tempfile.TemporaryDirectory() as folder:
            model, prompts = options.model or str(EMBEDDED / "model"), options.prompts
            if case.shape is not None:
                model, prompts = write_random(case, folder, options.lengths, 20 * options.batch)
            work = Work(
                os.path.abspath(model), os.path.abspath(prompts), options.batch, options.group,
                options.new_tokens or case.new_tokens, options.steps or case.steps, options.rate, options.kl,
                options.threads, seed=0, output="", vllm=options.vllm,
            )  # fmt: skip
            claims |= compare(options.model or name, work, options.turns, options.set)
    verdict(claims)


if __name__ == "__main__":
    main()
