"""Token accounting: which tokens are the prompt, which are scored, and how text becomes either.

- With a chat template: the prompt is the rendering with the generation prompt; the response is what the template puts
  for the assistant, up to and including its end-of-turn token. What the template adds after that is not scored. The
  template's output is final: nothing is added to it. Text that it puts between the generation prompt and the answer
  (an empty block of thoughts) belongs to the prompt.
- Without one (base models): the prompt's text, the response's text, then the tokenizer's end token (a switch). One
  beginning-of-sequence token where the tokenizer has the habit, never two. A conversation is written as a transcript.
- Prompt tokens are the same whether or not a response follows: where a tokenizer merges across the boundary, the two
  parts are tokenised apart.
- An empty prompt is the tokenizer's beginning-of-sequence token, or its end token where it has none: the first response
  token needs a state to be predicted from.
"""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pipeline import storage
from pipeline.config import TokensConfig
from pipeline.errors import ConfigError, RowError
from pipeline.samples import Message, Turn

RUBRIC_NAME = re.compile(r"[\w.-]+")
STAND_IN = "q7Zx9KpW"  # a response that no template changes and no conversation holds
LONGEST_CHARACTER = 4  # bytes of UTF-8, and so tokens
Ending = Literal["turn", "whole", "none"]
SPEAKERS = {"user": "Human", "assistant": "Assistant", "system": "System"}


@dataclass(frozen=True)
class TokenizedTurn:
    """What the model sees of a turn. `prompt` is the messages as rendered, a rubric's system message included."""

    prompt_ids: list[int]  # at least one
    response_ids: list[int]  # the scored tokens, at least one
    prompt: list[Message]
    truncated: bool = False


def conversation_text(messages: list[Message]) -> str:
    """A conversation as text inside a question about it: a single user message as it is, else a transcript."""
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    return "\n\n".join(f"{SPEAKERS.get(m['role'], m['role'].title())}: {m['content']}" for m in messages)


def read_texts(config: TokensConfig) -> dict[str, str]:
    """The files that the configuration names, by path: rubrics and template, as they are now. Raises ConfigError."""
    named = {"rubrics": config.rubrics, "template": None if config.template in ("auto", "none") else config.template}
    return {path: _read_text(field, path) for field, path in named.items() if path is not None}


def _read_text(field: str, path: str) -> str:
    try:
        return storage.read_bytes(path).decode()
    except (OSError, ValueError) as error:
        raise ConfigError(f"tokens.{field}: cannot read {path}: {error}") from None


def load_rubrics(path: str, text: str | None = None) -> dict[str, str]:
    """A TOML file of `name = "system prompt"`, in its order; `text` is its content where it has been read already.

    Raises ConfigError.
    """
    try:
        found = tomllib.loads(_read_text("rubrics", path) if text is None else text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"tokens.rubrics: {path} is not TOML: {error}") from None
    wrong = [name for name, text in found.items() if not isinstance(text, str) or not text.strip()]
    wrong += [name for name in found if not RUBRIC_NAME.fullmatch(name)]
    if wrong or not found:
        raise ConfigError(
            f'{path}: expected lines of name = "system prompt", names of letters, digits, _ . and -; wrong: {wrong or "empty"}'
        )
    return found


class Renderer:
    """Turns into tokens, for one tokenizer and one configuration.

    Args:
        tokenizer: a Hugging Face tokenizer.
        config: template, rubric, over-length rule.
        context: the most tokens that the model takes.
        texts: the files that `config` names, by path, where they have been read already (`read_texts`).
        ending: what of the text behind a response belongs to it: "turn", the end-of-turn or end token; "whole", all that
            the template puts there; "none".

    Attributes:
        notes: what was decided on the way that a person should know, once each.
    """

    def __init__(
        self,
        tokenizer: Any,
        config: TokensConfig,
        context: int,
        texts: Mapping[str, str] | None = None,
        ending: Ending = "turn",
    ):
        self.tokenizer = tokenizer
        self.config = config
        self.ending = ending
        self.max_length = min(config.max_length or context, context)
        texts = read_texts(config) if texts is None else texts
        self.rubrics: dict[str | None, str | None] = {None: config.system_prompt}
        if config.rubrics:
            self.rubrics = {name: text for name, text in load_rubrics(config.rubrics, texts[config.rubrics]).items()}
        self.template = texts.get(config.template, _template(tokenizer) if config.template == "auto" else None)
        self.notes: list[str] = []
        if config.max_length and config.max_length > context:
            self.notes.append(
                f"tokens.max_length = {config.max_length} is more than the model's context, {context} is used"
            )
        special = set(tokenizer.all_special_tokens)
        special |= {str(t) for t in getattr(tokenizer, "added_tokens_decoder", {}).values() if t.special}
        self.special_ids = set(tokenizer.convert_tokens_to_ids(sorted(special))) - {tokenizer.unk_token_id}
        self.special_texts = sorted(special, key=len, reverse=True)
        bos = tokenizer.bos_token_id
        self.bos_habit = bos is not None and _ids(tokenizer, "x", True)[:1] == [bos]

    def under_rubrics(self, turn: Turn) -> list[Turn]:
        """The turn once per rubric, named in its id."""
        if list(self.rubrics) == [None]:
            return [turn]
        return [replace(turn, id=f"{turn.id}@{name}", rubric=name) for name in self.rubrics]

    def tokenize(self, turn: Turn) -> TokenizedTurn:
        """Raises RowError: empty_response, only_special_tokens, prompt_too_long, too_long, template_error."""
        if not turn.response.strip():
            raise RowError("empty_response", "the response holds no text; remove the row or give it a response")
        rubric = self.rubrics[turn.rubric]
        if self.template is None:
            messages = self._with_rubric(turn.prompt, rubric)
            prompt_text, response_text, ended = self._transcript(messages, turn)
        else:
            messages, prompt_text, response_text, ended = self._templated(turn, rubric)
        add_special = self.template is None
        prompt_ids = self._prompt_ids(prompt_text, add_special)
        whole = self._prompt_ids(prompt_text + response_text, add_special) if prompt_text else []
        if whole[: len(prompt_ids)] == prompt_ids and len(whole) > len(prompt_ids):
            response_ids = whole[len(prompt_ids) :]
        else:
            response_ids = _ids(self.tokenizer, response_text, False)
        if not prompt_ids:
            prompt_ids = [self._first_token()]
        if all(i in self.special_ids for i in response_ids):
            raise RowError("only_special_tokens", f"nothing but special tokens to score in {turn.response[:40]!r}")
        eos = self.tokenizer.eos_token_id
        if ended and self.template is None and eos is not None and response_ids[-1] != eos:
            response_ids = [*response_ids, eos]
        return self._fit(TokenizedTurn(prompt_ids, response_ids, messages))

    def prompt_ids(
        self, messages: list[Message], conversational: bool, tools: list[dict[str, Any]] | None = None
    ) -> list[int]:
        """The prompt as a policy is asked with it: the template's own generation prompt, or the text. Raises RowError."""
        turn = Turn("", "", None, 0, 0, messages, STAND_IN, conversational, next(iter(self.rubrics)), {}, tools=tools)
        return self.tokenize(turn).prompt_ids

    def end_tokens(self) -> tuple[int, ...]:
        """The template's end-of-turn token, at which a generated answer ends; none without a template."""
        if self.template is None:
            return ()
        try:
            _, tail = self._around([Message(role="user", content=STAND_IN[::-1])])
        except RowError:
            return ()
        return tuple(i for i in _ids(self.tokenizer, self._end_of_turn(tail), False) if i in self.special_ids)

    # Rendering

    def _transcript(self, messages: list[Message], turn: Turn) -> tuple[str, str, bool]:
        """A base model's text. Bare prompts stay as they are; conversations become a transcript."""
        ended = self.config.append_eos and self.ending != "none"
        if not turn.conversational:
            return "\n\n".join(m["content"] for m in messages), turn.response, ended
        said = [f"\n\n{SPEAKERS.get(m['role'], m['role'].title())}: {m['content']}" for m in messages]
        return "".join(said) + "\n\nAssistant:", " " + turn.response, ended

    def _templated(self, turn: Turn, rubric: str | None) -> tuple[list[Message], str, str, bool]:
        messages = self._with_rubric(turn.prompt, rubric)
        try:
            rendered = self._apply(messages, turn.response)
        except RowError:
            if not rubric:
                raise
            rendered = None  # some templates refuse a system message
        if rubric and (rendered is None or rubric.strip() not in rendered[0]):
            self._note("the chat template drops the system message: the rubric is put before the first user message")
            messages = _folded(turn.prompt, rubric)
            rendered = self._apply(messages, turn.response)
        assert rendered is not None
        before, after = rendered
        lead, tail = self._around(messages)
        text = turn.response if after == lead + turn.response + tail else turn.response.strip()
        if after != lead + text + tail:
            raise RowError(
                "template_error", "the chat template does not show the response as it is; set tokens.template"
            )
        if lead.strip():
            before, lead = before + lead, ""
        end = {"turn": self._end_of_turn(tail), "whole": tail, "none": ""}[self.ending]
        return messages, before, lead + text + end, bool(end)

    def _apply(self, messages: list[Message], response: str) -> tuple[str, str]:
        """The rendering of the prompt, and what follows it when the response is there."""
        answer: Message = {"role": "assistant", "content": response}
        try:
            before = self._render(messages, True)
            whole = self._render([*messages, answer], False)
        except Exception as error:  # a template is a program: jinja2 and whatever it calls
            raise RowError("template_error", f"the chat template refuses this conversation: {error}") from None
        if not whole.startswith(before):
            bare = self._render(messages, False)
            before = bare if whole.startswith(bare) else ""
        if not before and messages:
            raise RowError("template_error", "the chat template renders the prompt differently once a response follows")
        return before, whole[len(before) :]

    def _around(self, messages: list[Message]) -> tuple[str, str]:
        """What the template puts before and behind a response to these messages: its place is found by a stand-in."""
        _, after = self._apply(messages, STAND_IN)
        lead, _, tail = after.partition(STAND_IN)
        return lead, tail

    def _render(self, messages: list[Message], generation: bool) -> str:
        if not messages:
            return ""
        return self.tokenizer.apply_chat_template(
            messages, chat_template=self.template, tokenize=False, add_generation_prompt=generation
        )

    def _end_of_turn(self, tail: str) -> str:
        """The tail up to and including its first special token, or nothing where it has none."""
        first = min(((tail.find(t), -len(t), t) for t in self.special_texts if t in tail), default=None)
        if first is None:
            self._note("the chat template has no end-of-turn token: none is scored")
            return ""
        position, _, text = first
        return tail[: position + len(text)]

    def _with_rubric(self, prompt: list[Message], rubric: str | None) -> list[Message]:
        """The rubric as the system message; a system message of the row's own follows it."""
        if not rubric:
            return prompt
        if prompt and prompt[0]["role"] == "system":
            return [{"role": "system", "content": f"{rubric}\n\n{prompt[0]['content']}"}, *prompt[1:]]
        return [{"role": "system", "content": rubric}, *prompt]

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    # Tokens

    def _prompt_ids(self, text: str, add_special: bool) -> list[int]:
        if not text:
            return []
        ids = _ids(self.tokenizer, text, False)
        bos = self.tokenizer.bos_token_id
        return [bos, *ids] if add_special and self.bos_habit and ids[:1] != [bos] else ids

    def _first_token(self) -> int:
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return token
        raise RowError(
            "empty_prompt", "the prompt is empty and the tokenizer has no token to begin with; give a prompt"
        )

    def _fit(self, turn: TokenizedTurn) -> TokenizedTurn:
        """Apply `tokens.over_length`."""
        prompt, response, limit = turn.prompt_ids, turn.response_ids, self.max_length
        if len(prompt) + len(response) <= limit:
            return turn
        size = f"{len(prompt)} prompt and {len(response)} response tokens, at most {limit} fit"
        if self.config.over_length == "reject":
            raise RowError("too_long", f"{size}; raise tokens.max_length or cut with tokens.over_length")
        if self.config.over_length == "cut_prompt":
            response = response[: limit - 1]
            begin = prompt[:1] if prompt[0] == self.tokenizer.bos_token_id else []
            room = limit - len(response) - len(begin)
            kept = begin + prompt[len(prompt) - room :] if room > 0 else prompt[len(prompt) - (limit - len(response)) :]
            return replace(turn, prompt_ids=kept, response_ids=response, truncated=True)
        if len(prompt) >= limit:
            raise RowError("prompt_too_long", f"{size}; raise tokens.max_length or set tokens.over_length = cut_prompt")
        return replace(turn, response_ids=response[: limit - len(prompt)], truncated=True)


def _folded(prompt: list[Message], rubric: str) -> list[Message]:
    """The rubric, and the row's own system message after it, before the first user message."""
    own = [m["content"] for m in prompt if m["role"] == "system"]
    rest = [m for m in prompt if m["role"] != "system"]
    instructions = "\n\n".join([rubric, *own])
    if rest and rest[0]["role"] == "user":
        return [{"role": "user", "content": f"{instructions}\n\n{rest[0]['content']}"}, *rest[1:]]
    return [{"role": "user", "content": instructions}, *rest]


def _template(tokenizer: Any) -> str | None:
    template = getattr(tokenizer, "chat_template", None)
    return template.get("default") if isinstance(template, dict) else template


def _ids(tokenizer: Any, text: str, add_special_tokens: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"])


Decode = Callable[[list[int]], list[str]]


def pieces(tokenizer: Any) -> Decode:
    """A function from token ids to the text of each, for people to look at, one piece per id.

    A character that several tokens make up is given to the last of them, the others get nothing.
    """

    def decode(ids: list[int]) -> list[str]:
        def text_of(tokens: list[int]) -> str:
            return tokenizer.decode(tokens, clean_up_tokenization_spaces=False)

        found: list[str] = []
        before: list[int] = []  # some tokenizers drop a space in front of the first token
        pending: list[int] = []
        for position, token in enumerate(ids):
            pending.append(token)
            text = text_of(before + pending)[len(text_of(before)) :]
            unfinished = text.endswith("\ufffd") and len(pending) < LONGEST_CHARACTER and position + 1 < len(ids)
            found.append("" if unfinished else text)
            if not unfinished:
                before, pending = pending, []
        return found

    return decode
