"""A model, under one rubric, as requests see it: texts become tokens in one thread, tokens become numbers in others."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pydantic import ValidationError

from jobs.serve.batching import Batcher
from jobs.serve.bodies import Row
from pipeline.config import RewardConfig, ServeConfig
from pipeline.errors import RowError
from pipeline.models.scores import Scores
from pipeline.rewards.labelling import labels_of
from pipeline.rewards.requests import Asked, RequestReader
from pipeline.tokens import Renderer, TokenizedTurn

Result = TypeVar("Result")
CONTEXT = 16  # tokens of a prompt that a response's own are cut behind
OURS = ("out_of_memory", "not_finite")  # reasons that a request is not to blame for


class Refused(Exception):
    """A request that gets no answer but a status and a sentence."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


class Service:
    """Args:
    name: in requests.
    renderer: of the model's tokenizer, under the server's `tokens`.
    batcher: of the model, which rubrics share.
    tokenizing: one thread, which they share too: a tokenizer is not made for several.
    """

    def __init__(
        self, name: str, config: ServeConfig, renderer: Renderer, batcher: Batcher, tokenizing: ThreadPoolExecutor
    ):
        self.name = name
        self.config = config
        self.renderer = renderer
        self.reader = RequestReader(renderer)
        self.batcher = batcher
        self.tokens = TokenCounts()
        self.created = int(time.time())
        self._tokenizing = tokenizing

    def reward_under(self, fields: Mapping[str, Any]) -> RewardConfig:
        """The server's `reward` with other values in some fields. Raises Refused."""
        own = self.config.reward
        try:
            wanted = RewardConfig.model_validate({**own.model_dump(), **fields})
        except ValidationError as error:
            raise Refused(400, f"reward: {sentence_of(error)}") from None
        if wanted.alpha != own.alpha:
            raise Refused(400, f"reward.alpha is {own.alpha:g} on this server, and another needs another server")
        if wanted.token_certainty and not own.token_certainty:
            raise Refused(400, "reward.token_certainty is off on this server, and on needs another server")
        return wanted

    async def rewards(self, requests: Sequence[Mapping[str, Any]], reward: RewardConfig, deadline: float) -> list[Row]:
        """The label of each response of each request, under `reward`, or why it has none."""
        read = await self._in_tokenizer(lambda: [self._read(request) for request in requests])
        places = [(number, own) for number, answers in enumerate(read) for own in range(len(answers))]
        asked = [each for answers in read for each in answers]
        scores = iter(await self.scores([each.tokens for each in asked if isinstance(each, Asked)], deadline))
        answers = [each if isinstance(each, RowError) else next(scores) for each in asked]
        scored = [
            (each.turn, each.tokens, answer)
            for each, answer in zip(asked, answers, strict=True)
            if isinstance(each, Asked) and isinstance(answer, Scores)
        ]
        labels = iter(labels_of(scored, reward))
        return [
            Row(place, answer if isinstance(answer, RowError) else next(labels))
            for place, answer in zip(places, answers, strict=True)
        ]

    async def scores(self, turns: Sequence[TokenizedTurn], deadline: float) -> list[Scores | RowError]:
        if not turns:
            return []
        return await asyncio.wrap_future(self.batcher.submit(turns, deadline))

    async def _in_tokenizer(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, work)

    def _read(self, request: Mapping[str, Any]) -> list[Asked | RowError]:
        try:
            asked = self.reader.read(request)
        except RowError as error:
            return [error] * max(1, len(request.get("responses") or request.get("response_token_ids") or ()))
        if (ids := request.get("response_token_ids")) is not None:
            self.tokens.count(self.renderer, asked, ids)
        return asked


class TokenCounts:
    """Responses that came as tokens, and how many of these are not the tokens of their own text, which `label` would score
    where it is given that: a policy may write a word in other pieces than its tokenizer cuts it into."""

    def __init__(self) -> None:
        self.sampled = self.other = 0

    def count(self, renderer: Renderer, asked: Sequence[Asked | RowError], sampled: Sequence[Sequence[int]]) -> None:
        """Of a request's responses and the tokens that they came as, whether these are scored or rendered anew."""
        turns = [(each.tokens, list(ids)) for each, ids in zip(asked, sampled, strict=True) if isinstance(each, Asked)]
        text = renderer.encoding.text
        pairs = [(text(turn.prompt_ids[-CONTEXT:].tolist()), text(ids)) for turn, ids in turns]
        for (_, ids), cut in zip(turns, renderer.encoding.cut(pairs), strict=True):
            self.sampled += 1
            self.other += isinstance(cut, RowError) or cut[1] != ids


def status_of(errors: Sequence[RowError]) -> int:
    """Of a request that got nothing but these."""
    return 500 if any(error.reason in OURS for error in errors) else 422


def sentence_of(error: ValidationError) -> str:
    """What is wrong with a body, without what it holds."""
    return sentence_of_mistakes(
        [dict(each) for each in error.errors(include_input=False, include_url=False, include_context=False)]
    )


def sentence_of_mistakes(mistakes: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for each in mistakes[:3]:
        place = ".".join(str(part)[:40] for part in each["loc"] if part != "body")
        message = str(each["msg"]).removeprefix("Value error, ")
        lines.append(f"{place}: {message}" if place else message)
    more = f"; and {len(mistakes) - 3} more" if len(mistakes) > 3 else ""
    return "; ".join(lines) + more
