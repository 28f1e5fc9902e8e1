"""Responses coloured token by token, in three views: r_h, log pi and V.

Which view shows is a matter of radio buttons and the style sheet, so the page needs no script. All responses share one
scale per view; the tenth of the tokens that are farthest from its middle have the full colour.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from markupsafe import Markup

from pipeline.corpus.samples import Message
from pipeline.report.markup import minus, render
from pipeline.report.page import Prompt
from pipeline.report.thumbnails import Thumbnail, named, thumbnails
from pipeline.store.schema import message_text, read_messages
from pipeline.store.summary import find_pairs, plain, signed

Decode = Callable[[list[int]], list[str]]

PAIRS, SINGLES = 5, 6
HEAD, TAIL = 240, 20  # tokens shown of a long response: its beginning and its end
MAX_PROMPT = 6000  # characters
SHADES = 5  # on either side of the middle

_SPECIAL = re.compile(
    r"<[|\uff5c][^<>]*[|\uff5c]>|</?s>|<(bos|eos|pad|unk|mask)>|<[a-z]+(_[a-z]+)+>|\[(CLS|SEP|PAD|UNK|MASK|/?INST)\]"
)


@dataclass(frozen=True)
class View:
    """One quantity of a token: its letter in class names, how a person reads it, and which colour is the middle one."""

    letter: str
    column: str
    name: str
    meaning: str
    middle: float
    limit: float  # distance from the middle that has the full colour

    @classmethod
    def of(cls, letter: str, column: str, name: str, meaning: str, values: np.ndarray, middle: float) -> "View":
        limit = float(np.quantile(abs(values - middle), 0.9)) if len(values) else 0.0
        return cls(letter, column, name, meaning, middle, limit or 1.0)

    def shade(self, value: float) -> int:
        """-SHADES to SHADES."""
        return round(SHADES * max(-1.0, min(1.0, (value - self.middle) / self.limit)))


class Heading(NamedTuple):
    """Of a card: whether the pair is right, by what margin (both empty for a single response), and its rank."""

    verdict: str
    margin: str
    rank: str


class Token(NamedTuple):
    """How a token is shown: its shades (classes, one a view), its figures, and its text in pieces."""

    shades: str
    title: str
    pieces: list[tuple[str, str]]


class Response(NamedTuple):
    """One response of a card."""

    kind: str
    facts: str
    truncated: bool
    tokens: list[Token | int]


class Card(NamedTuple):
    """A prompt with its responses side by side."""

    heading: Heading
    rubric: str
    prompt: Prompt
    pictures: list[Thumbnail]
    responses: list[Response]


def draw_responses(labels: pa.Table, decode: Decode, first: str, pictures: bool = False) -> Markup:
    """Some responses of `labels` (at least one row), better beside worse where there are pairs; else one by one.

    Pairs (the first of each prompt) and responses are taken evenly by rank: the widest margin or highest reward first,
    the narrowest last. `first` is the letter of the view that shows at once. `pictures`: small copies of the prompts' pictures
    are embedded.
    """
    cards = choose_cards(labels)
    rows = [row for beside, _ in cards for row in beside]
    records = dict(zip(rows, labels.take(rows).to_pylist(), strict=True))
    views = _views(list(records.values()))
    shown = [_card([records[row] for row in beside], heading, views, decode, pictures) for beside, heading in cards]
    return render("responses", views=[(view, _scale(view)) for view in views], first=first, cards=shown)


def choose_cards(labels: pa.Table) -> list[tuple[list[int], Heading]]:
    """What to show of `labels`: (rows side by side, heading), best first."""
    reward = labels["reward"].to_numpy()
    prompts = list(zip(labels["prompt_id"].to_pylist(), labels["rubric"].to_pylist(), strict=True))
    first = {prompts[pair[0]]: pair for pair in reversed(find_pairs(labels).tolist())}
    pairs = sorted(first.values(), key=lambda pair: (reward[pair[1]] - reward[pair[0]], pair))
    if not pairs:
        ranked = np.argsort(-reward, kind="stable").tolist()
        return [([ranked[i]], Heading("", "", _rank(i, len(ranked), "reward"))) for i in _evenly(len(ranked), SINGLES)]
    cards = []
    for i in _evenly(len(pairs), PAIRS):
        margin = reward[pairs[i][0]] - reward[pairs[i][1]]
        verdict = "right" if margin > 0 else "wrong" if margin < 0 else "tie"
        cards.append((pairs[i], Heading(verdict, minus(signed(margin)), _rank(i, len(pairs), "margin"))))
    return cards


def _tokens(record: dict[str, Any], views: list[View], decode: Decode) -> list[Token | int]:
    """The tokens of a row of the labels table; in the place of its middle, how many are left out."""
    texts, count = decode(record["token_ids"]), len(record["token_ids"])
    left_out = range(HEAD, count - TAIL)
    tokens: list[Token | int] = []
    for i in range(count):
        if i in left_out:
            tokens += [len(left_out)] if i == HEAD else []
            continue
        values = [(view, record[view.column][i]) for view in views]
        shades = " ".join(f"{view.letter}{view.shade(value)}" for view, value in values if view.shade(value))
        figures = "\n".join(minus(f"{view.name} {value:.4f}") for view, value in values)
        title = f"token {i + 1:,} of {count:,}, id {record['token_ids'][i]}\n{figures}"
        tokens.append(Token(shades, title, _pieces(texts[i])))
    return tokens


def _views(records: list[dict[str, Any]]) -> list[View]:
    """The views with the scale that these responses share. A last token's r is all of Q: it has no say in the scale."""

    def values(column: str, last: int | None = None) -> np.ndarray:
        return np.concatenate([np.asarray(record[column][:last], np.float64) for record in records])

    rewards, logprobs, level = values("token_rewards", -1), values("token_logprobs"), values("token_values")
    middle = float(np.median(level)) if len(level) else 0.0
    return [
        View.of("r", "token_rewards", "r", "Q of a token less the value of what follows", rewards, 0.0),
        View.of("l", "token_logprobs", "log π", "how likely the model finds a token", logprobs, 0.0),
        View.of("v", "token_values", "V", "value of the text before a token; its level is arbitrary", level, middle),
    ]


def _scale(view: View) -> tuple[str, list[int], str]:
    """The legend of a view: its lowest value, the shades from there, and its highest value."""
    low, high = view.middle - view.limit, view.middle + view.limit
    shades = list(range(-SHADES, 1 if view.letter == "l" else SHADES + 1))
    end = plain(high) if view.letter == "v" else "0" if view.letter == "l" else signed(high)
    return minus(plain(low)), shades, minus(end)


def _card(records: list[dict[str, Any]], heading: Heading, views: list[View], decode: Decode, pictures: bool) -> Card:
    sides = ("better", "worse") if len(records) == 2 else ("response",)  # by a ranking, or alone
    responses = [
        _response(record, record["preference"] or side, views, decode)
        for record, side in zip(records, sides, strict=True)
    ]
    prompt = read_messages(records[0]["prompt"])
    shown = thumbnails(prompt) if pictures else []
    return Card(heading, records[0]["rubric"] or "", _prompt(prompt), shown, responses)


def _response(record: dict[str, Any], kind: str, views: list[View], decode: Decode) -> Response:
    count = record["num_tokens"]
    facts = f"reward {minus(signed(record['reward']))}, {count:,} token{'' if count == 1 else 's'}"
    return Response(kind, facts, record["truncated"], _tokens(record, views, decode))


def _prompt(prompt: list[Message]) -> Prompt:
    numbers = count(1)  # of pictures
    messages = [(message["role"], named(message, message_text(message), numbers)) for message in prompt]
    length = sum(len(text) for _, text in messages)
    room, shown = MAX_PROMPT, []
    for role, whole in messages:
        text = whole[: max(room, 0)]
        room -= len(text)
        shown.append((role, text))
        if room <= 0:
            break
    last = " ".join(messages[-1][1].split()) if messages else ""
    opening = f"{last[:110]}…" if len(last) > 110 else last
    return Prompt(shown, length, max(length - MAX_PROMPT, 0), opening)


def _pieces(text: str) -> list[tuple[str, str]]:
    """A token's text in pieces, each with the mark (a class) that makes it visible: special tokens, line ends, tabs."""
    if _SPECIAL.fullmatch(text):
        return [("special", text)]
    if not text:
        return [("part", "")]  # of a character
    return [({"\n": "line", "\t": "tab"}.get(piece, ""), piece) for piece in re.split(r"([\n\t])", text) if piece]


def _evenly(count: int, most: int) -> list[int]:
    places: list[int] = np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()
    return places


def _rank(i: int, count: int, of: str) -> str:
    return f"rank {i + 1:,} of {count:,} by {of}"
