"""Does TRL, with our reward, learn what `endoreward rl` learns: GRPO on the embedded additions, distillation from a server.

    python benchmarks/trl_with_our_reward.py                          # 300 steps, as examples/addition/rl.toml has
    python benchmarks/trl_with_our_reward.py --folder out/trl --parts grpo remote  # one part after another

grpo: GRPOTrainer of TRL 1.16.0 with `endoreward.reward(MODEL)` in its process, and with `endoreward.remote(URL)` of a server,
`endoreward serve --local`; beside them `endoreward rl`. On all sides: the embedded model as policy and as the reward, dapo's
loss, rewards scaled by the deviation of their group, no KL, 16 prompts and 8 answers a step, temperature 1, AdamW at 1e-4 that
falls linearly to nothing, gradients clipped at 1, float32. The order of the prompts and the samples are each side's own.
Claim: the accuracy with TRL is that of `rl`: the 95% interval of the difference (Newcombe 1998, method 10) has 0 in it, or
lies above.

distillation: TRL's ServerDistillationTrainer, beta = 1. The teacher is what GRPOTrainer ended with, behind our server; the
student is the embedded model, which learns from its own samples. `VLLMClient`, which asks the teacher, wants vLLM to be
installed, of which it needs nothing here: that check is answered for it. Claim: the student's accuracy is the teacher's, in
the same sense.

Accuracy is of one answer at temperature 1 to each of --held-out additions that nobody practised on, by the same random numbers
for all policies. Needs trl (the extra `bench`) and the extra `serve`.
"""

import argparse
import functools
import json
import logging
import os
import re
import tempfile
import time
import tomllib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from local_server import local_server
from machine import CONSOLE, describe, table, verdict
from rl_claims import SEED, answers, distinct_problems, is_correct
from rl_on_addition import ADDITION, Run

import endoreward
from pipeline.store.summary import wilson_interval

MODEL = ADDITION / "model"
RL = tomllib.loads((ADDITION / "rl.toml").read_text())["rl"]
OURS, IN_PROCESS, REMOTE = "endoreward rl", "TRL, endoreward.reward", "TRL, endoreward.remote"
STUDENT = "TRL, distilled from our server"


def options_of(kind: type, folder: Path, steps: int, seed: int, **more: Any) -> Any:
    """What both of TRL's trainers are told."""
    return kind(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to=[], disable_tqdm=True, save_strategy="no", seed=seed,
        dataloader_pin_memory=False, max_steps=steps, learning_rate=RL["learning_rate"], lr_scheduler_type="linear",
        warmup_steps=0, weight_decay=0.0, adam_beta1=0.9, adam_beta2=0.999, max_grad_norm=1.0, temperature=1.0,
        max_completion_length=RL["max_new_tokens"], logging_steps=25, model_init_kwargs={"dtype": "float32"}, **more,
    )  # fmt: skip


def practice() -> Any:
    import datasets

    datasets.disable_progress_bars()
    lines = (ADDITION / "practice.jsonl").read_text().splitlines()
    return datasets.Dataset.from_list([{"prompt": json.loads(line)["prompt"]} for line in lines])


def finished(trainer: Any, folder: Path) -> Path:
    from transformers import AutoTokenizer

    trainer.train()
    trainer.save_model(str(folder / "hf"))
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(folder / "hf")
    return folder / "hf"


def grpo(reward: Any, folder: Path, steps: int, seed: int) -> Path:
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    samples = RL["batch_size"] * RL["group_size"]
    options = options_of(
        GRPOConfig, folder, steps, seed, per_device_train_batch_size=samples, num_generations=RL["group_size"], beta=0.0,
        loss_type="dapo", scale_rewards="group",
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    trainer = GRPOTrainer(
        model=str(MODEL), reward_funcs=reward, args=options, train_dataset=practice(), processing_class=tokenizer
    )
    return finished(trainer, folder)


def distil(url: str, folder: Path, steps: int, seed: int) -> Path:
    from transformers import AutoTokenizer
    from trl.experimental.server_distillation import ServerDistillationConfig, ServerDistillationTrainer
    from trl.generation import vllm_client

    vllm_client.is_vllm_available = lambda: True  # asking a teacher needs nothing of it
    options = options_of(
        ServerDistillationConfig, folder, steps, seed, per_device_train_batch_size=RL["batch_size"] * 4, beta=1.0,
        teacher_model_server_url=url,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    trainer = ServerDistillationTrainer(
        model=str(MODEL), args=options, train_dataset=practice(), processing_class=tokenizer
    )
    return finished(trainer, folder)


def right_of(model: Path, count: int) -> int:
    """How many of the held-out problems it answers right at temperature 1."""
    problems = distinct_problems(count, SEED)
    sampled = answers(model, problems, 1.0)
    return sum(is_correct(problem, answer.text) for problem, [answer] in zip(problems, sampled, strict=True))


def difference(first: int, second: int, count: int) -> tuple[float, float]:
    """The 95% interval of first/count - second/count."""
    p, q = first / count, second / count
    (low_p, high_p), (low_q, high_q) = wilson_interval(first, count), wilson_interval(second, count)
    below = ((p - low_p) ** 2 + (high_q - q) ** 2) ** 0.5
    above = ((high_p - p) ** 2 + (q - low_q) ** 2) ** 0.5
    return p - q - below, p - q + above


@dataclass
class Bench:
    """What has been measured, in a file: a row that is there is not measured again."""

    folder: Path
    steps: int
    seed: int
    held_out: int

    def __post_init__(self) -> None:
        self.file = self.folder / "figures.json"
        self.rows: dict[str, dict[str, float]] = json.loads(self.file.read_text()) if self.file.exists() else {}

    def measure(self, name: str, train: Callable[[Path], Path]) -> Path:
        """The policy that `train` makes in a folder of its own, whose accuracy becomes a row."""
        folder = self.folder / re.sub(r"\W+", "-", name)
        if name in self.rows:
            return folder / "hf"
        began = time.perf_counter()
        policy = train(folder)
        seconds = time.perf_counter() - began
        right = right_of(policy, self.held_out)
        low, high = wilson_interval(right, self.held_out)
        self.rows[name] = {
            "right": right,
            "accuracy": right / self.held_out,
            "low": low,
            "high": high,
            "seconds": seconds,
        }
        self.file.write_text(json.dumps(self.rows, indent=1))
        CONSOLE.print(f"{name}: {right / self.held_out:.1%} ({low:.1%} to {high:.1%}), {seconds:.0f} s")
        return policy

    def claim(self, name: str, reference: str) -> dict[str, bool]:
        if not {name, reference} <= self.rows.keys():
            return {}
        low, high = difference(int(self.rows[name]["right"]), int(self.rows[reference]["right"]), self.held_out)
        return {f"{name} reaches {reference} ({100 * low:+.1f} to {100 * high:+.1f} points)": high >= 0}

    def rl(self, folder: Path) -> Path:
        told = {"rl.max_steps": self.steps, "rl.seed": self.seed, "rl.kl_coefficient": 0, "held_out.prompts": "[]"}
        return Run.of(folder, told).policy

    def in_process(self, folder: Path) -> Path:
        return grpo(endoreward.reward(MODEL, device="cpu"), folder, self.steps, self.seed)

    def remote(self, folder: Path) -> Path:
        with local_server(MODEL) as url:
            return grpo(endoreward.remote(url), folder, self.steps, self.seed)

    def distilled(self, folder: Path) -> Path:
        with local_server(self.measure(IN_PROCESS, self.in_process)) as url:
            return distil(url, folder, self.steps, self.seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rows = {"rl": (OURS, Bench.rl), "grpo": (IN_PROCESS, Bench.in_process), "remote": (REMOTE, Bench.remote)}
    rows["distillation"] = (STUDENT, Bench.distilled)
    parser.add_argument("--parts", nargs="+", choices=list(rows), default=list(rows))
    parser.add_argument("--steps", type=int, default=RL["max_steps"], help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held-out", type=int, default=2000, help="default: %(default)s")
    parser.add_argument("--folder", type=Path, help="of policies and figures; what is in it is not made again")
    parser.add_argument("--output", type=Path, help="a JSON file of the figures")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(folder, args.steps, args.seed, args.held_out)
        bench.measure("before", lambda folder: MODEL)
        for part in args.parts:
            name, train = rows[part]
            bench.measure(name, functools.partial(train, bench))

    shown = table(
        f"{args.held_out:,} held-out additions, {args.steps} steps", "", "accuracy", "95% interval", "seconds"
    )
    for name, row in bench.rows.items():
        shown.add_row(name, f"{row['accuracy']:.1%}", f"{row['low']:.1%} to {row['high']:.1%}", f"{row['seconds']:.0f}")
    CONSOLE.print(shown)
    if args.output:
        settings = {"machine": describe(), "steps": args.steps, "seed": args.seed, "held_out": args.held_out}
        args.output.write_text(json.dumps({**settings, "rows": bench.rows}, indent=1) + "\n")
    pairs = [(IN_PROCESS, OURS), (REMOTE, OURS), (STUDENT, IN_PROCESS)]
    verdict({sentence: holds for pair in pairs for sentence, holds in bench.claim(*pair).items()})


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
