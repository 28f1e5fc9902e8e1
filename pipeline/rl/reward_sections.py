"""What an online run maximises, as configuration."""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.config import Place, Section

READ_BY = {
    "model": ("endogenous", "relative", "teacher"),
    "revision": ("endogenous", "relative", "teacher"),
    "system_prompt": ("endogenous", "relative", "teacher"),
    "reference": ("relative",),
    "reference_revision": ("relative",),
    "answer_key": ("maths",),
    "function": ("function",),
    "free_tokens": ("length",),
}
"""Which kinds of rewards read a field of theirs; the other fields are everyone's."""


def _either(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


class RewardSource(Section):
    """One of the rewards whose weighted sum a run maximises."""

    kind: Literal[
        "endogenous", "relative", "teacher", "self_certainty", "negative_entropy", "maths", "function", "length"
    ] = Field(
        default="endogenous",
        description="endogenous: the reward model's logits; relative: its log-probabilities less those of `reference` "
        "(arXiv 2510.02493); teacher: its log-probabilities less the policy's own (arXiv 2306.13649); self_certainty, "
        "negative_entropy: of the policy's own logits (arXiv 2505.19590, 2505.22660); maths: 1 where the "
        "final answer equals `answer_key`, else 0; function: Python; length: 0 up to `free_tokens`, then down to -1 at "
        "rl.max_new_tokens (arXiv 2503.14476, eq. 13)",
    )
    weight: float = Field(default=1.0, allow_inf_nan=False, description="what it is multiplied by")
    share: float = Field(default=1.0, gt=0, le=1, description="share of the prompts that it applies to")
    model: Place = Field(default="", description="endogenous, relative, teacher: default: reward_model.name")
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub model")
    system_prompt: str | None = Field(
        default=None, description="endogenous, relative, teacher: a rubric put before the prompt"
    )
    reference: Place = Field(default="", description="relative: the earlier checkpoint, of the same tokenizer")
    reference_revision: str | None = Field(default=None, description="branch, tag or commit of a hub model")
    answer_key: str = Field(default="answer", description="maths: column of the right answer")
    function: Place = Field(
        default="", description="function: path.py:name, called as name(prompts, completions, **columns)"
    )
    free_tokens: int = Field(default=0, ge=0, description="length: tokens that cost nothing")

    @model_validator(mode="after")
    def _reads_all(self) -> Self:
        unread = [
            f"{name} (read by kind = {_either(kinds)})"
            for name, kinds in READ_BY.items()
            if self.kind not in kinds and self._given(name)
        ]
        if unread:
            kind = self.kind if "kind" in self.model_fields_set else f"{self.kind}, the default,"
            raise ValueError(f"kind = {kind} does not read {', '.join(unread)}; set kind, or leave that out")
        return self

    def _given(self, name: str) -> bool:
        """Whether a person gave the field. A configuration that was written out whole has it too, at its default."""
        if name not in self.model_fields_set:
            return False
        return "kind" not in self.model_fields_set or getattr(self, name) != type(self).model_fields[name].default

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.kind == "function" and not self.function.rpartition(":")[0].endswith(".py"):
            raise ValueError(f"function = {self.function!r} is not path.py:name")
        if self.kind == "relative" and not self.reference:
            raise ValueError("kind = relative needs reference, the checkpoint that rewards are relative to")
        return self


class RewardingSection(Section):
    """What holds for all rewards of a run."""

    other_tokenizer: Literal["retokenize", "refuse"] = Field(
        default="retokenize",
        description="a reward model with another tokenizer than the policy's: score the text anew, as a whole; or refuse it",
    )
    missing_eos_penalty: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="taken off a response that was cut off"
    )
