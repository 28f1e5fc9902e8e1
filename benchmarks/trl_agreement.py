"""DPO's implicit reward, beta * (log pi - log pi_ref), against TRL's DPOTrainer, its own code, on the same token ids.

The reference is a real model and the policy the same one with noise on its weights: soda-chat-3M on dialogues, through
its chat template, and the embedded addition model on worked sums, without a template. Ours are two `Scorer`s and a
difference, everything in one call. TRL's are two figures:

- per response: what `DPOTrainer.evaluate` logs as rewards/chosen and rewards/rejected, one pair at a time, because it
  logs means;
- per token: the log-probabilities of the trainer's two models on batches of its own collator, eight pairs padded.

The ids are the Renderer's. TRL also tokenises the same rows by itself; the table says how often it comes to the same ids
and how many tokens it would score.

Needs trl (the `bench` extra). Left out: training, and the other divergences TRL can put in the place of the difference.
"""

import argparse
import copy
import importlib.util
import json
import logging
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from machine import CONSOLE, SHARED, table, verdict

from pipeline.config import ModelConfig, TokensConfig
from pipeline.corpus.samples import Message, Turn
from pipeline.evaluation.variants import implicit_rewards
from pipeline.models.loading import context_length, load_model, load_settings, load_tokenizer
from pipeline.models.scoring import Scorer
from pipeline.tokens import Renderer, TokenizedTurn

TOLERANCE = 1e-4
EMBEDDED = Path(__file__).parents[1] / "examples" / "addition"
CASES = {  # name -> folder of the model, pairs
    "soda-chat-3M": (SHARED / "models" / "soda-chat-3M", SHARED / "data" / "soda-chat" / "preferences.jsonl"),
    "addition": (EMBEDDED / "model", EMBEDDED / "pairs.jsonl"),
}
SIDES = ("chosen", "rejected")
TOGETHER = 8  # pairs in a padded batch of TRL's
Row = dict[str, Any]


@dataclass
class Comparison:
    """One model's responses. Rewards [responses], chosen and rejected in turn; token rewards [tokens]."""

    ours: np.ndarray
    theirs: np.ndarray
    our_tokens: np.ndarray
    their_tokens: np.ndarray
    our_ends: int  # end tokens among the scored
    their_ends: int
    same_ids: int  # responses that TRL, left to itself, tokenises as we do, prompt included
    own_tokens: int  # response tokens it would score then

    @property
    def apart(self) -> float:
        return float(np.abs(self.ours - self.theirs).max())

    @property
    def tokens_apart(self) -> float:
        if len(self.our_tokens) != len(self.their_tokens):
            return float("inf")
        return float(np.abs(self.our_tokens - self.their_tokens).max())

    def figures(self) -> list[tuple[str, str]]:
        return [
            ("responses", f"{len(self.ours):,}"),
            ("scored tokens, ours", f"{len(self.our_tokens):,}"),
            ("scored tokens, trl's on our ids", f"{len(self.their_tokens):,}"),
            ("of them end tokens, ours", f"{self.our_ends:,}"),
            ("of them end tokens, trl's", f"{self.their_ends:,}"),
            ("responses trl itself gives the same ids", f"{self.same_ids:,}"),
            ("response tokens by trl's own ids", f"{self.own_tokens:,}"),
            ("mean |reward|", f"{np.abs(self.theirs).mean():.3f}"),
            ("worst difference, response", f"{self.apart:.1e}"),
            ("worst difference, token", f"{self.tokens_apart:.1e}"),
        ]


def tokenize(renderer: Renderer, rows: list[Row]) -> list[TokenizedTurn]:
    turns = []
    for row in rows:
        conversational = isinstance(row["prompt"], list)
        prompt: list[Message] = row["prompt"] if conversational else [{"role": "user", "content": row["prompt"]}]
        for side in SIDES:
            text = row[side][0]["content"] if conversational else row[side]
            turns.append(renderer.tokenize(Turn("", "", None, 0, 0, prompt, text, conversational, None, {})))
    return turns


def trainer_of(policy: Any, reference: Any, tokenizer: Any, rows: list[Row], beta: float, folder: str) -> Any:
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback
    from trl import DPOConfig, DPOTrainer

    options = DPOConfig(
        output_dir=folder, beta=beta, max_length=None, per_device_eval_batch_size=1, use_cpu=True, bf16=False,
        gradient_checkpointing=False, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    made = DPOTrainer(
        model=policy,
        ref_model=reference,
        args=options,
        train_dataset=Dataset.from_list([{key: row[key] for key in ("prompt", *SIDES)} for row in rows]),
        processing_class=tokenizer,
    )
    made.remove_callback(PrinterCallback)
    return made


def logged(trainer: Any, pairs: list[dict[str, list[int]]]) -> np.ndarray:
    """The rewards that evaluating each pair logs, chosen and rejected in turn."""
    from datasets import Dataset

    rewards = []
    for pair in pairs:
        trainer.eval_dataset = Dataset.from_list([pair])  # given to evaluate, it would be tokenised once more
        found = trainer.evaluate()
        rewards += [found[f"eval_rewards/{side}"] for side in SIDES]
    return np.array(rewards)


@torch.no_grad()
def by_token(trainer: Any, pairs: list[dict[str, list[int]]]) -> tuple[np.ndarray, np.ndarray]:
    """Token rewards and ids of what TRL scores, in the order of the responses."""
    rewards: list[torch.Tensor] = []
    ids: list[torch.Tensor] = []
    for begin in range(0, len(pairs), TOGETHER):
        batch = trainer.data_collator(pairs[begin : begin + TOGETHER])  # rows: the chosen, then the rejected
        scored = batch.pop("completion_mask").bool()
        asked = {**batch, "labels": batch["input_ids"].masked_fill(~scored, -100), "fused_lm_head": True}
        policy, reference = (
            model(**asked, use_cache=False).log_probs for model in (trainer.model.eval(), trainer.ref_model)
        )
        half = len(scored) // 2
        for row in (row for pair in range(half) for row in (pair, half + pair)):
            taken = scored[row, 1:]
            rewards.append(trainer.beta * (policy - reference)[row, -len(taken) :][taken])
            ids.append(batch["input_ids"][row, 1:][taken])
    return torch.cat(rewards).double().numpy(), torch.cat(ids).numpy()


def compare(folder: Path, corpus: Path, wanted: int, beta: float, noise: float) -> Comparison:
    config = ModelConfig(name=str(folder))
    tokenizer = load_tokenizer(config)
    renderer = Renderer(tokenizer, TokensConfig(), context_length(load_settings(config), tokenizer))
    with open(corpus) as lines:
        rows = [json.loads(line) for line in lines]
    turns = tokenize(renderer, rows)
    whole = [i for i in range(len(rows)) if not (turns[2 * i].truncated or turns[2 * i + 1].truncated)][:wanted]
    rows, turns = [rows[i] for i in whole], [turn for i in whole for turn in turns[2 * i : 2 * i + 2]]

    reference = load_model(config, "cpu")
    policy = perturbed(reference, noise)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = trainer_of(copy.deepcopy(policy), copy.deepcopy(reference), tokenizer, rows, beta, scratch)
        pairs = [
            {
                "prompt_ids": chosen.prompt_ids.tolist(),
                "chosen_ids": chosen.response_ids.tolist(),
                "rejected_ids": rejected.response_ids.tolist(),
            }
            for chosen, rejected in zip(turns[::2], turns[1::2], strict=True)
        ]
        theirs = logged(trainer, pairs)
        their_tokens, their_ids = by_token(trainer, pairs)
        own = [(row["prompt_ids"], row[f"{side}_ids"]) for row in trainer.train_dataset for side in SIDES]

    scores = [scorer.score(turns) for scorer in (Scorer(policy), Scorer(reference))]
    tokens = [beta * (a.logprobs - b.logprobs) for a, b in zip(*scores, strict=True)]  # type: ignore[union-attr]
    stored = [
        pa.table({"token_ids": [t.response_ids for t in turns], "token_logprobs": [s.logprobs for s in each]})  # type: ignore[union-attr]
        for each in scores
    ]
    our_ids = np.concatenate([turn.response_ids for turn in turns])
    return Comparison(
        ours=implicit_rewards(stored[0], stored[1], beta),
        theirs=theirs,
        our_tokens=np.concatenate(tokens),
        their_tokens=their_tokens,
        our_ends=int((our_ids == tokenizer.eos_token_id).sum()),
        their_ends=int((their_ids == tokenizer.eos_token_id).sum()),
        same_ids=sum(
            ids == (t.prompt_ids.tolist(), t.response_ids.tolist()) for ids, t in zip(own, turns, strict=True)
        ),
        own_tokens=sum(len(response) for _, response in own),
    )


def perturbed(model: Any, noise: float) -> Any:
    """A copy with normal noise on every weight, `noise` times the standard deviation of its tensor."""
    made = copy.deepcopy(model)
    draw = torch.Generator().manual_seed(0)
    for weight in made.parameters():
        weight.data += noise * weight.data.std() * torch.randn(weight.shape, generator=draw)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=64, help="per model")
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--noise", type=float, default=0.3, help="on the policy's weights, in standard deviations")
    options = parser.parse_args()
    if importlib.util.find_spec("trl") is None:
        CONSOLE.print('skipped: trl is not installed; pip install -e ".[bench]"')
        return
    warnings.simplefilter("ignore", FutureWarning)  # trl sets what transformers is about to rename
    logging.disable(logging.WARNING)
    import datasets
    import trl

    datasets.disable_progress_bars()
    found: dict[str, Comparison] = {}
    for name, (folder, corpus) in CASES.items():
        if folder.exists() and corpus.exists():
            found[name] = compare(folder, corpus, options.pairs, options.beta, options.noise)
        else:
            CONSOLE.print(f"left out: {name}, for ../shared is not here")
    shown = table(f"implicit rewards, beta {options.beta:g}, against trl {trl.__version__}", "", *found)
    claims = {}
    for figures in zip(*(one.figures() for one in found.values()), strict=True):
        shown.add_row(figures[0][0], *(figure for _, figure in figures))
    for name, one in found.items():
        enough = len(one.ours) == 2 * options.pairs
        claims[f"{name}: {len(one.ours)} rewards agree to {TOLERANCE:g}"] = enough and one.apart < TOLERANCE
        claims[f"{name}: {len(one.our_tokens)} token rewards agree to {TOLERANCE:g}"] = one.tokens_apart < TOLERANCE
    CONSOLE.print(shown)
    verdict(claims)


if __name__ == "__main__":
    main()
