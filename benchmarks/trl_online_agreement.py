"""Losses, gradients, logged metrics and advantages of online RL, against TRL's own trainers.

Losses are compared as in `trl_training_agreement.py`, whose models, batch and TRL's side are taken from there: a batch that
somebody else sampled, so that ratios leave the clip. Differences to it: use_bias_correction_kl = False, the plain k3, and
the entropy of every token is there, for the metric and the bonus.

    ours, kl_in = loss          trl 1.16
    grpo, loss_type of TRL's    GRPOTrainer, loss_type = "dapo", "grpo", "dr_grpo"; entropy_coef (dapo)
    grpo, truncated masked      the same with mask_truncated_completions: every third response was cut off
    gspo                        GRPOTrainer, importance_sampling_level = "sequence", loss_type = "grpo"
    cispo                       GRPOTrainer, loss_type = "cispo"
    opd, gamma = 0              experimental IWOPDTrainer, iw_opd_gamma = 0, the reference as the teacher; on-policy
    rloo                        RLOOTrainer
    grpo, rl.correction         GRPOTrainer, vllm_importance_sampling_mode, ..._clip_max = 0.9: TRL's own path from a sampler's
                                log-probabilities to the loss, with the behaviour in the place of vLLM

Advantages: TRL samples, rewards and compares in one method, which is called here; its reward function draws random numbers
and keeps them. Ours are made of the same numbers: of grpo by the group's mean and deviation, of rloo by the mean of the others
after k1 times beta = 0.05 is off the reward, from our own log-probabilities of TRL's samples.

Left out: ppo, whose TRL trainer is one long loop around generation; reinforce and reinforce_plus_plus, which TRL does not
have. tests/unit/test_rl_algorithms.py holds these against their equations.

Needs trl (the `bench` extra). Runs on the model that is embedded in examples/; `--model` takes another folder.
"""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from machine import CONSOLE, table, verdict
from trl_training_agreement import (
    BETA,
    HIGH,
    LONGEST,
    LOW,
    MAX_RATIO,
    TOLERANCE,
    Given,
    Models,
    Row,
    Side,
    Theirs,
    compare,
    differentiated,
    logprobs,
    padded,
    prepared,
)

from pipeline.rl.algorithms import Algorithm
from pipeline.rl.algorithms.cispo import Cispo
from pipeline.rl.algorithms.grpo import Grpo
from pipeline.rl.algorithms.gspo import Gspo
from pipeline.rl.algorithms.opd import Opd
from pipeline.rl.algorithms.rloo import Rloo
from pipeline.rl.corrections import corrected, mismatch, weights
from pipeline.training.advantages import Siblings
from pipeline.training.objectives import Batch

MODES = ("token-truncate", "token-mask", "sequence-truncate", "sequence-mask")
ENTROPY, PENALTY, GROUP, NARROW, CUT, CAP = 0.01, 0.05, 4, 0.02, 3, 0.9


# Ours


def entropies(model: Any, row: Row) -> torch.Tensor:
    """Of the policy in each token's state, [H]."""
    prompt, response = row
    logits = model(torch.tensor([prompt + response]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)


def without_truncated(given: Given) -> Given:
    """What is learnt from under rl.mask_truncated where every third response was cut off."""
    left = [number for number in range(len(given.rows)) if number % CUT]

    def of(rows: list[Any]) -> list[Any]:
        return [rows[number] for number in left]

    return Given(of(given.rows), of(given.reference), of(given.behaviour), given.advantages[left])


def on_policy(models: Models, given: Given) -> Given:
    """The same responses as if the policy itself had written them."""
    with torch.no_grad():
        return replace(given, behaviour=[logprobs(models.policy, row) for row in given.rows])


def ours_corrected(models: Models, given: Given, mode: str) -> Side:
    """GRPO on what the behaviour sampled, weighted, with advantages of the rewards that `Drawn` gives."""
    rewards = Drawn()([""] * len(given.rows))
    lengths = [len(response) for _, response in given.rows]
    groups = [Siblings(rewards[i : i + 2], lengths[i : i + 2]) for i in range(0, len(lengths), 2)]
    algorithm = Grpo(epsilon=LOW, epsilon_high=HIGH)
    compared = [advantage for group in algorithm.advantages(groups) for advantage in group]
    before, sampled = (
        [each.numpy() for each in side] for side in (on_policy(models, given).behaviour, given.behaviour)
    )
    of = weights(mode, CAP, before, sampled)
    weighted = torch.from_numpy(np.concatenate([a * w for a, w in zip(compared, of, strict=True)])).to(
        given.reference[0]
    )
    batch = Batch(
        logprobs=torch.cat([logprobs(models.policy, row) for row in given.rows]),
        lengths=torch.tensor(lengths),
        rewards=torch.zeros(len(lengths), dtype=torch.float64),
        behaviour=torch.from_numpy(np.concatenate(before)),
        advantages=weighted,
    )
    terms = algorithm.terms(batch)
    loss = terms.losses.mean()
    metrics = {name: float(values.double().mean()) for name, values in terms.metrics.items() if "clip" in name}
    metrics |= mismatch(before, sampled) | corrected(mode, CAP, before, sampled)
    return Side(float(loss), differentiated(loss, models.policy), metrics)


def ours(algorithm: Algorithm, models: Models, given: Given, responses: int | None = None) -> Side:
    """`responses`: that a step has, where there are more than are learnt from."""
    lengths = torch.tensor([len(response) for _, response in given.rows])
    advantages = given.advantages.repeat_interleave(lengths)
    if isinstance(algorithm, Opd):
        rewards = [t - own for t, own in zip(given.reference, given.behaviour, strict=True)]
        groups = [Siblings([float(r.sum()) for r in rewards], lengths.tolist(), [r.numpy() for r in rewards])]
        advantages = torch.from_numpy(np.concatenate(algorithm.advantages(groups)[0])).to(advantages)
    batch = Batch(
        logprobs=torch.cat([logprobs(models.policy, row) for row in given.rows]),
        lengths=lengths,
        rewards=torch.zeros(len(lengths), dtype=torch.float64),
        reference=torch.cat(given.reference),
        behaviour=torch.cat(given.behaviour),
        advantages=advantages,
        entropies=torch.cat([entropies(models.policy, row) for row in given.rows]),
    )
    terms = algorithm.terms(batch)
    count = len(terms.losses) if algorithm.unit == "tokens" else responses or len(lengths)
    loss = terms.losses.sum() / count
    metrics = {name: float(values.double().mean()) for name, values in terms.metrics.items()}
    return Side(float(loss), differentiated(loss, models.policy), metrics)


# TRL's


class Online(Theirs):
    """TRL's online trainers; `options` go to the configuration of each."""

    def __init__(self, models: Models, given: Given, folder: str, **options: Any):
        super().__init__(models, given, folder)
        self.common |= options

    def masked(self, loss_type: str) -> Side:
        """With `mask_truncated_completions`, which sets to 0 what every third response has in the mask."""
        return self.grpo(loss_type, BETA, masked=range(0, len(self.given.rows), CUT))

    def corrected(self, mode: str) -> Side:
        """TRL takes these samples for vLLM's, scores them with the policy, weighs them, and makes advantages and a loss."""
        from trl import GRPOConfig, GRPOTrainer

        rows = self.given.rows

        def sampled(prompts: list[str], trainer: Any) -> dict[str, Any]:
            prompted, responses = zip(*rows, strict=True)
            logps = [behaviour.tolist() for behaviour in self.given.behaviour]
            return {"prompt_ids": list(prompted), "completion_ids": list(responses), "logprobs": logps}

        options = GRPOConfig(
            **self.common, beta=0.0, epsilon=LOW, epsilon_high=HIGH, num_generations=2,
            per_device_train_batch_size=len(rows), max_completion_length=LONGEST,
            vllm_importance_sampling_mode=mode.replace("-", "_"), vllm_importance_sampling_clip_max=CAP,
        )  # fmt: skip
        arguments = self._arguments({"prompt": "1"})
        trainer = GRPOTrainer(reward_funcs=Drawn(), rollout_func=sampled, args=options, **arguments)
        trainer.use_vllm, trainer._last_loaded_step = True, trainer.state.global_step  # there are no weights to send
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        made = trainer._generate_and_score_completions([{"prompt": "1"}] * len(rows))
        return self._side(trainer, made, lambda: trainer._metrics["train"])

    def opd(self) -> Side:
        from trl.experimental.iw_opd import IWOPDConfig, IWOPDTrainer

        options = IWOPDConfig(**self.common, distillation_objective="iw_opd", iw_opd_gamma=0.0, temperature=1.0)
        trainer = IWOPDTrainer(
            teacher_model=copy.deepcopy(self.models.reference),
            args=options,
            **self._arguments({"messages": [{"role": "user", "content": "1"}]}),
        )
        rows = self.given.rows
        ids = [torch.tensor(prompt + response) for prompt, response in rows]
        labels = [torch.tensor([-100] * len(prompt) + response) for prompt, response in rows]
        inputs = {
            "input_ids": padded(ids),
            "attention_mask": padded([torch.ones_like(each) for each in ids]),
            "labels": torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100),
            "prompts": torch.tensor([prompt for prompt, _ in rows]),
        }
        return self._side(trainer, inputs, dict)

    def rloo(self) -> Side:
        from trl import RLOOConfig, RLOOTrainer

        rows = self.given.rows
        options = RLOOConfig(
            **self.common, beta=0.0, epsilon=LOW, num_generations=2, per_device_train_batch_size=len(rows)
        )
        trainer = RLOOTrainer(reward_funcs=Drawn(), args=options, **self._arguments({"prompt": "1"}))
        prompts, responses = ([torch.tensor(ids) for ids in column] for column in zip(*rows, strict=True))
        inputs = {
            "prompt_ids": padded(prompts, left=True),
            "prompt_mask": padded([torch.ones_like(ids) for ids in prompts], left=True),
            "completion_ids": padded(responses),
            "completion_mask": padded([torch.ones_like(ids) for ids in responses]),
            "advantages": self.given.advantages,
            "old_logps": torch.stack([behaviour.sum() for behaviour in self.given.behaviour]),
        }
        return self._side(trainer, inputs, lambda: trainer._metrics["train"])

    def advantages(self, kind: str, prompts: list[str], **told: Any) -> tuple[torch.Tensor, list[Row], list[float]]:
        """TRL's for samples of its own, [n] in float32; the samples, and what its reward function said."""
        import trl

        trainer_of, config_of = getattr(trl, f"{kind}Trainer"), getattr(trl, f"{kind}Config")
        rows = [{"prompt": prompt} for prompt in prompts for _ in range(GROUP)]
        options = config_of(
            **self.common, **told, num_generations=GROUP, per_device_train_batch_size=len(rows),
            max_completion_length=LONGEST,
        )  # fmt: skip
        rewards = Drawn()
        trainer = trainer_of(reward_funcs=rewards, args=options, **self._arguments({"prompt": prompts[0]}))
        trainer.model.train()
        torch.manual_seed(0)
        made = trainer._generate_and_score_completions(rows)
        prompted, sampled = (
            [ids[mask.bool()].tolist() for ids, mask in zip(made[f"{part}_ids"], made[f"{part}_mask"], strict=True)]
            for part in ("prompt", "completion")
        )
        return made["advantages"], list(zip(prompted, sampled, strict=True)), rewards.said


class Drawn:
    """A reward function of random numbers, which it keeps."""

    __name__ = "drawn"

    def __init__(self) -> None:
        self.said: list[float] = []

    def __call__(self, completions: list[str], **_: Any) -> list[float]:
        self.said = np.random.default_rng(0).normal(scale=2.0, size=len(completions)).tolist()
        return self.said


# The comparison


def in_groups(rows: list[Row], rewards: np.ndarray) -> list[Siblings]:
    starts = range(0, len(rows), GROUP)
    return [Siblings(rewards[i : i + GROUP], [len(response) for _, response in rows[i : i + GROUP]]) for i in starts]


def penalties(models: Models, rows: list[Row]) -> np.ndarray:
    """k1 of whole responses, [n]."""
    with torch.no_grad():
        return np.array([float((logprobs(models.policy, r) - logprobs(models.reference, r)).sum()) for r in rows])


def largest_difference(algorithm: Algorithm, groups: list[Siblings], theirs: torch.Tensor) -> float:
    """Of an advantage; each is checked at every token of its response."""
    mine = [response for group in algorithm.advantages(groups) for response in group]
    return max(float(np.abs(tokens - its).max()) for tokens, its in zip(mine, theirs.tolist(), strict=True))


def main() -> None:
    options, models, given = prepared(__doc__)
    with tempfile.TemporaryDirectory() as scratch:
        plain = Online(models, given, scratch, use_bias_correction_kl=False)
        bonus = Online(models, given, scratch, use_bias_correction_kl=False, entropy_coef=ENTROPY)
        bare = Online(models, given, scratch)
        cases: dict[str, tuple[Algorithm, Callable[[], Side]]] = {
            f"grpo, {kind}{', k3' if beta else ''}": (
                Grpo(loss_type=kind, epsilon=LOW, epsilon_high=HIGH, kl_coefficient=beta, max_new_tokens=LONGEST),
                lambda kind=kind, beta=beta: plain.grpo(kind, beta),  # type: ignore[misc]
            )
            for kind in ("dapo", "grpo", "dr_grpo")
            for beta in (0.0, BETA)
        }
        cases["grpo, dapo, k3, entropy"] = (
            Grpo(epsilon=LOW, epsilon_high=HIGH, kl_coefficient=BETA, entropy_coefficient=ENTROPY),
            lambda: bonus.grpo("dapo", BETA),
        )
        sequences = Online(models, given, scratch, use_bias_correction_kl=False, importance_sampling_level="sequence")
        cases["gspo, k3"] = (
            Gspo(epsilon=NARROW, epsilon_high=NARROW, kl_coefficient=BETA),
            lambda: sequences.grpo("grpo", BETA, NARROW, NARROW),
        )
        cases["cispo, k3"] = (
            Cispo(max_ratio=MAX_RATIO, kl_coefficient=BETA),
            lambda: plain.grpo("cispo", BETA, MAX_RATIO),
        )
        own = Online(models, on_policy(models, given), scratch)
        cases["opd"] = (Opd(), own.opd)
        cases["rloo"] = (Rloo(epsilon=LOW), bare.rloo)
        masked = {
            f"grpo, {kind}, k3, truncated masked": (
                Grpo(loss_type=kind, epsilon=LOW, epsilon_high=HIGH, kl_coefficient=BETA, max_new_tokens=LONGEST),
                lambda kind=kind: plain.masked(kind),  # type: ignore[misc]
            )
            for kind in ("dapo", "grpo", "dr_grpo")
        }

        def mine(algorithm: Algorithm) -> Side:
            return ours(algorithm, models, own.given if isinstance(algorithm, Opd) else given)

        shown, claims = compare("online RL", options.dtype, cases, mine)
        left, responses = without_truncated(given), len(given.rows)
        more, further = compare("masks", options.dtype, masked, lambda each: ours(each, models, left, responses))
        claims |= further
        modes = {f"grpo, {mode}": (mode, lambda mode=mode: bare.corrected(mode)) for mode in MODES}  # type: ignore[misc]
        of, further = compare("corrections", options.dtype, modes, lambda mode: ours_corrected(models, given, mode))
        claims |= further

        compared = table(f"advantages of {GROUP} responses to each of 3 prompts", "", "largest", "difference")
        prompts = ["753+939=", "896+571=", "12+7="]
        for name, kind, algorithm, told in (
            ("grpo, scale group", "GRPO", Grpo(), {"beta": 0.0, "scale_rewards": "group"}),
            ("grpo, scale none", "GRPO", Grpo(scale="none"), {"beta": 0.0, "scale_rewards": "none"}),
            ("rloo, k1 in the reward", "RLOO", Rloo(), {"beta": PENALTY}),
        ):
            theirs, rows, said = bare.advantages(kind, prompts, **told)
            rewards = np.array(said) - told["beta"] * (penalties(models, rows) if told["beta"] else 0.0)
            apart = largest_difference(algorithm, in_groups(rows, rewards), theirs)
            compared.add_row(name, f"{theirs.abs().max():.4f}", f"{apart:.1e}")
            claims[f"{name}: advantages agree to {TOLERANCE:g}"] = apart < TOLERANCE
    CONSOLE.print(shown)
    CONSOLE.print(more)
    CONSOLE.print(of)
    CONSOLE.print(compared)
    verdict(claims)


if __name__ == "__main__":
    main()
