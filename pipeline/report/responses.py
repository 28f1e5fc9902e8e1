"""Responses coloured token by token, in three views: r_h, log pi and V.

Which view shows is a matter of radio buttons and the style sheet, so the page needs no script. All responses share one
scale per view; the tenth of the tokens that are farthest from its middle have the full colour.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.report.markup import esc, minus
from pipeline.store.schema import message_text, read_messages
from pipeline.store.summary import find_pairs, plain, signed

Decode = Callable[[list[int]], list[str]]

PAIRS, SINGLES = 5, 6
HEAD, TAIL = 240, 20  # tokens shown of a long response: its beginning and its end
MAX_PROMPT = 6000  # characters
FOLDED_PROMPT = 500
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


def draw_responses(labels: pa.Table, decode: Decode, first: str) -> str:
    """Some responses of `labels` (at least one row), better beside worse where there are pairs; else one by one.

    Pairs (the first of each prompt) and responses are taken evenly by rank: the widest margin or highest reward first,
    the narrowest last. `first` is the letter of the view that shows at once.
    """
    cards = choose_cards(labels)
    rows = [row for shown, _ in cards for row in shown]
    records = dict(zip(rows, labels.take(rows).to_pylist(), strict=True))
    views = _views(list(records.values()))
    drawn = "".join(_card([records[row] for row in shown], heading, views, decode) for shown, heading in cards)
    radios = "".join(
        f'<input type="radio" name="view" id="view-{view.letter}"{" checked" if view.letter == first else ""}>'
        f'<label for="view-{view.letter}">{view.name}</label>'
        for view in views
    )
    return f'<div class="switch">{radios}<div class="views">{"".join(map(_legend, views))}{drawn}</div></div>'


def choose_cards(labels: pa.Table) -> list[tuple[list[int], str]]:
    """What to show of `labels`: (rows side by side, heading), best first."""
    reward = labels["reward"].to_numpy()
    prompts = list(zip(labels["prompt_id"].to_pylist(), labels["rubric"].to_pylist(), strict=True))
    first = {prompts[pair[0]]: pair for pair in reversed(find_pairs(labels).tolist())}
    pairs = sorted(first.values(), key=lambda pair: (reward[pair[1]] - reward[pair[0]], pair))
    if not pairs:
        ranked = np.argsort(-reward, kind="stable").tolist()
        return [([ranked[i]], _rank(i, len(ranked), "reward")) for i in _evenly(len(ranked), SINGLES)]
    cards = []
    for i in _evenly(len(pairs), PAIRS):
        margin = reward[pairs[i][0]] - reward[pairs[i][1]]
        verdict = "right" if margin > 0 else "wrong" if margin < 0 else "tie"
        heading = f'<b class="{verdict}">{verdict}</b>, margin {minus(signed(margin))}'
        cards.append((pairs[i], f"{heading} <small>{_rank(i, len(pairs), 'margin')}</small>"))
    return cards


def draw_tokens(record: dict[str, Any], views: list[View], decode: Decode) -> str:
    """One response as a run of `<span>`s, a token each. `record` is a row of the labels table."""
    pieces, count = decode(record["token_ids"]), len(record["token_ids"])
    left_out = range(HEAD, count - TAIL)
    parts = []
    for i in range(count):
        if i in left_out:
            if i == HEAD:
                parts.append(f'<span class="gap">{len(left_out):,} more tokens</span>')
            continue
        values = [(view, record[view.column][i]) for view in views]
        shades = " ".join(f"{view.letter}{view.shade(value)}" for view, value in values if view.shade(value))
        figures = "\n".join(minus(f"{view.name} {value:.4f}") for view, value in values)
        title = f"token {i + 1:,} of {count:,}, id {record['token_ids'][i]}\n{figures}"
        parts.append(f'<span class="t {shades}" title="{esc(title)}">{_piece(pieces[i])}</span>')
    return "".join(parts)


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


def _legend(view: View) -> str:
    low, high = view.middle - view.limit, view.middle + view.limit
    shades = range(-SHADES, 1 if view.letter == "l" else SHADES + 1)
    end = plain(high) if view.letter == "v" else "0" if view.letter == "l" else signed(high)
    swatches = "".join(f'<i class="{view.letter}{shade}"></i>' for shade in shades)
    return (
        f'<p class="legend for-{view.letter}"><b>{view.name}</b> {view.meaning} '
        f'<span class="scale">{minus(plain(low))}<span aria-hidden="true">{swatches}</span>{minus(end)}</span></p>'
    )


def _card(records: list[dict[str, Any]], heading: str, views: list[View], decode: Decode) -> str:
    rubric = records[0]["rubric"]
    sides = ("better", "worse") if len(records) == 2 else ("response",)  # by a ranking, or alone
    drawn = "".join(
        _response(record, record["preference"] or side, views, decode)
        for record, side in zip(records, sides, strict=True)
    )
    named = f" <small>rubric {esc(rubric)}</small>" if rubric else ""
    return (
        f'<article class="card"><h3>{heading}{named}</h3>{_prompt(records[0]["prompt"])}'
        f'<div class="sides">{drawn}</div></article>'
    )


def _response(record: dict[str, Any], kind: str, views: list[View], decode: Decode) -> str:
    count = record["num_tokens"]
    facts = f"reward {minus(signed(record['reward']))}, {count:,} token{'' if count == 1 else 's'}"
    cut = ", truncated" if record["truncated"] else ""
    return (
        f'<section class="response" aria-label="{kind}: {facts}"><h4><b class="{kind}">{kind}</b> {facts}{cut}</h4>'
        f'<p class="tokens" dir="auto">{draw_tokens(record, views, decode)}</p></section>'
    )


def _prompt(stored: list[dict[str, Any]]) -> str:
    messages = [(message["role"], message_text(message)) for message in read_messages(stored)]
    length = sum(len(text) for _, text in messages)
    if not length:
        return '<p class="prompt none">No prompt.</p>'
    room, shown = MAX_PROMPT, []
    for role, whole in messages:
        text = whole[: max(room, 0)]
        room -= len(text)
        shown.append(f'<p><b>{esc(role)}</b> <span dir="auto">{esc(text)}</span></p>')
        if room <= 0:
            break
    more = f"<p><small>{length - MAX_PROMPT:,} more characters</small></p>" if length > MAX_PROMPT else ""
    body = f'<div class="prompt">{"".join(shown)}{more}</div>'
    if length <= FOLDED_PROMPT:
        return body
    last = " ".join(messages[-1][1].split())
    opening = f"{last[:110]}…" if len(last) > 110 else last
    summary = f'Prompt, {length:,} characters: <span dir="auto">{esc(opening)}</span>'
    return f"<details><summary>{summary}</summary>{body}</details>"


def _piece(text: str) -> str:
    """A token's text: special tokens as marks; line ends, tabs and pieces without text of their own made visible."""
    if _SPECIAL.fullmatch(text):
        return f'<i class="special">{esc(text)}</i>'
    if not text:
        return '<i class="part"></i>'
    return esc(text).replace("\n", '<i class="line"></i>\n').replace("\t", '<i class="tab"></i>\t')


def _evenly(count: int, most: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()


def _rank(i: int, count: int, of: str) -> str:
    return f"rank {i + 1:,} of {count:,} by {of}"
