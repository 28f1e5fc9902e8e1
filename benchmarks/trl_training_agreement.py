"""Losses, their gradients and the logged metrics of the objectives, against TRL's own trainers on the same batch.

One batch: responses of different lengths, two to a prompt, sampled from the behaviour. The reference is the model as it
is, the policy the model with noise on its weights, the behaviour the one with half the noise. Prompts are random tokens
and equally long: GRPOTrainer pads them on the left and gives no positions, so that a model with learned positions would
differ in its log-probabilities, before any objective. TRL's side is `compute_loss` of its trainers on
batches of their own layout (padded; built here where the trainer would generate), with the log-probabilities of behaviour
and reference handed in. Ours are plain forwards, one response at a time, log_softmax, an objective, the sum over units
divided by their number. Both are differentiated to the weights.

    ours                          trl 1.16
    dpo                           DPOTrainer, loss_type = "sigmoid"
    ipo                           DPOTrainer, loss_type = "ipo"
    simpo                         experimental CPOTrainer, loss_type = "simpo", cpo_alpha = 0
    grpo, loss_type of TRL's      GRPOTrainer, loss_type = "dapo", "grpo", "dr_grpo"
    reinforce                     GRPOTrainer, loss_type = "cispo", epsilon_high = max_ratio
    sft                           SFTTrainer, loss_type = "nll"

TRL's defaults that matter are kept: reverse KL; importance_sampling_level = "token"; use_bias_correction_kl = True; no
delta, no masks by entropy or off-policyness; no packing. Label smoothing can be compared for simpo only, because TRL 1.16
has none for "sigmoid" and "ipo". It has no soft targets by margin, no awr and no rwr: tests/unit/test_objectives.py holds
those against their equations. Left out as well: TRL's advantages, which it computes inside generation.

The relative difference of gradients is the largest, over tensors of weights, of |ours - trl's| / |trl's| in the 2-norm. In
float32 it is rounding on both sides. With `--dtype float64` what is left is what stays float32 all the same: TRL's fused
output layer, and attention in some architectures; simpo on the embedded model goes without either and agrees to 1e-14.

Needs trl (the `bench` extra). Runs on the model that is embedded in examples/; `--model` takes another folder.
"""

import argparse
import copy
import importlib.util
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from machine import CONSOLE, table, verdict
from rich.table import Table
from trl_agreement import EMBEDDED, perturbed

from pipeline.config import ModelConfig
from pipeline.models.loading import load_model, load_tokenizer
from pipeline.training.objectives import Batch, Objective
from pipeline.training.objectives.dpo import Dpo
from pipeline.training.objectives.grpo import Grpo
from pipeline.training.objectives.ipo import Ipo
from pipeline.training.objectives.reinforce import Reinforce
from pipeline.training.objectives.sft import Sft
from pipeline.training.objectives.simpo import Simpo

TOLERANCE = 1e-5
BETA, SMOOTHING, MARGIN, LOW, HIGH, MAX_RATIO, PROMPT, LONGEST = 0.1, 0.1, 0.5, 0.2, 0.28, 1.2, 6, 16
Row = tuple[list[int], list[int]]  # prompt, response
Gradients = dict[str, torch.Tensor]
Learns = TypeVar("Learns")  # an objective, an algorithm


@dataclass
class Models:
    policy: Any
    reference: Any
    behaviour: Any
    tokenizer: Any


@dataclass
class Side:
    """What one side makes of the batch."""

    loss: float
    gradients: Gradients
    metrics: dict[str, float]


@dataclass
class Given:
    """The batch: chosen, rejected, chosen, ... Log-probabilities [H] and an advantage for each row."""

    rows: list[Row]
    reference: list[torch.Tensor]
    behaviour: list[torch.Tensor]
    advantages: torch.Tensor


# Ours


def logprobs(model: Any, row: Row) -> torch.Tensor:
    """log pi of the response's tokens, [H]."""
    prompt, response = row
    logits = model(torch.tensor([prompt + response]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]


def sample(models: Models, pairs: int) -> Given:
    draw = torch.Generator().manual_seed(0)
    size = models.policy.config.vocab_size
    rows = []
    for number in range(2 * pairs):
        if number % 2 == 0:
            prompt = torch.randint(size, (PROMPT,), generator=draw).tolist()
        response: list[int] = []
        for _ in range(int(torch.randint(1, LONGEST + 1, (), generator=draw))):
            logits = models.behaviour(torch.tensor([prompt + response])).logits[0, -1]
            response.append(int(torch.multinomial(logits.softmax(-1), 1, generator=draw)))
        rows.append((prompt, response))
    return Given(
        rows,
        [logprobs(models.reference, row) for row in rows],
        [logprobs(models.behaviour, row) for row in rows],
        torch.randn(len(rows), generator=draw),
    )


def ours(objective: Objective, models: Models, given: Given) -> Side:
    lengths = torch.tensor([len(response) for _, response in given.rows])
    batch = Batch(
        logprobs=torch.cat([logprobs(models.policy, row) for row in given.rows]),
        lengths=lengths,
        rewards=torch.zeros(len(lengths), dtype=torch.float64),
        reference=torch.cat(given.reference),
        behaviour=torch.cat(given.behaviour) if objective.uses_behaviour else None,
        advantages=given.advantages.repeat_interleave(lengths),
    )
    terms = objective.terms(batch)
    loss = terms.losses.sum() / len(terms.losses)
    metrics = {name: float(values.double().mean()) for name, values in terms.metrics.items()}
    return Side(float(loss), differentiated(loss, models.policy), metrics)


def differentiated(loss: torch.Tensor, model: Any) -> Gradients:
    names, weights = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, weights), strict=True))


# TRL's


class Theirs:
    """TRL's trainers, built anew for each case."""

    def __init__(self, models: Models, given: Given, folder: str):
        self.models, self.given = models, given
        self.common = {
            "output_dir": folder, "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none",
            "disable_tqdm": True,
        }  # fmt: skip

    def _arguments(self, text: dict[str, str]) -> dict[str, Any]:
        """A policy of its own, and a row that the constructor wants and that is not used."""
        from datasets import Dataset

        return {
            "model": copy.deepcopy(self.models.policy),
            "train_dataset": Dataset.from_list([text]),
            "processing_class": self.models.tokenizer,
        }

    def _side(self, trainer: Any, inputs: dict[str, Any], logged: Callable[[], dict[str, list[float]]]) -> Side:
        trainer.model.train()
        loss = trainer.compute_loss(trainer.model, inputs)
        metrics = {name: values[0] for name, values in logged().items()}
        return Side(float(loss), differentiated(loss, trainer.model), metrics)

    def dpo(self, loss_type: str) -> Side:
        from trl import DPOConfig, DPOTrainer

        options = DPOConfig(**self.common, loss_type=[loss_type], beta=BETA, max_length=None)
        trainer = DPOTrainer(
            ref_model=copy.deepcopy(self.models.reference),
            args=options,
            **self._arguments({"prompt": "1", "chosen": "2", "rejected": "3"}),
        )
        examples = [
            {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
            for (prompt, chosen), (_, rejected) in zip(self.given.rows[::2], self.given.rows[1::2], strict=True)
        ]
        return self._side(trainer, trainer.data_collator(examples), lambda: trainer._metrics["train"])

    def simpo(self, smoothing: float) -> Side:
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        options = CPOConfig(
            **self.common, loss_type="simpo", cpo_alpha=0.0, beta=2.0, simpo_gamma=MARGIN, label_smoothing=smoothing
        )
        trainer = CPOTrainer(args=options, **self._arguments({"prompt": "1", "chosen": "2", "rejected": "3"}))
        examples = []
        for pair in zip(self.given.rows[::2], self.given.rows[1::2], strict=True):
            example: dict[str, Any] = {}
            for side, (prompt, response) in zip(("chosen", "rejected"), pair, strict=True):
                example[f"{side}_input_ids"] = prompt + response
                example[f"{side}_attention_mask"] = [1] * len(prompt + response)
                example[f"{side}_labels"] = [-100] * len(prompt) + response
            examples.append(example)
        inputs = trainer.data_collator(examples)
        side = self._side(trainer, inputs, lambda: trainer._stored_metrics["train"])
        # its log-probabilities are means over tokens, ours sums
        return Side(side.loss, side.gradients, {k: v for k, v in side.metrics.items() if not k.startswith("logps")})

    def grpo(
        self,
        loss_type: str,
        beta: float,
        epsilon_high: float = HIGH,
        epsilon: float = LOW,
        masked: Sequence[int] = (),
    ) -> Side:
        """`masked`: numbers of the rows that are masked as a whole."""
        from trl import GRPOConfig, GRPOTrainer

        rows = self.given.rows
        options = GRPOConfig(
            **self.common, loss_type=loss_type, beta=beta, epsilon=epsilon, epsilon_high=epsilon_high,
            max_completion_length=LONGEST, num_generations=2, per_device_train_batch_size=len(rows),
        )  # fmt: skip
        trainer = GRPOTrainer(reward_funcs=no_reward, args=options, **self._arguments({"prompt": "1"}))
        trainer.current_gradient_accumulation_steps = 1
        prompts, responses = ([torch.tensor(ids) for ids in column] for column in zip(*rows, strict=True))
        masks = [torch.full_like(ids, number not in masked) for number, ids in enumerate(responses)]
        inputs = {
            "prompt_ids": padded(prompts, left=True),
            "prompt_mask": padded([torch.ones_like(ids) for ids in prompts], left=True),
            "completion_ids": padded(responses),
            "completion_mask": padded(masks),
            "advantages": self.given.advantages,
            "old_per_token_logps": padded(self.given.behaviour),
            "ref_per_token_logps": padded(self.given.reference),
            "num_items_in_batch": torch.cat(masks).sum(),
        }
        return self._side(trainer, inputs, lambda: trainer._metrics["train"])

    def sft(self) -> Side:
        from trl import SFTConfig, SFTTrainer

        options = SFTConfig(**self.common, loss_type="nll", max_length=None)
        trainer = SFTTrainer(args=options, **self._arguments({"prompt": "1", "completion": "2"}))
        examples = [
            {"input_ids": prompt + response, "labels": [-100] * len(prompt) + response}
            for prompt, response in self.given.rows
        ]
        return self._side(trainer, trainer.data_collator(examples), dict)


def no_reward(completions: list[str], **_: Any) -> list[float]:
    return [0.0] * len(completions)


def padded(rows: list[torch.Tensor], left: bool = False) -> torch.Tensor:
    """[n, longest], 0 where there is nothing."""
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left" if left else "right")


# The comparison


def relative(mine: Gradients, theirs: Gradients) -> float:
    return max(float((mine[name] - its).norm() / its.norm()) for name, its in theirs.items())


def shared_metrics(mine: Side, theirs: Side) -> tuple[int, float]:
    """How many metrics both sides log under one name, and their largest relative difference (absolute below 1)."""
    names = mine.metrics.keys() & theirs.metrics.keys()
    apart = [abs(mine.metrics[n] - theirs.metrics[n]) / max(1.0, abs(theirs.metrics[n])) for n in names]
    return len(names), max(apart, default=0.0)


def prepared(doc: str) -> tuple[argparse.Namespace, Models, Given]:
    """Options, models and batch of a comparison with TRL; ends the command, successfully, where trl is absent."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=EMBEDDED / "model", help="a folder; default: the embedded one")
    parser.add_argument("--pairs", type=int, default=6, help="prompts, with two responses each")
    parser.add_argument("--noise", type=float, default=0.1, help="on the policy's weights, in standard deviations")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="of the models")
    options = parser.parse_args()
    if importlib.util.find_spec("trl") is None:
        CONSOLE.print('skipped: trl is not installed; pip install -e ".[bench]"')
        sys.exit(0)
    warnings.simplefilter("ignore")  # trl and transformers about their own next versions
    logging.disable(logging.WARNING)
    import datasets

    datasets.disable_progress_bars()
    config = ModelConfig(name=str(options.model), dtype=options.dtype)
    base = load_model(config, "cpu").requires_grad_(True)
    tokenizer = load_tokenizer(config)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    models = Models(perturbed(base, options.noise), base, perturbed(base, options.noise / 2), tokenizer)
    with torch.no_grad():
        return options, models, sample(models, options.pairs)


def compare(
    what: str, dtype: str, cases: dict[str, tuple[Learns, Callable[[], Side]]], ours: Callable[[Learns], Side]
) -> tuple[Table, dict[str, bool]]:
    """Both sides of each case as a row, and what is claimed of it. A case is what `ours` takes, and TRL's side."""
    import trl

    shown = table(f"{what} against trl {trl.__version__}, {dtype}", "", "loss", "trl's", "gradients", "metrics")
    claims = {}
    for name, (learns, of_trl) in cases.items():
        mine, its = ours(learns), of_trl()
        gradients, (shared, metrics) = relative(mine.gradients, its.gradients), shared_metrics(mine, its)
        shown.add_row(name, f"{mine.loss:.7f}", f"{its.loss:.7f}", f"{gradients:.1e}", f"{shared}: {metrics:.1e}")
        apart = max(abs(mine.loss - its.loss) / abs(its.loss), gradients, metrics)
        claims[f"{name}: loss, gradients and {shared} metrics agree to {TOLERANCE:g}"] = apart < TOLERANCE
    return shown, claims


def main() -> None:
    options, models, given = prepared(__doc__)
    with tempfile.TemporaryDirectory() as scratch:
        theirs = Theirs(models, given, scratch)
        cases: dict[str, tuple[Objective, Callable[[], Side]]] = {
            "dpo, sigmoid": (Dpo(BETA), lambda: theirs.dpo("sigmoid")),
            "ipo": (Ipo(BETA), lambda: theirs.dpo("ipo")),
            "simpo": (Simpo(2.0, target_margin=MARGIN), lambda: theirs.simpo(0.0)),
            f"simpo, smoothed {SMOOTHING:g}": (Simpo(2.0, SMOOTHING, None, MARGIN), lambda: theirs.simpo(SMOOTHING)),
            "grpo, dapo, no KL": (Grpo("dapo", LOW, HIGH), lambda: theirs.grpo("dapo", 0.0)),
            "grpo, dapo": (Grpo("dapo", LOW, HIGH, BETA), lambda: theirs.grpo("dapo", BETA)),
            "grpo, grpo": (Grpo("grpo", LOW, HIGH, BETA), lambda: theirs.grpo("grpo", BETA)),
            "grpo, dr_grpo": (Grpo("dr_grpo", LOW, HIGH, BETA, LONGEST), lambda: theirs.grpo("dr_grpo", BETA)),
            "reinforce, cispo": (Reinforce(MAX_RATIO, BETA), lambda: theirs.grpo("cispo", BETA, MAX_RATIO)),
            "sft, nll": (Sft(), theirs.sft),
        }
        shown, claims = compare("objectives", options.dtype, cases, lambda objective: ours(objective, models, given))
    CONSOLE.print(shown)
    with torch.no_grad():
        policy = torch.cat([logprobs(models.policy, row) for row in given.rows])
    ratios = torch.exp(policy - torch.cat(given.behaviour))
    CONSOLE.print(
        f"{len(ratios)} response tokens; ratios to the behaviour from {ratios.min():.2f} to {ratios.max():.2f}, outside the "
        f"clip {int(((ratios < 1 - LOW) | (ratios > 1 + HIGH)).sum())}"
    )
    verdict(claims)


if __name__ == "__main__":
    main()
