"""soda-chat-3M trained on its own labels of soda-chat: what the figures say, and what a person would.

    python benchmarks/train_on_soda_chat.py      # leaves policies and report.html in out/train-on-soda-chat

By the commands `label`, `aggregate` and `train`, with every default of training. Three of four rows are learnt from, by
DPO, three times: from the known preferences, and from the model's own, by the sum and by the mean of its endogenous
reward, whose mistakes are the targets then. The defaults give known preferences a beta of 0.1 and own ones 1, so the policies
differ in both. On every fourth row, whose prompts nothing was learnt from:

- of the pair: how often and by how many nats log pi - log pi_base, summed over the reply, is higher for the true reply
  (times `dpo.beta` it is the implicit reward); how often the mean log pi is (the endogenous reward, mean); log pi of both
  replies, summed;
- of replies that the policy draws itself at temperature 1, under the chat template, with seeds that are the same for every
  policy: tokens, the end token counted; the share that the limit cuts off; the share of 3-grams of tokens that a reply has
  had before, 1 - distinct / all (seq-rep-3 of Welleck et al. 2019, arXiv 1908.04319), 0 for a reply of fewer than
  three tokens; the share of pairs of replies to one prompt that are equal; distinct-2, distinct 2-grams of tokens over all,
  across replies (Li et al. 2016, arXiv 1510.03055), in as many 2-grams of each policy, because it falls with their number;
- KL(pi, pi_base) of replies as they are drawn, cut ones included: the mean over replies of the sum of log pi - log pi_base
  is unbiased; that of a token is the sum over all replies divided by their tokens.

Intervals are 95% bootstrap intervals over prompts; they know nothing of chance in the training. Distinct-2 has none:
prompts that are drawn twice repeat themselves. Left out: whether a reply is good, which no figure here measures. The page
shows replies to the first held-out prompts, not picked, and PERSON says what its author thought on reading them.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from machine import CONSOLE, ROOT, run, shared, table, verdict
from numpy.typing import NDArray
from rich.table import Table

from pipeline.config import ModelConfig, TokensConfig
from pipeline.corpus.samples import Turn
from pipeline.errors import RowError
from pipeline.evaluation.benchmarks.figures import Figures, stratified_mean
from pipeline.evaluation.statistics import Comparison, compare, intervals
from pipeline.models.generation import Generator
from pipeline.models.loading import context_length, load_model, load_settings, load_tokenizer
from pipeline.models.questions import Completion, Question
from pipeline.models.scoring import Scorer
from pipeline.report.training import training_page
from pipeline.tokens import Renderer, TokenizedTurn
from pipeline.training.documents import RunManifest
from pipeline.training.metrics import read_metrics

BEFORE = "before"
TRAINED = {  # by what the pairs were preferred: the labels, and pairs.preference
    "known": ("labels", "known"),
    "own, sum": ("labels", "reward"),
    "own, mean": ("labels-mean", "reward"),
}
LONGEST = 64  # tokens of a reply
BUDGET = 4096  # tokens generated at once
SHOWN = 12  # prompts on the page
RESAMPLES, SEED = 2000, 0
PERSON = [
    "What a person would think, by one reader who knew which reply was whose, of the replies below as they were drawn in the "
    "run of benchmarks/README.md; other machines may draw others. None of the four holds a conversation. Before, replies are "
    "short, mostly grammatical and often beside the point.",
    "After known preferences (the curves and figures of this page) replies are longer by 6.5 tokens. More of them take up "
    "what was said: the loan, the wallet, the nap. But the further they go the less sense they make, and the one about the "
    "small dog becomes a story of yards that is cut off. A few of the twelve are better, others are worse; this reader would "
    "not call it a better partner, though it tells true from wrong replies in 84% of the held-out pairs.",
    "After own preferences by the sum, replies are shorter and blander, and seem less broken because they say less. By the "
    "mean they are hard to tell from those before, and three of the twelve are the same.",
]

Array = NDArray[np.float64]
Json = dict[str, Any]


@dataclass(frozen=True)
class HeldOut:
    """A row that nothing was learnt from."""

    messages: list[Json]
    chosen: TokenizedTurn
    rejected: TokenizedTurn


@dataclass(frozen=True)
class Measured:
    """What was found of one model on the held-out rows, n of them."""

    chosen: list[Array]  # log pi of each token
    rejected: list[Array]
    replies: list[list[Completion]]  # [n][samples], its own
    moved: list[list[Array]]  # log pi - log pi_base of each of their tokens


@dataclass(frozen=True)
class Estimate:
    """The mean of an item's scores, weighed by the item's sizes; an item is a prompt."""

    figures: Figures
    value: float
    low: float  # 95%
    high: float

    @classmethod
    def of(cls, scores: Sequence[float], sizes: Sequence[float] | None = None) -> "Estimate":
        n = len(scores)
        weights = np.ones(n) if sizes is None else np.array(sizes, np.float64)
        found, one = np.array(scores, np.float64), np.ones(1)
        value = stratified_mean(found, np.zeros(n, np.int64), one, weights)
        figures = Figures({"it": value}, [str(i) for i in range(n)], {"it": found}, np.zeros(n, np.int64), one, weights)
        return cls(figures, value, *intervals(figures, RESAMPLES, SEED)["it"])

    def less(self, other: "Estimate") -> Comparison:
        difference = compare(self.figures, other.figures, "it", RESAMPLES, SEED)
        assert difference is not None
        return difference


# Training


def train(folder: str, rows: Sequence[Json], output: Path, options: Sequence[str]) -> dict[str, Path]:
    """A finished run for each of TRAINED."""
    output.mkdir(parents=True)
    source = output / "soda-chat.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    CONSOLE.print(f"labelling {len(rows)} pairs ...")
    run("-m", "jobs", "label", "--model", folder, "--input", source, "--output", output / "labels")
    mean = ("--set", "reward.aggregation=mean")
    run("-m", "jobs", "aggregate", output / "labels", "--output", output / "labels-mean", *mean)
    runs = {}
    for name, (labels, preference) in TRAINED.items():
        CONSOLE.print(f"training on preferences: {name} ...")
        runs[name] = output / name.replace(", ", "-")
        told = [word for option in (f"pairs.preference={preference}", *options) for word in ("--set", option)]
        run("-m", "jobs", "train", "--labels", output / labels, "--policy", folder, "--output", runs[name], *told)
    return runs


# Measuring


def tokenized(folder: str, rows: Sequence[Json]) -> list[HeldOut]:
    config = ModelConfig(name=folder)
    tokenizer = load_tokenizer(config)
    renderer = Renderer(tokenizer, TokensConfig(), context_length(load_settings(config), tokenizer))

    def tokens(row: Json, side: str) -> TokenizedTurn:
        [message] = row[side]
        return renderer.tokenize(Turn("", "", None, 0, 0, row["prompt"], message["content"], True, None, {}))

    return [HeldOut(row["prompt"], tokens(row, "chosen"), tokens(row, "rejected")) for row in rows]


def logprobs(scorer: Scorer, turns: Sequence[TokenizedTurn]) -> list[Array]:
    """log pi of each response token."""
    found = []
    for scores in scorer.score(turns):
        if isinstance(scores, RowError):
            raise scores
        found.append(scores.logprobs)
    return found


def measure(folder: Path | str, base: Scorer, rows: Sequence[HeldOut], samples: int) -> Measured:
    config = ModelConfig(name=str(folder))
    model = load_model(config, "cpu")
    options = {"max_new_tokens": LONGEST, "temperature": 1.0, "budget_tokens": BUDGET}
    generator = Generator(model, load_tokenizer(config), **options)  # type: ignore[arg-type]
    replies = []
    for answers in generator.generate(
        [Question(row.chosen.prompt_ids.tolist(), samples, i) for i, row in enumerate(rows)]
    ):
        if isinstance(answers, RowError):
            raise answers
        replies.append(answers)
    own = [
        TokenizedTurn(row.chosen.prompt_ids, np.array(answer.token_ids), row.chosen.prompt)
        for row, answers in zip(rows, replies, strict=True)
        for answer in answers
    ]
    scorer = Scorer(model)
    moved = [a - b for a, b in zip(logprobs(scorer, own), logprobs(base, own), strict=True)]
    return Measured(
        logprobs(scorer, [row.chosen for row in rows]),
        logprobs(scorer, [row.rejected for row in rows]),
        replies,
        [moved[i : i + samples] for i in range(0, len(moved), samples)],
    )


def ngrams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def repetition(reply: Completion) -> float:
    found = ngrams(reply.token_ids, 3)
    return 1 - len(set(found)) / len(found) if found else 0.0


def equal_pairs(replies: Sequence[Completion]) -> float:
    """Share of the pairs of replies that are equal."""
    return float(np.mean([a.token_ids == b.token_ids for a, b in combinations(replies, 2)]))


def two_grams(of: Measured) -> list[tuple[int, ...]]:
    """Of all replies: the first to each prompt, the second to each, and so on."""
    return [pair for round in zip(*of.replies, strict=True) for reply in round for pair in ngrams(reply.token_ids, 2)]


def estimates(of: Measured, base: Measured) -> dict[str, Estimate]:
    """By the line of the table."""
    u, v = (
        [float(a.sum() - b.sum()) for a, b in zip(mine, theirs, strict=True)]
        for mine, theirs in ((of.chosen, base.chosen), (of.rejected, base.rejected))
    )
    lengths = [[len(reply.token_ids) for reply in replies] for replies in of.replies]
    moved = [[float(d.sum()) for d in found] for found in of.moved]

    def mean_reply(score: Callable[[Completion], float]) -> Estimate:
        return Estimate.of([float(np.mean([score(reply) for reply in replies])) for replies in of.replies])

    found = {}
    if of is not base:  # where it is, these are 0 by definition
        found["implicit reward: accuracy"] = Estimate.of([a > b for a, b in zip(u, v, strict=True)])
        found["implicit reward / beta: margin, nats"] = Estimate.of(np.subtract(u, v).tolist())
        found["KL to before, nats a reply"] = Estimate.of([float(np.mean(sums)) for sums in moved])
        tokens = [sum(counts) for counts in lengths]
        found["KL to before, nats a token"] = Estimate.of(np.divide(list(map(sum, moved)), tokens).tolist(), tokens)
    return found | {
        "endogenous reward (mean): accuracy": Estimate.of(
            [a.mean() > b.mean() for a, b in zip(of.chosen, of.rejected, strict=True)]
        ),
        "log pi of the true reply": Estimate.of([float(a.sum()) for a in of.chosen]),
        "log pi of the wrong reply": Estimate.of([float(a.sum()) for a in of.rejected]),
        "tokens of a reply": mean_reply(lambda reply: len(reply.token_ids)),
        f"cut off at {LONGEST} tokens": mean_reply(lambda reply: not reply.finished),
        "repeated 3-grams": mean_reply(repetition),
        "equal replies to one prompt": Estimate.of([equal_pairs(replies) for replies in of.replies]),
    }


# Showing


LINES = {  # in the table's order, and how a figure is written
    "implicit reward: accuracy": ".0%",
    "implicit reward / beta: margin, nats": ".2f",
    "endogenous reward (mean): accuracy": ".0%",
    "log pi of the true reply": ".1f",
    "log pi of the wrong reply": ".1f",
    "KL to before, nats a reply": ".2f",
    "KL to before, nats a token": ".3f",
    "tokens of a reply": ".1f",
    f"cut off at {LONGEST} tokens": ".1%",
    "repeated 3-grams": ".2%",
    "equal replies to one prompt": ".1%",
}


def written(line: str, estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    return "{:{form}} ({:{form}} to {:{form}})".format(estimate.value, estimate.low, estimate.high, form=LINES[line])


def distinct_2(measured: Mapping[str, Measured]) -> tuple[int, dict[str, float]]:
    """Of how many 2-grams each, and the share of distinct ones."""
    found = {name: two_grams(of) for name, of in measured.items()}
    fewest = min(map(len, found.values()))
    return fewest, {name: len(set(pairs[:fewest])) / fewest for name, pairs in found.items()}


def changes(found: Mapping[str, Mapping[str, Estimate]]) -> Table:
    shown = table("after less before, on the same prompts", "preferences", *TRAINED)
    for line, estimate in found[BEFORE].items():
        shown.add_row(line, *(changed(LINES[line], found[name][line].less(estimate)) for name in TRAINED))
    told, before = "implicit reward: accuracy", found[BEFORE]["endogenous reward (mean): accuracy"]
    differences = [found[name][told].less(before) for name in TRAINED]
    shown.add_row("accuracy: implicit less endogenous, before", *(changed(LINES[told], each) for each in differences))
    return shown


def changed(form: str, by: Comparison) -> str:
    return f"{by.difference:+{form}} ({by.low:+{form}} to {by.high:+{form}})"


def samples_of(rows: Sequence[HeldOut], measured: Mapping[str, Measured]) -> list[Json]:
    """The first reply of each model to the first prompts."""
    names = {name: BEFORE if name == BEFORE else f"after, {name}" for name in measured}
    return [
        {"prompt": row.messages} | {names[name]: of.replies[i][0].text.strip() for name, of in measured.items()}
        for i, row in enumerate(rows[:SHOWN])
    ]


def write_page(place: Path, run: Path, samples: list[Json], found: Mapping[str, Mapping[str, Estimate]]) -> None:
    """The page of one run, with samples of all."""
    told = RunManifest.read(str(run / "manifest.json"))
    figures = {
        f"{line}, {name}": written(line, found[name][line])
        for line in LINES
        for name in (BEFORE, next(iter(TRAINED)))
        if line in found[name]
    }
    told = told.model_copy(update={"notes": [*told.notes, *PERSON]})
    drawn = training_page(told, read_metrics(str(run / "metrics.jsonl")), figures, samples)
    place.write_text(drawn, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4, help="replies to each held-out prompt; default: %(default)s")
    parser.add_argument("--rows", type=int, help="of soda-chat; default: all 400")
    parser.add_argument("--output", type=Path, default=ROOT / "out" / "train-on-soda-chat", help="a folder to be made")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", help="of the training; repeatable")
    args = parser.parse_args()
    folder = str(shared("models", "soda-chat-3M"))
    corpus = shared("data", "soda-chat", "preferences.jsonl")
    if args.output.exists():
        parser.error(f"{args.output} is there already: remove it, or name another --output")
    rows = [json.loads(line) for line in corpus.read_text().splitlines()][: args.rows]
    learnt = [row for i, row in enumerate(rows) if i % 4 != 3]
    known = [row["prompt"] for row in learnt]
    held_out = tokenized(folder, [row for row in rows[3::4] if row["prompt"] not in known])

    runs = train(folder, learnt, args.output.absolute(), args.set)
    base = Scorer(load_model(ModelConfig(name=folder), "cpu"))
    measured = {}
    for name, place in {BEFORE: folder, **{name: done / "hf" for name, done in runs.items()}}.items():
        CONSOLE.print(f"drawing and scoring replies: {name} ...")
        measured[name] = measure(place, base, held_out, args.samples)
    found = {name: estimates(of, measured[BEFORE]) for name, of in measured.items()}

    shown = table(
        f"soda-chat-3M, trained on {len(learnt)} pairs by DPO: {len(held_out)} held-out pairs, {args.samples} replies to "
        "each of their prompts; in brackets 95% intervals",
        "preferences", *measured,
    )  # fmt: skip
    for column in shown.columns[1:]:
        column.no_wrap = True
    for line in LINES:
        shown.add_row(line, *(written(line, of.get(line)) for of in found.values()))
    fewest, distinct = distinct_2(measured)
    shown.add_row(f"distinct-2 of {fewest:,}", *(f"{share:.1%}" for share in distinct.values()))
    CONSOLE.print(shown)
    CONSOLE.print(changes(found))
    page = args.output / "report.html"
    write_page(page, runs["known"], samples_of(held_out, measured), found)
    CONSOLE.print(f"replies before and after: {page}")
    told = "implicit reward: accuracy"
    shorter = found["own, sum"]["tokens of a reply"].less(found[BEFORE]["tokens of a reply"])
    verdict(
        {
            "known: the defaults learn: held-out accuracy is above chance by its interval": found["known"][told].low
            > 0.5,
            "own, mean: so do the model's own preferences": found["own, mean"][told].low > 0.5,
            "own, sum: the bias of a sum towards short replies becomes the policy's": shorter.high < 0,
        }
    )


if __name__ == "__main__":
    main()
