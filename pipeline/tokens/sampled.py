"""Responses that `sample` wrote, scored after the very tokens that the policy was asked with.

A text that is rendered and tokenised anew may become other tokens than those that were drawn: a template that thinks is
asked behind its generation prompt and rendered, for scoring, behind a closed block of thoughts. So samples carry

    prompt_token_ids     what the policy was asked with
    response_token_ids   what it wrote, for each response; the end token where it ended itself
    rendering            a digest of tokenizer, template and what else made the prompt's tokens

and `label` scores these tokens where it renders as the sampler did, else it refuses; with `tokens.sampled = render` it
scores the texts, anew, under its own tokenizer and template: another reward.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from pipeline.corpus import NumberedRow, Shape
from pipeline.corpus.samples import Sample
from pipeline.corpus.shapes import SAMPLED
from pipeline.errors import ConfigError, RowError
from pipeline.tokens import Renderer
from pipeline.tokens.renderer import RENDER

OTHER_RENDERING = "other_rendering"


def as_asked(sample: Sample, renderer: Renderer) -> Sample:
    """A row with its tokens where they are to be scored, and without them under `tokens.sampled = render`.

    Raises RowError: other_rendering where this renderer would not have asked with such tokens, other_tokens where they
    are not those of the row's texts.
    """
    drawn = [sample.rendering, sample.prompt_token_ids, *(response.token_ids for response in sample.responses)]
    if all(each is None for each in drawn):
        return sample
    if renderer.config.sampled == "render":
        texts = [replace(response, token_ids=None) for response in sample.responses]
        return replace(sample, responses=texts, prompt_token_ids=None, rendering=None)
    whole = isinstance(sample.rendering, str) and all(map(_are_ids, drawn[1:]))
    if not whole or any(len(response.messages) > 1 for response in sample.responses):
        raise RowError(
            "other_tokens",
            f"{', '.join(SAMPLED)} are not a list of ids, one list for each response and a digest; keep them beside their "
            f"texts as sample wrote them, or {RENDER}",
        )
    if list(renderer.rubrics.values()) != [None]:
        raise RowError(
            OTHER_RENDERING,
            "the responses were written without the system prompt of tokens.system_prompt or tokens.rubrics, and the row "
            f"holds the tokens that they were written after; leave the system prompt out, or {RENDER}",
        )
    if sample.rendering != renderer.identity:
        day = renderer.days.get(str(sample.rendering))
        if day is not None:
            raise RowError(
                OTHER_RENDERING,
                f"the chat template asks for the date, and the responses were sampled with that of {day}, not {renderer.day}; "
                f"give --set tokens.date={day}, or {RENDER}",
            )
        raise RowError(
            OTHER_RENDERING,
            "the responses were sampled under another tokenizer, chat template or setting of it, so their token ids are not "
            f"this model's; label with the policy's own, under the tokens.* that it was sampled with, or {RENDER}",
        )
    if renderer.prompt_ids(sample.prompt, sample.conversational, sample.tools) != sample.prompt_token_ids:
        raise RowError(
            "other_tokens",
            f"prompt_token_ids are not the tokens of the prompt; was its text changed? Sample it anew, or {RENDER}",
        )
    return sample


def check_samples(file: str, rows: Iterable[NumberedRow], shape: Shape, renderer: Renderer) -> None:
    """Raises ConfigError where the first of a file's rows that holds samples was sampled under another rendering."""
    for number, row in rows if shape.sampled else ():
        try:
            if isinstance(row, RowError):
                raise row
            as_asked(shape.normalise(file, number, row), renderer)
            return
        except RowError as error:
            if error.reason == OTHER_RENDERING:
                raise ConfigError(f"{file}, row {number}: {error.detail}") from None


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(each) is int and each >= 0 for each in value)
