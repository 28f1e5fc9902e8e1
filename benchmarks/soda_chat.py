"""soda-chat-3M on the 400 pairs of soda-chat: how often the true reply has the higher reward, computed twice.

Once by a plain Hugging Face loop in float64 that is written out here and shares no code with the project: the chat
template, one sequence at a time, full logits (GPT-Neo takes its attention scores in float32 even so). Once by the
project: reading, rendering, scoring, labelling. The number of pairs that come out right is compared with known counts,
and the rewards row by row. Each aggregation is shown with its correlation with the length of the response, which is the
thing to know of it.

Left out: Ray and the store, which `endoreward label` adds around the same functions.
"""

import argparse
import json
import math
import time

import numpy as np
import torch
import transformers
from machine import CONSOLE, shared, table, verdict

from pipeline.config import InputConfig, ModelConfig, RewardConfig, TokensConfig
from pipeline.corpus import detect, find_files, plan_file, read_shards
from pipeline.models.loading import context_length, load_model, load_settings, load_tokenizer
from pipeline.models.scoring import Scorer
from pipeline.rewards.labelling import finish, prepare
from pipeline.store.schema import Label
from pipeline.tokens import Renderer

RIGHT = {  # aggregation, gamma -> pairs right of 400, at alpha = 1
    ("mean", 1.0): 298,
    ("sum", 1.0): 244,
    ("discounted_sum", 0.99): 249,
    ("discounted_sum", 0.95): 267,
    ("discounted_sum", 0.9): 293,
    ("discounted_sum", 0.8): 313,
}
TOLERANCE = 1e-3  # of a reward, in nats: one side is float32
Key = tuple[int, str]  # row, chosen or rejected
Rewards = dict[Key, float]


def plain(folder: str, corpus: str) -> tuple[dict[tuple[str, float], Rewards], dict[Key, int]]:
    """Rewards by aggregation and gamma, and lengths, with nothing of the project."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    rewards: dict[tuple[str, float], Rewards] = {way: {} for way in RIGHT}
    lengths: dict[Key, int] = {}
    with open(corpus) as lines:
        rows = [json.loads(line) for line in lines]
    for number, row in enumerate(rows):
        for side in ("chosen", "rejected"):
            before = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
            whole = tokenizer.apply_chat_template(row["prompt"] + row[side], tokenize=False)
            first = len(tokenizer(before, add_special_tokens=False)["input_ids"])
            ids = torch.tensor(tokenizer(whole, add_special_tokens=False)["input_ids"])[:256]  # the model's context
            with torch.no_grad():
                logits = model(input_ids=ids[None]).logits[0]
            q = [float(logits[position - 1, ids[position]]) for position in range(first, len(ids))]
            v = [float(torch.logsumexp(logits[position - 1], 0)) for position in range(first, len(ids))]
            lengths[number, side] = len(q)
            for (aggregation, gamma), found in rewards.items():
                if aggregation == "mean":  # the mean of log pi
                    found[number, side] = sum(a - b for a, b in zip(q, v, strict=True)) / len(q)
                else:  # sum_h gamma^(h-1) (Q_h - gamma V_{h+1})
                    r = [a - gamma * b for a, b in zip(q, [*v[1:], 0.0], strict=True)]
                    found[number, side] = math.fsum(gamma**h * x for h, x in enumerate(r))
    return rewards, lengths


def labelled(folder: str, corpus: str) -> dict[tuple[str, float], list[Label]]:
    """The same by the project: scored once, aggregated for each entry of RIGHT."""
    config = ModelConfig(name=folder)
    tokenizer = load_tokenizer(config)
    renderer = Renderer(tokenizer, TokensConfig(), context_length(load_settings(config), tokenizer))
    scorer = Scorer(load_model(config, "cpu"))
    [file] = find_files([corpus])
    labels: dict[tuple[str, float], list[Label]] = {way: [] for way in RIGHT}
    plan = plan_file(file)
    shape = None
    for shard, rows in read_shards(file, "auto", plan.shards):
        shape = shape or detect([row for _, row in rows if isinstance(row, dict)], InputConfig(), file.name)
        prepared = prepare(shard, 0, rows, shape, renderer, "last")
        scores = scorer.score(prepared.tokens)
        for (aggregation, gamma), found in labels.items():
            reward = RewardConfig(aggregation=aggregation, gamma=gamma)  # type: ignore[arg-type]
            made, failures = finish(prepared, scores, reward)
            assert not failures, failures[0]
            found += made
    return labels


def right(rewards: Rewards) -> int:
    """Pairs whose chosen response has the higher reward."""
    return sum(rewards[row, "chosen"] > rewards[row, "rejected"] for row, side in rewards if side == "chosen")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    folder = str(shared("models", "soda-chat-3M"))
    corpus = str(shared("data", "soda-chat", "preferences.jsonl"))
    start = time.perf_counter()
    expected, lengths = plain(folder, corpus)
    middle = time.perf_counter()
    labels = labelled(folder, corpus)
    end = time.perf_counter()

    shown = table(
        "soda-chat-3M on 400 pairs of soda-chat, alpha = 1",
        "aggregation", "gamma", "known", "plain loop, right", "labelled, right", "worst difference of a reward",
        "correlation with length",
    )  # fmt: skip
    claims = {}
    for (aggregation, gamma), known in RIGHT.items():
        ours = {
            (int(one.prompt_id.rpartition(":")[2]), str(one.preference)): one.reward
            for one in labels[aggregation, gamma]
        }
        theirs = expected[aggregation, gamma]
        name = f"{aggregation}, gamma {gamma:g}"
        assert ours.keys() == theirs.keys()
        apart = max(abs(ours[key] - theirs[key]) for key in theirs)
        slope = np.corrcoef(list(lengths.values()), [ours[key] for key in lengths])[0, 1]
        shown.add_row(
            aggregation, f"{gamma:g}", str(known), str(right(theirs)), str(right(ours)), f"{apart:.1e}", f"{slope:+.2f}"
        )
        claims[f"{name}: {known} of 400 right, both ways"] = right(ours) == right(theirs) == known
        claims[f"{name}: 800 rewards agree to {TOLERANCE:g}"] = apart < TOLERANCE
    CONSOLE.print(shown)
    loop_s, labelling_s = middle - start, end - middle
    CONSOLE.print(f"plain loop {loop_s:.1f} s, labelling {labelling_s:.1f} s: {loop_s / labelling_s:.1f} times as fast")
    verdict(claims)


if __name__ == "__main__":
    main()
