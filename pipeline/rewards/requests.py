"""Requests that are no corpus: a prompt and responses to it, or a conversation, by the rules of `label`.

    {"messages": [message, ...]}                                       the last turn of a conversation
    {"prompt": text or messages, "responses": [text, ...]}             as rows of a corpus
    {..., "as_written": true}                                          both are text, and neither is put through a template
    {..., "response_token_ids": [[id, ...], ...]}                      sampled: scored by these very tokens
    {"prompt_token_ids": [id, ...], "response_token_ids": [[id, ...], ...]}   nothing but tokens

Text is text: what looks like messages as JSON, or like a transcript, is not read as such. What is as written ends where it
ends: an end token at its end is that token, and where there is none `tokens.append_eos` puts one, also behind an empty
response, which so has a token to score.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import OF_A_TEMPLATE, TokensConfig
from pipeline.corpus import Shape, Shard
from pipeline.corpus.messages import to_response, to_text
from pipeline.corpus.samples import Message, Sample, Turn, parse_turn_id, turn_id
from pipeline.errors import RowError
from pipeline.rewards.labelling import prepare
from pipeline.tokens import Renderer, TokenizedTurn
from pipeline.tokens.renderer import RENDER
from pipeline.tokens.sampled import OTHER_RENDERING
from pipeline.tokens.turns import fit

PROMPTED = Shape(responses=(("responses", None),), prompt="prompt", parses=False)
CONVERSATION = Shape(responses=(("messages", None),), parses=False)
ROW = "request:0"  # its id
LARGEST_ID = 2**31 - 1


@dataclass(frozen=True)
class Asked:
    """A response as the model is asked about it."""

    turn: Turn
    tokens: TokenizedTurn


class RequestReader:
    """Requests into tokens, for one renderer; not for several threads at once."""

    def __init__(self, renderer: Renderer):
        self.renderer = renderer
        self.tokenizer = renderer.tokenizer
        written = _without_template(renderer.config)
        self._written = Renderer(self.tokenizer, written, renderer.max_length)
        self._ended = Renderer(self.tokenizer, written, renderer.max_length, ending="none")
        ends = {self.tokenizer.eos_token_id, *renderer.end_tokens()} - {None}
        self._ends = {str(self.tokenizer.convert_ids_to_tokens(end)): end for end in ends}

    def read(self, request: Mapping[str, Any]) -> list[Asked | RowError]:
        """The responses of a request in its order, or why one cannot be scored. Raises RowError where that is true of all."""
        ids = request.get("response_token_ids")
        if "prompt_token_ids" in request:
            return self.tokens(request["prompt_token_ids"], ids or [])
        if "messages" in request:
            return self._prepared({"messages": request["messages"]}, CONVERSATION, 1)
        prompt, responses = request["prompt"], list(request["responses"])
        if ids is not None and len(ids) != len(responses):
            raise RowError(
                "other_tokens", f"{len(responses)} responses and {len(ids)} lists of tokens; give one list each"
            )
        if request.get("as_written"):
            if not isinstance(prompt, str):
                raise RowError("not_text", "a prompt as written is text; leave as_written out where it is messages")
            if ids is None or self.renderer.config.sampled == "render":
                return [self._as_written(prompt, response) for response in responses]
            return self._sampled(self._written, prompt, responses, ids)
        if ids is None or self.renderer.config.sampled == "render":
            return self._prepared({"prompt": prompt, "responses": responses}, PROMPTED, len(responses))
        return self._sampled(self.renderer, prompt, responses, ids)

    def tokens(self, prompt_ids: Sequence[int], responses: Sequence[Sequence[int]]) -> list[Asked | RowError]:
        """Responses that are tokens, behind a prompt that is; cut where they are too long, as `tokens.over_length` says."""
        turns: list[TokenizedTurn | RowError] = []
        for response in responses:
            if not prompt_ids or not response:
                kind = "response" if prompt_ids else "prompt"
                turns.append(RowError(f"empty_{kind}", f"the {kind} has no token; give it one at least"))
            elif min(min(prompt_ids), min(response)) < 0 or max(max(prompt_ids), max(response)) > LARGEST_ID:
                turns.append(RowError("unknown_token", "a token id is negative, or larger than any vocabulary"))
            else:
                turns.append(TokenizedTurn(prompt_ids, response, []))  # type: ignore[arg-type]
        return self._fitted(turns, [""] * len(turns))

    def _fitted(self, turns: Sequence[TokenizedTurn | RowError], texts: Sequence[str]) -> list[Asked | RowError]:
        config = self.renderer.config
        fitted = fit(turns, self.renderer.max_length, config.over_length, self.tokenizer.bos_token_id)
        return [
            each if isinstance(each, RowError) else Asked(_turn(position, each.prompt, text), each)
            for position, (each, text) in enumerate(zip(fitted, texts, strict=True))
        ]

    def _prepared(self, row: dict[str, Any], shape: Shape, count: int) -> list[Asked | RowError]:
        """The way of a row of a corpus."""
        prepared = prepare(Shard("request", 0, 0, 1, 1, ""), 0, [(0, row)], shape, self.renderer, "last")
        answers: list[Asked | RowError] = [RowError("no_response", "there is no response to score")] * count
        for failure in prepared.failures:
            error, name = RowError(failure.reason, failure.detail), parse_turn_id(ROW, failure.id)
            if name is None:
                raise error
            answers[name.index] = error
        for turn, tokens in zip(prepared.turns, prepared.tokens, strict=True):
            answers[turn.response_index] = Asked(turn, tokens)
        return answers

    def _sampled(
        self, renderer: Renderer, prompt: Any, responses: Sequence[Any], ids: Sequence[Sequence[int]]
    ) -> list[Asked | RowError]:
        """Responses that a policy wrote behind the prompt as `renderer` asks with it."""
        if self.renderer.config.system_prompt:
            raise RowError(
                OTHER_RENDERING,
                f"response_token_ids were written without the system prompt of this model's tokens.system_prompt; {RENDER}",
            )
        sample = _sample(prompt)
        prompt_ids = renderer.prompt_ids(sample.prompt, sample.conversational)
        answers: list[Asked | RowError] = []
        for position, (response, own) in enumerate(zip(responses, ids, strict=True)):
            try:
                [checked] = self.tokens(prompt_ids, [own])
                if isinstance(checked, RowError):
                    raise checked
                text = to_response(response, f"response {position}")[0][-1]["content"]
                turn = _turn(position, sample.prompt, text, sample.conversational, (prompt_ids, list(own)))
                answers.append(Asked(turn, renderer.tokenize(turn)))
            except RowError as error:
                answers.append(error)
        return answers

    def _as_written(self, prompt: str, response: Any) -> Asked | RowError:
        try:
            text = to_text(response, "the response")
            ended = text.endswith(tuple(self._ends))
            renderer = self._ended if ended else self._written
            messages = _sample(prompt).prompt
            alone = self.tokenizer.eos_token_id if not text and renderer.config.append_eos else self._ends.get(text)
            if alone is not None:  # nothing but an end token
                turns = [TokenizedTurn(renderer.prompt_ids(messages, False), [alone], messages)]  # type: ignore[arg-type]
                return self._fitted(turns, [text])[0]
            turn = _turn(0, messages, text)
            return Asked(turn, renderer.tokenize(turn))
        except RowError as error:
            return error


def _without_template(config: TokensConfig) -> TokensConfig:
    """For text that is final."""
    defaults = {name: TokensConfig.model_fields[name].default for name in (*OF_A_TEMPLATE, "system_prompt")}
    return config.model_copy(update={**defaults, "template": "none"})


def _sample(prompt: Any) -> Sample:
    """A prompt by itself. Raises RowError."""
    return PROMPTED.normalise("request", 0, {"prompt": prompt, "responses": ["-"]})


def _turn(
    position: int,
    prompt: list[Message],
    response: str,
    conversational: bool = False,
    ids: tuple[list[int], list[int]] | tuple[None, None] = (None, None),
) -> Turn:
    identity = turn_id(ROW, None, position, 0)
    return Turn(
        identity, ROW, None, position, 0, prompt, response, conversational, None, {},
        prompt_token_ids=ids[0], response_token_ids=ids[1],
    )  # fmt: skip
