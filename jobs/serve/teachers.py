"""Log-probabilities of given tokens in the three shapes in which trainers ask a teacher for them: SGLang's /generate, OpenAI's
/v1/completions with vLLM's `prompt_logprobs`, and vLLM's /inference/v1/generate. Nothing is generated.

What is served is s * log pi(token | those before it), at temperature 1, with s = `serve.sharpness`. A trainer that credits
each token at once ends at softmax(s * log pi) in every state, which is sampling at temperature 1/s (docs/serving.md). What
asks for more than the given tokens (others that are likely, another temperature, text) is refused.
"""

import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, Field

from jobs.serve.bodies import json_response
from jobs.serve.desk import Desk
from jobs.serve.service import Refused, Service, status_of
from pipeline.errors import RowError
from pipeline.rewards.requests import LARGEST_ID
from pipeline.tokens import TokenizedTurn

Ids = list[int]


class SGLangSampling(BaseModel):
    max_new_tokens: int = 128
    temperature: float = 1.0


class SGLangRequest(BaseModel):
    input_ids: Ids | list[Ids] = Field(min_length=1)
    sampling_params: SGLangSampling = SGLangSampling()
    return_logprob: bool = False
    logprob_start_len: int = -1
    top_logprobs_num: int = 0
    token_ids_logprob: Any = None
    stream: bool = False


class CompletionsRequest(BaseModel):
    model: str | None = None
    prompt: Ids | list[Ids] = Field(min_length=1)
    max_tokens: int = 16
    temperature: float = 1.0
    prompt_logprobs: int | None = None
    stream: bool = False


class TokenSampling(BaseModel):
    max_tokens: int = 16
    temperature: float = 1.0
    prompt_logprobs: int | None = None


class TokenRequest(BaseModel):
    model: str | None = None
    token_ids: Ids = Field(min_length=1)
    sampling_params: TokenSampling = TokenSampling()
    stream: bool = False


def add_routes(app: FastAPI, desk: Desk) -> None:
    sharpness = desk.config.serve.sharpness

    @app.post("/generate")
    async def sglang(body: SGLangRequest, request: Request) -> Response:
        """SGLang's: `meta_info.input_token_logprobs` is [log-probability, id, null] of each token, the first without one."""
        _require(body.return_logprob, "return_logprob is false, and log-probabilities are all that is here; set it")
        _require(
            body.sampling_params.max_new_tokens == 0,
            "nothing is generated here; set sampling_params.max_new_tokens = 0",
        )
        _require(
            body.logprob_start_len == 0, "set logprob_start_len = 0: every token has a log-probability but the first"
        )
        _require(
            not body.top_logprobs_num and not body.token_ids_logprob,
            "only of the given tokens; leave top_logprobs_num out",
        )
        _require(not body.stream, "answers come whole; leave stream out")
        service, several = desk.service(request), _lists(body.input_ids)
        answers = [
            _sglang(ids, own) for ids, own in zip(several, await _served(service, several, request), strict=True)
        ]
        return json_response(answers if isinstance(body.input_ids[0], list) else answers[0])

    @app.post("/v1/completions")
    async def completions(body: CompletionsRequest, request: Request) -> Response:
        """OpenAI's, with vLLM's `prompt_logprobs` in each choice: of each token but the first {id: {logprob, rank: null}}."""
        service = desk.service(request, body.model)
        _require_scoring(body.prompt_logprobs, body.max_tokens, body.temperature, body.stream)
        _require(
            sharpness == 1,
            "serve.sharpness is not 1, and trainers that ask in this shape would learn neither softmax(s log pi) nor pi^s; "
            "start a server with sharpness 1 for them",
        )
        several = _lists(body.prompt)
        served = await _served(service, several, request)
        choices = [
            {"index": number, "text": "", "finish_reason": "length", "prompt_logprobs": _vllm(ids, own)}
            for number, (ids, own) in enumerate(zip(several, served, strict=True))
        ]
        tokens = sum(map(len, several))
        usage = {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
        named = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": service.created}
        return json_response({**named, "model": service.name, "choices": choices, "usage": usage})

    @app.post("/inference/v1/generate")
    async def tokens_in(body: TokenRequest, request: Request) -> Response:
        """vLLM's of tokens alone: `prompt_logprobs` as in /v1/completions."""
        service = desk.service(request, body.model)
        own = body.sampling_params
        _require_scoring(own.prompt_logprobs, own.max_tokens, own.temperature, body.stream)
        [served] = await _served(service, [body.token_ids], request)
        choices = [{"index": 0, "token_ids": [], "logprobs": None, "finish_reason": "length"}]
        answer = {"request_id": uuid.uuid4().hex, "choices": choices, "prompt_logprobs": _vllm(body.token_ids, served)}
        return json_response(answer)


def _require(holds: bool, sentence: str) -> None:
    """Raises Refused."""
    if not holds:
        raise Refused(400, sentence)


def _require_scoring(prompt_logprobs: int | None, max_tokens: int, temperature: float, stream: bool) -> None:
    """Raises Refused for what asks for more than the log-probabilities of given tokens."""
    _require(
        prompt_logprobs in (0, 1),
        "set prompt_logprobs = 1: of the given tokens, and of no others, there are numbers here",
    )
    _require(max_tokens <= 1, "nothing is generated here; set max_tokens = 1")
    _require(temperature == 1, "log-probabilities are those of temperature 1; set it")
    _require(not stream, "answers come whole; leave stream out")


def _lists(ids: Ids | list[Ids]) -> list[Ids]:
    return [list(each) for each in ids if isinstance(each, list)] or [[each for each in ids if isinstance(each, int)]]


async def _served(service: Service, several: Sequence[Ids], request: Request) -> list[list[float]]:
    """s * log pi of each token of each list but its first. Raises Refused."""
    limit = service.renderer.max_length
    for number, ids in enumerate(several):
        _require(bool(ids), f"list {number} of tokens is empty; give one token at least")
        _require(
            len(ids) <= limit, f"list {number} has {len(ids)} tokens, and {limit} at most fit; nothing is cut here"
        )
        _require(min(ids) >= 0 and max(ids) <= LARGEST_ID, f"list {number} has a token id that no vocabulary has")
    turns = [TokenizedTurn(np.array(ids[:1]), np.array(ids[1:]), []) for ids in several if len(ids) > 1]
    answers = iter(await service.scores(turns, request.scope["deadline"]))
    served: list[list[float]] = []
    for number, ids in enumerate(several):
        answer = next(answers) if len(ids) > 1 else None
        if isinstance(answer, RowError):
            raise Refused(status_of([answer]), f"list {number}: {answer}")
        served.append([] if answer is None else (service.config.serve.sharpness * answer.logprobs).tolist())
    return served


def _sglang(ids: Ids, served: Sequence[float]) -> dict[str, Any]:
    of_tokens = [[logprob, token, None] for logprob, token in zip([None, *served], ids, strict=True)]
    known = {"id": uuid.uuid4().hex, "prompt_tokens": len(ids), "completion_tokens": 0, "cached_tokens": 0}
    end = {"finish_reason": {"type": "length", "length": 0}}
    return {"text": "", "meta_info": {**known, **end, "input_token_logprobs": of_tokens, "output_token_logprobs": []}}


def _vllm(ids: Ids, served: Sequence[float]) -> list[dict[str, dict[str, Any]] | None]:
    of_tokens = ({str(token): {"logprob": own, "rank": None}} for token, own in zip(ids[1:], served, strict=True))
    return [None, *of_tokens]
