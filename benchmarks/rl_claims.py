"""What the paper (arXiv 2506.23235) says of online RL beyond that it works, on additions: rounds, distillation, rules.

    python benchmarks/rl_claims.py --parts rounds --kl 4 --rounds 3
    python benchmarks/rl_claims.py --parts distillation rule

Every run is examples/addition/rl.toml by the command `rl`, but for what a row says. Figures are of --held-out problems and the
same random numbers for each policy:

    accuracy    of one answer at temperature 1, with Wilson's 95% interval over all seeds together
    greedy      accuracy of the greedy answer
    entropy     of an answer, nats: the mean of -log pi(y) over those answers
    KL          of an answer to the embedded model, nats: the mean of log pi(y) - log pi_embedded(y) over them

Seconds are those of all commands that a row takes, their start too, without what is measured here.

rounds: the policy of a run is the next run's policy, reward model and reference; beside it, as many further steps under
the first reward and reference. Theory (section 3.3): in maximum-entropy RL at temperature alpha pi is already the fixed point,
and without regularisation the best sequence does not change, so in these senses another round gains nothing. Under a KL
penalty beta round n ends at pi^((1 + alpha/beta)^n), further steps under the first reward stay at pi^(1 + alpha/beta), and
accuracy at temperature 1 may rise towards the greedy accuracy. *theory* is the accuracy of those powers, from the base's own
samples, reweighted. With the KL of rl.toml, 0.01, no run is long enough for pi^101; --kl 4 asks for pi^1.25, which it can come
close to, and takes grpo.scale = none, under which that is where grpo ends. Claim: greedy answers do not get worse.

distillation: the teacher is the embedded model, nearly always right when greedy and 63% at temperature 1; the student a
smaller one, pretrained here on the same demonstrations and for less long. It learns by `rl` from its own samples under the
teacher's reward, and under its own; by `sample`, `label` and `train` from the teacher's samples, all of them or the best of
each prompt by the teacher's reward. All rows have the same prompts, each once, as many answers to them, steps, and responses
learnt from: the best answers are learnt from as often as there are answers. No claim.

rule: a function that knows the right answer rewards a share of the prompts, beside the endogenous reward or instead of it.
Where it is alone there is no KL, so that the rule is all that is learnt from: prompts without it teach nothing either way, as
grpo leaves out groups whose rewards are the same but for a KL. The policy is the embedded model, whose own reward already
tells right from wrong, or the student. By how much is said first: the mean log pi(y) of the policy's right answers less that
of its wrong ones, which is the endogenous reward's but for V(s_1), the same for all answers to a problem. No claim.

--seeds 0 trains nothing and measures the policies that there are.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from machine import CONSOLE, run, table, verdict
from rl_on_addition import ADDITION, Run
from transformers import AutoConfig, LlamaForCausalLM

from pipeline.config import ModelConfig
from pipeline.errors import RowError
from pipeline.models.generation import Generator
from pipeline.models.loading import load_model, load_tokenizer
from pipeline.models.questions import Completion, Question
from pipeline.models.scoring import Scorer
from pipeline.store.summary import wilson_interval
from pipeline.tokens import TokenizedTurn

sys.path[:0] = [str(ADDITION)]
import pretrain  # noqa: E402
from accuracy import LONGEST, SEED  # noqa: E402
from problems import Problem, distinct_problems, is_correct  # noqa: E402

BASE = ADDITION / "model"
RL = tomllib.loads((ADDITION / "rl.toml").read_text())["rl"]
ROUND = 1000  # added to a seed with each round, which so has prompts in another order and other samples
THEORY_PROBLEMS, THEORY_SAMPLES = 500, 32

# The student, and how it learns
STUDENT = {"hidden_size": 48, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 12}
DEMONSTRATIONS = {"batch_size": 128, "learning_rate": 4e-3, "seed": 1}
STUDENT_RL_RATE = 2e-4  # that of rl.toml, by the student's width
STUDENT_SFT_RATE = 1e-3

RULE = 'kind="function", function="examples/addition/problems.py:right"'
TENTH = 0.1


# Figures


@dataclass(frozen=True)
class Figures:
    """Of one policy on held-out problems."""

    count: int
    right: int  # at temperature 1
    greedy: int  # right
    entropy: float
    kl: float
    lead: float  # of right answers over wrong ones, log pi(y), nats; nan where there are none of either


@dataclass
class Row:
    """A policy of each seed."""

    figures: list[Figures] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    got: str = ""

    def right(self, greedy: bool = False) -> tuple[int, int]:
        """Right answers of all seeds, and answers."""
        rights = sum(each.greedy if greedy else each.right for each in self.figures)
        return rights, sum(each.count for each in self.figures)


class Part:
    """One table: rows come as they are measured, each with a line, so that a long command can be watched."""

    def __init__(self, title: str, held_out: int):
        self.title, self.held_out = title, held_out
        self.rows: dict[str, Row] = {}
        self.expected: dict[str, float] = {}  # accuracy by theory

    def add(self, name: str, model: Path, seed: int | None = None, seconds: float = 0.0, got: str = "") -> None:
        """Measure a policy. `got`: what it was given to learn from."""
        found = measure(model, self.held_out)
        row = self.rows.setdefault(name, Row())
        row.figures.append(found)
        row.seconds.append(seconds)
        row.got = got
        CONSOLE.print(
            f"{'' if seed is None else f'seed {seed}: '}{name}: {found.right / found.count:.1%}, greedy "
            f"{found.greedy / found.count:.1%}, entropy {found.entropy:.2f}, KL {found.kl:z.2f}, {seconds:.0f} s"
        )

    def show(self) -> None:
        got = ["learnt from"] if any(row.got for row in self.rows.values()) else []
        made = table(
            self.title,
            *("policy", "each seed, %", "mean", "95% interval", "greedy", "entropy", "KL", "seconds", *got),
        )
        for name, row in self.rows.items():
            right, count = row.right()
            low, high = wilson_interval(right, count)
            greedy, _ = row.right(greedy=True)
            made.add_row(
                name,
                " ".join(f"{100 * each.right / each.count:.1f}" for each in row.figures),
                f"{right / count:.1%}",
                f"{low:.1%} to {high:.1%}",
                f"{greedy / count:.1%}",
                f"{statistics.fmean(each.entropy for each in row.figures):.2f}",
                f"{statistics.fmean(each.kl for each in row.figures):z.2f}",
                f"{statistics.median(row.seconds):.0f}" if any(row.seconds) else "",
                *([row.got] if got else []),
            )
        for name, share in self.expected.items():
            made.add_row(f"theory: {name}", "", f"{share:.1%}")
        CONSOLE.print(made)


def answers(model: Path, problems: Sequence[Problem], temperature: float, samples: int = 1) -> list[list[Completion]]:
    """`samples` of each problem, with log pi of their tokens. Raises RowError where one cannot be answered."""
    config = ModelConfig(name=str(model))
    tokenizer = load_tokenizer(config)
    generator = Generator(
        load_model(config, "cpu"), tokenizer, max_new_tokens=LONGEST, temperature=temperature, logprobs=True
    )
    questions = [Question(tokenizer(p.prompt)["input_ids"], samples, seed) for seed, p in enumerate(problems)]
    found = []
    for answer in generator.generate(questions):
        if isinstance(answer, RowError):
            raise answer
        found.append(answer)
    return found


def measure(model: Path, count: int) -> Figures:
    """A policy on `count` held-out problems, and how far it is from the embedded model."""
    problems = distinct_problems(count, SEED)
    sampled = [answer for [answer] in answers(model, problems, 1.0)]
    greedy = [answer for [answer] in answers(model, problems, 0.0)]
    own = [log_probability(answer) for answer in sampled]
    rights = [is_correct(problem, answer.text) for problem, answer in zip(problems, sampled, strict=True)]
    config = ModelConfig(name=str(BASE))
    tokenizer = load_tokenizer(config)
    turns = [
        TokenizedTurn(tokenizer(problem.prompt)["input_ids"], answer.token_ids, [])
        for problem, answer in zip(problems, sampled, strict=True)
    ]
    embedded = []
    for scores in Scorer(load_model(config, "cpu")).score(turns):
        if isinstance(scores, RowError):
            raise scores
        embedded.append(float(scores.logprobs.sum()))
    return Figures(
        count=count,
        right=sum(rights),
        greedy=sum(is_correct(p, answer.text) for p, answer in zip(problems, greedy, strict=True)),
        entropy=-statistics.fmean(own),
        kl=statistics.fmean(own) - statistics.fmean(embedded),
        lead=lead(own, rights),
    )


def lead(values: Sequence[float], rights: Sequence[bool]) -> float:
    """The mean value of what is right less that of what is wrong; nan where there are none of either."""
    of = {kind: [value for value, right in zip(values, rights, strict=True) if right == kind] for kind in (True, False)}
    return statistics.fmean(of[True]) - statistics.fmean(of[False]) if all(of.values()) else float("nan")


def log_probability(answer: Completion) -> float:
    """log pi(y), nats."""
    assert answer.logprobs is not None
    return float(answer.logprobs.sum(dtype=np.float64))


def sharpened(powers: Sequence[float], count: int) -> list[float]:
    """The base's accuracy under pi^power: its samples weigh pi(y)^(power - 1), normalised for each problem."""
    problems = distinct_problems(min(count, THEORY_PROBLEMS), SEED)
    sampled = answers(BASE, problems, 1.0, THEORY_SAMPLES)
    logprobs = np.array([[log_probability(answer) for answer in each] for each in sampled])  # [problems, samples]
    right = np.array([[is_correct(p, a.text) for a in each] for p, each in zip(problems, sampled, strict=True)])
    found = []
    for power in powers:
        weights = np.exp((power - 1) * (logprobs - logprobs.max(1, keepdims=True)))
        found.append(float(((weights * right).sum(1) / weights.sum(1)).mean()))
    return found


# Runs


@dataclass(frozen=True)
class Bench:
    """What the parts share."""

    folder: Path
    seeds: int
    steps: int
    held_out: int
    student_steps: int
    student_rate: float
    sft_rate: float
    kl: list[float]
    rounds: int
    rule_weight: float
    rule_policies: list[str]

    def improve(self, name: str, seed: int, settings: dict[str, object]) -> Run:
        """A run of `rl` under rl.toml and these settings, which measures nothing."""
        told = {"rl.max_steps": self.steps, "rl.seed": seed, "held_out.prompts": "[]"}
        return Run.of(self.folder / name / str(seed), {**told, **settings})

    def student(self) -> Path:
        """The student, pretrained where it is not there yet."""
        folder = self.folder / "student"
        if not folder.exists():
            tokenizer = load_tokenizer(ModelConfig(name=str(BASE)))
            torch.set_num_threads(1)  # with the seed it fixes the weights
            torch.manual_seed(0)
            model = LlamaForCausalLM(AutoConfig.from_pretrained(BASE, **STUDENT))
            parameters = sum(parameter.numel() for parameter in model.parameters())
            CONSOLE.print(f"pretraining a student of {parameters:,} parameters ...")
            pretrain.train(model, tokenizer, argparse.Namespace(steps=self.student_steps, **DEMONSTRATIONS))
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return folder


def rounds(bench: Bench) -> dict[str, bool]:
    claims = {}
    expected = iter(
        sharpened([(1 + 1 / kl) ** n for kl in bench.kl for n in range(1, bench.rounds + 1)], bench.held_out)
    )
    for kl in bench.kl:
        part = Part(
            f"Rounds of {bench.steps} steps with a KL of {kl:g}, {bench.held_out:,} held-out additions", bench.held_out
        )
        part.expected = {f"pi^{(1 + 1 / kl) ** n:.4g}, round {n}": next(expected) for n in range(1, bench.rounds + 1)}
        part.add("base", BASE)
        for seed in range(bench.seeds):
            _rounds(bench, part, seed, kl)
        part.show()
        before = wilson_interval(*part.rows["base"].right(greedy=True))
        claims |= {
            f"KL {kl:g}: greedy answers do not get worse": all(
                wilson_interval(*row.right(greedy=True))[1] >= before[0] for row in part.rows.values()
            )
        }
    return claims


def _rounds(bench: Bench, part: Part, seed: int, kl: float) -> None:
    """All rounds of one seed, and beside them as many steps under the first reward."""
    told: dict[str, object] = {"rl.kl_coefficient": kl}
    if kl != RL["kl_coefficient"]:
        told["grpo.scale"] = "none"
    first = bench.improve(f"kl {kl:g}, round", seed, told)
    part.add("round 1", first.policy, seed, first.seconds)
    own, further = first, first
    for number in range(2, bench.rounds + 1):
        of_round = seed + ROUND * (number - 1)
        models = {f"{who}.name": own.policy for who in ("policy", "reward_model", "reference")}
        own = bench.improve(f"kl {kl:g}, round", of_round, {**told, **models})
        part.add(f"round {number}", own.policy, seed, own.seconds)
        models = {"policy.name": further.policy, "reward_model.name": BASE, "reference.name": BASE}
        further = bench.improve(f"kl {kl:g}, further", of_round, {**told, **models})
        part.add(f"{number} x {bench.steps} steps, first reward", further.policy, seed, further.seconds)


def distillation(bench: Bench) -> dict[str, bool]:
    prompts, samples = bench.steps * RL["batch_size"], RL["group_size"]
    part = Part(
        f"A student that learns from {prompts:,} prompts x {samples} answers in {bench.steps} steps of "
        f"{RL['batch_size'] * samples} responses, {bench.held_out:,} held-out additions",
        bench.held_out,
    )
    student = bench.student()
    part.add("teacher", BASE)
    part.add("student", student)
    for seed in range(bench.seeds):
        source = bench.folder / f"problems-{seed}.jsonl"
        written = ("--problems", prompts, "--seed", 100 + seed, "--split", "train", "--output", source)
        run("examples/addition/problems.py", *written)
        for name, reward_model in (("rl, teacher's reward", BASE), ("rl, own reward", student)):
            told = {"policy.name": student, "reward_model.name": reward_model, "input.paths": f'["{source}"]'}
            done = bench.improve(name, seed, {**told, "rl.learning_rate": bench.student_rate})
            part.add(name, done.policy, seed, done.seconds, f"own, {tokens(done.folder)}")
        started = time.perf_counter()
        labels = teach(source, bench.folder / f"teacher {seed}", samples, seed)
        taught = time.perf_counter() - started
        for select, name in (("all", "sft, all answers"), ("best", f"sft, best of {samples}")):
            started = time.perf_counter()
            folder = imitate(bench, labels, student, select, seed)
            seconds = taught + time.perf_counter() - started
            part.add(name, folder / "hf", seed, seconds, f"teacher's, {tokens(folder)}")
    part.show()
    return {}


def teach(source: Path, folder: Path, samples: int, seed: int) -> Path:
    """A label store of the teacher's answers to the problems of a file, under its own reward."""
    sampled, labels = folder / "samples", folder / "labels"
    drawn = {"num_responses": samples, "max_new_tokens": RL["max_new_tokens"], "seed": seed}
    options = [word for name, value in drawn.items() for word in ("--set", f"sample.{name}={value}")]
    run("-m", "jobs", "sample", "--policy", BASE, "--prompts", source, "--output", sampled, *options)
    run("-m", "jobs", "label", "--model", BASE, "--input", sampled, "--output", labels)
    return labels


def imitate(bench: Bench, labels: Path, student: Path, select: str, seed: int) -> Path:
    """The directory of a `train` by sft on all answers, or on the best of each prompt as often as there are answers."""
    batch, samples = RL["batch_size"], RL["group_size"]
    told = {
        "train.objective": "sft",
        "sft.select": select,
        "train.batch_size": batch if select == "all" else batch * samples,
        "train.epochs": 1 if select == "all" else samples,
        "train.max_steps": bench.steps,
        "train.seed": seed,
        "train.learning_rate": bench.sft_rate,
    }
    options = [word for name, value in told.items() for word in ("--set", f"{name}={value}")]
    output = bench.folder / f"sft {select} {seed}"
    run("-m", "jobs", "train", "--labels", labels, "--policy", student, "--output", output, *options)
    return output


def tokens(folder: Path) -> str:
    """How many tokens a run learnt from, prompts included."""
    return f"{json.loads((folder / 'manifest.json').read_text())['tokens'] / 1e6:.2f}M tokens"


def rule(bench: Bench) -> dict[str, bool]:
    weighed = f"{{{RULE}, weight={bench.rule_weight:g}, share={TENTH:g}}}"
    rows: dict[str, dict[str, object]] = {
        "endogenous": {},
        f"and {bench.rule_weight:g} x the rule on a tenth": {"rewards.rule": weighed},
        "the rule alone, on a tenth": {"rewards": f"{{rule={{{RULE}, share={TENTH:g}}}}}", "rl.kl_coefficient": 0},
        "the rule alone, on all": {"rewards": f"{{rule={{{RULE}}}}}", "rl.kl_coefficient": 0},
    }
    for who in bench.rule_policies:
        policy, own = (BASE, {}) if who == "base" else (bench.student(), {"rl.learning_rate": bench.student_rate})
        part = Part(f"A rule beside the reward, policy: {who}, {bench.held_out:,} held-out additions", bench.held_out)
        part.add(who, policy)
        nats = part.rows[who].figures[0].lead
        CONSOLE.print(
            f"the endogenous reward of {who} gives its right answers {nats:.1f} nats more than its wrong ones"
        )
        for seed in range(bench.seeds):
            for name, settings in rows.items():
                done = bench.improve(f"{who}, {name}", seed, {"policy.name": policy, **own, **settings})
                part.add(name, done.policy, seed, done.seconds)
        part.show()
    return {}


PARTS: dict[str, Callable[[Bench], dict[str, bool]]] = {
    "rounds": rounds,
    "distillation": distillation,
    "rule": rule,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="default: all")
    parser.add_argument("--seeds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=RL["max_steps"], help="of a run; default: %(default)s")
    parser.add_argument("--held-out", type=int, default=2000, help="problems that figures are of; default: %(default)s")
    parser.add_argument(
        "--kl",
        type=float,
        nargs="+",
        default=[RL["kl_coefficient"], 4.0],
        help="rounds: coefficients; default: %(default)s",
    )
    parser.add_argument("--rounds", type=int, default=2, help="rounds: how many; default: %(default)s")
    parser.add_argument("--student-steps", type=int, default=600, help="of its pretraining; default: %(default)s")
    parser.add_argument(
        "--student-rate", type=float, default=STUDENT_RL_RATE, help="of the student's rl; default: %(default)s"
    )
    parser.add_argument(
        "--sft-rate", type=float, default=STUDENT_SFT_RATE, help="of the student's sft; default: %(default)s"
    )
    parser.add_argument(
        "--rule-weight",
        type=float,
        default=6.0,
        help="rule: of the rule beside the endogenous reward; default: %(default)s",
    )
    parser.add_argument(
        "--rule-policies", nargs="+", choices=["base", "student"], default=["base"], help="rule: default: %(default)s"
    )
    told = vars(parser.parse_args())
    parts = told.pop("parts")
    if "distillation" in parts and told["steps"] < RL["group_size"]:
        parser.error(
            f"--steps: distillation needs {RL['group_size']} or more, a batch of best answers is of as many prompts"
        )
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(folder=Path(scratch), **told)
        claims: dict[str, bool] = {}
        for name in parts:
            claims |= PARTS[name](bench)
    verdict(claims)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
