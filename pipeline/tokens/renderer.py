"""Turns into tokens: which tokens are the prompt, and which are scored.

- With a chat template (`templates`): the prompt is what stands before the response in the template's rendering of the
  conversation; the response is what the template puts for the assistant, up to and including its end-of-turn token. What the
  template adds after that is not scored. The template's output is final. Text that it puts between the generation prompt and
  an answer (an empty block of thoughts) belongs to the prompt, unless a sibling has thoughts of its own: the responses to one
  prompt have the same prompt tokens, so that V(s_1) cancels between them.
- Without one (base models): the prompt's text, the response's text, then the tokenizer's end token (a switch). One
  beginning-of-sequence token where the tokenizer has the habit, never two. A conversation is written as a transcript.
- Spaces at the end of a prompt go to the response (`tokens.trailing_space`): that is where tokenizers put them in a text.
- A response that a policy wrote (`Turn.response_token_ids`) is its own tokens behind those that the policy was asked with.
- An empty prompt is the tokenizer's beginning-of-sequence token, or its end token where it has none: the first response
  token needs a state to be predicted from.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from pipeline.corpus.samples import Message, Turn
from pipeline.errors import RowError
from pipeline.tokens.control import ControlTokens, unmarked
from pipeline.tokens.encoding import Encoding, first_token, template_of, tokenizer_digest
from pipeline.tokens.pictures import (
    Expansion,
    PictureText,
    marked_in_text,
    pictures_of,
    require_no_pictures,
    require_own,
)
from pipeline.tokens.prompts import PromptUnder, ShownPrompt, require_plain, transcript, with_system
from pipeline.tokens.templates import STAND_IN, ChatTemplate, Conversation, Rendering, Tools, common_prefix
from pipeline.tokens.texts import load_rubrics, read_texts
from pipeline.tokens.thoughts import CLOSED, MARKERS, OPENED
from pipeline.tokens.turns import Ids, TokenizedTurn, fit, length_notes

if TYPE_CHECKING:
    from pipeline.config import TokensConfig

Ending = Literal["turn", "whole", "none"]
RENDER = "set tokens.sampled = render to score the text anew under this one: another reward"
LOOKED_BACK = 1000  # days


TYPED = "messages hold control tokens of the template, which are read as text (tokens.control)"


class TurnText(NamedTuple):
    """A turn as text. The rendering's `text` ends where scoring does."""

    messages: list[Message]
    rendering: Rendering


class Renderer:
    """Turns into tokens, for one tokenizer and one configuration.

    Args:
        tokenizer: a Hugging Face tokenizer.
        config: template, rubric, over-length rule.
        context: the most tokens that the model takes.
        texts: the files that `config` names, by path, where they have been read already (`read_texts`).
        ending: what of the text behind a response belongs to it: "turn", the end-of-turn or end token; "whole", all that
            the template puts there; "none".
        pictures: how the model's processor writes pictures; None for who reads text alone.

    Attributes:
        notes: what was decided on the way that a person should know, once each.
        counts: how often a thing of which each case should be known came up, by its sentence; see `take_counts`.
    """

    def __init__(
        self,
        tokenizer: Any,
        config: TokensConfig,
        context: int,
        texts: Mapping[str, str] | None = None,
        ending: Ending = "turn",
        pictures: PictureText | None = None,
    ):
        self.tokenizer = tokenizer
        self.pictures = pictures
        self.config = config
        self.ending = ending
        self.encoding = Encoding(tokenizer)
        self.max_length = min(config.max_length or context, context)
        texts = read_texts(config) if texts is None else texts
        self.rubrics: dict[str | None, str | None] = {None: config.system_prompt}
        if config.rubrics:
            self.rubrics = {name: text for name, text in load_rubrics(config.rubrics, texts[config.rubrics]).items()}
        self.template = texts.get(config.template, template_of(tokenizer) if config.template == "auto" else None)
        self.notes: list[str] = []
        self.counts: Counter[str] = Counter()
        self.notes += length_notes(config.max_length, context, tokenizer.model_max_length)
        special = set(tokenizer.all_special_tokens)
        added = {str(t): t for t in getattr(tokenizer, "added_tokens_decoder", {}).values()}
        special |= {text for text, token in added.items() if token.special}
        self.special_ids = set(tokenizer.convert_tokens_to_ids(sorted(special))) - {tokenizer.unk_token_id}
        self.special_texts = sorted(special, key=len, reverse=True)
        self.day = date.fromisoformat(config.date) if config.date else datetime.now(UTC).date()
        self.chat: ChatTemplate | None = None
        if self.template is not None:
            self.chat = ChatTemplate(tokenizer.apply_chat_template, self.template, config.template_kwargs, self.day)
            self.control = ControlTokens(self.chat, special, added)
        bos = tokenizer.bos_token_id
        self.bos_habit = bos is not None and list(tokenizer("x", add_special_tokens=True)["input_ids"])[:1] == [bos]

    # What a run is described by

    @property
    def asks_for_date(self) -> bool:
        """Whether the template asks for today's date, so that `tokens.date` changes its tokens."""
        return self.chat is not None and self.chat.asks_for_date

    @cached_property
    def identity(self) -> str:
        """A digest of all that makes tokens of a conversation: tokenizer, template, its settings, its date."""
        return self._identity_on(self.day)

    def _identity_on(self, day: date) -> str:
        parts = {
            "tokenizer": self._tokenizer,
            "template": self.template,
            "kwargs": self.config.template_kwargs,
            "date": str(day) if self.asks_for_date else None,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @cached_property
    def _tokenizer(self) -> str:
        return tokenizer_digest(self.tokenizer)

    @cached_property
    def days(self) -> dict[str, date]:
        """Recent days, by the identity that this renderer would have on each; none where no date is asked for."""
        latest = datetime.now(UTC).date() + timedelta(days=1)  # another machine's clock
        days = [latest - timedelta(days=back) for back in range(LOOKED_BACK)] if self.asks_for_date else []
        return {self._identity_on(day): day for day in days}

    @cached_property
    def opens_thoughts(self) -> bool:
        """Whether the template's generation prompt ends inside thoughts."""
        if self.chat is None:
            return False
        ids = self.prompt_ids([Message(role="user", content="?")], True)
        return self.encoding.text(ids).rstrip().endswith(tuple(open for open, _ in MARKERS))

    def take_counts(self) -> Counter[str]:
        """What was counted since this was last asked."""
        counts, self.counts = self.counts, Counter()
        return counts

    # Turns

    def under_rubrics(self, turn: Turn) -> list[Turn]:
        """The turn once per rubric, named in its id."""
        if list(self.rubrics) == [None]:
            return [turn]
        return [replace(turn, id=f"{turn.id}@{name}", rubric=name) for name in self.rubrics]

    def tokenize(self, turn: Turn) -> TokenizedTurn:
        """One turn alone.

        Raises RowError: empty_response, only_special_tokens, prompt_too_long, too_long, template_error, control_tokens,
        not_reversible, no_answer, other_tokens, no_template.
        """
        [answer] = self.tokenize_siblings([turn])
        if isinstance(answer, RowError):
            raise answer
        return answer

    def tokenize_siblings(self, turns: Sequence[Turn]) -> list[TokenizedTurn | RowError]:
        """Responses to one prompt, in the order given: with the same prompt tokens, also where they are cut to fit."""
        [answers] = self.tokenize_groups([turns])
        return answers

    def tokenize_groups(self, groups: Iterable[Sequence[Turn]]) -> list[list[TokenizedTurn | RowError]]:
        """`tokenize_siblings` of each group, the texts of all in one call of the tokenizer."""
        results: list[list[TokenizedTurn | RowError]] = []
        places: list[tuple[int, int]] = []  # of each text: its group, and its position there
        texts: list[TurnText] = []
        pairs: list[tuple[str, str]] = []  # its prompt, and what is scored behind it
        due: list[int] = []  # how many tokens of pictures its prompt has
        for number, turns in enumerate(groups):
            answers, own = self._texts(turns)
            results.append(answers)
            shown = Expansion(self.pictures, self.chat is not None and self.config.control != "keep")
            for position, prompt in self._shared(own).items():
                before, response = self._pair(own[position], prompt)
                try:
                    expanded = shown.of(before, own[position].messages)
                except RowError as error:
                    answers[position] = error
                    continue
                places.append((number, position))
                texts.append(own[position])
                due.append(expanded.tokens)
                pairs.append((expanded.text, response))
        arrays: dict[int, Ids] = {}  # of prompts, by their list: one for all responses
        for (number, position), text, pair, own_tokens, cut in zip(
            places, texts, pairs, due, self._cut(pairs), strict=True
        ):
            try:
                if isinstance(cut, RowError):
                    raise cut
                turn = results[number][position] = self._tokenized(text, pair, *cut, arrays)
                if self.pictures is not None:
                    require_own(turn, own_tokens, self.pictures)
            except RowError as error:
                results[number][position] = error
        bos = self.tokenizer.bos_token_id
        return [fit(answers, self.max_length, self.config.over_length, bos) for answers in results]

    def _texts(self, turns: Sequence[Turn]) -> tuple[list[TokenizedTurn | RowError], dict[int, TurnText]]:
        """Responses to one prompt that need no rendering, or have none, and the others as texts by position; these have
        something in the list that keeps their place."""
        done: list[TokenizedTurn | RowError] = []
        texts: dict[int, TurnText] = {}
        known: list[tuple[Turn, PromptUnder]] = []
        for position, turn in enumerate(turns):
            try:
                if turn.prompt_token_ids is not None and turn.response_token_ids is not None:
                    done.append(self._as_written(turn, turn.prompt_token_ids, turn.response_token_ids))
                    continue
                texts[position] = self._text(turn, known)
                done.append(RowError("", ""))
            except RowError as error:
                done.append(error)
        return done, texts

    def prompt_ids(
        self, messages: list[Message], conversational: bool, tools: Tools = None, rubric: str | None = None
    ) -> list[int]:
        """What a policy is asked with: the prompt and the template's generation prompt; without a template its text, or a
        transcript that ends where the assistant speaks. Under the rubric of this name, else the first that there is. At least
        one token, and as many as there are: nothing is cut. Raises RowError."""
        rubric = self.rubrics.get(rubric, next(iter(self.rubrics.values())))
        require_no_pictures(messages)
        chat = self.chat
        if chat is None:
            require_plain(messages, {}, tools)
            return self._prompt_ids(transcript(with_system(messages, rubric), conversational))
        asked = PromptUnder(chat, self._marked(messages), rubric, self._marked_tools(tools), 0)
        return self._prompt_ids(self._rendered(asked, Conversation.asked)[1].prompt)

    def end_tokens(self) -> tuple[int, ...]:
        """The template's end-of-turn token, at which a generated answer ends; none without a template."""
        if self.chat is None:
            return ()
        try:
            user: Message = {"role": "user", "content": STAND_IN[::-1]}
            tail = self.chat.place([user], {"role": "assistant", "content": STAND_IN}, None).tail
        except RowError:
            return ()
        return tuple(i for i in self.encoding.ids(self._end_of_turn(tail)) if i in self.special_ids)

    # Text

    def _text(self, turn: Turn, known: list[tuple[Turn, PromptUnder]]) -> TurnText:
        """`known` are prompts that siblings had, to which it adds its own. Raises RowError."""
        if not turn.response.strip() and not turn.beside:
            raise RowError("empty_response", "the response holds no text; remove the row or give it a response")
        rubric = self.rubrics[turn.rubric]
        if self.chat is not None:
            return self._templated(self.chat, turn, rubric, known)
        require_plain(turn.prompt, turn.beside, turn.tools)
        messages = with_system(turn.prompt, rubric)
        before = transcript(marked_in_text(messages, self.pictures), turn.conversational)
        text = f" {turn.response}" if turn.conversational else turn.response
        return TurnText(messages, Rendering(before, "", text, ""))

    def _templated(
        self, chat: ChatTemplate, turn: Turn, rubric: str | None, known: list[tuple[Turn, PromptUnder]]
    ) -> TurnText:
        [answer] = self._marked([turn.answer])
        prompt, rendering = self._rendered(self._asked(chat, turn, rubric, known), lambda each: each.place(answer))
        if rendering.rewritten:
            self._note(
                "the chat template writes the white space around thoughts or tool calls anew: scored as rendered"
            )
        if OPENED.match(rendering.text) and CLOSED.search(rendering.lead):
            self._note(
                "the chat template puts an empty block of thoughts before responses that hold their own; give these as "
                "reasoning_content beside the content"
            )
        if self.config.thoughts == "given":
            rendering = chat.thoughts(answer, rendering)
        rendering = rendering._replace(text=rendering.text + self._end(rendering))
        return TurnText(prompt.unmarked, rendering)

    def _asked(
        self, chat: ChatTemplate, turn: Turn, rubric: str | None, known: list[tuple[Turn, PromptUnder]]
    ) -> PromptUnder:
        """A turn's prompt, of a sibling's making where it had the same. Raises RowError."""
        for other, asked in known:
            if (other.prompt, other.rubric, other.tools) == (turn.prompt, turn.rubric, turn.tools):
                self.counts[TYPED] += asked.typed
                return asked
        tools, before = self._marked_tools(turn.tools), self.counts[TYPED]
        asked = PromptUnder(chat, self._marked(turn.prompt), rubric, tools, self.counts[TYPED] - before)
        known.append((turn, asked))
        return asked

    def _rendered(
        self, asked: PromptUnder, render: Callable[[ShownPrompt], Rendering]
    ) -> tuple[ShownPrompt, Rendering]:
        """A prompt as the template takes it, and what `render` makes of it: a system message that it refuses or drops goes
        before the first user message. Raises RowError."""
        prompt = asked.own
        try:
            rendering: Rendering | None = render(prompt)
        except RowError:
            if not prompt.system:
                raise
            rendering = None
        if rendering is None or not prompt.shows_system(rendering.prompt):
            prompt = asked.folded
            rendering = render(prompt)
            whose = "the rubric" if asked.rubric else "a row's own"
            self._note(f"the chat template drops the system message: {whose} is put before the first user message")
        prompt.require_shown(rendering.prompt)
        return prompt, rendering

    def _end(self, rendering: Rendering) -> str:
        """What of the text behind an answer belongs to it."""
        if not rendering.tail and rendering.text.endswith(tuple(self.special_texts)):
            return ""  # a turn of tool calls that ended in its own way
        return {"turn": self._end_of_turn(rendering.tail), "whole": rendering.tail, "none": ""}[self.ending]

    def _end_of_turn(self, tail: str) -> str:
        """The tail up to and including its first special token, or nothing where it has none."""
        first = min([(tail.find(t), -len(t), t) for t in self.special_texts if t in tail], default=None)
        if first is None:
            self._note("the chat template has no end-of-turn token: none is scored")
            return ""
        position, _, text = first
        return tail[: position + len(text)]

    def _marked(self, messages: list[Message]) -> list[Message]:
        """The messages with control tokens that a person typed marked, as `tokens.control` says. Raises RowError."""
        if self.config.control == "keep":
            return messages
        marked = []
        for message in messages:
            token = self.control.first_in(message)
            if token is not None and self.config.control == "refuse":
                raise RowError(
                    "control_tokens",
                    f"a message of the {message['role']} holds {token!r}, a control token of the template; take it out, or "
                    "set tokens.control = text",
                )
            if token is not None:
                self.counts[TYPED] += 1
            marked.append(message if token is None else self.control.marked(message))
        return marked

    def _marked_tools(self, tools: Tools) -> Tools:
        return self.control.marked_tools(tools) if tools and self.config.control != "keep" else tools

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    # Tokens

    def _shared(self, texts: Mapping[int, TurnText]) -> dict[int, str]:
        """The prompt of each text, the same for all that answer the same messages."""
        prompts: dict[int, str] = {}
        for position, (_, rendering) in texts.items():
            prompts[position] = rendering.prompt if rendering.lead.strip() else rendering.before
        if self.config.thoughts == "given" or len(set(prompts.values())) <= 1:
            return prompts
        groups: dict[str, list[int]] = {}
        for position, text in texts.items():
            groups.setdefault(json.dumps(text.messages, default=id), []).append(position)
        for group in groups.values():
            if len({prompts[position] for position in group}) > 1:
                common = common_prefix(*(texts[position].rendering.before for position in group))
                prompts |= dict.fromkeys(group, common)
        return prompts

    def _pair(self, text: TurnText, prompt: str) -> tuple[str, str]:
        """The text before what is scored, and that."""
        response = (text.rendering.prompt + text.rendering.text)[len(prompt) :]
        if self.config.trailing_space == "move":
            stripped = prompt.rstrip(" ")
            prompt, response = stripped, prompt[len(stripped) :] + response
        return prompt, response

    def _cut(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]] | RowError]:
        """The tokens of prompts and of responses; equal prompts have the same list."""
        return self.encoding.cut(pairs)

    def _tokenized(
        self,
        text: TurnText,
        pair: tuple[str, str],
        prompt_ids: list[int],
        response_ids: list[int],
        arrays: dict[int, Ids],
    ) -> TokenizedTurn:
        """Raises RowError."""
        if all(i in self.special_ids for i in response_ids):
            raise RowError("only_special_tokens", f"nothing but special tokens to score in {unmarked(pair[1])[:40]!r}")
        if self.chat is None and self.config.append_eos and self.ending != "none":
            eos = self.tokenizer.eos_token_id
            if eos is not None and response_ids[-1] != eos:
                response_ids = [*response_ids, eos]
        if id(prompt_ids) not in arrays:
            arrays[id(prompt_ids)] = np.array(self._begun(prompt_ids), np.int32)
        shown = pictures_of(text.messages)
        return TokenizedTurn(arrays[id(prompt_ids)], np.array(response_ids, np.int32), text.messages, pictures=shown)

    def _as_written(self, turn: Turn, prompt_ids: list[int], response_ids: list[int]) -> TokenizedTurn:
        """A response that a policy wrote. Raises RowError where its tokens are not those of its text."""
        require_no_pictures(turn.prompt)
        text = self.tokenizer.decode(response_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if turn.conversational and self.chat is None:  # a transcript puts a space after `Assistant:`
            text = text.removeprefix(" ")
        if text != turn.response:
            raise RowError(
                "other_tokens",
                f"response_token_ids read {text[:40]!r}, and the response is {turn.response[:40]!r}; was it changed by hand? "
                f"Give it the text that was sampled, or {RENDER}",
            )
        return TokenizedTurn(np.array(prompt_ids, np.int32), np.array(response_ids, np.int32), turn.prompt)

    def _prompt_ids(self, text: str) -> list[int]:
        """The tokens of a prompt. Raises RowError."""
        return self._begun(self.encoding.ids(text))

    def _begun(self, ids: list[int]) -> list[int]:
        """The tokens of a prompt's text as a prompt. Raises RowError."""
        if self.chat is None and ids and self.bos_habit and ids[:1] != [bos := self.tokenizer.bos_token_id]:
            return [bos, *ids]
        return ids or [first_token(self.tokenizer)]
