"""A policy's own responses to the prompts of a corpus: what `sample` runs, and the rows that come out of its store.

A row that comes out has the columns

    prompt      as the input gave it: text stays text, messages stay messages; under the system prompt of the run
    system      the system prompt of a bare text prompt, where the input has a column of it or the run one
    responses   texts, one for each sample
    truncated   for each response whether it was cut off, so that the policy did not end it itself

and the tokens, by which `label` scores what was drawn after what was asked (`pipeline.tokens.sampled`):

    prompt_token_ids, response_token_ids, rendering

and, where the template's generation prompt opens thoughts, `opens_thoughts`: without it nobody can tell thoughts that do not
end from an answer. The input's other columns have their own names, `input_` put before those that say a prompt, a response or
a system prompt to whoever reads the row next. So `detect` finds `prompt + responses` whatever the input held.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import pyarrow as pa

from pipeline.config import InputConfig, SampleConfig, SampleSection, TokensConfig
from pipeline.corpus import Shape, columns, detect
from pipeline.corpus.columns import RawRow
from pipeline.corpus.detection import CONVERSATIONS, LISTED, PROMPTS, SYSTEMS, TOOLS, beside_prompt
from pipeline.corpus.labels.layouts import recognised
from pipeline.corpus.placing import holds_any
from pipeline.corpus.samples import OPENS_THOUGHTS, Message, Turn
from pipeline.corpus.shapes import SAMPLED
from pipeline.corpus.sources import COLUMNS as IMAGES
from pipeline.corpus.sources import PARTS
from pipeline.errors import InputError, RowError
from pipeline.models.questions import Completion
from pipeline.rewards.labellers.base import Writer
from pipeline.rewards.labellers.sampling import Asked, Sampling, with_system
from pipeline.rewards.labelling import KEPT

OURS = ("prompt", "responses", "truncated", *SAMPLED)
TAKEN = {
    *OURS,
    OPENS_THOUGHTS,
    *SYSTEMS,
    "chosen",
    "rejected",
    "response",
    KEPT,
}  # what `detect` would take for, or before, ours
# columns of the store that make a row
STORED = ["prompt_id", "response", "truncated", "num_tokens", "extra_info", "prompt_token_ids", "token_ids"]


@dataclass(frozen=True)
class PromptSampler(Sampling):
    """`sample.num_responses` responses to every prompt.

    There is no reward in sampling. The store's column says 1 where the policy ended the response itself and 0 where it
    was cut off, so that its mean is the share of whole responses.
    """

    config: SampleConfig

    name = "sample"

    @property
    def tokens(self) -> TokensConfig:
        """A prompt is not cut: what the policy answers is what the row says."""
        return self.config.tokens.model_copy(update={"over_length": "cut_response"})

    @property
    def writer(self) -> Writer:
        return self.config.sampler.writer

    @property
    def address(self) -> str:
        return self.config.sampler.endpoint

    @property
    def drawn(self) -> SampleSection:
        return self.config.sample

    @property
    def answers(self) -> int:
        return self.config.sample.num_responses

    def settings(self) -> dict[str, Any]:
        return {f"sample.{name}": value for name, value in self.config.sample.model_dump().items()}

    def no_room(self, tokens: int, most: int) -> RowError:
        return RowError(
            "prompt_too_long",
            f"the prompt leaves no room for a response in {most} tokens; shorten it, or take a policy with a longer context",
        )

    def asked(self, file: str, number: int, row: RawRow, shape: Shape) -> Asked:
        """Raises RowError."""
        asked = prompt_of(file, number, row, shape)
        shown = with_system(asked.prompt, self.config.tokens.system_prompt)
        return replace(asked, extra=_given(shown, asked.conversational) | _renamed(asked.extra))

    def judged(self, turn: Turn, completion: Completion) -> tuple[float, dict[str, Any]]:
        opens = {OPENS_THOUGHTS: True} if self.rendering.opens_thoughts else {}
        return float(completion.finished), {"rendering": self.rendering.identity, **opens}


def prompt_of(file: str, number: int, row: RawRow, shape: Shape) -> Asked:
    """A row's prompt, and in `extra` what else the row holds; of an answer that closes a conversation, `response`. Raises
    RowError."""
    alone = replace(shape, responses=()).normalise(file, number, row)
    sample = alone if shape.prompt is not None else shape.normalise(file, number, row)
    if sample.failed and not sample.responses:
        raise sample.failed[0].error
    prompt, other = sample.prompt, dict(alone.extra)
    if sample.conversational and prompt and prompt[-1]["role"] == "assistant":
        last = prompt[-1]
        other["response"] = last["content"] if last.keys() == {"role", "content"} else last
        prompt = prompt[:-1]
    return Asked(prompt, sample.conversational, other, sample.tools)


def _given(prompt: list[Message], conversational: bool) -> RawRow:
    """The columns from which `Shape.normalise` makes this very prompt again."""
    if conversational:
        return {"prompt": prompt}
    texts = {message["role"]: message["content"] for message in prompt}
    return {"prompt": texts.get("user", ""), **{role: texts[role] for role in ("system",) if role in texts}}


def _renamed(other: RawRow) -> RawRow:
    named: RawRow = {}
    for name, value in other.items():
        new = name
        while new in TAKEN or (new != name and new in other):
            new = f"input_{new}"
        named[new] = value
    return named


def prompt_shape(rows: Sequence[RawRow], config: InputConfig, name: str) -> Shape:
    """Where a file's prompts are, by its first rows: a prompt column, a conversation, or what the halves of a pair share.

    A corpus that `detect` knows need not hold responses here. Raises InputError where no column holds a prompt, and where
    prompts have pictures.
    """
    _refuse_pictures(rows, config, name)
    names = list(dict.fromkeys(column for row in rows for column in row))
    key = config.prompt_key or config.messages_key
    if key and not any(columns.has(row, key) for row in rows):
        raise InputError(f"{name}: there is no column {key!r} in its first rows; columns: {_listed(rows)}")
    layout = recognised(rows, config, name)
    if layout and layout.form == "threads" and not key:
        raise InputError(
            f"{name}: column {layout.keys['prompt_key']!r} of the layout {layout.name} holds a person's turns without the "
            "answers between them, so nothing can be asked; give other prompts, or another column as input.prompt_key"
        )
    system, tools = (next((column for column in known if column in names), None) for known in (SYSTEMS, TOOLS))
    for column in [key] if key else [column for column in PROMPTS + CONVERSATIONS if column in names]:
        shape = beside_prompt(Shape((), prompt=column, system=system, tools=tools), rows, config)
        for row in rows:
            try:
                note = "messages" if shape.normalise(name, 0, row).conversational else "text"
                return replace(shape, note=note)
            except RowError:
                continue
    try:
        shape = replace(detect(rows, config, name), turns="last", label=None, sampled=False)
    except InputError:
        shape = Shape((), plain=True)
    if shape.plain:
        raise InputError(
            f"{name}: no column is known to hold a prompt; columns: {_listed(rows)}. Say which one does, for example "
            f"--set input.prompt_key={next(iter(columns.paths(rows, (str, list))), 'COLUMN')}"
        )
    return shape


def _refuse_pictures(rows: Sequence[RawRow], config: InputConfig, name: str) -> None:
    names = IMAGES if config.image_keys is None else config.image_keys
    if any(_shows(row, names) for row in rows):
        raise InputError(
            f"{name}: its prompts have pictures, and a policy is not asked with pictures yet; give prompts of text alone, or "
            "learn from responses that there are: endoreward label, then endoreward train (docs/pictures.md)"
        )


def _shows(row: RawRow, names: Sequence[str]) -> bool:
    return any(holds_any(columns.lookup(row, name)) for name in names if columns.has(row, name)) or _has_part(row)


def _has_part(value: Any) -> bool:
    """Whether there is a picture among the parts of a message, at any depth."""
    if isinstance(value, Mapping):
        return value.get("type") in PARTS or any(map(_has_part, value.values()))
    return isinstance(value, list) and any(map(_has_part, value))


def _listed(rows: Sequence[RawRow]) -> str:
    return ", ".join(columns.paths(rows)[:LISTED]) or "none"


@dataclass(frozen=True)
class Samples:
    """The responses to one prompt, as a row of a corpus."""

    row: RawRow
    tokens: int  # of all of them, end tokens included

    @property
    def counts(self) -> dict[str, int]:
        """What they come to: `distinct` are different texts, `empty` ones hold nothing but white space."""
        responses = self.row["responses"]
        return {
            "prompts": 1,
            "responses": len(responses),
            "distinct": len(set(responses)),
            "tokens": self.tokens,
            "cut_off": sum(self.row["truncated"]),
            "empty": sum(not response.strip() for response in responses),
        }


def sampled(part: pa.Table) -> Iterator[Samples]:
    """A part of the store (columns STORED), prompt by prompt; a prompt's labels stand together."""
    for _, labels in groupby(part.to_pylist(), key=lambda label: label["prompt_id"]):
        siblings = list(labels)
        extra = json.loads(siblings[0]["extra_info"])
        ours = {
            "prompt": extra.pop("prompt"),
            "responses": [label["response"] for label in siblings],
            "truncated": [label["truncated"] for label in siblings],
        }
        asked = siblings[0]["prompt_token_ids"]
        if asked is not None:  # which a store of format 1 does not say
            written = [label["token_ids"] for label in siblings]
            kept = extra.pop(KEPT)
            ours |= dict(zip(SAMPLED, (asked, written, kept["rendering"]), strict=True))
            ours |= {name: kept[name] for name in (OPENS_THOUGHTS,) if name in kept}
        yield Samples(ours | extra, sum(label["num_tokens"] for label in siblings))
