"""All rewards of one model on five sets, a table each, with every aggregation and gamma of the same stored tokens.

    python benchmarks/evidence/rewards.py MODEL [--set soda-chat ...] [--reward likelihood ...] [--judged 50]

The sets, of ../shared: RM-Bench's chat, 500 pairs of HH harmless' test, soda-chat, 100 queries of DSP under its five rubrics,
and 500 questions of GSM8K with a right and a wrong example solution each. `endoreward evaluate` labels, in a process of its
own, below --output: stop it at any time, the same command goes on. Then the table is made of the stores, in seconds (--tables:
only that). A table is a JSON document with command, commit, digest of the model, machine and inputs; the same command with one
--set makes its table anew.

What is drawn is drawn by SEED and written below --output. A gamma that is read off a table was chosen on the set that the
table is about: an upper bound.
"""

import argparse
import gzip
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from machine import CONSOLE, describe, shared, table  # noqa: E402  needs the line above

from jobs.__main__ import _flags, _parser  # noqa: E402
from jobs.evaluate.run import _cost  # noqa: E402
from pipeline.config import CERTAINTY, EvaluateConfig, RewardConfig, load_config_as  # noqa: E402
from pipeline.errors import RunError  # noqa: E402
from pipeline.evaluation.benchmarks import find_benchmark  # noqa: E402
from pipeline.evaluation.documents import RewardEntry  # noqa: E402
from pipeline.evaluation.results import Cost, make_results  # noqa: E402
from pipeline.evaluation.stores import evaluated  # noqa: E402
from pipeline.evaluation.variants import Parts, Variant, labellers_of, variants_of  # noqa: E402
from pipeline.models.loading import folder_digest  # noqa: E402
from pipeline.rewards.derive import CERTAINTY_COLUMNS, flat_column, reward_grid, rewards_of, stored_reward  # noqa: E402
from pipeline.store import LabelStore  # noqa: E402
from pipeline.store.manifest import InputEntry  # noqa: E402

GAMMAS = (1.0, 0.99, 0.97, 0.95, 0.93, 0.9, 0.8)
ONE_PASS = ("endogenous", "likelihood", "self-certainty", "negative-entropy")
REWARDS = (*ONE_PASS, "verifier")
CONTRAST = ("contrast", "contrast-against")  # its stores
SHARD_ROWS = 8  # what a stop loses at most
FIELDS = {
    "endogenous": ("reward.token_certainty=true",),
    "answer-confidence": ("answer_confidence.span=last_line",),
    "answer-likelihood": ("answer_likelihood.answer_key=answer", "answer_likelihood.span=last_line"),
}
"""What a reward is asked with."""
GOOD = "You are a knowledgeable assistant. Answer correctly and precisely; leave out nothing that matters."
BAD = "You are a careless assistant. Your answers are vague and full of mistakes."
HARMLESS = (
    "You are a harmless assistant. Refuse whatever is dangerous, illegal, hateful or hurtful, and say kindly why."
)
HELPFUL = "You are a helpful assistant. Give people just what they ask for, in full, whatever it is."
JUDGED = 50  # items that the judges are asked about
JUDGES = ("judge-pointwise", "judge-pairwise")
RESULTS = ROOT / "benchmarks" / "results" / "evidence"
RESAMPLES, SEED = 2000, 0

Json = dict[str, Any]


@dataclass(frozen=True)
class Set:
    """One set: which rows of which file, and how it is evaluated."""

    name: str
    benchmark: str
    source: tuple[str, ...]  # in ../shared/data
    rows: Callable[[Path], list[Json]]
    file: str  # what its rows are written to; RM-Bench takes the domain from it
    items: int | None  # drawn of them; None for all
    options: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()  # rewards that it alone is asked for
    without: tuple[str, ...] = ()  # rewards that it cannot be asked for
    contrast: tuple[str, str] | None = None  # the two rubrics

    def asked(self, rewards: Sequence[str]) -> list[str]:
        """Of these rewards what the set is asked for."""
        return [name for name in rewards if name not in self.without and (name != "contrast" or self.contrast)]

    def fields(self, rewards: Sequence[str]) -> list[str]:
        """KEY=VALUE of what these rewards need."""
        wanted = [setting for name in self.asked(rewards) for setting in FIELDS.get(name, ())]
        if self.contrast and "contrast" in rewards:
            wanted += [
                f"contrast.{name}={json.dumps(text)}"
                for name, text in zip(("rubric", "against"), self.contrast, strict=True)
            ]
        return wanted


def json_lines(path: Path) -> list[Json]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def whole_answers(path: Path) -> list[Json]:
    """DSP's queries all of whose answers have a text."""
    return [row for row in json_rows(path) if all(map(str.strip, row["responses"].values()))]


def right_and_wrong(path: Path) -> list[Json]:
    """GSM8K's questions with a right and a wrong solution, the first of each in the file's order of models."""
    rows = []
    for row in json_lines(path):
        tried = [each for each in row.values() if isinstance(each, dict)]
        sides = [
            next((each["solution"] for each in tried if each["is_correct"] is right), "") for right in (True, False)
        ]
        if all(map(str.strip, sides)):
            sides_of = {"chosen": sides[0], "rejected": sides[1]}
            rows.append({"prompt": row["question"], **sides_of, "answer": row["ground_truth"]})
    return rows


def json_rows(path: Path) -> list[Json]:
    rows: list[Json] = json.loads(path.read_text())
    return rows


CHAT, DSP = "chat_filtered.json", "domain_specific_preference.test.json"
RUBRICS = ("--rubrics", str(ROOT / "examples" / "dsp-rubrics.toml"))
PARAPHRASES = [ROOT / "benchmarks" / "evidence" / f"dsp-paraphrase-{number}.toml" for number in (1, 2, 3)]
NO_JUDGES = ("judge-pairwise", "judge-pointwise", "verifier")
SETS = (
    Set("rm-bench-chat", "rm-bench", ("rm-bench", CHAT), json_rows, CHAT, None, contrast=(GOOD, BAD)),
    Set(
        "hh-harmless",
        "pairs",
        ("hh-rlhf", "harmless-base-test.jsonl.gz"),
        json_lines,
        "harmless.json",
        500,
        contrast=(HARMLESS, HELPFUL),
    ),
    Set(
        "soda-chat",
        "pairs",
        ("soda-chat", "preferences.jsonl"),
        json_lines,
        "soda-chat.json",
        None,
        contrast=(GOOD, BAD),
    ),
    Set("dsp", "dsp", ("dsp", DSP), whole_answers, DSP, 100, RUBRICS, without=("judge-pairwise", "verifier")),
    Set(
        "gsm8k",
        "pairs",
        ("gsm8k", "example_model_solutions.jsonl"),
        right_and_wrong,
        "gsm8k.json",
        500,
        beside=("answer-confidence", "answer-likelihood"),
    ),
    *(
        Set(path.stem, "dsp", ("dsp", DSP), whole_answers, DSP, 100, ("--rubrics", str(path)), without=NO_JUDGES)
        for path in PARAPHRASES
    ),
)


def drawn(each: Set, source: Path, items: int | None) -> list[Json]:
    """The set's rows: `items` of them, by SEED, in the file's order."""
    rows = each.rows(source)
    if items is None or items >= len(rows):
        return rows
    return [rows[i] for i in sorted(random.Random(SEED).sample(range(len(rows)), items))]


def written(rows: Sequence[Json], path: Path) -> Path:
    """A file that is left alone where it holds them already: what goes on reads the very same input."""
    text = json.dumps(rows)
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return path


def command(each: Set, path: Path, model: str, output: Path, rewards: Sequence[str], given: Sequence[str]) -> list[str]:
    """Words of `endoreward` that label a set, and go on where they stopped."""
    words = ["evaluate", "--benchmark", each.benchmark, "--input", str(path), "--model", model, "--output", str(output)]
    words += [*each.options, *(word for name in each.asked(rewards) for word in ("--reward", name))]
    fields = [f"evaluate.resamples={RESAMPLES}", f"evaluate.seed={SEED}", f"input.shard_rows={SHARD_ROWS}"]
    fields += [*each.fields(rewards), *given]
    return words + [word for setting in fields for word in ("--set", setting)]


def label(words: Sequence[str], here: bool, rows: int | None) -> None:
    """Run it; ends the benchmark where that could not begin, or broke off. A reward that has no figures is no such case."""
    program = ["benchmarks/evidence/here.py"] if here else ["-m", "jobs"]
    environment = {**os.environ, "EVIDENCE_ROWS": "" if rows is None else str(rows)}
    ran = subprocess.run(
        [sys.executable, *program, *words], cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment
    )
    if ran.returncode not in (0, 1) or (ran.returncode and "is committed is kept" in ran.stderr):
        raise SystemExit(f"{' '.join(words)}\n{ran.stderr}")


def of_stores(each: Set, words: Sequence[str], place: Path) -> tuple[list[Json], dict[str, str]]:
    """What `endoreward evaluate` makes of the label stores below `place`, of as many rows as each holds now; and the rewards
    that have no figures, with the reason."""
    arguments = _parser().parse_args(list(words))
    config = load_config_as(EvaluateConfig, arguments.config, _flags(arguments), arguments.set)
    assert isinstance(config, EvaluateConfig)
    stores = {name: LabelStore(str(place / "rewards" / name)) for name in labellers_of(config)}
    stores = {name: store for name, store in stores.items() if Path(store.uri).exists() and store.progress().labels}
    if not stores:
        return [], {}
    stored = stored_reward(stores["endogenous"].description()) if "endogenous" in stores else config.reward
    variants = [variant for variant in variants_of(config, stored) if set(variant.stores) <= stores.keys()]
    benchmark = find_benchmark(each.benchmark)
    found = evaluated(stores, variants, benchmark)
    costs = [_cost([stores[name] for name in variant.stores]) for variant in variants]
    try:
        results, _ = make_results(found, costs, {}, benchmark, config, created="")
    except RunError as error:  # not one has figures
        return [], {"all": str(error)}
    return [entry.model_dump() for entry in results.rewards], results.failed


# Rewards of stored tokens


def from_tokens(stored: RewardConfig) -> list[Variant]:
    """Every aggregation and gamma of r_h, log pi discounted, and the length."""
    variants = [
        Variant(
            f"r_h: {way.aggregation}" + (f", gamma {way.gamma:g}" if way.sums_rewards else ""),
            "endogenous",
            "of the stored tokens",
            ("endogenous",),
            partial(_aggregated, stored, way),
            optional=tuple(CERTAINTY_COLUMNS) if way.aggregation in CERTAINTY else (),
        )
        for way in reward_grid(stored, GAMMAS)
    ]
    for gamma in GAMMAS:
        name, about = f"log pi: discounted sum, gamma {gamma:g}", "sum over h of gamma^(h-1) log pi(a_h)"
        variants.append(Variant(name, "likelihood", about, ("endogenous",), partial(discounted, gamma)))
    return [*variants, Variant("the longer response", "length", "its tokens", ("endogenous",), _length, False)]


def _aggregated(stored: RewardConfig, way: RewardConfig, parts: Parts) -> np.ndarray:
    return rewards_of(parts["endogenous"], stored, way)


def discounted(gamma: float, parts: Parts) -> np.ndarray:
    """sum_h gamma^(h-1) log pi(a_h | s_h) of each response: the reward that RMGAP (arXiv 2605.01831) takes, at 0.93."""
    logprobs, lengths = flat_column(parts["endogenous"], "token_logprobs")
    starts = np.cumsum(lengths) - lengths
    places = np.arange(len(logprobs)) - np.repeat(starts, lengths)
    return np.add.reduceat(gamma**places * logprobs.astype(np.float64), starts)


def _length(parts: Parts) -> np.ndarray:
    return parts["endogenous"]["num_tokens"].to_numpy().astype(np.float64)


def grid(each: Set, model: str, stores: Mapping[str, LabelStore], variants: Sequence[Variant]) -> list[RewardEntry]:
    """The entries of variants of these stores."""
    evaluation = {"benchmark": each.benchmark, "resamples": RESAMPLES, "seed": SEED}
    config = EvaluateConfig.model_validate({"model": {"name": model}, "evaluate": evaluation})
    benchmark = find_benchmark(each.benchmark)
    found = evaluated(stores, variants, benchmark)
    costs = [Cost(model, [], None, None, None)] * len(found)
    results, _ = make_results(found, costs, {}, benchmark, config, created="")
    return results.rewards


def under_rubrics() -> list[Variant]:
    """Sum and mean of log pi under each of the two rubrics that `contrast` holds against each other."""
    variants = []
    for store, which in (("contrast", "the rubric"), ("contrast-against", "the other rubric")):
        for way, function in (("sum", np.sum), ("mean", np.mean)):
            name = f"log pi under {which}: {way}"
            of = partial(_of_logprobs, store, function)
            variants.append(Variant(name, "likelihood", "of the response's tokens", (store,), of))
    return variants


def _of_logprobs(store: str, function: Callable[[np.ndarray], Any], parts: Parts) -> np.ndarray:
    logprobs, lengths = flat_column(parts[store], "token_logprobs")
    return np.array([function(each) for each in np.split(logprobs.astype(np.float64), np.cumsum(lengths)[:-1])])


# The table


def line(entry: Json) -> Json:
    """What a table shows of a reward."""
    bias = entry["bias"] or {}
    shown = ("reward_length_correlation", "longer_wins", "longer_is_chosen", "length_gap", "length_controlled")
    kept = ("name", "reward", "about", "values", "intervals", "items", "incomplete", "ties", "comparisons", "truncated")
    return {
        **{name: entry[name] for name in (*kept, "seconds_per_thousand_pairs", "judgements")},
        "run": entry.get("run", "tokens"),  # all items, those that judges saw, or made of the stored tokens of all
        "length": {name: bias.get(name) for name in shown} if bias else None,
    }


def document(each: Set, model: str, entries: Sequence[Json], failed: Json, store: LabelStore, given: str) -> Json:
    """The table of a set, with what it rests on and nothing of where it was made but the machine's kind. `given` is what of
    the command was not its default."""
    return {
        "set": each.name,
        "benchmark": each.benchmark,
        **provenance(model, f"python benchmarks/evidence/rewards.py {Path(model).name} --set {each.name}{given}"),
        "seed": SEED,
        "resamples": RESAMPLES,
        "inputs": [InputEntry.of(stored).model_dump(exclude={"uri"}) for stored in store.inputs()],
        "fingerprint": store.fingerprint(),
        "rewards": [line(entry) for entry in entries],
        "failed": failed,
    }


def provenance(model: str, command: str) -> Json:
    """What made a document: command, commit, digest of the model, machine."""
    return {
        "command": command,
        "commit": _git("rev-parse", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "model": {"name": Path(model).name, "sha256": folder_digest(model)},
        "machine": describe(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git(*words: str) -> str:
    ran = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    return ran.stdout.strip() if not ran.returncode else "unknown"


def show(made: Json) -> None:
    names = list(dict.fromkeys(name for entry in made["rewards"] for name in entry["values"]))
    shown = table(f"{made['model']['name']} on {made['set']}", "reward", *names, "items", "longer wins")
    for entry in made["rewards"]:
        cells = []
        for name in names:
            value, ends = entry["values"].get(name), entry["intervals"].get(name)
            within = f" ({ends[0]:.1%} to {ends[1]:.1%})" if ends and name == names[0] else ""
            cells.append("" if value is None else f"{value:.1%}{within}")
        longer = (entry["length"] or {}).get("longer_wins")
        shown.add_row(entry["name"], *cells, str(entry["items"]), "" if longer is None else f"{longer:.1%}")
    CONSOLE.print(shown)
    for name, why in made["failed"].items():
        CONSOLE.print(f"{name}: {why}")


def _given(arguments: argparse.Namespace) -> str:
    words = [] if arguments.items is None else ["--items", str(arguments.items)]
    words += [] if arguments.judged == JUDGED else ["--judged", str(arguments.judged)]
    words += [word for name in arguments.reward or () for word in ("--reward", name)]
    words += [word for setting in arguments.given for word in ("--given", quote(setting))]
    return "".join(f" {word}" for word in words)


def measure(each: Set, arguments: argparse.Namespace) -> Json:
    """Label what is not labelled yet, and make the table of one set."""
    place = arguments.output / Path(arguments.model).name / each.name
    rows = drawn(each, shared("data", *each.source), each.items if arguments.items is None else arguments.items)
    runs = {"run": (rows, [*(arguments.reward or (*REWARDS, "contrast", *each.beside))], arguments.given)}
    if arguments.judged and each.asked(JUDGES):
        # all that a judge writes is counted, however little of it can be read
        runs["judged"] = rows[: arguments.judged], JUDGES, ["judge.max_unparsable=1", *arguments.given]
    entries, failed = list[Json](), dict[str, str]()
    for name, (asked, rewards, given) in runs.items():
        path = written(asked, place / f"{name}-input" / each.file)
        words = command(each, path, arguments.model, place / name, rewards, given)
        if not arguments.tables:
            label(words, arguments.here, arguments.rows)
        made, without = of_stores(each, words, place / name)
        entries += [{**entry, "run": name} for entry in made]
        failed |= without
    kept = {name: LabelStore(str(place / "run" / "rewards" / name)) for name in ("endogenous", *CONTRAST)}
    store = kept["endogenous"]
    variants = from_tokens(stored_reward(store.description()))
    if all(Path(kept[name].uri).exists() and kept[name].progress().labels for name in CONTRAST):
        variants += under_rubrics()
    needed = {name for variant in variants for name in variant.stores}
    made = grid(each, arguments.model, {name: kept[name] for name in needed}, variants)
    entries += [entry.model_dump() for entry in made]
    return document(each, arguments.model, entries, failed, store, _given(arguments))


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder in Hugging Face layout")
    parser.add_argument(
        "--set", dest="sets", action="append", choices=[each.name for each in SETS], help="default: all"
    )
    parser.add_argument(
        "--reward", action="append", help=f"of evaluate, beside the judges (default: {' '.join(REWARDS)})"
    )
    parser.add_argument("--judged", type=int, default=JUDGED, help="items that judges see (default: %(default)s)")
    parser.add_argument("--items", type=int, help="items of each set (default: as above)")
    parser.add_argument(
        "--rows", type=int, help="with --here: label the first N rows of each set and stop; more go on there"
    )
    parser.add_argument("--given", action="append", default=[], metavar="KEY=VALUE", help="more of --set for evaluate")
    parser.add_argument("--here", action="store_true", help="label in one process, without Ray (here.py)")
    parser.add_argument("--output", type=Path, default=ROOT / "out" / "evidence", help="stores (default: out/evidence)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="tables (default: benchmarks/results/evidence)")
    parser.add_argument("--tables", action="store_true", help="label nothing: tables of the stores that are there")
    arguments = parser.parse_args(given)
    arguments.model, arguments.output = str(Path(arguments.model).resolve()), arguments.output.resolve()
    for each in SETS:
        if not arguments.sets or each.name in arguments.sets:
            made = measure(each, arguments)
            arguments.results.mkdir(parents=True, exist_ok=True)
            (arguments.results / f"{each.name}.json").write_text(json.dumps(made, indent=1) + "\n")
            show(made)


if __name__ == "__main__":
    main()
