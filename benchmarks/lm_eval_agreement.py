"""Sums of log-probabilities against lm-evaluation-harness's `loglikelihood`, its own code, on the same strings.

Real models and real text: beginnings of TinyStories with what follows for the base models; the text of a dialogue with
its true reply for soda-chat-3M, written out plainly, without the chat template. The end token is off
(`tokens.append_eos = false`), since the harness scores the continuation alone. A string is left out, and counted, where
the harness draws the line between context and continuation at another token than we do, or where it does not fit the
model.

Needs lm_eval (the `bench` extra). Left out: rewards other than the sum of log-probabilities; the harness has none.
"""

import argparse
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from machine import CONSOLE, shared, table, verdict

from pipeline.config import ModelConfig, TokensConfig
from pipeline.corpus.samples import Turn
from pipeline.errors import RowError
from pipeline.models.loading import context_length, load_model, load_settings, load_tokenizer
from pipeline.models.scoring import Scorer
from pipeline.tokens import Renderer

TOLERANCE = 1e-3
SPEAKERS = {"user": "User", "assistant": "Bot"}
Pair = tuple[str, str]  # context, continuation


def stories() -> Iterator[Pair]:
    """The first 12 words of a story, and the next 5 to 25: what fits babyllama-1M's 256 near-characters."""
    for number, line in enumerate(shared("data", "tinystories", "stories.jsonl").read_text().splitlines()):
        words = json.loads(line)["text"].split(" ")
        end = 17 + number % 21
        if len(words) >= end:
            yield " ".join(words[:12]), " " + " ".join(words[12:end])


def dialogues() -> Iterator[Pair]:
    """A dialogue up to its last reply, and the reply."""
    for line in shared("data", "soda-chat", "preferences.jsonl").read_text().splitlines():
        row = json.loads(line)
        said = "\n".join(f"{SPEAKERS[m['role']]}: {m['content']}" for m in row["prompt"])
        yield f"{said}\nBot:", " " + row["chosen"][0]["content"]


MODELS = {"stories260K": stories, "babyllama-1M": stories, "soda-chat-3M": dialogues}


@dataclass
class Comparison:
    """One model's strings: sums of log pi by either side, [strings]."""

    ours: np.ndarray
    theirs: np.ndarray
    tokens: int  # scored
    other_tokens: int  # strings left out because the two tokenise them differently
    too_long: int  # strings left out because they do not fit the model


def compare(name: str, wanted: int) -> Comparison:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    folder = str(shared("models", name))
    harness: Any = HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=8)
    config = ModelConfig(name=folder)
    tokenizer = load_tokenizer(config)
    context = context_length(load_settings(config), tokenizer)
    settings = TokensConfig(template="none", append_eos=False, over_length="reject")
    renderer = Renderer(tokenizer, settings, context)

    pairs, turns = [], []
    other_tokens = too_long = 0
    for before, after in MODELS[name]():
        message = [{"role": "user", "content": before}]
        turn = Turn("", "", None, 0, 0, message, after, False, None, {})  # type: ignore[arg-type]
        try:
            tokens = renderer.tokenize(turn)
        except RowError as error:
            if error.reason != "too_long":
                raise
            too_long += 1
            continue
        if (tokens.prompt_ids.tolist(), tokens.response_ids.tolist()) != harness._encode_pair(before, after):
            other_tokens += 1
            continue
        pairs.append((before, after))
        turns.append(tokens)
        if len(pairs) == wanted:
            break
    asked = [Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=0) for pair in pairs]
    theirs = np.array([total for total, _ in harness.loglikelihood(asked, disable_tqdm=True)])
    scorer = Scorer(load_model(config, "cpu"))
    ours = np.array([s.logprobs.sum() for s in scorer.score(turns)])  # type: ignore[union-attr]
    return Comparison(ours, theirs, sum(len(t.response_ids) for t in turns), other_tokens, too_long)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strings", type=int, default=200, help="per model")
    options = parser.parse_args()
    shared()
    try:
        import lm_eval
    except ImportError:
        CONSOLE.print('skipped: lm_eval is not installed; pip install -e ".[bench]"')
        return
    logging.disable(logging.WARNING)
    found = {name: compare(name, options.strings) for name in MODELS}
    shown = table(
        f"sums of log-probabilities, against lm_eval {lm_eval.__version__}",
        "", "strings", "scored tokens", "left out: other tokens", "too long", "mean |sum|, nats", "worst difference",
        "difference / |sum|",
    )  # fmt: skip
    claims = {}
    for name, one in found.items():
        apart = np.abs(one.ours - one.theirs)
        shown.add_row(
            name, f"{len(apart):,}", f"{one.tokens:,}", f"{one.other_tokens:,}", f"{one.too_long:,}",
            f"{np.abs(one.theirs).mean():.1f}", f"{apart.max():.1e}", f"{(apart / np.abs(one.theirs)).max():.1e}",
        )  # fmt: skip
        enough = len(apart) == options.strings
        claims[f"{name}: {len(apart)} sums agree to {TOLERANCE:g}"] = enough and bool((apart < TOLERANCE).all())
    CONSOLE.print(shown)
    verdict(claims)


if __name__ == "__main__":
    main()
