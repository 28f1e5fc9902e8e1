"""Tokens per second and peak memory of training with DPO: `actors.learner.Learner` beside TRL's DPOTrainer, in one run.

Same weights, same pairs in the same steps, AdamW with the same settings, float32, as many threads, no dropout, no
gradient checkpointing, each in a process of its own. TRL stands there twice, because its reference can be had in two ways:

    trl                 its default: a second model, forwarded in every step
    trl, precomputed    precompute_ref_log_probs = True: once before the first step, outside the time that is measured

The learner has its reference from the labels, which costs no time here either: the second is what it is held against.

Speed: the processes are started together and take turns of a few steps; the first turn warms up and is not counted.
Tokens are those of the data, prompt and response of both responses of a pair, however they are computed. The allocator
keeps what is freed, so that page faults cost little; the table has the time in the kernel.

Memory: a process each, one after another, for the steps of a turn, with the system's allocator, because memory that is
kept is not memory that is needed. It is the most that was ever resident from the end of the imports on, less what was
resident then and less the policy's weights; loading, reference, gradients, optimiser and steps are within.

The learner's micro-batches are cut by `plan_step` under `--budget-tokens`. TRL's have the largest number of pairs that
divides a step and keeps every one of them, padding included, under the same budget: neither forwards more positions at a
time. TRL tokenises by itself, here words that are the numbers of the tokens, so both see the same ids.

Loss, gradient norm and log-probabilities of the first steps must agree, or the two did not do the same work.

Models are Llamas with random weights, lengths uniform; with --model a folder, with --labels the pairs of its label
stores. Needs trl (the `bench` extra). Left out: GPUs, where TRL's output layer goes over response tokens alone, as ours
does, and not over all positions as on a CPU; several workers; reading a store.
"""

import argparse
import importlib.util
import logging
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from head_memory import MB, _reset_peak, _status_bytes, _trim
from machine import CONSOLE, table, verdict
from throughput import ALLOCATOR

from pipeline.config import ModelConfig
from pipeline.models.loading import load_model, load_settings
from pipeline.models.scoring import Scorer
from pipeline.tokens import TokenizedTurn
from pipeline.training.balance import Atom, plan_step
from pipeline.training.batch import Response
from pipeline.training.config import TrainConfig
from pipeline.training.examples import find_examples
from pipeline.training.objectives import objective_of
from pipeline.training.rows import RowReader

PAD, END = 0, 1
TOLERANCE = 1e-3
FASTER, SMALLER = 1.3, 0.7  # than TRL, at the large vocabulary
Pair = tuple[Response, Response]


class Shape(NamedTuple):
    hidden: int
    layers: int
    vocabulary: int


CASES = {
    "small trunk": Shape(256, 4, 8_000),
    "large vocabulary": Shape(96, 2, 150_000),
}


@dataclass(frozen=True)
class Work:
    """What every side is given; it pickles."""

    model: str  # a folder
    vocabulary: int
    pairs: list[Pair]  # in the order of the steps
    batch: int  # pairs of a step
    turn: int  # steps of a turn
    turns: int  # the warm-up's included
    budget: int  # tokens of a micro-batch
    rate: float
    threads: int

    def step(self, number: int) -> list[Pair]:
        return self.pairs[number * self.batch : (number + 1) * self.batch]

    @property
    def tokens_per_turn(self) -> list[int]:
        size = self.turn * self.batch
        return [_tokens(self.pairs[begin : begin + size]) for begin in range(0, len(self.pairs), size)]


class Turn(NamedTuple):
    seconds: float
    cpu: float  # seconds
    kernel: float  # of these


@dataclass
class Found:
    """What one side comes to."""

    turns: list[Turn]  # without the warm-up
    rows: list[dict[str, float]]  # of every step: METRICS
    peak: int  # bytes
    raised: int


METRICS = ("loss", "grad_norm", "logps/chosen", "logps/rejected")


# The data


def synthetic(
    count: int, vocabulary: int, seed: int, prompts: Sequence[int] = (20, 200), responses: Sequence[int] = (10, 150)
) -> list[tuple[TokenizedTurn, TokenizedTurn]]:
    """Random tokens; `prompts` and `responses` are the least and the most tokens of one."""
    rng = np.random.default_rng(seed)

    def draw(lengths: Sequence[int]) -> list[int]:
        return rng.integers(END + 1, vocabulary, rng.integers(lengths[0], lengths[1] + 1)).tolist()

    found = []
    for _ in range(count):
        prompt = draw(prompts)
        chosen, rejected = (TokenizedTurn(prompt, [*draw(responses)[:-1], END], []) for _ in range(2))
        found.append((chosen, rejected))
    return found


def stored(labels: list[str], model: str, count: int, seed: int) -> list[tuple[TokenizedTurn, TokenizedTurn]]:
    """`count` pairs of label stores in an order of the seed, again from the first where there are fewer."""
    config = TrainConfig(train={"labels": labels}, policy=ModelConfig(name=model))
    examples = find_examples(config)
    reader = RowReader(examples.sources, examples.parts, config.policy, config.train.shuffle_parts)
    chosen = np.resize(np.random.default_rng(seed).permutation(len(examples)), count)
    rows = reader.read(examples, examples.positions(chosen))
    turns = [TokenizedTurn(row.prompt_ids, row.response_ids, []) for row in rows]
    return list(zip(turns[::2], turns[1::2], strict=True))


def with_reference(model: str, turns: Sequence[tuple[TokenizedTurn, TokenizedTurn]]) -> list[Pair]:
    """The pairs with the log-probabilities that a label store holds of them."""
    flat = [turn for pair in turns for turn in pair]
    scores = Scorer(load_model(ModelConfig(name=model, dtype="float32"), "cpu")).score(flat)
    made = [
        Response(turn.prompt_ids, turn.response_ids, 0.0, reference=score.logprobs)  # type: ignore[union-attr]
        for turn, score in zip(flat, scores, strict=True)
    ]
    return list(zip(made[::2], made[1::2], strict=True))


def _tokens(pairs: Sequence[Pair]) -> int:
    return sum(len(r.prompt_ids) + len(r.response_ids) for pair in pairs for r in pair)


def build(shape: Shape, folder: str) -> None:
    torch.manual_seed(0)
    heads = max(1, shape.hidden // 32)
    config = transformers.LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.hidden * 8 // 3 // 32 * 32,
        num_hidden_layers=shape.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=1024,
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


# The sides: each runs in its own process


class Clock:
    """Takes turns with the other processes: `wait` until told to go on, `stop` when the turn is over."""

    def __init__(self, channel: Connection):
        self.channel = channel
        _trim()
        _reset_peak()
        self.imported = _status_bytes("VmRSS")

    def wait(self) -> None:
        self.channel.send(None)
        self.channel.recv()
        self._begun = self._now()

    def stop(self) -> None:
        turn = Turn(*(after - before for after, before in zip(self._now(), self._begun, strict=True)))
        self.channel.send(turn)

    def close(self, rows: list[dict[str, float]], weights: int) -> None:
        peak = _status_bytes("VmHWM")
        self.channel.send((rows, peak, peak - self.imported - weights))

    @staticmethod
    def _now() -> Turn:
        return Turn(time.perf_counter(), time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_stime)


def ours(channel: Connection, work: Work) -> None:
    os.environ["LOCAL_RANK"] = "0"
    import deepspeed  # noqa: F401  counts as an import

    from actors.learner import Learner, LearnerSpec

    torch.set_num_threads(work.threads)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    clock = Clock(channel)
    config = TrainConfig(
        policy=ModelConfig(name=work.model), learner={"dtype": "float32", "budget_tokens": work.budget}
    )
    learner = Learner(LearnerSpec(config, objective_of(config), "cpu"))
    rows = []
    for turn in range(work.turns):
        clock.wait()
        for number in range(turn * work.turn, (turn + 1) * work.turn):
            pairs = work.step(number)
            rows.append(learner.step(micro_batches(pairs, work.budget), totals(pairs), work.rate))
        clock.stop()
    clock.close(rows, _bytes(learner.policy))


def micro_batches(pairs: list[Pair], budget: int) -> list[list[Response]]:
    """As pipeline.training.steps cuts a step."""
    atoms = [
        Atom((2 * i, 2 * i + 1), i, len(chosen.prompt_ids), len(chosen.response_ids) + len(rejected.response_ids) - 2)
        for i, (chosen, rejected) in enumerate(pairs)
    ]
    [plan] = plan_step(atoms, 1, budget)
    return [[response for atom in micro for response in pairs[atom]] for micro in plan]


def totals(pairs: list[Pair]) -> dict[Any, int]:
    tokens = sum(len(response.response_ids) for pair in pairs for response in pair)
    return {"pairs": len(pairs), "responses": 2 * len(pairs), "tokens": tokens}


def theirs(channel: Connection, work: Work, precomputed: bool) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    os.environ["TQDM_DISABLE"] = "1"
    import datasets
    from transformers.trainer_callback import PrinterCallback
    from trl import DPOConfig, DPOTrainer

    datasets.disable_progress_bars()
    torch.set_num_threads(work.threads)
    texts = datasets.Dataset.from_list([_words(pair) for pair in work.pairs])
    tokenizer = numbers_as_words(work.vocabulary)
    micro = pairs_of_micro_batch(work)
    clock = Clock(channel)
    with tempfile.TemporaryDirectory() as scratch:
        options = DPOConfig(
            output_dir=scratch, use_cpu=True, bf16=False, gradient_checkpointing=False, max_length=None, report_to="none",
            disable_tqdm=True, save_strategy="no", logging_steps=1, train_sampling_strategy="sequential",
            dataloader_pin_memory=False, max_steps=work.turns * work.turn, learning_rate=work.rate,
            lr_scheduler_type="constant", per_device_train_batch_size=micro,
            gradient_accumulation_steps=work.batch // micro, precompute_ref_log_probs=precomputed,
        )  # fmt: skip
        trainer = DPOTrainer(
            model=load_model(ModelConfig(name=work.model, dtype="float32"), "cpu"),
            args=options,
            train_dataset=texts,
            processing_class=tokenizer,
            callbacks=[_turns(clock, work)],
        )
        trainer.remove_callback(PrinterCallback)
        _require_same_ids(trainer.train_dataset, work.pairs)
        trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    clock.close(rows, _bytes(trainer.model))


def _words(pair: Pair) -> dict[str, str]:
    """Words that are the numbers of tokens."""
    chosen, rejected = pair
    return {
        "prompt": " ".join(map(str, chosen.prompt_ids)),
        "chosen": " " + " ".join(map(str, chosen.response_ids)),
        "rejected": " " + " ".join(map(str, rejected.response_ids)),
    }


def numbers_as_words(vocabulary: int) -> Any:
    """A tokenizer under which "5 6" is [5, 6]. TRL appends its end token where a text lacks it: the empty one none does."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({str(number): number for number in range(vocabulary)}, unk_token=str(PAD)))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=words)
    made.pad_token = str(PAD)
    made.eos_token = ""
    return made


def pairs_of_micro_batch(work: Work) -> int:
    """The largest divisor of a step with which no padded micro-batch has more positions than the budget."""

    def most(size: int) -> int:
        return max(
            2 * size * max(len(r.prompt_ids) + len(r.response_ids) for pair in work.pairs[begin : begin + size] for r in pair)
            for begin in range(0, len(work.pairs), size)
        )  # fmt: skip

    fitting = [size for size in range(1, work.batch + 1) if work.batch % size == 0 and most(size) <= work.budget]
    return max(fitting, default=1)


def _require_same_ids(dataset: Any, pairs: list[Pair]) -> None:
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    for row, (chosen, rejected) in zip(dataset, pairs, strict=True):
        due = tuple(list(ids) for ids in (chosen.prompt_ids, chosen.response_ids, rejected.response_ids))
        if tuple(row[name] for name in columns) != due:
            raise RuntimeError("TRL does not see the tokens that we see")


def _turns(clock: Clock, work: Work) -> transformers.TrainerCallback:
    class Turns(transformers.TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.wait()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in logs and state.global_step % work.turn == 0:  # the last thing of a step
                clock.stop()
                if state.global_step < state.max_steps:
                    clock.wait()

    return Turns()


def _bytes(model: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


SIDES: dict[str, tuple[Callable[..., None], tuple[Any, ...]]] = {
    "endoreward": (ours, ()),
    "trl": (theirs, (False,)),
    "trl, precomputed": (theirs, (True,)),
}


# The comparison


class Side:
    """One side's process."""

    def __init__(self, name: str, work: Work, keeps: bool):
        side, further = SIDES[name]
        self.name = name
        self.channel, end = SPAWN.Pipe()
        for key in ALLOCATOR:
            os.environ.pop(key, None)
        os.environ |= ALLOCATOR if keeps else {}  # read when a process starts
        self.process = SPAWN.Process(target=side, args=(end, work, *further), daemon=True)
        self.process.start()
        end.close()

    def turn(self) -> Turn:
        self._receive()
        self.channel.send(None)
        return self._receive()

    def close(self) -> tuple[list[dict[str, float]], int, int]:
        """Rows, peak and raise of the peak."""
        found = self._receive()
        self.process.join()
        return found

    def _receive(self) -> Any:
        try:
            return self.channel.recv()
        except EOFError:
            raise RuntimeError(f"{self.name} ended early; what it raised stands above") from None


SPAWN = multiprocessing.get_context("spawn")


def measure(work: Work) -> dict[str, Found]:
    """Speed, the sides in turns and in an order that changes; then memory, one after another."""
    sides = [Side(name, work, keeps=True) for name in SIDES]
    found = {name: Found([], [], 0, 0) for name in SIDES}
    for number in range(work.turns):
        for side in sides if number % 2 == 0 else sides[::-1]:
            found[side.name].turns.append(side.turn())
    for side in sides:
        one = found[side.name]
        one.turns, one.rows = one.turns[1:], side.close()[0]
    short = replace(work, turns=1, pairs=work.pairs[: work.turn * work.batch])
    for name, one in found.items():
        side = Side(name, short, keeps=False)
        side.turn()
        _, one.peak, one.raised = side.close()
    return found


def compare(name: str, work: Work, steps: int) -> tuple[dict[str, Found], float]:
    """Print the table of a case. Returns what was found and by how much the first steps differ."""
    found = measure(work)
    tokens = work.tokens_per_turn[1:]
    mine = found["endoreward"]
    padded = pairs_of_micro_batch(work)
    cut = [len(micro_batches(work.step(number), work.budget)) for number in range(work.turn * work.turns)]
    shown = table(
        f"{name}: {work.batch} pairs a step, {len(tokens)} turns of {work.turn} steps, {sum(tokens):,} tokens; micro-batches "
        f"of at most {work.budget:,} tokens: {min(cut)} to {max(cut)} a step, TRL's {work.batch // padded} of {padded} pairs",
        "", "tokens/s", "times", "CPU s/step", "kernel", "times in CPU s", "peak MB", "raised by MB", "share",
    )  # fmt: skip
    for side, one in found.items():
        own = one is mine
        cpu, kernel = (sum(turn[which] for turn in one.turns) / len(tokens) / work.turn for which in (1, 2))
        shown.add_row(
            side, f"{statistics.median(n / turn.seconds for n, turn in zip(tokens, one.turns, strict=True)):,.0f}",
            "" if own else ranged(ratios(one, mine, 0)), f"{cpu:.2f}", f"{kernel:.2f}",
            "" if own else ranged(ratios(one, mine, 1)), f"{one.peak / MB:,.0f}", f"{one.raised / MB:,.0f}",
            "" if own else f"{mine.raised / one.raised:.2f}",
        )  # fmt: skip
    CONSOLE.print(shown)
    CONSOLE.print(
        "times: endoreward's speed over this row's, median and range of the turns; kernel: of the CPU seconds; share: "
        "endoreward's raise over this row's"
    )
    worst = max(
        abs(row[metric] - due[metric]) / max(1.0, abs(due[metric]))
        for one in found.values()
        for row, due in zip(one.rows[:steps], mine.rows[:steps], strict=True)
        for metric in METRICS
    )
    losses = [row["loss"] for row in mine.rows]
    CONSOLE.print(f"losses from {losses[0]:.4f} to {losses[-1]:.4f}; the first {steps} steps differ by {worst:.1e}\n")
    return found, worst


def ratios(one: Found, mine: Found, which: int) -> list[float]:
    return [its[which] / our[which] for its, our in zip(one.turns, mine.turns, strict=True)]


def ranged(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.1f} to {max(values):.1f})"


def claims_of(name: str, found: dict[str, Found], worst: float, faster: float, smaller: float) -> dict[str, bool]:
    mine = found["endoreward"]
    made = {f"{name}: the first steps agree to {TOLERANCE:g} ({worst:.1e})": worst < TOLERANCE}
    for side in ("trl", "trl, precomputed"):
        speed = statistics.median(ratios(found[side], mine, 0))
        share = mine.raised / found[side].raised
        made[f"{name}: at least {faster:g} times the tokens per second of {side} ({speed:.2f})"] = speed >= faster
        made[f"{name}: at most {smaller:g} times the memory of {side} ({share:.2f})"] = share <= smaller
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder, in the place of the models with random weights")
    parser.add_argument("--labels", action="append", help="a label store of pairs; needs --model")
    parser.add_argument("--case", choices=CASES, action="append", help="default: all")
    parser.add_argument("--prompts", type=int, nargs=2, default=(20, 200), help="least and most tokens")
    parser.add_argument("--responses", type=int, nargs=2, default=(10, 150), help="least and most tokens")
    parser.add_argument("--batch", type=int, default=8, help="pairs of a step")
    parser.add_argument("--steps", type=int, default=1, help="of a turn")
    parser.add_argument("--turns", type=int, default=5, help="besides the warm-up")
    parser.add_argument("--budget-tokens", type=int, default=4096, help="of a micro-batch")
    parser.add_argument("--rate", type=float, default=1e-4, help="of learning")
    parser.add_argument("--compared", type=int, default=4, help="steps whose figures must agree")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of each side")
    parser.add_argument("--seed", type=int, default=0, help="of the pairs")
    options = parser.parse_args()
    if options.labels and not options.model:
        parser.error("--labels needs --model")
    if importlib.util.find_spec("trl") is None:
        CONSOLE.print('skipped: trl is not installed; pip install -e ".[bench]"')
        return
    if not Path("/proc/self/status").exists():
        CONSOLE.print("skipped: peak memory is read from /proc, which this system does not have")
        return
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "TOKENIZERS_PARALLELISM": "false", "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(options.threads)

    claims: dict[str, bool] = {}
    for name in [options.model] if options.model else options.case or CASES:
        with tempfile.TemporaryDirectory() as folder:
            model = options.model or folder
            if not options.model:
                build(CASES[name], folder)
            vocabulary = load_settings(ModelConfig(name=model)).get_text_config().vocab_size
            turns = options.turns + 1
            count = turns * options.steps * options.batch
            if options.labels:
                pairs = stored(options.labels, model, count, options.seed)
            else:
                pairs = synthetic(count, vocabulary, options.seed, options.prompts, options.responses)
            work = Work(
                model, vocabulary, with_reference(model, pairs), options.batch, options.steps, turns,
                options.budget_tokens, options.rate, options.threads,
            )  # fmt: skip
            found, worst = compare(name, work, options.compared)
        large = vocabulary >= CASES["large vocabulary"].vocabulary
        claims |= claims_of(name, found, worst, *((FASTER, SMALLER) if large else (1.0, 1.0)))
    verdict(claims)


if __name__ == "__main__":
    main()
