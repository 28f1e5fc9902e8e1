"""The rewards that `evaluate` puts side by side: which label stores each needs, and what it reads from them.

A reward has one or more variants, each a number for every label. Variants of stored tokens (every aggregation,
likelihoods, the implicit reward) cost nothing beyond the pass that stored them.

    endogenous        sum, mean and discounted_sum of the token rewards (arXiv 2506.23235)
    likelihood        sum and mean of log pi at temperature 1
    self-certainty    mean of KL(uniform || pi) a token (arXiv 2505.19590)
    negative-entropy  less the mean entropy of pi (arXiv 2505.22660)
    answer-confidence mean probability of the final answer's tokens (arXiv 2510.13501)
    answer-likelihood log pi of the right answer behind the reasoning, and what VeriFree, RLPR and NOVER make of it
    implicit          beta * (log pi - log pi_ref), sum and mean (DPO, arXiv 2305.18290)
    contrast          log pi under one rubric less log pi under another, sum and mean
    endogenous        with `evaluate.picture_control` the first aggregation again: a grey picture, another row's
    verifier, classifier, judge-pointwise, judge-pairwise       the store's reward as it is
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import CERTAINTY, REWARDS, EvaluateConfig, RewardConfig
from pipeline.corpus.samples import OPENS_THOUGHTS
from pipeline.errors import ConfigError
from pipeline.evaluation.benchmarks.maths import Maths
from pipeline.models.loading import load_tokenizer
from pipeline.rewards.aggregations import AGGREGATIONS
from pipeline.rewards.confidence import answer_confidence, without_ends
from pipeline.rewards.derive import CERTAINTY_COLUMNS, GAMMA, aggregations, flat_column, rewards_of
from pipeline.rewards.labellers import (
    Classified,
    Endogenous,
    Labeller,
    MathsAnswerer,
    PairwiseJudge,
    PointwiseJudge,
    ReferenceAnswer,
    Verifier,
)
from pipeline.rewards.labellers.reference_answer import FORMS
from pipeline.rewards.labelling import KEPT
from pipeline.tokens import Decode, pieces, special_ids

Array = NDArray[np.float64]
CERTAINTIES = {name.replace("_", "-"): name for name in CERTAINTY}  # as --reward has them, and as aggregations
Parts = Mapping[str, pa.Table]  # by store: one part each, row i of all of them the same response
OF_LABELS = ("endogenous", "likelihood", *CERTAINTIES, "answer-confidence")  # that a store of `label` has
PICTURE_STORES = {"grey": "endogenous-grey", "other": "endogenous-other"}  # by what prompts show
WITH = {"given": "with the picture", "grey": "with a grey picture", "other": "with another row's picture"}
OTHER_TOKENS = (
    "it makes other tokens of the same text than the model; give a reference that shares its tokenizer, such as the "
    "checkpoint that training began with"
)


@dataclass(frozen=True)
class Variant:
    """One number for every label."""

    name: str
    reward: str  # as given by --reward
    about: str  # its formula, for people
    stores: tuple[str, ...]  # the first gives the responses
    of: Callable[[Parts], Array]  # [rows]; NaN where a response has no answer that the reward is about
    tokens: bool = True  # whether it needs the token columns
    steps: Callable[[Parts], list[tuple[float, ...]]] | None = None  # [rows], of each step, for a benchmark of those
    optional: tuple[str, ...] = ()  # columns that it needs besides, which not every store has
    pictures: str = ""  # with the control of pictures: what prompts show, as `input.pictures` has it


def check_rewards(config: EvaluateConfig) -> None:
    """Raises ConfigError for an unknown reward, or for one whose model is not given."""
    for name in config.evaluate.rewards:
        if name not in REWARDS:
            raise ConfigError(f"there is no reward {name!r}; the rewards are {', '.join(REWARDS)}")
    needs = {
        "implicit": ("--set implicit.reference", config.implicit.reference, "the reference model"),
        "contrast": ("--set contrast.rubric", config.contrast.rubric.strip(), "a system prompt to follow"),
        "classifier": ("--set classifier.model", config.classifier.model, "a trained reward model"),
        "answer-likelihood": (
            "--set answer_likelihood.answer_key",
            config.answer_likelihood.answer_key,
            "the column of the right answer",
        ),
        "verifier": ("--model or --set verifier.model", config.verifier.model or config.model.name, "the verifier"),
        "judge-pointwise": ("--model or --set judge.model", config.judge.model or config.model.name, "the judge"),
        "judge-pairwise": ("--model or --set judge.model", config.judge.model or config.model.name, "the judge"),
    }
    own = config.model.name or config.evaluate.labels
    for name in config.evaluate.rewards:
        if config.evaluate.labels and name not in OF_LABELS:
            raise ConfigError(f"--reward {name} cannot be read from a label store: leave --labels out, give --model")
        flag, value, what = needs.get(name, ("--model", own, "the model"))
        if not value:
            raise ConfigError(f"--reward {name} needs {what}: give {flag}")
        if name in CERTAINTIES and not config.evaluate.labels and not config.reward.token_certainty:
            raise ConfigError(
                f"--reward {name} is made of columns that are stored when asked for: give --set reward.token_certainty=true"
            )
        if name == "contrast":
            _check_contrast(config)
        if name in ("implicit", "answer-likelihood", "contrast") and not own:
            raise ConfigError(f"--reward {name} needs the model beside that: give --model")
    shows = config.input.pictures == "given"
    if config.evaluate.picture_control and not (shows and "endogenous" in config.evaluate.rewards):
        raise ConfigError(
            "evaluate.picture_control shows the endogenous reward other pictures than those of the rows: give --reward "
            "endogenous, and leave input.pictures out"
        )


def _check_contrast(config: EvaluateConfig) -> None:
    if config.contrast.rubric == config.contrast.against:
        raise ConfigError(
            "--reward contrast: contrast.rubric and contrast.against are the same; give two system prompts"
        )
    for name in ("rubrics", "system_prompt"):
        if getattr(config.tokens, name) is not None:
            raise ConfigError(
                f"--reward contrast puts its own system prompts before the prompts: leave tokens.{name} out, and give "
                "contrast.rubric and contrast.against"
            )


def _under(config: EvaluateConfig, rubric: str) -> Endogenous:
    """Scores responses under a system prompt, none where it is empty."""
    tokens = config.tokens.model_copy(update={"system_prompt": rubric or None})
    return Endogenous(config.model_copy(update={"tokens": tokens}), config.model)


def _showing(config: EvaluateConfig, pictures: str) -> Endogenous:
    """Scores responses to prompts that show other pictures than their own."""
    shown = config.input.model_copy(update={"pictures": pictures})
    return Endogenous(config.model_copy(update={"input": shown}), config.model)


def labellers_of(config: EvaluateConfig) -> dict[str, Labeller]:
    """The label stores that the configured rewards need, by name, and what fills each."""
    own = config.model
    judge = own.named(config.judge.model, config.judge.revision)
    every: dict[str, dict[str, Labeller]] = {
        **{name: {"endogenous": Endogenous(config, own)} for name in OF_LABELS},
        "implicit": {
            "endogenous": Endogenous(config, own),
            # rendered by the model's own tokenizer and template: both see the very same tokens
            "reference": Endogenous(
                config, own.named(config.implicit.reference, config.implicit.revision), tokenizer=own
            ),
        },
        "answer-likelihood": {"answer-likelihood": ReferenceAnswer(config, own)},
        "contrast": {
            "contrast": _under(config, config.contrast.rubric),
            "contrast-against": _under(config, config.contrast.against),
        },
        "verifier": {"verifier": Verifier(config, own.named(config.verifier.model, config.verifier.revision))},
        "judge-pointwise": {"judge-pointwise": PointwiseJudge(config, judge)},
        "judge-pairwise": {"judge-pairwise": PairwiseJudge(config, judge)},
        "classifier": {
            "classifier": Classified(config, own.named(config.classifier.model, config.classifier.revision))
        },
    }
    if config.evaluate.picture_control:
        every["endogenous"] |= {store: _showing(config, kind) for kind, store in PICTURE_STORES.items()}
    return {store: each for name in config.evaluate.rewards for store, each in every[name].items()}


def sampler_of(config: EvaluateConfig, benchmark: Maths) -> dict[str, Labeller]:
    """The label store of a policy's own answers."""
    return {"policy": MathsAnswerer(config, config.model, benchmark=benchmark)}


def variants_of(config: EvaluateConfig, stored: RewardConfig) -> list[Variant]:
    """Every variant of the configured rewards, in their order; of the endogenous one, `config.reward` goes first.

    Args:
        stored: the reward that the endogenous store was made with.
    """
    makers: dict[str, Callable[[], list[Variant]]] = {
        "endogenous": lambda: _controlled(_endogenous(stored, config.reward), config.evaluate.picture_control),
        "likelihood": _likelihood,
        **{name: partial(_certainty, name, stored) for name in CERTAINTIES},
        "answer-confidence": lambda: [_answer_confidence(config)],
        "answer-likelihood": _answer_likelihood,
        "implicit": lambda: _implicit(config.implicit.beta),
        "contrast": _contrast,
    }
    variants: list[Variant] = []
    for name in dict.fromkeys(config.evaluate.rewards):
        variants += makers[name]() if name in makers else [_as_stored(name)]
    return variants


def policy_variant(config: EvaluateConfig) -> Variant:
    answers = config.answers
    how = "greedy" if answers.temperature == 0 else f"temperature {answers.temperature:g}, {answers.samples} samples"
    return Variant(f"policy ({how})", "policy", "1 where the answer is right", ("policy",), _column("policy"), False)


ABOUT = {
    "verifier": "log pi of the verifier's answer",
    "classifier": "the reward model's output",
    "judge-pointwise": "the judge's rating",
    "judge-pairwise": "the judge's verdict in both orders",
}


def _as_stored(name: str) -> Variant:
    return Variant(name, name, ABOUT[name], (name,), _column(name), False)


def _column(store: str) -> Callable[[Parts], Array]:
    return lambda parts: parts[store]["reward"].to_numpy()


def _endogenous(stored: RewardConfig, first: RewardConfig) -> list[Variant]:
    others = aggregations(first.alpha, GAMMA if first.gamma == 1 else first.gamma, first.token_certainty)
    shown = {name for name, way in AGGREGATIONS.items() if not way.certainty} - {first.aggregation}
    wanted = [first, *(other for other in others if other.aggregation in shown)]
    return [_aggregated("endogenous", _named(each), stored, each) for each in wanted]


def _controlled(variants: list[Variant], controlled: bool) -> list[Variant]:
    """Variants of which the first is also that of the control of pictures, and its two others behind it."""
    if not controlled:
        return variants
    first, *rest = variants

    def of(store: str) -> Callable[[Parts], Array]:
        return lambda parts: first.of({"endogenous": parts[store]})

    others = [
        replace(first, name=f"{first.name} {WITH[kind]}", stores=(store,), of=of(store), pictures=kind)
        for kind, store in PICTURE_STORES.items()
    ]
    return [replace(first, pictures="given"), *others, *rest]


def _certainty(name: str, stored: RewardConfig) -> list[Variant]:
    """Raises ConfigError where the store has no such column."""
    if not stored.token_certainty:
        raise ConfigError(
            f"--reward {name}: the store has not its columns; label anew with reward.token_certainty = true"
        )
    wanted = RewardConfig.model_validate(
        {"alpha": stored.alpha, "token_certainty": True, "aggregation": CERTAINTIES[name]}
    )
    return [_aggregated(name, name, stored, wanted)]


def _answer_confidence(config: EvaluateConfig) -> Variant:
    rule = config.answer_confidence.span

    @cache
    def opened() -> tuple[Decode, frozenset[int]]:
        tokenizer = load_tokenizer(config.model)
        return pieces(tokenizer), special_ids(tokenizer)

    def of(parts: Parts) -> Array:
        (decode, special), labels = opened(), parts["endogenous"]
        rewards = []
        names = ("token_ids", "token_logprobs", "extra_info")
        for ids, logprobs, extra in zip(*(labels[name].to_pylist() for name in names), strict=True):
            texts = without_ends(ids, decode(ids), special)
            rewards.append(answer_confidence(logprobs, texts, rule, json.loads(extra).get(OPENS_THOUGHTS) is True))
        return np.array(rewards, np.float64)

    about = f"mean pi of the answer's tokens ({rule.replace('_', ' ')})"
    return Variant("answer-confidence", "answer-confidence", about, ("endogenous",), of)


def _answer_likelihood() -> list[Variant]:
    def formed(form: Callable[[float, Mapping[str, Any]], float]) -> Callable[[Parts], Array]:
        def of(parts: Parts) -> Array:
            labels = parts["answer-likelihood"]
            both = zip(labels["reward"].to_pylist(), labels["extra_info"].to_pylist(), strict=True)
            return np.array([form(logprob, json.loads(extra)[KEPT]) for logprob, extra in both], np.float64)

        return of

    store = ("answer-likelihood",)
    return [Variant(name, store[0], about, store, formed(form), False) for name, (about, form) in FORMS.items()]


def _aggregated(reward: str, name: str, stored: RewardConfig, wanted: RewardConfig) -> Variant:
    way = AGGREGATIONS[wanted.aggregation]
    optional = tuple(CERTAINTY_COLUMNS) if way.certainty else ()
    return Variant(name, reward, way.formula, ("endogenous",), _reaggregated(stored, wanted), optional=optional)


def _reaggregated(stored: RewardConfig, wanted: RewardConfig) -> Callable[[Parts], Array]:
    if wanted == stored:
        return _column("endogenous")
    return lambda parts: rewards_of(parts["endogenous"], stored, wanted)


def _named(reward: RewardConfig) -> str:
    words: list[str] = [reward.aggregation]
    words += [f"gamma {reward.gamma:g}"] if reward.depends_on_gamma and reward.gamma != 1 else []
    words += [f"weights from {reward.min_weight:g}"] if reward.min_weight else []
    return f"endogenous ({', '.join(words)})"


def _likelihood() -> list[Variant]:
    def total(parts: Parts) -> Array:
        return _sums(parts["endogenous"])[0]

    def mean(parts: Parts) -> Array:
        sums, lengths = _sums(parts["endogenous"])
        return sums / lengths

    return [
        Variant("likelihood (sum)", "likelihood", "log pi of the response", ("endogenous",), total),
        Variant("likelihood (mean)", "likelihood", "log pi a token", ("endogenous",), mean),
    ]


def _implicit(beta: float) -> list[Variant]:
    def total(parts: Parts) -> Array:
        return implicit_rewards(parts["endogenous"], parts["reference"], beta)

    def mean(parts: Parts) -> Array:
        return total(parts) / _sums(parts["endogenous"])[1]

    both = ("endogenous", "reference")
    return [
        Variant("implicit (sum)", "implicit", "beta (log pi - log pi_ref)", both, total),
        Variant("implicit (mean)", "implicit", "beta (log pi - log pi_ref) a token", both, mean),
    ]


def _contrast() -> list[Variant]:
    both = ("contrast", "contrast-against")

    def total(parts: Parts) -> Array:
        under, against = (parts[name] for name in both)
        if not under["token_ids"].equals(against["token_ids"]):
            raise ConfigError(
                "--reward contrast: a response is cut at another token under one rubric than under the other; give --set "
                "tokens.over_length=reject, which makes it an error row, and another --output"
            )
        return _sums(under)[0] - _sums(against)[0]

    def mean(parts: Parts) -> Array:
        return total(parts) / _sums(parts["contrast"])[1]

    about = "log pi under contrast.rubric less log pi under contrast.against"
    return [
        Variant("contrast (sum)", "contrast", about, both, total),
        Variant("contrast (mean)", "contrast", f"{about}, a token", both, mean),
    ]


def implicit_rewards(labels: pa.Table, reference: pa.Table, beta: float) -> Array:
    """beta * sum_h (log pi(a_h|s_h) - log pi_ref(a_h|s_h)): DPO's implicit reward up to beta log Z(prompt), which cancels
    between responses to one prompt (Rafailov et al. 2023, arXiv 2305.18290, eq. 5); [rows]. Both tables hold the same
    responses in the same order.

    Raises ConfigError where the two models cut a response into other tokens.
    """
    if not labels["token_ids"].equals(reference["token_ids"]):
        raise ConfigError(f"implicit.reference: {OTHER_TOKENS}")
    return beta * (_sums(labels)[0] - _sums(reference)[0])


def _sums(labels: pa.Table) -> tuple[Array, NDArray[np.int64]]:
    """Of each response: log pi, and its number of tokens."""
    logprobs, lengths = flat_column(labels, "token_logprobs")
    starts = np.cumsum(lengths) - lengths
    sums = np.add.reduceat(logprobs.astype(np.float64), starts) if len(starts) else np.zeros(0)
    return sums, lengths
