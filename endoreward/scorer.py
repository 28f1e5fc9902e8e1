"""A language model that rewards responses, as `endoreward label` does, in this process and without Ray.

Rows go the way of a corpus: their columns are recognised, or refused, by the same rules, and their shards are those of a file
of the same lines. So labels have the bits that `label` writes on the same device under as many threads.
"""

import contextlib
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Self, overload

import numpy as np

from endoreward.pictures import COLUMNS, row_as_json
from pipeline.config import LabelConfig, RewardConfig
from pipeline.config.section import load_config_as, refuse_unread
from pipeline.corpus import counted, detect, find_files, plan_file, read_shards, require_proof
from pipeline.corpus.samples import Message, parse_turn_id
from pipeline.corpus.sources import origin_of, picture_names
from pipeline.errors import ConfigError, RowError
from pipeline.models.loading import context_length, load_model, load_tokenizer
from pipeline.models.pictures import picture_processor
from pipeline.rewards.aggregations import Certainty
from pipeline.rewards.derive import aggregations
from pipeline.rewards.endogenous import reward_columns, stored_action_values
from pipeline.rewards.labelling import Prepared, finish, prepare
from pipeline.store.schema import Failure, Label
from pipeline.tokens import Renderer, pieces

log = logging.getLogger(__name__)

Fields = Mapping[str, Any]  # of a section of the configuration, by name
OnError = Literal["raise", "return"]
IN_PYTHON = (
    "(In Python --set model.x=value is x=value of from_pretrained, --set input.x=value is input={'x': value}, ...)"
)
OF_FILES = ("paths", "format", "config", "split")  # fields of the section `input`


@dataclass(frozen=True, eq=False, repr=False)
class ScoredResponse(Label):
    """A row of a label store (docs/store.md has the columns), with the text of each token and its reward's configuration.

    Of H tokens: `token_ids` and `tokens` have H entries, `token_logprobs` (nats), `token_values` and `token_rewards` (nats
    times alpha) are float32 arrays [H].
    """

    tokens: tuple[str, ...] = ()
    config: RewardConfig = field(default_factory=RewardConfig)

    @property
    def logprob(self) -> float:
        """log pi(response | prompt) in nats, at temperature 1."""
        return float(self.token_logprobs.sum(dtype="float64"))

    @property
    def rewards(self) -> dict[str, float]:
        """The reward by aggregation, as reports show them beside each other: `sum` and `mean` without discount, and
        `discounted_sum` with gamma = 0.95; with token_certainty = true those of the whole distribution too."""
        shown = aggregations(self.config.alpha, certainty=self.config.token_certainty)
        return {config.aggregation: self._reward(config) for config in shown}

    def reward_under(self, **fields: Any) -> float:
        """The reward under other fields of the section `reward`: `reward_under(aggregation="discounted_sum", gamma=0.9)`.

        What is not given has its default, but for alpha and token_certainty, which are the scorer's. Raises ConfigError.
        """
        own = self.config.model_dump(include={"alpha", "token_certainty"})
        wanted = _config({"reward": {**own, **fields}}).reward
        if wanted.alpha != self.config.alpha:
            raise ConfigError(f"another alpha than {self.config.alpha:g} needs the model: give it to the Scorer")
        return self._reward(wanted)

    @property
    def _certainty(self) -> Certainty | None:
        if self.token_entropies is None or self.token_self_certainty is None:
            return None
        return Certainty(self.token_entropies, self.token_self_certainty)

    def _reward(self, wanted: RewardConfig) -> float:
        columns = (self.token_logprobs, self.token_values, self.token_rewards)
        q = stored_action_values(*columns, self.config.alpha, self.config.gamma)
        return reward_columns(q, self.token_values, wanted, self._certainty)[1]

    def __repr__(self) -> str:
        text = self.response if len(self.response) <= 40 else f"{self.response[:37]}..."
        kind = f"{self.preference}, " if self.preference else ""
        cut = ", truncated" if self.truncated else ""
        return f"ScoredResponse({kind}reward={self.reward:.4g}, {self.num_tokens} tokens{cut}, {text!r})"


class Scorer:
    """Scores responses with a causal LM and its tokenizer; `from_pretrained` loads both.

    Args:
        model: a Hugging Face causal LM on its device; put in evaluation mode.
        tokenizer: its tokenizer, whose chat template is used where it has one.
        reward: fields of the section `reward` (docs/reward.md), such as {"aggregation": "mean"}.
        tokens: fields of the section `tokens` (docs/tokens.md), such as {"system_prompt": "..."}.
        budget_tokens: tokens forwarded at once; halved when memory runs out. None: 16,384, on a GPU what it has room for.

    Raises:
        ConfigError: for fields that are unknown, wrong or without effect.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        reward: Fields | None = None,
        tokens: Fields | None = None,
        budget_tokens: int | None = None,
    ):
        sections = {"reward": reward or {}, "tokens": tokens or {}, "scorer": {"budget_tokens": budget_tokens}}
        self._open(_config(sections), model, tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        revision: str | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto",
        device: Literal["auto", "cpu", "cuda"] = "auto",
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
        reward: Fields | None = None,
        tokens: Fields | None = None,
        budget_tokens: int | None = None,
    ) -> Self:
        """Load a model and its tokenizer.

        Args:
            name: a local folder or a model hub's name.
            revision: branch, tag or commit on the hub.
            dtype: "auto" is bfloat16 on a GPU and float32 on a CPU.
            device: "auto" is cuda where there is a GPU.
            trust_remote_code: run Python code that the model folder brings.
            allow_pickle: load .bin weights, which can run code, where there are no safetensors.

        Raises:
            ConfigError: as the constructor, and where the model cannot be loaded.
        """
        given = {"dtype": dtype, "trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
        config = _config(
            {
                "model": {"name": os.fspath(name), "revision": revision, **given},
                "reward": reward or {},
                "tokens": tokens or {},
                "scorer": {"device": device, "budget_tokens": budget_tokens},
            }
        )
        scorer = cls.__new__(cls)
        with _for_python():
            tokenizer = load_tokenizer(config.model)
            scorer._open(config, load_model(config.model, _device(config.scorer.device)), tokenizer)
        return scorer

    def _open(self, config: LabelConfig, model: Any, tokenizer: Any) -> None:
        from pipeline.models.scoring import Scorer as Engine  # imports torch

        self.config = config
        source = config.model.named(getattr(model, "name_or_path", "") if not config.model.name else "", None)
        pictures = picture_processor(source, model.config, tokenizer) if source.name else None
        self.renderer = Renderer(tokenizer, config.tokens, context_length(model.config, tokenizer), pictures=pictures)
        self.engine = Engine(
            model,
            alpha=config.reward.alpha,
            budget_tokens=config.scorer.budget_tokens,
            head_chunk_mb=config.scorer.head_chunk_mb,
            certainty=config.reward.token_certainty,
            pictures=pictures,
        )
        self._noted: set[str] = set()

    @overload
    def score(self, prompt: str | Sequence[Message], response: str) -> ScoredResponse: ...

    @overload
    def score(self, prompt: str | Sequence[Message], response: list[str] | tuple[str, ...]) -> list[ScoredResponse]: ...

    def score(
        self, prompt: str | Sequence[Message], response: str | list[str] | tuple[str, ...]
    ) -> ScoredResponse | list[ScoredResponse]:
        """Score one response to a prompt, or several, whose prompt is then computed once.

        Args:
            prompt: text, or messages with `role` and `content`.

        Raises:
            RowError: for the first response that cannot be scored; it names its place.
        """
        texts = [response] if isinstance(response, str) else list(response)
        if not all(isinstance(text, str) for text in texts):
            raise ConfigError("a response is text; score whole conversations by `label`, as rows with `messages`")
        if len(self.renderer.rubrics) > 1:
            raise ConfigError(
                "each of tokens.rubrics gives a response a score of its own; use `label`, whose `rubric` says which"
            )
        if not texts:
            return []
        row = {"prompt": prompt if isinstance(prompt, str) else list(prompt), "responses": texts}
        try:
            scored = self.label([row], input={"prompt_key": "prompt", "response_key": "responses"})
        except RowError as error:
            raise RowError(error.reason, error.detail.removeprefix("row 0, ")) from None
        return scored[0] if isinstance(response, str) else scored

    @overload
    def label(
        self, rows: Iterable[Fields], *, input: Fields | None = None, on_error: Literal["raise"] = "raise"
    ) -> list[ScoredResponse]: ...

    @overload
    def label(
        self, rows: Iterable[Fields], *, input: Fields | None = None, on_error: Literal["return"]
    ) -> list[ScoredResponse | RowError]: ...

    def label(
        self, rows: Iterable[Fields], *, input: Fields | None = None, on_error: OnError = "raise"
    ) -> list[ScoredResponse] | list[ScoredResponse | RowError]:
        """Score the responses of rows as `endoreward label` would of a file of them.

        Args:
            rows: of one layout: `messages`; `prompt` with `response`, or with `chosen` and `rejected`; ... (docs/corpus.md).
            input: fields of the section `input` that say what the columns mean, such as {"response_key": "answer"}.
            on_error: "raise" the first response that cannot be scored, before anything is computed where its text shows it; or
                "return" each such error, behind the responses of its row.

        Returns:
            One entry for each scored response, in the order of the rows. Rows of `messages` have one each.

        Raises:
            ConfigError, InputError: where the rows are no rows, or their columns cannot be understood.
            RowError: for a response that cannot be scored; it names its row, counted from 0.
        """
        config = _config({"input": input or {}})
        refuse_unread(config, ((f"input.{name}", "on a list of rows; leave it out") for name in OF_FILES))
        with _for_python():
            prepared = list(self._prepare(rows, config))
        if on_error == "raise":
            _raise_first([failure for each in prepared for failure in each.failures])
        self._note({note: 1 for each in prepared for note in each.notes})
        self._note(sum((each.counts for each in prepared), Counter()), counted=True)
        results: list[tuple[int, ScoredResponse | RowError]] = []
        for each in prepared:
            labels, failures = finish(each, self.engine.score(each.requests), self.config.reward)
            if on_error == "raise":
                _raise_first(failures)
            results += [(_row(label), self._scored(label)) for label in labels]
            results += [(failure.row, _error(failure)) for failure in failures]
        return [result for _, result in sorted(results, key=lambda pair: pair[0])]

    def _prepare(self, rows: Iterable[Fields], config: LabelConfig) -> Iterator[Prepared]:
        """The shards of a file of these rows, as tokens. Raises ConfigError and InputError."""
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "rows.jsonl")
            with open(path, "w", encoding="utf-8") as file:
                file.writelines(_lines(rows, {*COLUMNS, *picture_names(config.input)}))
            [source] = find_files([path])
            plan = plan_file(source, "jsonl", config.input.shard_rows)
            if not plan.rows:
                return
            shape = detect(list(plan.head), config.input, "the list of rows")
            shape = replace(counted((source, "jsonl", shape, plan)), origin=origin_of(source, "jsonl", config.input))
            require_proof([(source, "jsonl", shape, plan)])
            log.info("%d rows: %s", plan.rows, shape.describe())
            for shard, raw in read_shards(source, "jsonl", plan.shards):
                yield prepare(shard, 0, raw, shape, self.renderer, config.input.turns)

    def _scored(self, label: Label) -> ScoredResponse:
        lists = {name: np.asarray(vars(label)[name]).tolist() for name in ("token_ids", "prompt_token_ids")}
        texts = tuple(self._pieces(lists["token_ids"]))
        return ScoredResponse(**{**vars(label), **lists}, tokens=texts, config=self.config.reward)

    @cached_property
    def _pieces(self) -> Any:
        return pieces(self.renderer.tokenizer)

    def _note(self, sentences: Mapping[str, int], counted: bool = False) -> None:
        """Warn once of each thing that a person should know; the number of times where they are counted."""
        for sentence, count in sentences.items():
            if count and (counted or sentence not in self._noted):
                self._noted.add(sentence)
                log.warning("%s%s", f"{count:,} " if counted else "", sentence)

    def __repr__(self) -> str:
        model = self.engine.model
        name = self.config.model.name or type(model).__name__
        dtype = str(model.dtype).removeprefix("torch.")
        reward = self.config.reward
        return (
            f"Scorer({name!r}, {dtype} on {self.engine.device}, {self.engine.layout}, aggregation={reward.aggregation!r}, "
            f"alpha={reward.alpha:g}, gamma={reward.gamma:g})"
        )


def _config(sections: Mapping[str, Fields]) -> LabelConfig:
    """Raises ConfigError with every mistake, as the command line does."""
    values = [(f"{section}.{name}", value) for section, fields in sections.items() for name, value in fields.items()]
    return load_config_as(LabelConfig, None, values, [])


@contextlib.contextmanager
def _for_python() -> Iterator[None]:
    """Remedies that name flags of the command line say what they are here."""
    try:
        yield
    except ConfigError as error:
        if "--set" not in str(error):
            raise
        raise type(error)(f"{error} {IN_PYTHON}") from error


def _device(device: str) -> str:
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device='cuda': torch sees no GPU here; leave it out for the CPU")
    return device


def _lines(rows: Iterable[Fields], pictures: Collection[str]) -> Iterator[str]:
    """JSON lines; `pictures` are columns that may hold some. Raises ConfigError for what is no row."""
    if isinstance(rows, Mapping | str):
        raise ConfigError("rows is a single one; give a list of rows, each a dict by column")
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ConfigError(
                f"row {number} is {type(row).__name__}; a dict by column is due, such as {{'messages': [...]}}"
            )
        try:
            yield row_as_json(row, pictures) + "\n"
        except (TypeError, ValueError, RecursionError, OSError) as error:
            raise ConfigError(
                f"row {number} holds what JSON cannot: {error}; give text, numbers, lists and dicts"
            ) from None


def _row(label: Label) -> int:
    return int(label.prompt_id.rpartition(":")[2])


def _raise_first(failures: Sequence[Failure]) -> None:
    if failures:
        raise _error(min(failures, key=lambda failure: failure.row), others=len(failures) - 1)


def _error(failure: Failure, others: int = 0) -> RowError:
    """A failure as the error that it was, with its place."""
    named = parse_turn_id(failure.prompt_id, failure.id)
    place = f"row {failure.row}" + (f", {named.preference or 'response'} {named.index}" if named else "")
    more = f" ({others:,} more cannot be scored; on_error='return' gives them all)" if others else ""
    return RowError(failure.reason, f"{place}: {failure.detail}{more}")
