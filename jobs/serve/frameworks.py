"""Rewards in the shapes that OpenRLHF and slime ask for them. Both send text that is final: nothing is templated again."""

import math
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, Field

from jobs.serve.bodies import json_response
from jobs.serve.desk import Desk
from jobs.serve.service import Refused, Service, status_of
from pipeline.errors import RowError
from pipeline.store.schema import Label


class OpenRLHFRequest(BaseModel):
    """`query` is prompt and response as one text each, special tokens included."""

    query: list[str] = Field(min_length=1)
    prompts: list[str]
    labels: list[Any] | None = None


class SlimeRequest(BaseModel):
    """A prompt as messages is put through the chat template, one as text is final."""

    prompt: str | list[dict[str, Any]]
    response: str
    label: Any = None


class Standardiser:
    """Rewards less the mean of all so far, over their standard deviation: Welford's sums. Each call counts itself in before it
    is standardised; 0 as long as all rewards were the same. So a number depends on what was asked before."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def __call__(self, rewards: Sequence[float]) -> list[float]:
        for reward in rewards:
            self.count += 1
            before = reward - self.mean
            self.mean += before / self.count
            self.squares += before * (reward - self.mean)
        deviation = math.sqrt(self.squares / self.count)
        return [(reward - self.mean) / deviation if deviation else 0.0 for reward in rewards]


def add_routes(app: FastAPI, desk: Desk) -> None:
    standardisers = {name: Standardiser() for name in desk.services}

    def shown(labels: Sequence[Label], service: Service) -> list[float]:
        rewards = [label.reward for label in labels]
        return standardisers[service.name](rewards) if desk.config.serve.normalize else rewards

    @app.post("/get_reward")
    async def get_reward(body: OpenRLHFRequest, request: Request) -> Response:
        """OpenRLHF's --reward.remote_url. `scores` are exp of the mean log pi of a response's tokens, so between 0 and 1."""
        if len(body.query) != len(body.prompts):
            raise Refused(
                400, f"{len(body.query)} queries and {len(body.prompts)} prompts; give a prompt for each query"
            )
        for number, (query, prompt) in enumerate(zip(body.query, body.prompts, strict=True)):
            if not query.startswith(prompt):
                raise Refused(
                    400, f"query {number} does not begin with its prompt; send both with their special tokens"
                )
        service = desk.service(request)
        pairs = [(prompt, query[len(prompt) :]) for query, prompt in zip(body.query, body.prompts, strict=True)]
        asked = [{"prompt": prompt, "responses": [response], "as_written": True} for prompt, response in pairs]
        labels = await _labels(service, asked, request, "query")
        logprobs = [float(label.token_logprobs.sum(dtype="float64")) for label in labels]
        scores = [math.exp(each / label.num_tokens) for each, label in zip(logprobs, labels, strict=True)]
        logs = {"logprob": logprobs, "num_tokens": [label.num_tokens for label in labels]}
        return json_response({"rewards": shown(labels, service), "scores": scores, "extra_logs": logs})

    @app.post("/rm")
    async def remote_rm(body: SlimeRequest, request: Request) -> Response:
        """slime's --rm-type remote_rm: a number."""
        service = desk.service(request)
        written = isinstance(body.prompt, str)
        asked = {"prompt": body.prompt, "responses": [body.response], "as_written": written}
        labels = await _labels(service, [asked], request, "request")
        return json_response(shown(labels, service)[0])


async def _labels(service: Service, asked: Sequence[dict[str, Any]], request: Request, noun: str) -> list[Label]:
    """One a request. Raises Refused where one cannot be scored: these shapes have no place for that."""
    labels: list[Label] = []
    for number, row in enumerate(await service.rewards(asked, service.config.reward, request.scope["deadline"])):
        if isinstance(row.answer, RowError):
            raise Refused(status_of([row.answer]), f"{noun} {number}: {row.answer}")
        labels.append(row.answer)
    return labels
