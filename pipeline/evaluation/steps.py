"""The reward of each step of a response, from the stored tokens: which step a token belongs to, and what its tokens give.

A token belongs to the step in which its text begins, or the part of it that is the response's; the white space between two
steps is the former's. Tokens around the response (an end of turn) belong to none. Of each step the sum, the mean and the
minimum of

    endogenous    r_h, at the configured gamma (arXiv 2506.23235)
    likelihood    log pi(a_h | s_h)
    implicit      beta * (log pi - log pi_ref), as a process reward of arXiv 2412.01981
"""

from collections.abc import Callable
from functools import partial
from itertools import accumulate

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import EvaluateConfig, RewardConfig
from pipeline.corpus.samples import STEP_STARTS
from pipeline.errors import ConfigError
from pipeline.evaluation.reading import response_extra
from pipeline.evaluation.variants import OTHER_TOKENS, Array, Parts, Variant
from pipeline.rewards.derive import TokenArrays, flat_column
from pipeline.tokens import Decode

Integers = NDArray[np.int64]
NONE = -1  # in place of a step, for tokens that belong to none
STORES = {"endogenous": ("endogenous",), "likelihood": ("endogenous",), "implicit": ("endogenous", "reference")}
SYMBOLS = {"endogenous": "r_h", "likelihood": "log pi", "implicit": "beta (log pi - log pi_ref)"}


def step_variants(config: EvaluateConfig, stored: RewardConfig, decode: Decode) -> list[Variant]:
    """The configured rewards, which are of `STORES`, step by step in three ways.

    Args:
        stored: the reward that the endogenous store was made with.
        decode: the text of each token.
    """
    steps = Steps(decode)
    variants = []
    for reward in dict.fromkeys(config.evaluate.rewards):
        values = partial(_token_values, reward, config, stored)
        for way, combine in WAYS.items():
            scores = partial(_scores, steps, values, combine)
            variants.append(
                Variant(
                    f"{reward} ({way} of a step)",
                    reward,
                    f"{way} of {SYMBOLS[reward]} over the tokens of a step",
                    STORES[reward],
                    partial(_lowest, scores),
                    steps=scores,
                )
            )
    return variants


class Steps:
    """The step of each token, of a label that has been asked for once."""

    def __init__(self, decode: Decode):
        self.decode = decode
        self._known: dict[str, tuple[Integers, int]] = {}

    def of(self, labels: pa.Table) -> list[tuple[Integers, int]]:
        """Of each label: the step of each of its tokens, [H], and the number of steps; 0 of them where the tokens do not
        give the response's text again."""
        names = labels["id"].to_pylist()
        new = pa.array([row for row, name in enumerate(names) if name not in self._known], pa.int64())
        for row in labels.select(["id", "response", "extra_info", "token_ids"]).take(new).to_pylist():
            starts = response_extra(row["extra_info"]).get(STEP_STARTS, [])
            texts = self.decode(row["token_ids"])
            self._known[row["id"]] = step_of_tokens(texts, row["response"], starts)
        return [self._known[name] for name in names]


def step_of_tokens(texts: list[str], response: str, starts: list[int]) -> tuple[Integers, int]:
    """The step of each token, [H], and how many steps there are.

    Args:
        texts: of the tokens. Together they hold the response but for white space around it, or the beginning of one that
            was cut.
        starts: the character of `response` at which each step begins.

    >>> step_of_tokens(["1+1", "=2.\\n", "\\nSo", " 2", "</s>"], "1+1=2.\\n\\nSo 2", [0, 8])
    (array([ 0,  0,  0,  1, -1]), 2)
    """
    whole, core = "".join(texts), response.strip()
    begin = whole.find(core)
    if begin < 0:
        begin = len(whole) - len(whole.lstrip())
        if not core or not core.startswith(whole[begin:].rstrip("\ufffd")):
            return np.full(len(texts), NONE), 0
    offset = begin - (len(response) - len(response.lstrip()))  # of the response in the whole
    ends = np.array(list(accumulate(map(len, texts)))) - offset
    places = ends - np.array(list(map(len, texts)))
    steps = np.searchsorted(np.array(starts), np.maximum(places, 0), "right") - 1
    outside = ((places < 0) & (ends <= 0)) | (places >= len(response.rstrip()))
    return np.where(outside, NONE, steps), len(starts)


def _sum(values: Array, steps: Integers, number: int) -> Array:
    counts = np.bincount(steps, minlength=number)
    return np.where(counts, np.bincount(steps, values, number), np.nan)


def _mean(values: Array, steps: Integers, number: int) -> Array:
    return _sum(values, steps, number) / np.maximum(1, np.bincount(steps, minlength=number))


def _minimum(values: Array, steps: Integers, number: int) -> Array:
    lowest = np.full(number, np.inf)
    np.minimum.at(lowest, steps, values)
    return np.where(np.isinf(lowest), np.nan, lowest)


WAYS: dict[str, Callable[[Array, Integers, int], Array]] = {"sum": _sum, "mean": _mean, "minimum": _minimum}


def _scores(
    steps: Steps, values: Callable[[Parts], Array], combine: Callable[[Array, Integers, int], Array], parts: Parts
) -> list[tuple[float, ...]]:
    """The reward of each step of each response; NaN of a step without a token."""
    of_tokens, scores, end = values(parts), [], 0
    for own, number in steps.of(parts["endogenous"]):
        here = own != NONE
        tokens = of_tokens[end : (end := end + len(own))]
        scores.append(tuple(combine(tokens[here], own[here], number).tolist()))
    return scores


def _lowest(scores: Callable[[Parts], list[tuple[float, ...]]], parts: Parts) -> Array:
    """The reward of the lowest step, for one number a response."""
    return np.array([min(each, default=np.nan) for each in scores(parts)])


def _token_values(reward: str, config: EvaluateConfig, stored: RewardConfig, parts: Parts) -> Array:
    """[T]: of all tokens of a part. Raises ConfigError."""
    labels = parts["endogenous"]
    if reward == "endogenous":
        return TokenArrays.of(labels, stored).token_rewards(config.reward)
    logprobs = flat_column(labels, "token_logprobs")[0].astype(np.float64)
    if reward == "likelihood":
        return logprobs
    if not labels["token_ids"].equals(parts["reference"]["token_ids"]):
        raise ConfigError(f"implicit.reference: {OTHER_TOKENS}")
    return config.implicit.beta * (logprobs - flat_column(parts["reference"], "token_logprobs")[0])
