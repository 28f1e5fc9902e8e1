"""Every reward of `endoreward evaluate` side by side: soda-chat-3M on pairs of soda-chat, with and without training.

The 400 pairs are parted by row. On the even rows two models are trained from soda-chat-3M, in plain torch: a scalar
reward model (Bradley-Terry) and a DPO policy, whose implicit reward is taken against soda-chat-3M. On the odd rows the
command itself, in processes of its own, gives the figures of all rewards. The judges are asked about a few pairs only:
a model of this size follows no format, and what is shown is that the command says so and gives no accuracy.

The recipe was chosen once, by two-fold cross-validation within the even rows: RATES and EPOCHS. Left out: a validation
set, averages over seeds, and every other loss.
"""

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import transformers
from machine import CONSOLE, shared, table, verdict
from rich.table import Table
from torch.nn.functional import cross_entropy, logsigmoid

from pipeline.config import ModelConfig, TokensConfig
from pipeline.corpus.samples import Turn
from pipeline.evaluation.benchmarks.figures import Figures
from pipeline.evaluation.statistics import Comparison, compare, holm
from pipeline.models.loading import context_length, load_settings, load_tokenizer
from pipeline.tokens import Renderer, TokenizedTurn

ROOT = Path(__file__).parents[1]
BETA = 0.1  # of DPO, and of the implicit reward
BATCH = 10  # pairs
EPOCHS = 3
RATES = {"classifier": 1e-4, "policy": 3e-5}  # peak learning rates; they fall to 0 along a line
JUDGED = 20  # pairs that the judges are asked about
RESAMPLES, SEED = 2000, 0  # of the statistics
MAIN = "endogenous (mean)"
SHORT = {  # questions that fit a context of 256 tokens beside a dialogue
    "verifier.question": "{prompt}\n\nThe reply: {response}\n\nIs it a good reply? Say Yes or No.",
    "judge.pointwise_prompt": "Rate the reply from 1 to 10, such as [[5]].\n\n{prompt}\n\nThe reply: {response}",
    "judge.pairwise_prompt": "Which reply is better, [[A]] or [[B]]?\n\n{prompt}\n\nA: {first}\n\nB: {second}",
}
TRAINED = {  # what is compared with MAIN: the run it is of, and its name there
    "classifier": ("base", "classifier"),
    "implicit (sum)": ("tuned", "implicit (sum)"),
    "implicit (mean)": ("tuned", "implicit (mean)"),
    f"{MAIN}, policy": ("tuned", MAIN),
}
UNREAD = re.compile(r"(\d+%) of [\d,]+ (?:responses|pairs) have (no judgement in the format asked for)")

Json = dict[str, Any]
Pair = tuple[TokenizedTurn, TokenizedTurn]  # chosen, rejected


# Training


def tokenized(folder: str, rows: Sequence[Json]) -> list[Pair]:
    """The rows' responses as the harness tokenises them."""
    config = ModelConfig(name=folder)
    tokenizer = load_tokenizer(config)
    renderer = Renderer(tokenizer, TokensConfig(), context_length(load_settings(config), tokenizer))

    def tokens(row: Json, side: str) -> TokenizedTurn:
        [message] = row[side]
        return renderer.tokenize(Turn("", "", None, 0, 0, row["prompt"], message["content"], True, None, {}))

    return [(tokens(row, "chosen"), tokens(row, "rejected")) for row in rows]


def hidden_states(model: Any, turns: Sequence[TokenizedTurn]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids [B, L], padded on the right, where no causal model looks; lengths [B]; last hidden states [B, L, D]."""
    rows = [torch.tensor([*turn.prompt_ids, *turn.response_ids], dtype=torch.long) for turn in turns]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return ids, torch.tensor([len(row) for row in rows]), model.base_model(ids).last_hidden_state


def outputs(model: Any, turns: Sequence[TokenizedTurn]) -> torch.Tensor:
    """The classifier's output at the last token of each turn, [B]."""
    _, lengths, states = hidden_states(model, turns)
    return model.score(states[torch.arange(len(turns)), lengths - 1])[:, 0]


def logprobs(model: Any, turns: Sequence[TokenizedTurn]) -> torch.Tensor:
    """log pi of each response, [B]."""
    ids, lengths, states = hidden_states(model, turns)
    prompts = torch.tensor([len(turn.prompt_ids) for turn in turns])
    places = torch.arange(ids.shape[1])
    scored = (places >= prompts[:, None]) & (places < lengths[:, None])  # [B, L], True at response tokens
    logits = model.get_output_embeddings()(states[:, :-1][scored[:, 1:]])  # [P, V]
    found = torch.zeros(ids.shape)
    return found.masked_scatter(scored, -cross_entropy(logits, ids[scored], reduction="none")).sum(1)


def train(
    model: Any, pairs: Sequence[Pair], reward: Callable[[list[TokenizedTurn]], torch.Tensor], rate: float, seed: int
) -> Any:
    """Minimise the mean of -log sigmoid(reward(chosen) - reward(rejected)) over the pairs.

    With a scalar output as the reward it is the loss of Bradley and Terry; with beta * (log pi - log pi_ref), DPO's
    (arXiv 2305.18290, eq. 7).
    """
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    steps = EPOCHS * -(-len(pairs) // BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(pairs)).split(BATCH):
            chosen, rejected = zip(*(pairs[i] for i in batch), strict=True)
            above, below = reward([*chosen, *rejected]).chunk(2)
            loss = -logsigmoid(above - below).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model


def train_classifier(folder: str, pairs: Sequence[Pair], seed: int) -> Any:
    torch.manual_seed(seed)  # the output layer begins at random
    # no padding token: this one's is its end token, before which a classifier would read its output
    model = transformers.GPTNeoForSequenceClassification.from_pretrained(folder, num_labels=1, pad_token_id=None)
    return train(model, pairs, lambda turns: outputs(model, turns), RATES["classifier"], seed)


def train_policy(folder: str, pairs: Sequence[Pair], seed: int) -> Any:
    model, reference = (transformers.AutoModelForCausalLM.from_pretrained(folder) for _ in range(2))
    reference.requires_grad_(False)

    def reward(turns: list[TokenizedTurn]) -> torch.Tensor:
        return BETA * (logprobs(model, turns) - logprobs(reference, turns))

    return train(model, pairs, reward, RATES["policy"], seed)


# Evaluating


def ask(
    output: Path, pairs: Path, model: str, rewards: Sequence[str], settings: Mapping[str, Any]
) -> subprocess.CompletedProcess[str]:
    """Run `endoreward evaluate`."""
    command = [sys.executable, "-m", "jobs", "evaluate", "--benchmark", "pairs", "--input", str(pairs)]
    command += ["--model", model, "--output", str(output)]
    command += [word for reward in rewards for word in ("--reward", reward)]
    given = {"reward.aggregation": "mean", "evaluate.resamples": RESAMPLES, "evaluate.seed": SEED, **settings}
    command += [word for field, value in given.items() for word in ("--set", f"{field}={value}")]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def evaluate(
    output: Path, pairs: Path, model: str, rewards: Sequence[str], settings: Mapping[str, Any]
) -> dict[str, Json]:
    """The rewards of results.json, by name."""
    ran = ask(output, pairs, model, rewards, settings)
    if ran.returncode:
        raise SystemExit(ran.stderr)
    return {entry["name"]: entry for entry in json.loads((output / "results.json").read_text())["rewards"]}


def verdict_of_judge(output: Path, pairs: Path, folder: str, kind: str) -> str:
    """What the command says, exit code 1, of a judge that follows no format; another outcome goes to stderr."""
    ran = ask(output, pairs, folder, [kind], SHORT | {"judge.max_new_tokens": 16})
    unread = UNREAD.search(ran.stderr)
    if ran.returncode == 1 and unread:
        return f"{unread[2]} ({unread[1]})"
    print(ran.stderr, file=sys.stderr)
    return f"exit code {ran.returncode}"


def figures(output: Path, reward: str) -> Figures:
    """Right or wrong of each pair, from items.parquet."""
    rows = [row for row in pq.read_table(output / "items.parquet").to_pylist() if row["reward"] == reward]
    right = np.array([dict(row["scores"])["accuracy"] for row in rows])
    alike = np.zeros(len(rows), np.int64)
    scores = {"accuracy": right}
    names = [row["id"] for row in rows]
    return Figures({"accuracy": right.mean()}, names, scores, alike, np.ones(1), np.ones(len(rows)))


def write(path: Path, rows: Sequence[Json]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def save(model: Any, folder: Path, base: str) -> str:
    """Hugging Face layout, with the tokenizer of the model that training began with."""
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return str(folder)


def recurring(rows: Sequence[Json], side: str, others: Sequence[Json], other: str) -> int:
    """How many of the rows' replies of one side are, word for word, replies of a side of other rows."""
    seen = {row[other][0]["content"] for row in others}
    return sum(row[side][0]["content"] in seen for row in rows)


def add_line(shown: Table, name: str, entry: Json, labels: int) -> None:
    low, high = entry["intervals"]["accuracy"]
    seconds = entry["seconds_per_thousand_pairs"]
    shown.add_row(
        name,
        str(labels),
        f"{entry['values']['accuracy']:.1%}",
        f"{low:.1%} to {high:.1%}",
        f"{entry['bias']['longer_wins']:.1%}",
        "" if seconds is None else f"{seconds:.1f}",
    )


def table_of_comparisons(against: Mapping[str, Comparison]) -> Table:
    shown = table(
        f"trained less {MAIN}, on the same pairs", "reward", "points", "95% interval", "p", "p, Holm", "pairs"
    )
    adjusted = holm([comparison.p_value for comparison in against.values()])
    for (name, comparison), p in zip(against.items(), adjusted, strict=True):
        low, high = 100 * comparison.low, 100 * comparison.high
        points, pairs = f"{100 * comparison.difference:+.1f}", str(comparison.items)
        shown.add_row(name, points, f"{low:+.1f} to {high:+.1f}", f"{comparison.p_value:.4f}", f"{p:.4f}", pairs)
    return shown


def above_chance(entry: Json) -> bool:
    return entry["intervals"]["accuracy"][0] > 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the training (default: %(default)s)")
    seed = parser.parse_args().seed
    folder = str(shared("models", "soda-chat-3M"))
    corpus = shared("data", "soda-chat", "preferences.jsonl")
    rows = [json.loads(line) for line in corpus.read_text().splitlines()]
    training, held_out = rows[::2], rows[1::2]
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        start = time.perf_counter()
        pairs = tokenized(folder, training)
        classifier = save(train_classifier(folder, pairs, seed), place / "classifier", folder)
        middle = time.perf_counter()
        policy = save(train_policy(folder, pairs, seed), place / "policy", folder)
        end = time.perf_counter()
        CONSOLE.print(f"trained on {len(pairs)} pairs: classifier {middle - start:.0f} s, policy {end - middle:.0f} s")

        test = write(place / "odd.jsonl", held_out)
        few = write(place / "few.jsonl", held_out[:JUDGED])
        rewards = ["endogenous", "likelihood", "verifier", "classifier"]
        settings = SHORT | {"classifier.model": classifier}
        base = evaluate(place / "base", test, folder, rewards, settings)
        tuned = evaluate(place / "tuned", test, policy, ["implicit", "endogenous"], {"implicit.reference": folder})
        everything = evaluate(place / "all", corpus, folder, ["endogenous"], {})
        judges = {
            kind: verdict_of_judge(place / kind, few, folder, kind) for kind in ("judge-pointwise", "judge-pairwise")
        }
        first = figures(place / "base", MAIN)
        against = {}  # name -> the trained reward less the endogenous
        for name, (run, reward) in TRAINED.items():
            comparison = compare(figures(place / run, reward), first, "accuracy", RESAMPLES, SEED)
            assert comparison is not None, "the runs have no pair in common"
            against[name] = comparison

    shown = table(
        f"soda-chat-3M on the {len(held_out)} odd rows of soda-chat; labels: the pairs that a model was trained on",
        "reward", "labels", "accuracy", "95% interval", "longer wins", "s per 1,000 pairs",
    )  # fmt: skip
    for name, entry in base.items():
        add_line(shown, name, entry, len(training) if name == "classifier" else 0)
    for name, entry in tuned.items():
        add_line(shown, name if name.startswith("implicit") else f"{name}, policy", entry, len(training))
    for kind, outcome in judges.items():
        shown.add_row(f"{kind}, {JUDGED} pairs", "0", outcome, "", "", "")
    add_line(shown, f"{MAIN}, all {len(rows)} rows", everything[MAIN], 0)
    CONSOLE.print(shown)
    longer = base[MAIN]["bias"]["longer_is_chosen"]
    CONSOLE.print(f"of the pairs of unequal length, the chosen response is the longer in {longer:.1%}")
    for side, other in itertools.product(("chosen", "rejected"), repeat=2):
        CONSOLE.print(f"{side} replies that are {other} ones in training: {recurring(held_out, side, training, other)}")

    CONSOLE.print(table_of_comparisons(against))
    odd, whole = f"the {len(held_out)} odd rows", f"all {len(rows)} rows"
    verdict(
        {
            f"{MAIN} is above chance by more than its interval on {odd}": above_chance(base[MAIN]),
            f"{MAIN} is above chance by more than its interval on {whole}": above_chance(everything[MAIN]),
            "a judge that follows no format is given no accuracy": all("no judgement" in s for s in judges.values()),
        }
    )


if __name__ == "__main__":
    main()
