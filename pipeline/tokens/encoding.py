"""Text to tokens, so that tokens decode to the text again, wherever it is cut in two.

A prompt and its response are tokenised together where the prompt's own tokens stand at the beginning of that; else apart, and
then without the space that SentencePiece puts before every text. Text whose control tokens are marked (`control`) is tokenised
piece by piece: a marked control token as the plain text that it is.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

from pipeline.errors import RowError
from pipeline.tokens.control import MARKED, OPEN, unmarked

CALLS = ("__call__", "_encode_plus")
GUARDS = ("\n", ".", "a")  # texts to tokenise a piece behind, so that it is not taken for the beginning of a text
PROBE = "Over 3.14 x_i^2 = \\frac{1}{2};\r\n\n\tnaïve 日本 🙂   abcd.</s>"  # a text that is hard to cut into tokens
LONGEST_CHARACTER = 4  # bytes of UTF-8, and so tokens

Decode = Callable[[list[int]], list[str]]


class Encoding:
    """One tokenizer's way from text to ids."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def ids(self, text: str) -> list[int]:
        """The tokens of a text alone, without those that a tokenizer puts around it."""
        if OPEN not in text:
            return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) if text else []
        ids: list[int] = []
        for piece, plain in _pieces(text):
            encode = self._plain if plain else self.ids
            ids += next(_behind_guards(encode, piece), encode(piece)) if ids else encode(piece)
        return ids

    def ids_of(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """`ids` of each text, in one call of the tokenizer for all that can go together."""
        distinct = list(dict.fromkeys(texts))
        together = [text for text in distinct if text and OPEN not in text] if self._core is not None else []
        known = dict(zip(together, self._batch(together), strict=True)) if together else {}
        return {text: known[text] if text in known else self.ids(text) for text in distinct}

    def cut(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]] | RowError]:
        """The tokens of each prompt and of the response behind it, as `response_ids` has them; RowErrors of that.

        The whole of a prompt and its response is tokenised from the last control token of the prompt on: what stands
        before it is what it is in the prompt alone.
        """
        marked = [OPEN in prompt or OPEN in response for prompt, response in pairs]
        tails = [prompt[self._last_control(prompt) :] for prompt, _ in pairs]
        texts = [prompt for prompt, _ in pairs]
        for (_, response), tail, alone in zip(pairs, tails, marked, strict=True):
            texts += [] if alone else [tail, tail + response]
        known = self.ids_of(texts)
        results: list[tuple[list[int], list[int]] | RowError] = []
        for (prompt, response), tail, alone in zip(pairs, tails, marked, strict=True):
            prompt_ids, whole = known[prompt], None
            try:
                if not alone:
                    begun, both = known[tail], known[tail + response]
                    if both[: len(begun)] == begun and (len(both) > len(begun) or not prompt):
                        results.append((prompt_ids, both[len(begun) :]))
                        continue
                    whole = prompt_ids[: len(prompt_ids) - len(begun)] + both
                results.append((prompt_ids, self.response_ids(prompt, prompt_ids, response, whole)))
            except RowError as error:
                results.append(error)
        return results

    def response_ids(
        self, prompt: str, prompt_ids: list[int], response: str, whole: list[int] | None = None
    ) -> list[int]:
        """The tokens of a response behind a prompt, whose tokens are `prompt_ids`; `whole` is those of both together.

        Raises RowError `not_reversible` where no way to cut the two apart decodes to their text.
        """
        if not prompt:
            return self.ids(response)
        whole = self.ids(prompt + response) if whole is None else whole
        if whole[: len(prompt_ids)] == prompt_ids and len(whole) > len(prompt_ids):
            return whole[len(prompt_ids) :]
        text = self.text(whole)
        for ids in self._apart(response):
            if self.text(prompt_ids + ids) == text:
                return ids
        raise RowError(
            "not_reversible",
            f"prompt and response cannot be tokenised apart so that their tokens give {unmarked(response)[:40]!r} again; "
            "end the prompt where a word ends",
        )

    def text(self, ids: list[int]) -> str:
        """The text of some tokens, special ones included."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    @cached_property
    def _core(self) -> Any:
        """The tokenizer in Rust; None for one in Python, and for one whose class tokenises in a way of its own."""
        from transformers import PreTrainedTokenizerFast

        cls = type(self.tokenizer)
        own = any(getattr(cls, name, None) is not getattr(PreTrainedTokenizerFast, name) for name in CALLS)
        return None if own else getattr(self.tokenizer, "backend_tokenizer", None)

    def _batch(self, texts: list[str]) -> list[list[int]]:
        """`ids` of texts without marks, none of them empty: as the tokenizer's own call sets the core up, without what that
        makes of each token beside its id."""
        self.ids(texts[0][:1])  # no truncation, no padding
        return [encoding.ids for encoding in self._core.encode_batch_fast(texts, add_special_tokens=False)]

    @cached_property
    def _controls(self) -> list[str]:
        """Special tokens that end what stands before them wherever they stand in a text: they are found in the raw text
        before anything else is, they take no white space or letters from it, and no other token may lie across one."""
        added = list(getattr(self.tokenizer, "added_tokens_decoder", {}).values()) if self._core is not None else []
        if getattr(self.tokenizer, "split_special_tokens", False):
            return []
        texts = [str(token) for token in added]
        return [
            str(token)
            for token in added
            if token.special
            and not (token.normalized or token.lstrip or token.single_word)
            and str(token).strip() == str(token) != ""
            and not any(_across(other, str(token)) for other in texts)
        ]

    def _last_control(self, text: str) -> int:
        """Where the last of them begins, 0 where there is none."""
        return max(0, *(text.rfind(token) for token in self._controls)) if self._controls else 0

    def _apart(self, text: str) -> Iterator[list[int]]:
        """Ways to tokenise a text that stands behind another."""
        yield self.ids(text)
        yield from _behind_guards(self.ids, text)

    def _plain(self, text: str) -> list[int]:
        """The tokens of a text in which no token is a control token."""
        core = getattr(self.tokenizer, "backend_tokenizer", None)
        if core is None:
            return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
        normal = core.normalizer.normalize_str(text) if core.normalizer else text
        words = core.pre_tokenizer.pre_tokenize_str(normal) if core.pre_tokenizer else [(normal, (0, len(normal)))]
        return [token.id for word, _ in words for token in core.model.tokenize(word)]


def _across(other: str, token: str) -> bool:
    """Whether another token, or the same one again, may lie across where `token` begins or behind it in a text."""
    if other != token and token in other:
        return True
    return any(other.endswith(token[:size]) for size in range(1, min(len(token), len(other))))


def _behind_guards(encode: Callable[[str], list[int]], piece: str) -> Iterator[list[int]]:
    """The tokens of a piece where it does not begin a text."""
    for guard in GUARDS:
        before, both = encode(guard), encode(guard + piece)
        if both[: len(before)] == before:
            yield both[len(before) :]


def _pieces(text: str) -> Iterator[tuple[str, bool]]:
    """A marked text in pieces, each with whether it is a marked control token."""
    for number, piece in enumerate(MARKED.split(text)):
        if bare := unmarked(piece):
            yield bare, number % 2 == 1


def first_token(tokenizer: Any) -> int:
    """What an empty prompt is. Raises RowError."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise RowError("empty_prompt", "the prompt is empty and the tokenizer has no token to begin with; give a prompt")


def template_of(tokenizer: Any) -> str | None:
    """A tokenizer's own."""
    template = getattr(tokenizer, "chat_template", None)
    return template.get("default") if isinstance(template, dict) else template


def tokenizer_digest(tokenizer: Any) -> str:
    """sha256 of what makes two tokenizers one: every token's id, the end token, and the ids of a text that is hard to cut,
    with what the tokenizer puts around it."""
    identity = [sorted(tokenizer.get_vocab().items()), tokenizer.eos_token_id, list(tokenizer(PROBE)["input_ids"])]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Tokens that no text is made of: begin, end, padding, and those of a chat template."""
    added = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset({*added, *tokenizer.all_special_ids})


def pieces(tokenizer: Any) -> Decode:
    """A function from token ids to the text of each, for people to look at, one piece per id.

    A character of several tokens is the text of the last of them; the others have none.
    """

    def decode(ids: list[int]) -> list[str]:
        def text_of(tokens: list[int]) -> str:
            return str(tokenizer.decode(tokens, clean_up_tokenization_spaces=False))

        texts: list[str] = []
        before: list[int] = []  # some tokenizers drop a space in front of the first token
        pending: list[int] = []
        for position, token in enumerate(ids):
            pending.append(token)
            text = text_of(before + pending)[len(text_of(before)) :]
            unfinished = text.endswith("\ufffd") and len(pending) < LONGEST_CHARACTER and position + 1 < len(ids)
            texts.append("" if unfinished else text)
            if not unfinished:
                before, pending = pending, []
        return texts

    return decode
