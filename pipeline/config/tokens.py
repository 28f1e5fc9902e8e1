"""How conversations become tokens."""

import re
from datetime import UTC, date, datetime
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.config.section import Place, Section, Unread

OURS_TO_GIVE = {
    "messages", "conversation", "tools", "documents", "chat_template", "tokenize", "add_generation_prompt", "return_dict",
    "continue_final_message", "return_tensors", "return_assistant_tokens_mask", "sanitize_control_tokens", "strftime_now",
    "padding", "truncation", "max_length", "tokenizer_kwargs",
}  # fmt: skip


class TokensConfig(Section):
    """Which tokens the model sees and which of them are scored."""

    template: Place = Field(
        default="auto", description="auto: the tokenizer's chat template if it has one; none; or a path to a Jinja file"
    )
    system_prompt: str | None = Field(default=None, description="a rubric put before every prompt")
    rubrics: Place | None = Field(
        default=None, description='TOML file of `name = "system prompt"`; one label per rubric'
    )
    max_length: int | None = Field(
        default=None, ge=2, description="tokens of prompt and response; default: the model's"
    )
    over_length: Literal["cut_response", "cut_prompt", "reject"] = Field(
        default="cut_response",
        description="cut the response on the right, cut the prompt on the left, or make it an error row",
    )
    append_eos: bool = Field(default=True, description="without a template: score an end token after the response")
    template_kwargs: dict[str, Any] = Field(
        default={}, description="settings of the chat template, such as { enable_thinking = false }"
    )
    date: str | None = Field(
        default=None,
        description="what a template that asks for today's date gets, YYYY-MM-DD; default: the day on which the store began",
    )
    thoughts: Literal["score", "given"] = Field(
        default="score",
        description="a response's thoughts are scored with it, or given: the answer behind them is scored",
    )
    control: Literal["text", "keep", "refuse"] = Field(
        default="text",
        description="control tokens of the template within a corpus's text: read as text, kept as tokens, or an error row",
    )
    trailing_space: Literal["move", "keep"] = Field(
        default="move",
        description="spaces at the end of a prompt go to the response, as in the text's own tokens, or stay",
    )

    sampled: Literal["exact", "render"] = Field(
        default="exact",
        description="responses of endoreward sample: exact scores the tokens that were drawn, after those that the policy was "
        "asked with; render scores the texts anew, under the model's own tokenizer and template",
    )

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    def dated(self, known: str | None = None) -> Self:
        """With a date: its own, else the one that is known from before, else today's (UTC)."""
        return self if self.date else self.model_copy(update={"date": known or str(datetime.now(UTC).date())})

    @field_validator("date")
    @classmethod
    def _is_a_day(cls, day: str | None) -> str | None:
        if day is not None and not re.fullmatch(r"\d{4}-\d{2}-\d{2}", str(date.fromisoformat(day))):
            raise ValueError("write the day as YYYY-MM-DD")
        return day

    @field_validator("template_kwargs")
    @classmethod
    def _of_the_template(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        ours = sorted(kwargs.keys() & OURS_TO_GIVE)
        if ours:
            raise ValueError(f"{', '.join(ours)}: given to every template already; leave it out")
        return kwargs

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.system_prompt is not None and self.rubrics is not None:
            raise ValueError("give system_prompt or rubrics, not both")
        return self


def refuse_sampled(tokens: TokensConfig) -> TokensConfig:
    """Where a policy writes itself. Raises ValueError."""
    if tokens.sampled != "exact":
        raise ValueError("sampled says how label scores samples, and has no effect here; leave it out")
    return tokens


OF_A_TEMPLATE = ("template_kwargs", "date", "thoughts", "control")
"""Fields of `tokens` that only a chat template has a use for."""


def unread_of_tokens(tokens: TokensConfig) -> Unread:
    if tokens.template == "none":
        for field in OF_A_TEMPLATE:
            yield f"tokens.{field}", "under tokens.template = none; leave it out, or name a template"
