"""Pictures in a prompt's text: what a chat template gets for them, and what becomes of its marker for one.

A message's text holds `PLACEHOLDER` for each of its pictures. A template gets such a message as content parts and writes its
marker where a picture is; the marker becomes the picture's tokens, as many as the model's processor gives a picture of its
size. A marker that somebody typed is text, or the row is an error: never a picture.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from pipeline.corpus.pictures import PLACEHOLDER, Picture, Size
from pipeline.corpus.samples import Message
from pipeline.errors import RowError
from pipeline.tokens.turns import TokenizedTurn

OPEN = "\U0010fffc"  # before a control token that somebody typed (`pipeline.tokens.control`)


class PictureText(Protocol):
    """How one model's processor writes pictures (`pipeline.models.pictures`)."""

    @property
    def token_id(self) -> int:
        """Of the token whose place a part of a picture takes."""

    @property
    def token(self) -> str:
        """Its text."""

    @property
    def marker(self) -> str:
        """What the chat template writes where a picture is."""

    @property
    def written(self) -> str:
        """What stands for a picture in a text without a template."""

    def expanded(self, sizes: Sequence[Size]) -> list[str]:
        """What takes the place of each marker of a prompt with pictures of these sizes. Raises RowError."""


def pictures_of(messages: Iterable[Message]) -> tuple[Picture, ...]:
    """All pictures of a conversation, in order."""
    return tuple(picture for message in messages for picture in message.get("pictures", ()))


def content_parts(message: Message) -> list[dict[str, str]]:
    """A message's content as chat templates take it where it is more than text."""
    texts = message["content"].split(PLACEHOLDER) if message.get("pictures") else [message["content"]]
    parts: list[dict[str, str]] = []
    for number, text in enumerate(texts):
        parts += [{"type": "image"}] if number else []
        parts += [{"type": "text", "text": text}] if text else []
    return parts or [{"type": "text", "text": ""}]


def in_parts(messages: Sequence[Message], always: bool) -> list[Any]:
    """Messages as a template takes them: those with pictures as parts, the others too where `always`."""
    return [
        {**{k: v for k, v in message.items() if k != "pictures"}, "content": content_parts(message)}
        if always or message.get("pictures")
        else message
        for message in messages
    ]


def marked_in_text(messages: list[Message], text: PictureText | None) -> list[Message]:
    """Messages for a transcript, with what stands for each picture there. Raises RowError where the model sees none."""
    if not pictures_of(messages):
        return messages
    written = require_sight(text).written
    return [
        {**message, "content": message["content"].replace(PLACEHOLDER, written)} if message.get("pictures") else message
        for message in messages
    ]


def texts_of(message: Message) -> list[str]:
    """The text of a message's content, cut where pictures are."""
    return message["content"].split(PLACEHOLDER) if message.get("pictures") else [message["content"]]


class Expanded(NamedTuple):
    """The text of a prompt with its pictures' tokens."""

    text: str
    tokens: int  # how many of them take a part of a picture


class Expansion:
    """Markers of rendered prompts become the tokens of pictures; for the responses to one prompt, once.

    Args:
        text: how the model's processor writes pictures; None for a model that sees none.
        typed: whether what somebody typed is told from the template's own in a rendering, by marks (`control`).
    """

    def __init__(self, text: PictureText | None, typed: bool):
        self.text, self.typed = text, typed
        self._known: dict[tuple[str, tuple[int, ...]], Expanded] = {}

    def of(self, prompt: str, messages: Sequence[Message]) -> Expanded:
        """A rendered prompt with its pictures' tokens. Raises RowError: `no_pictures` where model or template shows none,
        `picture_tokens`, and what is wrong with a picture."""
        pictures = pictures_of(messages)
        if not pictures:
            return Expanded(prompt, 0)
        key = (prompt, tuple(map(id, pictures)))
        if key not in self._known:
            self._known[key] = self._expanded(prompt, messages, pictures)
        return self._known[key]

    def _expanded(self, prompt: str, messages: Sequence[Message], pictures: Sequence[Picture]) -> Expanded:
        text = require_sight(self.text)
        if not self.typed:
            for token in {text.marker, text.token}:
                if any(token in piece for message in messages for piece in texts_of(message)):
                    raise typed_picture(token)
        pieces = re.split(f"(?<!{OPEN}){re.escape(text.marker)}", prompt)
        if len(pieces) != len(pictures) + 1:
            raise RowError(
                "no_pictures",
                f"the prompt has {len(pictures)} pictures, and the chat template shows {len(pieces) - 1}; set tokens.template "
                "to the template that the model was trained with",
            )
        shown = text.expanded([picture.size() for picture in pictures])
        whole = pieces[0] + "".join(a + b for a, b in zip(shown, pieces[1:], strict=True))
        return Expanded(whole, sum(each.count(text.token) for each in shown))


def require_sight(text: PictureText | None) -> PictureText:
    """Raises RowError where the model sees no pictures."""
    if text is None:
        raise RowError(
            "no_pictures",
            "the prompt has a picture, and what is asked reads text alone; take a vision-language model, and a command and a "
            "reward that read pictures (docs/pictures.md), or leave the row out",
        )
    return text


def require_no_pictures(messages: Iterable[Message]) -> None:
    """Raises RowError where what is asked reads text alone, whatever the model sees."""
    if pictures_of(messages):
        require_sight(None)


def require_own(turn: TokenizedTurn, due: int, text: PictureText) -> None:
    """Raises RowError for tokens of pictures beside the `due` ones of the turn's pictures: somebody typed them."""
    if int((turn.prompt_ids == text.token_id).sum()) != due or (turn.response_ids == text.token_id).any():
        raise typed_picture(text.token)


def typed_picture(token: str) -> RowError:
    return RowError(
        "picture_tokens",
        f"the text holds {token!r}, which this model reads as a picture or a part of one; take it out, or have it read as "
        "text: a chat template, and tokens.control = text",
    )
