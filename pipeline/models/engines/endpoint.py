"""A server that speaks OpenAI's protocol: vLLM's or SGLang's own, or somebody's.

    chat           messages out, a text back: for judges
    completions    tokens out, tokens back (vLLM: `return_token_ids`), so that samples can be scored as they were drawn

A completion follows from its question's seed only as far as the server keeps its word. Its tokens have to be this model's:
each answer's decode to its text here, or it is an error row.
"""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, RowError, RunError
from pipeline.models.engines.base import Abilities, Endpoint, EngineSpec
from pipeline.models.engines.http import Client, WrongForm
from pipeline.models.loading import load_tokenizer
from pipeline.models.questions import Completion, Question, stream_key
from pipeline.tokens import UNBOUNDED

SAME_TEXT = "One model, one set of tokens: 3.14 is not 22/7."
"""Which two tokenizers hardly cut alike."""
LARGEST_SEED = 2**31 - 1


class EndpointEngine:
    name = "endpoint"
    layout = "a server's"

    def __init__(self, spec: EngineSpec):
        assert spec.endpoint is not None
        self.drawing, self.endpoint = spec.drawing, spec.endpoint
        self.chats = spec.endpoint.api == "chat"
        self.can = Abilities(tokens=not self.chats, logprobs=not self.chats, weights=False, repeatable=False)
        self.tokenizer = load_tokenizer(spec.model)
        self.client = Client(spec.endpoint)
        self.version: int | None = None
        self.notes: list[str] = []
        self.noted: set[str] = set()

    @property
    def forwarded_tokens(self) -> int:
        return self.client.tokens

    def generate(self, questions: Sequence[Question]) -> list[list[Completion] | RowError]:
        """Error rows: endpoint_failed, endpoint_refused, other_tokens. Raises RunError where no other request can be sent."""
        rows = [(question, sample) for question in questions for sample in range(question.samples)]
        with ThreadPoolExecutor(self.endpoint.concurrency) as pool:
            waiting = [pool.submit(self._answer, *row) for row in rows]
            try:
                answers = iter([each.result() for each in waiting])
            except BaseException:
                self.client.stopped.set()  # those under way come to their end, no other begins
                for each in waiting:
                    each.cancel()
                raise
        self._note()
        return [_together([next(answers) for _ in range(question.samples)]) for question in questions]

    def logprobs(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        raise RunError("an endpoint gives no log-probabilities of a text of ours; take transformers or vllm")

    def load(self, version: int, weights: Mapping[str, Any]) -> None:
        raise RunError("an endpoint takes no weights; take sampler.engine = transformers or vllm")

    def rest(self) -> None:
        """It holds nothing."""

    def _answer(self, question: Question, sample: int) -> Completion | RowError:
        path, body, most = self._request(question, sample)
        try:
            return self.client.post(path, body, most, self._chat if self.chats else self._completion)
        except RowError as error:
            return error

    def _request(self, question: Question, sample: int) -> tuple[str, dict[str, Any], int]:
        drawing = self.drawing
        prompt = len(question.prompt_ids)
        limit = drawing.max_new_tokens
        if not self.chats and drawing.max_length is not None:
            limit = min(limit, question.room(drawing.max_length, UNBOUNDED))
        body: dict[str, Any] = {"model": self.endpoint.model, "max_tokens": limit, "temperature": drawing.temperature}
        if drawing.temperature > 0:
            body |= {"top_p": drawing.top_p, "seed": stream_key(question.seed, sample) & LARGEST_SEED}
        if self.chats:
            return "/chat/completions", body | {"messages": [dict(each) for each in question.messages]}, prompt + limit
        body |= {"prompt": question.prompt_ids, "return_token_ids": True, "stop_token_ids": list(drawing.end_tokens)}
        body |= {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}  # or the model's own settings would hold there
        if drawing.wants_raw:  # which servers give
            body["logprobs"] = 1
        return "/completions", body, prompt + limit

    def _chat(self, content: Any) -> Completion:
        choice = _choice(content)
        message = choice.get("message")
        text = message.get("content") if isinstance(message, dict) else None
        if not _is_text(text):
            raise WrongForm("choices[0].message.content is no text")
        return Completion(text, [], _finished(choice))

    def _completion(self, content: Any) -> Completion:
        choice = _choice(content)
        text, ids = choice.get("text"), choice.get("token_ids")
        if not _is_text(text):
            raise WrongForm("choices[0].text is no text")
        if not isinstance(ids, list) or not all(type(each) is int for each in ids):
            raise WrongForm("choices[0].token_ids are no tokens")
        vocabulary = len(self.tokenizer)
        if not all(0 <= each < vocabulary for each in ids):
            raise RowError("other_tokens", f"the server's tokens are not below {vocabulary}, as this model's are")
        own = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if _plain(own) != _plain(text):
            shown = f"{own[:60]!r} for the server's {text[:60]!r}"
            raise RowError("other_tokens", f"the server's tokens are another text under this tokenizer: {shown}")
        logprobs = None
        if self.drawing.wants_raw:
            parts = choice.get("logprobs")
            given = parts.get("token_logprobs") if isinstance(parts, dict) else None
            if not isinstance(given, list) or len(given) != len(ids) or not all(map(_is_number, given)):
                raise WrongForm("choices[0].logprobs are not a number a token")
            logprobs = np.array(given, np.float32)
        return Completion(own, ids, _finished(choice), logprobs)

    def _note(self) -> None:
        """What made requests go again, once each."""
        for why in self.client.again:
            if why not in self.noted:
                self.noted.add(why)
                self.notes.append(f"{self.endpoint.url} gave {why}, and was asked again")


def checked(endpoint: Endpoint, model: Any) -> Endpoint:
    """The endpoint with its model's name, after a first word with the server. Asks for one token where it is to give tokens.

    Args:
        model: whose tokenizer the server's must be.

    Raises:
        ConfigError: where it does not answer, has no such model, or makes other tokens than this one's tokenizer.
    """
    client = Client(replace(endpoint, retries=min(endpoint.retries, 1), timeout_s=min(endpoint.timeout_s, 60.0)))
    try:
        name = endpoint.model or _only(client.get("/models", _names), endpoint.url)
        endpoint = replace(endpoint, model=name)
        if endpoint.api == "completions":
            ids = load_tokenizer(model)(SAME_TEXT, add_special_tokens=False)["input_ids"]
            body = {"model": name, "prompt": SAME_TEXT, "max_tokens": 1, "temperature": 0.0}
            body |= {"return_token_ids": True, "add_special_tokens": False}
            theirs = client.post("/completions", body, len(ids) + 1, _prompt_tokens)
            if theirs != ids:
                raise ConfigError(
                    f"{endpoint.url} makes other tokens of the same text than the tokenizer of {model.name}; name the model "
                    f"that it serves as {name}"
                )
    except RowError as error:
        raise ConfigError(
            f"{endpoint.url} cannot be used: {error.detail}; is it the address of a server, with /v1?"
        ) from None
    except RunError as error:
        raise ConfigError(str(error)) from None
    return endpoint


def _only(names: list[str], url: str) -> str:
    if len(names) != 1:
        raise ConfigError(
            f"{url} serves {', '.join(names[:8]) or 'no model'}; say which with --set endpoint.model=NAME"
        )
    return names[0]


def _names(content: Any) -> list[str]:
    models = content.get("data") if isinstance(content, dict) else None
    if not isinstance(models, list) or not all(isinstance(each, dict) and _is_text(each.get("id")) for each in models):
        raise WrongForm("it lists no models")
    return [each["id"] for each in models]


def _prompt_tokens(content: Any) -> list[int]:
    ids = _choice(content).get("prompt_token_ids")
    if not isinstance(ids, list):
        raise WrongForm("it gives no token ids, which samples are scored by; vLLM does")
    return ids


def _choice(content: Any) -> dict[str, Any]:
    choices = content.get("choices") if isinstance(content, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise WrongForm("it has no choices")
    first: dict[str, Any] = choices[0]
    return first


def _finished(choice: dict[str, Any]) -> bool:
    """Whether the model ended the answer and not a limit; where nothing is said, it did. Raises RowError and WrongForm."""
    reason = choice.get("finish_reason")
    if reason == "content_filter":  # would be again
        raise RowError("endpoint_refused", "the server withheld the answer (finish_reason = content_filter)")
    if reason not in ("stop", "length", None):  # abort, error
        raise WrongForm(f"choices[0].finish_reason is neither stop nor length ({str(reason)[:20]!r})")
    return reason != "length"


def _is_text(value: object) -> TypeGuard[str]:
    """Also that it can be written: JSON may hold halves of characters."""
    return isinstance(value, str) and not any("\ud800" <= each <= "\udfff" for each in value)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _plain(text: str) -> str:
    """Without what servers decode differently: halves of characters, and space around."""
    return text.replace("\ufffd", "").strip()


def _together(samples: list[Completion | RowError]) -> list[Completion] | RowError:
    """The samples of one question, or why one of them is missing."""
    failed = next((each for each in samples if isinstance(each, RowError)), None)
    return failed or [each for each in samples if isinstance(each, Completion)]
