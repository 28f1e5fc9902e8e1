"""`endoreward sweep`: the labels of a store under every aggregation and many gammas. Needs no model and writes no store.

A few parts are read and reckoned at a time, by threads; pairs never cross a part, so the parts' figures merge, in the parts'
order.
"""

from collections.abc import Sequence
from typing import Any

from jobs import terminal
from jobs.stores.export import already_there, refuse_existing
from jobs.stores.inspect_store import warn_of_guesses
from pipeline.config import RewardConfig
from pipeline.errors import ConfigError, StoreError
from pipeline.rewards.derive import SWEEP_COLUMNS, Outcome, outcomes, reward_grid, stored_reward, token_columns
from pipeline.store import LabelStore, documents, in_parallel
from pipeline.store.summary import plain, signed, wilson_interval

GAMMAS = (1.0, 0.99, 0.98, 0.95, 0.9, 0.85, 0.8, 0.7)
HEADER = ("reward", "gamma", "accuracy", "95% interval", "ties", "margin", "length", "mark")


def sweep(uri: str, gammas: Sequence[float] = GAMMAS, output: str | None = None, floor: float | None = None) -> int:
    """Print how the labels come out under each reward; write the same figures to the JSON file `output`.

    Returns 0. Raises StoreError where there is no store or no label, ConfigError where it holds no token rewards, or a
    gamma or the floor of the discounted weights is not in [0, 1].
    """
    wrong = [f"{gamma:g}" for gamma in gammas if not 0 <= gamma <= 1]
    if wrong:
        raise ConfigError(f"--gamma {', '.join(wrong)}: a discount is from 0 to 1")
    if floor is not None and not 0 <= floor <= 1:
        raise ConfigError(f"--floor {floor:g}: the floor of a weight is from 0 to 1")
    store = LabelStore(uri)
    store.require()
    survey = store.survey()
    progress = store.progress(survey)
    stored = stored_reward(store.description())
    if output is not None:
        refuse_existing(output)
    warn_of_guesses(store)
    if not progress.complete:
        terminal.warn(
            f"{uri} is not finished: {progress.done_shards:,} of {progress.shards:,} shards are labelled, and the figures "
            "are of these"
        )
    wanted = reward_grid(stored, gammas, floor)
    totals = [Outcome() for _ in wanted]
    shards = survey.labelled
    columns = list(dict.fromkeys([*SWEEP_COLUMNS, *token_columns(stored)]))
    parts = in_parallel(lambda shard: outcomes(store.read_rows("labels", shard, columns), stored, wanted), shards)
    for _, of_part in terminal.track(parts, len(shards), "sweep", "shards"):
        totals = [a + b for a, b in zip(totals, of_part, strict=True)]
    count, pairs = totals[0].labels.count, totals[0].pairs.pairs
    if not count:
        raise StoreError(f"{uri} holds no labels yet; run its label command again")
    best = _best(wanted, totals)
    shown = [
        _row(config, outcome, config == stored, config in best) for config, outcome in zip(wanted, totals, strict=True)
    ]
    terminal.print_grid(f"{uri}: {count:,} labels, {pairs:,} pairs, alpha = {stored.alpha:g}", HEADER, shown)
    for sentence in _explanations(stored, wanted, pairs, floor):
        terminal.say(sentence)
    if output is not None:
        content = _figures(store.fingerprint(), progress.complete, stored, best, wanted, totals)
        if not documents.write_bytes(output, documents.readable(content), replace=False):
            raise already_there(output)
        terminal.say(f"figures: {output}")
    return 0


def _best(wanted: list[RewardConfig], totals: list[Outcome]) -> list[RewardConfig]:
    """The rewards with the most right pairs; one that leaks the level of the logits is not a candidate."""
    right = [0 if config.warnings() else outcome.pairs.right for config, outcome in zip(wanted, totals, strict=True)]
    return [config for config, count in zip(wanted, right, strict=True) if count and count == max(right)]


def _row(config: RewardConfig, outcome: Outcome, is_stored: bool, is_best: bool) -> list[str]:
    pairs, correlation = outcome.pairs, outcome.labels.correlation
    gamma = f"{config.gamma:g}" if config.depends_on_gamma else "any"
    marks = [
        mark
        for mark, holds in (("stored", is_stored), ("highest", is_best), ("leaks", bool(config.warnings())))
        if holds
    ]
    figures = ["-"] * 4
    if pairs.pairs:
        low, high = wilson_interval(pairs.right, pairs.pairs)
        share = pairs.right / pairs.pairs
        figures = [f"{share:.1%}", f"{100 * low:.1f} to {high:.1%}", f"{pairs.ties:,}", signed(outcome.margin.mean_x)]
    return [
        config.aggregation,
        gamma,
        *figures,
        "-" if correlation is None else f"{correlation:+.2f}",
        ", ".join(marks),
    ]


def _explanations(stored: RewardConfig, wanted: list[RewardConfig], pairs: int, floor: float | None) -> list[str]:
    sentences = ["length: correlation of a response's reward with its number of tokens."]
    if pairs:
        sentences.append(
            f"highest: of {len(wanted)} rewards on the same pairs, and so flattered by the choice; confirm it on pairs that "
            "had no part in it. A tie counts as not right. Intervals take pairs as independent: where a prompt gives several, "
            "those of evaluate are wider and right."
        )
    else:
        sentences.append("No pairs: no preference is known of these responses, so there is no accuracy.")
    if any(config.warnings() for config in wanted):
        sentences.append(
            "leaks: the figure depends on the level of the logits, which training does not fix; it is never marked highest."
        )
    if floor is not None and floor != stored.min_weight:
        others = "all discounted weights but those of the store's own reward"
        sentences.append(f"{plain(floor)} is the floor of {others}.")
    unchanged = [
        text
        for text, holds in (
            ("reward.subtract_initial_value = true on the sums", stored.subtract_initial_value),
            (
                f"reward.min_weight = {plain(stored.min_weight)} on what is discounted",
                stored.min_weight > 0 and floor is None,
            ),
        )
        if holds
    ]
    return [*sentences, f"As in the store: {', '.join(unchanged)}."] if unchanged else sentences


def _figures(
    fingerprint: str,
    complete: bool,
    stored: RewardConfig,
    best: list[RewardConfig],
    wanted: list[RewardConfig],
    totals: list[Outcome],
) -> dict[str, Any]:
    """The table as plain numbers; nothing in it says where the store lies."""
    rows = []
    for config, outcome in zip(wanted, totals, strict=True):
        pairs = outcome.pairs
        rows.append(
            {
                "reward": config.model_dump(),
                "right": pairs.right,
                "ties": pairs.ties,
                "accuracy": pairs.accuracy,
                "interval_95": list(wilson_interval(pairs.right, pairs.pairs)) if pairs.pairs else None,
                "margin_mean": outcome.margin.mean_x if pairs.pairs else None,
                "reward_length_correlation": outcome.labels.correlation,
                "stored": config == stored,
                "highest": config in best,
                "warnings": config.warnings(),
            }
        )
    counts = {"labels": totals[0].labels.count, "pairs": totals[0].pairs.pairs}
    return {"fingerprint": fingerprint, "complete": complete, **counts, "rewards": rows}
