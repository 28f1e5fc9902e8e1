"""The tables' figures by a loop in float64 that shares no code with the project: the same counts on 100 items of each set.

    python benchmarks/evidence/agreement.py MODEL [--set soda-chat ...] [--items 100]

For what rewards.py has labelled: its input is read, rendered by the model's chat template, and every response goes through
transformers alone, full logits, one by one. Of the pairs, or of DSP's answers under each rubric, the right ones are counted by
the sum and the mean of r_h and by log pi discounted by 0.93, and compared with the counts of the store's tokens. Exits 1 where
a count or a reward differs; a count may differ by as many pairs as are closer than the rewards agree. Left out: models without
a chat template, and what had to be cut to fit, which the loop takes whole.

Of the same logits it counts at other alphas too, the temperature of V and of pi = exp((Q - V) / alpha): the sum of r_h,
which ranks the responses to a prompt as alpha * sum_h log pi does, and alpha * mean_h log pi. What it counts is a JSON
document a set.
"""

import argparse
import json
import re
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "evidence")]

from machine import CONSOLE, table, verdict  # noqa: E402  needs the line above

SETS = ("rm-bench-chat", "hh-harmless", "soda-chat", "dsp", "gsm8k")
WAYS = ("sum", "mean", "log pi, 0.93")
ALPHAS = (0.25, 0.5, 0.7, 1.0, 1.5, 2.0, 4.0)
TOLERANCE = 1e-3  # of a reward, relative from 1 nat on: one side is float32
Json = dict[str, Any]
Messages = list[dict[str, str]]
Key = tuple[int, str | None, str]  # row, rubric, and the response's side and place: `chosen:0`


# The loop


def conversations(row: Json) -> Iterator[tuple[str, Messages, str]]:
    """(side and place, prompt, response) of each response of a row, in the layouts of the sets."""
    if "responses" in row:  # DSP
        asked = [{"role": "user", "content": row["query"]}]
        yield from ((f"response:{i}", asked, text) for i, text in enumerate(row["responses"].values()))
        return
    for side in ("chosen", "rejected"):
        values = row[side] if isinstance(row[side], list) else [row[side]]
        if "prompt" not in row:  # a transcript of HH: turns in turn
            turns = re.split(r"\n\n(Human|Assistant): ?", values[0])[1:]
            names = {"Human": "user", "Assistant": "assistant"}
            messages = [{"role": names[n], "content": t.strip()} for n, t in zip(turns[::2], turns[1::2], strict=True)]
            yield f"{side}:0", messages[:-1], messages[-1]["content"]
        elif isinstance(values[0], dict):  # soda-chat: messages
            yield f"{side}:0", row["prompt"], values[0]["content"]
        else:
            asked = [{"role": "user", "content": row["prompt"]}]
            yield from ((f"{side}:{i}", asked, text) for i, text in enumerate(values))


def rewards(q: np.ndarray, v: np.ndarray) -> list[float]:
    """By WAYS, of a response's Q(s_h, a_h) and V(s_h), [H] each."""
    r = q - np.append(v[1:], 0.0)
    return [float(r.sum()), float((q - v).mean()), float((0.93 ** np.arange(len(q)) * (q - v)).sum())]


def at_alphas(logits: torch.Tensor, q: torch.Tensor) -> list[float]:
    """Sum less V(s_1), then mean, at each of ALPHAS; logits [H, V], q [H]."""
    both = []
    for alpha in ALPHAS:
        difference = q - alpha * (logits / alpha).logsumexp(1)
        both += [float(difference.sum()), float(difference.mean())]
    return both


def plain(folder: str, rows: Sequence[Json], rubrics: dict[str | None, str | None]) -> dict[Key, list[float]]:
    """WAYS, then `at_alphas`, of each response."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    found = {}
    for number, row in enumerate(rows):
        for place, prompt, response in conversations(row):
            for name, rubric in rubrics.items():
                asked = [*([{"role": "system", "content": rubric}] if rubric else []), *prompt]
                before = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
                whole = [*asked, {"role": "assistant", "content": response}]
                text = tokenizer.apply_chat_template(whole, tokenize=False).rstrip("\n")  # to the end of the turn
                first = len(tokenizer(before, add_special_tokens=False)["input_ids"])
                ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
                with torch.no_grad():
                    logits = model(input_ids=ids[None]).logits[0, first - 1 : -1]  # [H, V]
                q = logits.gather(1, ids[first:, None])[:, 0]
                found[number, name, place] = rewards(q.numpy(), logits.logsumexp(1).numpy()) + at_alphas(logits, q)
    return found


# The project's side, and the comparison


def stored(folder: Path, rows: int) -> dict[Key, list[float]]:
    """The same of a label store's first rows: of its files, read as Parquet."""
    from pipeline.store import LabelStore

    store = LabelStore(str(folder))
    found = {}
    for _, part in store.read("labels", store.survey().shards):
        for label in part.to_pylist():
            number = int(label["prompt_id"].rpartition(":")[2])
            if number < rows:
                logpi, v = (np.array(label[name], np.float64) for name in ("token_logprobs", "token_values"))
                place = f"{label['preference'] or 'response'}:{label['response_index']}"
                found[number, label["rubric"], place] = rewards(logpi + v, v)
    return found


def margins(scores: dict[Key, list[float]]) -> np.ndarray:
    """[comparisons, ways]: chosen less rejected of every pair; of DSP every two answers under the same rubric."""
    groups: dict[tuple[int, str | None], dict[str, list[float]]] = {}
    for (row, rubric, place), each in sorted(scores.items(), key=str):
        groups.setdefault((row, rubric), {})[place] = each
    differences = []
    for group in groups.values():
        for one, first in group.items():
            for other, second in group.items():
                sides = one.partition(":")[0], other.partition(":")[0]
                if sides == ("chosen", "rejected") or (sides == ("response", "response") and one < other):
                    differences.append(np.subtract(first, second))
    return np.array(differences).reshape(-1, len(next(iter(scores.values()))))


def of_alphas(scores: dict[Key, list[float]]) -> list[Json]:
    """Of each alpha the pairs that sum and mean have right; of DSP those under a domain's own rubric are not told apart."""
    right = (margins(scores) > 0).sum(0)
    return [{"alpha": alpha, "sum": int(right[2 * i]), "mean": int(right[2 * i + 1])} for i, alpha in enumerate(ALPHAS)]


def compare(
    name: str, expected: dict[Key, list[float]], found: dict[Key, list[float]], made: Json | None = None
) -> dict[str, bool]:
    """Print the counts of both sides, and put them into `made`; the claims."""
    both = [key for key in expected if key in found]
    far = np.array([np.abs(np.subtract(expected[k], found[k])) / np.maximum(1, np.abs(expected[k])) for k in both])
    ours, theirs = margins({k: found[k] for k in both}), margins({k: expected[k] for k in both})
    shown = table(
        f"{name}: {len(both)} responses, {len(ours)} comparisons", "reward", "loop", "store", "largest difference"
    )
    close = 2 * np.array([max(np.abs(expected[k][way] - found[k][way]) for k in both) for way in range(len(WAYS))])
    alike = True
    for way, title in enumerate(WAYS):
        counts = [int((each[:, way] > 0).sum()) for each in (theirs, ours)]
        alike &= abs(counts[0] - counts[1]) <= (np.abs(theirs[:, way]) <= close[way]).sum()
        shown.add_row(title, *map(str, counts), f"{far[:, way].max():.1e}")
        if made is not None:
            made["counts"][title] = {"loop": counts[0], "store": counts[1], "largest": float(far[:, way].max())}
    CONSOLE.print(shown)
    return {
        f"{name}: no response is missing": both == list(expected),
        f"{name}: rewards differ by less than {TOLERANCE:g}": bool(far.max() < TOLERANCE),
        f"{name}: the same counts": bool(alike),
    }


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="as rewards.py was given it")
    parser.add_argument("--set", dest="sets", action="append", help="default: all that are labelled")
    parser.add_argument("--items", type=int, default=100, help="the first of each set (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "out" / "evidence", help="where rewards.py labelled")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "evidence", help="counts")
    arguments = parser.parse_args(given)
    claims: dict[str, bool] = {}
    for place in sorted((arguments.output / Path(arguments.model).resolve().name).iterdir()):
        store = place / "run" / "rewards" / "endogenous"
        if store.exists() and (place.name in arguments.sets if arguments.sets else place.name in SETS):
            [path] = (place / "run-input").iterdir()
            rows = json.loads(path.read_text())[: arguments.items]
            rubrics: dict[str | None, str | None] = {None: None}
            if place.name == "dsp":
                rubrics = {**tomllib.loads((ROOT / "examples" / "dsp-rubrics.toml").read_text())}
            began = time.process_time()
            looped = plain(arguments.model, rows, rubrics)
            made = document(arguments, place.name, len(rows), looped, time.process_time() - began)
            claims |= compare(
                place.name, {k: v[: len(WAYS)] for k, v in looped.items()}, stored(store, len(rows)), made
            )
            arguments.results.mkdir(parents=True, exist_ok=True)
            (arguments.results / f"agreement-{place.name}.json").write_text(json.dumps(made, indent=1) + "\n")
    verdict(claims)


def document(
    arguments: argparse.Namespace, name: str, items: int, looped: dict[Key, list[float]], seconds: float
) -> Json:
    from rewards import provenance

    words = (
        f"python benchmarks/evidence/agreement.py {Path(arguments.model).name} --set {name} --items {arguments.items}"
    )
    beyond = {key: each[len(WAYS) :] for key, each in looped.items()}
    sizes = {"set": name, "items": items, "responses": len(looped), "comparisons": len(margins(looped))}
    made = {**provenance(arguments.model, words), **sizes, "dtype": "float64", "cpu_seconds": round(seconds, 1)}
    return {**made, "counts": {}, "alphas": [] if name == "dsp" else of_alphas(beyond)}


if __name__ == "__main__":
    main()
