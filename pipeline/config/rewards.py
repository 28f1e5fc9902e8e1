"""Each reward, and what it asks."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pipeline.config.engines import OF_AN_ENDPOINT, OF_AN_ENGINE, LocalEngine, check_address
from pipeline.config.section import OPERATORS, Place, Section

SUMS = ("sum", "discounted_sum")
"""Aggregations that are sums of r_h: they hold V(s_1), and gamma moves them. All others are of the policy alone."""
DISCOUNTED = ("discounted_sum", "discounted_logprobs")
"""Aggregations that weigh token h by max(gamma^(h-1), min_weight)."""
CERTAINTY = ("self_certainty", "negative_entropy")
"""Aggregations of what `token_certainty` stores: of the whole distribution at temperature 1, whatever alpha is."""


class RewardConfig(Section):
    """r(s_h,a_h) = Q(s_h,a_h) - gamma * V(s_{h+1}), V(s) = alpha*logsumexp(Q(s,.)/alpha) (arXiv 2506.23235, eq. 11)."""

    alpha: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="temperature of the soft value")
    gamma: float = Field(default=1.0, ge=0, le=1, description="discount")
    aggregation: Literal[
        "sum", "mean", "discounted_sum", "discounted_logprobs", "self_certainty", "negative_entropy"
    ] = Field(
        default="sum",
        description="sum_h r_h; alpha * mean_h log pi; sum_h gamma^(h-1) r_h; alpha * sum_h gamma^(h-1) log pi; "
        "mean_h KL(uniform || pi); -mean_h entropy of pi",
    )
    subtract_initial_value: bool = Field(
        default=False, description="take V(s_1) off the sums, to compare responses to different prompts"
    )
    min_weight: float = Field(
        default=0.0, ge=0, le=1, description="floor of gamma^(h-1) in discounted_sum and discounted_logprobs"
    )
    token_certainty: bool = Field(
        default=False,
        description="store token_entropies and token_self_certainty too, at temperature 1, of which self_certainty and "
        "negative_entropy are made",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.subtract_initial_value and not self.sums_rewards:
            raise ValueError(f"{self.aggregation} holds no V(s_1) to subtract")
        if self.min_weight and self.aggregation not in DISCOUNTED:
            raise ValueError("min_weight is for aggregation = discounted_sum or discounted_logprobs")
        if self.aggregation in CERTAINTY and not self.token_certainty:
            raise ValueError(
                f"aggregation = {self.aggregation} is of columns that only token_certainty = true stores; set that"
            )
        return self

    @property
    def sums_rewards(self) -> bool:
        """Whether the reward is a sum of r_h, which holds V(s_1) and depends on gamma."""
        return self.aggregation in SUMS

    @property
    def depends_on_gamma(self) -> bool:
        return self.sums_rewards or self.aggregation in DISCOUNTED

    def described(self) -> dict[str, Any]:
        """What a description of labels says of it, by name of the configuration. What came later only where it is on, so that
        stores from before it keep their fingerprint."""
        fields = self.model_dump(exclude=set() if self.token_certainty else {"token_certainty"})
        return {f"reward.{name}": value for name, value in fields.items()}

    def warnings(self) -> list[str]:
        """What a person should know about this reward before trusting it."""
        problems = []
        if self.aggregation == "sum" and self.gamma != 1:
            problems.append(
                f"reward.aggregation = sum with reward.gamma = {self.gamma:g} leaks the level of the logits, which training "
                "does not fix; use discounted_sum, or gamma = 1"
            )
        if self.min_weight and self.sums_rewards:
            problems.append(
                f"reward.min_weight = {self.min_weight:g} stops the discounted sum from telescoping: values leak where the "
                "floor holds; with reward.aggregation = discounted_logprobs nothing leaks"
            )
        return problems


class ImplicitConfig(Section):
    """beta * (log pi - log pi_ref), summed over the response: DPO's implicit reward (arXiv 2305.18290, section 4)."""

    reference: Place = Field(default="", description="reference model, or an earlier checkpoint (arXiv 2510.02493)")
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub model")
    beta: float = Field(default=0.1, gt=0, allow_inf_nan=False, description="scale of the implicit reward")


class ContrastConfig(Section):
    """log pi of the response under one rubric less log pi under another, of one model."""

    rubric: str = Field(default="", description="system prompt that the response is to follow")
    against: str = Field(default="", description="system prompt that it is compared with; empty: none")


SpanRule = Literal["boxed", "after_thoughts", "last_line"]
OF_A_SPAN = "where the answer is: in the last \\boxed{}; all behind the thoughts; the last line there"


class AnswerConfidenceConfig(Section):
    """The mean probability of the final answer's tokens (arXiv 2510.13501)."""

    span: SpanRule = Field(default="boxed", description=OF_A_SPAN)


class AnswerLikelihoodConfig(Section):
    """log pi of the right answer behind a response's reasoning (arXiv 2505.21493, 2506.18254, 2505.16022)."""

    answer_key: str = Field(default="", description="column of the right answer, or of a solution that marks it")
    span: SpanRule = Field(default="boxed", description=OF_A_SPAN)


def _refuse_hidden(who: str, question: str, parts: tuple[str, ...]) -> str:
    """A question that shows what it is about. Raises ValueError for one that leaves a part out."""
    missing = [f"{{{part}}}" for part in parts if f"{{{part}}}" not in question]
    if missing:
        raise ValueError(f"the {who} would not see {' and '.join(missing)}; name it where it belongs")
    return question


class VerifierConfig(Section):
    """A generative verifier: log pi(answer | question about the response)."""

    model: Place = Field(default="", description="default: model.name")
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub model")
    question: str = Field(
        default="Question:\n{prompt}\n\nAnswer:\n{response}\n\nIs this a correct and helpful answer? Say Yes or No.",
        description="what the model is asked; {prompt} and {response} are filled in",
    )
    answer: str = Field(default="Yes", min_length=1, description="the word whose log-probability is the reward")

    @field_validator("question")
    @classmethod
    def _shows_all(cls, question: str) -> str:
        return _refuse_hidden("verifier", question, ("prompt", "response"))


class JudgeConfig(Section):
    """A language model that is asked for a verdict in words."""

    model: Place = Field(default="", description="default: model.name")
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub model")
    engine: LocalEngine = Field(default="transformers", description=OF_AN_ENGINE)
    endpoint: Annotated[Place, OPERATORS] = Field(
        default="", description=f"{OF_AN_ENDPOINT}; `model` gives tokens alone"
    )
    pointwise_prompt: str = Field(
        default="Rate how helpful, correct and harmless the answer to the question is, from 1 to 10. Reason briefly, "
        "then end with the rating in double brackets, such as [[5]].\n\nQuestion:\n{prompt}\n\nAnswer:\n{response}",
        description="what judge-pointwise asks; {prompt} and {response} are filled in",
    )
    pointwise_pattern: str = Field(
        default=r"\[\[\s*(\d+(?:\.\d+)?)\s*\]\]",
        description="regular expression; its group is the rating, its last match counts",
    )
    pairwise_prompt: str = Field(
        default="Which of two answers to the question is more helpful, correct and harmless? Reason briefly, then end "
        "with [[A]] or [[B]].\n\nQuestion:\n{prompt}\n\nAnswer A:\n{first}\n\nAnswer B:\n{second}",
        description="what judge-pairwise asks, in both orders; {prompt}, {first} and {second} are filled in",
    )
    pairwise_pattern: str = Field(
        default=r"\[\[\s*([AB])\s*\]\]",
        description="regular expression; its group is A or B, or C for a tie; its last match counts",
    )
    lowest: float = Field(default=1.0, allow_inf_nan=False, description="smallest rating; outside is unparsable")
    highest: float = Field(default=10.0, allow_inf_nan=False, description="largest rating")
    max_new_tokens: int = Field(default=512, ge=1, description="longest judgement")
    max_unparsable: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="the evaluation fails when more than this share of judgements cannot be read",
    )

    _address = field_validator("endpoint")(check_address)

    @property
    def writer(self) -> Literal["transformers", "vllm", "endpoint"]:
        return "endpoint" if self.endpoint else self.engine

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.lowest >= self.highest:
            raise ValueError(
                f"lowest = {self.lowest:g} is not less than highest = {self.highest:g}, so that no rating could be read"
            )
        return self

    @field_validator("pointwise_prompt", "pairwise_prompt")
    @classmethod
    def _shows_all(cls, prompt: str, info: ValidationInfo) -> str:
        parts = ("prompt", "response") if info.field_name == "pointwise_prompt" else ("prompt", "first", "second")
        return _refuse_hidden("judge", prompt, parts)

    @field_validator("pointwise_pattern", "pairwise_pattern")
    @classmethod
    def _one_group(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        if groups != 1:
            raise ValueError(f"needs one group, which is the verdict; it has {groups}")
        return pattern


class ClassifierConfig(Section):
    """A trained scalar reward model (sequence classification)."""

    model: Place = Field(default="", description="a local folder or a model hub's name")
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub model")
    output: int = Field(default=0, ge=0, description="which output is the reward")


class AnswersConfig(Section):
    """How a policy answers the questions of a maths benchmark."""

    samples: int = Field(default=1, ge=1, description="answers to each question; pass@1 is their mean")
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="0 is greedy")
    top_p: float = Field(default=1.0, gt=0, le=1, description="nucleus; 1 is the whole distribution")
    max_new_tokens: int = Field(default=1024, ge=1, description="longest answer")
    seed: int = Field(default=0, ge=0, description="of the samples")
    instruction: str = Field(
        default="Please reason step by step, and put your final answer within \\boxed{}.",
        description="follows each question; empty for none",
    )

    @model_validator(mode="after")
    def _varied(self) -> Self:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"samples = {self.samples} of greedy answers are all the same; set temperature")
        return self


class BestOfNConfig(Section):
    """How best-of-n knows which responses are good."""

    score_key: str | list[str] | None = Field(
        default=None,
        description="column of the scores (a list, one for each response), or a column each; default: chosen 1, rejected 0",
    )
    answer_key: str | None = Field(
        default=None, description="column of the right answer; responses are then scored by equivalence to it"
    )

    @model_validator(mode="after")
    def _one_measure(self) -> Self:
        if self.score_key is not None and self.answer_key is not None:
            raise ValueError("give score_key or answer_key, not both")
        return self


REWARDS = (
    "endogenous", "likelihood", "self-certainty", "negative-entropy", "answer-confidence", "answer-likelihood",
    "implicit", "contrast", "verifier", "judge-pointwise", "judge-pairwise", "classifier",
)  # fmt: skip
