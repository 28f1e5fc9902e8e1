"""Text to tokens, so that tokens decode to the text again, wherever it is cut in two.

A prompt and its response are tokenised together where the prompt's own tokens stand at the beginning of that; else apart, and
then without the space that SentencePiece puts before every text. Text whose control tokens are marked (`control`) is tokenised
piece by piece: a marked control token as the plain text that it is.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.errors import RowError
from pipeline.tokens.control import MARKED, OPEN, unmarked

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

    def response_ids(self, prompt: str, prompt_ids: list[int], response: str) -> list[int]:
        """The tokens of a response behind a prompt, whose tokens are `prompt_ids`.

        Raises RowError `not_reversible` where no way to cut the two apart decodes to their text.
        """
        if not prompt:
            return self.ids(response)
        whole = self.ids(prompt + response)
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


def tokenizer_digest(tokenizer: Any) -> str:
    """sha256 of what makes two tokenizers one: every token's id, the end token, and the ids of a text that is hard to cut,
    with what the tokenizer puts around it."""
    identity = [sorted(tokenizer.get_vocab().items()), tokenizer.eos_token_id, list(tokenizer(PROBE)["input_ids"])]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


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
