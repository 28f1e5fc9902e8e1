"""What a run is, as data: every field documented, every mistake reported at once with its dotted path.

Sources, later ones win: defaults, one TOML file, command-line flags, `--set a.b=value`. Reading a configuration imports
neither torch nor Ray.
"""

import os
import re
from datetime import UTC, date, datetime
from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pipeline.section import (
    Place,
    Section,
    Unread,
    load_config_as,
    refuse_secrets,
    refuse_unread,
    section_fields,
    set_but_unread,
)

__all__ = [
    "Place",
    "Section",
    "Unread",
    "load_config_as",
    "refuse_secrets",
    "refuse_unread",
    "section_fields",
    "set_but_unread",
]


class InputConfig(Section):
    """The corpus and how to read it. Keys are column names; `a.b` reaches into a nested column."""

    paths: list[Place] = Field(default=[], description="files, folders, globs, s3://, gs://, hf://datasets/...")
    format: Literal["auto", "json", "jsonl", "csv", "tsv", "parquet", "arrow"] = Field(
        default="auto", description="by file name; .gz and .zst are unpacked"
    )
    config: str | None = Field(
        default=None, description="which configuration of a folder that holds several: a name, or a glob pattern"
    )
    split: str | None = Field(
        default=None, description="which split of a folder that holds several: a name, or a glob pattern"
    )
    prompt_key: str | None = Field(default=None, description="column of the prompt: text or a list of messages")
    response_key: str | list[str] | None = Field(
        default=None, description="column of the response or responses; several columns give several responses"
    )
    chosen_key: str | None = Field(default=None, description="column of the preferred response or responses")
    rejected_key: str | None = Field(default=None, description="column of the other response or responses")
    messages_key: str | None = Field(default=None, description="column of a whole conversation")
    context_key: str | None = Field(
        default=None,
        description="column that follows the prompt; default: beside instruction and question; '' for none",
    )
    history_key: str | None = Field(
        default=None, description="column of earlier turns; default: history where it holds a list; '' for none"
    )
    layout: str | None = Field(
        default=None, description="a published layout by name; default: recognised by its columns"
    )
    label_key: str | list[str] | None = Field(
        default=None,
        description="column that names the better of the responses of response_key, or columns of which one holds 1",
    )
    label_values: dict[str, str] | None = Field(
        default=None,
        description='what a label means: value = response column (its position from 0 in a list), or "tie"',
    )
    label_threshold: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="the label is a number: above this label_above is better, below the other",
    )
    label_above: str | None = Field(
        default=None, description="the response column that a label above label_threshold prefers"
    )
    label_tie: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="a label this near to label_threshold is a tie"
    )
    score_key: str | list[str] | None = Field(
        default=None, description="column of the responses' scores, or one for each response column; higher is better"
    )
    rank_key: str | list[str] | None = Field(
        default=None, description="column of the responses' ranks, or one for each response column; lower is better"
    )
    pairs_from: Literal["best_worst", "best_rest", "threshold"] | None = Field(
        default=None, description="what scores or ranks prefer; default: nothing, they are kept beside the responses"
    )
    score_threshold: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="pairs_from = threshold: scores from here on (ranks to here) are chosen",
    )
    min_margin: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="scores or ranks of a pair differ by more than this"
    )
    turns: Literal["last", "all"] = Field(
        default="last", description="score the last assistant turn of a response, or every one (a label each)"
    )
    shard_rows: int = Field(default=128, ge=1, description="input rows in one unit of commit")

    @model_validator(mode="after")
    def _label_is_read_one_way(self) -> Self:
        if self.label_values is not None and self.label_threshold is not None:
            raise ValueError("give label_values or label_threshold, not both: a label is a name or a number")
        if (self.label_threshold is None) != (self.label_above is None):
            raise ValueError(
                "label_threshold and label_above belong together: which response is better above the threshold"
            )
        if self.label_tie and self.label_threshold is None:
            raise ValueError("label_tie is the band around label_threshold; give that too")
        return self

    @model_validator(mode="after")
    def _scores_are_used_one_way(self) -> Self:
        if self.score_key is not None and self.rank_key is not None:
            raise ValueError("give score_key or rank_key, not both")
        scored = self.score_key is not None or self.rank_key is not None
        if scored and self.label_key is not None:
            raise ValueError(
                "label_key says which response is better, and so do scores or ranks; give one or the other"
            )
        if (self.pairs_from == "threshold") != (self.score_threshold is not None):
            raise ValueError("score_threshold and pairs_from = threshold belong together")
        if self.min_margin and self.pairs_from is None:
            raise ValueError("min_margin is of pairs from scores or ranks; give pairs_from too")
        return self


class ModelConfig(Section):
    name: Place = Field(default="", description="a local folder or a model hub's name")
    revision: str | None = Field(default=None, description="branch, tag or commit on the hub")
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = Field(
        default="auto", description="auto: bfloat16 on a GPU, float32 on a CPU"
    )
    trust_remote_code: bool = Field(default=False, description="run Python code that the model folder brings")
    allow_pickle: bool = Field(
        default=False, description="load .bin weights, which can run code, where no safetensors are"
    )

    def named(self, name: str, revision: str | None) -> Self:
        """Another model under the same rules; this one where `name` is empty."""
        return self.model_copy(update={"name": name, "revision": revision}) if name else self


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


class RewardConfig(Section):
    """r(s_h,a_h) = Q(s_h,a_h) - gamma * V(s_{h+1}), V(s) = alpha*logsumexp(Q(s,.)/alpha) (arXiv 2506.23235, eq. 11)."""

    alpha: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="temperature of the soft value")
    gamma: float = Field(default=1.0, ge=0, le=1, description="discount")
    aggregation: Literal["sum", "mean", "discounted_sum"] = Field(
        default="sum", description="sum_h r_h; alpha * mean_h log pi; sum_h gamma^(h-1) r_h"
    )
    subtract_initial_value: bool = Field(
        default=False, description="take V(s_1) off the sums, to compare responses to different prompts"
    )
    min_weight: float = Field(default=0.0, ge=0, le=1, description="floor of gamma^(h-1) in discounted_sum")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.aggregation == "mean" and self.subtract_initial_value:
            raise ValueError("mean holds no V(s_1) to subtract")
        if self.min_weight and self.aggregation != "discounted_sum":
            raise ValueError("min_weight is for aggregation = discounted_sum")
        return self

    def warnings(self) -> list[str]:
        """What a person should know about this reward before trusting it."""
        said = []
        if self.aggregation == "sum" and self.gamma != 1:
            said.append(
                f"reward.aggregation = sum with reward.gamma = {self.gamma:g} leaks the level of the logits, which training "
                "does not fix; use discounted_sum, or gamma = 1"
            )
        if self.min_weight:
            said.append(
                f"reward.min_weight = {self.min_weight:g} stops the discounted sum from telescoping: values leak where the "
                "floor holds"
            )
        return said


class ScorerConfig(Section):
    """Actors that hold the model. None of these move a reward by more than rounding."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: cuda where there are GPUs now; say cuda where a cluster starts without any"
    )
    min_actors: int = Field(default=1, ge=1, description="smallest size of the actor pool")
    max_actors: int | None = Field(
        default=None,
        ge=1,
        description="largest size; default: one per GPU there is now, or one on CPUs; set it where the cluster grows",
    )
    gpus_per_actor: int = Field(default=1, ge=1, description="a model too large for one GPU is spread over these")
    cpus_per_actor: int | None = Field(
        default=None, ge=1, description="threads of an actor; default: 1 with a GPU, else all of the smallest node"
    )
    budget_tokens: int = Field(default=16384, ge=1, description="tokens forwarded at once; halved when memory runs out")
    head_chunk_mb: int = Field(
        default=64, ge=1, description="largest slice of [tokens, vocabulary] held, in MiB of float32"
    )
    max_restarts: int = Field(default=10, ge=0, description="how often a dead actor is started again")
    max_task_retries: int = Field(default=3, ge=0, description="how often a shard is tried again when its actor dies")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_actors is not None and self.max_actors < self.min_actors:
            raise ValueError(f"max_actors = {self.max_actors} is less than min_actors = {self.min_actors}")
        return self


class OutputConfig(Section):
    path: Place = Field(default="", description="directory of the label store, the evaluation or the training run")


class ClusterConfig(Section):
    """Where the job runs. Nothing here changes a number."""

    ray_address: Place | None = Field(
        default=None, description="cluster to join; default: $RAY_ADDRESS, else a local Ray"
    )
    num_cpus: int | None = Field(default=None, ge=1, description="CPUs of a local Ray; default: all")
    verbose: bool = Field(default=False, description="show the logs of Ray and of libraries")


class RunConfig(ClusterConfig):
    """How the job behaves. Nothing here changes a label."""

    max_error_rate: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="the job stops when more than this share of the responses is in error; over-length ones do not count "
        "unless all are, nor is anything judged before 100 responses; 1 never stops",
    )


class ImplicitConfig(Section):
    """beta * (log pi - log pi_ref), summed over the response: DPO's implicit reward (arXiv 2305.18290, section 4)."""

    reference: Place = Field(default="", description="reference model, or an earlier checkpoint (arXiv 2510.02493)")
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub model")
    beta: float = Field(default=0.1, gt=0, allow_inf_nan=False, description="scale of the implicit reward")


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


REWARDS = ("endogenous", "likelihood", "implicit", "verifier", "judge-pointwise", "judge-pairwise", "classifier")


class EvaluateSection(Section):
    benchmark: str = Field(default="", description="which benchmark; an unknown name lists the known")
    rewards: list[str] = Field(
        default=["endogenous"], min_length=1, description=f"which rewards, of {', '.join(REWARDS)}"
    )
    labels: Place | None = Field(default=None, description="a label store to evaluate instead of scoring anew")
    resamples: int = Field(default=2000, ge=100, description="bootstrap samples and random sign flips")
    seed: int = Field(default=0, ge=0, description="of the resampling")
    check_responses: int = Field(
        default=8,
        ge=0,
        description="responses that each actor scores once more alone, to show that batches move nothing",
    )


class SampleSection(Section):
    """How a policy answers prompts."""

    num_responses: int = Field(default=8, ge=1, description="responses to each prompt")
    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False, description="0 is greedy")
    top_p: float = Field(default=1.0, gt=0, le=1, description="nucleus; 1 is the whole distribution")
    max_new_tokens: int = Field(
        default=512, ge=1, description="longest response, its end token included; a longer one is cut off and marked"
    )
    seed: int = Field(default=0, ge=0, description="of the samples")

    @model_validator(mode="after")
    def _varied(self) -> Self:
        if self.num_responses > 1 and self.temperature == 0:
            raise ValueError(
                f"num_responses = {self.num_responses} of greedy responses are all the same; set temperature, or "
                "num_responses = 1"
            )
        return self


class LabelConfig(Section):
    """Everything `label` can be told."""

    input: InputConfig = InputConfig()
    model: ModelConfig = ModelConfig()
    tokens: TokensConfig = TokensConfig()
    reward: RewardConfig = RewardConfig()
    scorer: ScorerConfig = ScorerConfig()
    output: OutputConfig = OutputConfig()
    run: RunConfig = RunConfig()

    def unread(self) -> Unread:
        yield from unread_of_cluster(self.run)
        yield from unread_revision("model", self.model.name)
        if self.scorer.device == "cpu":
            yield "scorer.gpus_per_actor", "under scorer.device = cpu; leave it out"
        if self.tokens.template not in ("auto", "none"):
            yield "tokens.append_eos", "with a chat template, which ends each turn itself; leave it out"
        yield from unread_of_tokens(self.tokens)


class EvaluateConfig(LabelConfig):
    """Everything `evaluate` can be told: all that `label` can, and what is evaluated against what."""

    evaluate: EvaluateSection = EvaluateSection()
    implicit: ImplicitConfig = ImplicitConfig()
    verifier: VerifierConfig = VerifierConfig()
    judge: JudgeConfig = JudgeConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    answers: AnswersConfig = AnswersConfig()
    best_of_n: BestOfNConfig = BestOfNConfig()

    def unread(self) -> Unread:
        yield from super().unread()
        for section in ("verifier", "judge", "classifier"):
            if not getattr(self, section).model:
                yield f"{section}.revision", f"without {section}.model; give that, or leave it out"
            yield from unread_revision(section, getattr(self, section).model)
        yield from unread_revision("implicit", self.implicit.reference)
        if self.evaluate.labels:
            own = [f"input.{field}" for field in InputConfig.model_fields if field != "paths"]
            own += ["run.max_error_rate", "run.num_cpus", "run.ray_address", "evaluate.check_responses"]
            for section in ("model", "tokens", "scorer", *own):
                yield section, "with --labels, whose store was made already; leave it out, or label anew"
        yield from unread_of_samples("answers", self.answers.temperature)

    def idle(self) -> list[str]:
        """What has no effect in this run and may stay: one file can describe all rewards, which are asked one by one."""
        found: list[tuple[str, str]] = []
        for section, names in {
            "implicit": {"implicit"},
            "verifier": {"verifier"},
            "classifier": {"classifier"},
            "judge": {"judge-pointwise", "judge-pairwise"},
            "judge.pairwise_prompt": {"judge-pairwise"},
            "judge.pairwise_pattern": {"judge-pairwise"},
            "judge.pointwise_prompt": {"judge-pointwise"},
            "judge.pointwise_pattern": {"judge-pointwise"},
            "judge.lowest": {"judge-pointwise"},
            "judge.highest": {"judge-pointwise"},
            "reward": {"endogenous", "likelihood", "implicit"},
        }.items():
            if not names.intersection(self.evaluate.rewards):
                found.append((section, f"without --reward {' or '.join(sorted(names))}"))
        return set_but_unread(self, found)


class SampleConfig(LabelConfig):
    """Everything `sample` can be told: what `label` can of input, model, tokens and actors, and how responses are drawn."""

    sample: SampleSection = SampleSection()

    def unread(self) -> Unread:
        yield from super().unread()
        yield from unread_of_prompts()
        yield "scorer.head_chunk_mb", "on sampling, which scores nothing; leave it out"
        yield "tokens.over_length", "on sampling: a prompt is never cut; leave it out"
        for field in ("thoughts", "trailing_space"):
            yield f"tokens.{field}", "on sampling, where only prompts are rendered; leave it out"
        yield from unread_of_samples("sample", self.sample.temperature)

    @field_validator("reward")
    @classmethod
    def _no_reward(cls, reward: RewardConfig) -> RewardConfig:
        raise ValueError("sampling gives no reward; leave the section out, and give it to label")

    @field_validator("tokens")
    @classmethod
    def _one_prompt(cls, tokens: TokensConfig) -> TokensConfig:
        if tokens.rubrics is not None:
            raise ValueError("a policy answers under one system prompt: give tokens.system_prompt, not tokens.rubrics")
        return refuse_sampled(tokens)


OF_A_TEMPLATE = ("template_kwargs", "date", "thoughts", "control")
"""Fields of `tokens` that only a chat template has a use for."""
MEANINGS = (
    "label_key", "label_values", "label_threshold", "label_above", "label_tie", "score_key", "rank_key", "pairs_from",
    "score_threshold", "min_margin",
)  # fmt: skip
"""Fields of `input` that say which response is better."""


def load_config(toml_path: str | None, overrides: list[tuple[str, Any]], assignments: list[str]) -> LabelConfig:
    """Build the configuration of `label`: see `load_config_as`."""
    return load_config_as(LabelConfig, toml_path, overrides, assignments)


def unread_of_cluster(run: ClusterConfig) -> Unread:
    if run.ray_address:
        yield "run.num_cpus", "under run.ray_address, whose cluster has the CPUs it has; leave it out"


def unread_revision(section: str, name: str) -> Unread:
    if os.path.isdir(name):
        yield f"{section}.revision", f"on the local folder {name}; leave it out, or name a model of a hub"


def unread_of_samples(section: str, temperature: float) -> Unread:
    if temperature == 0:
        for field in ("top_p", "seed"):
            yield f"{section}.{field}", f"under {section}.temperature = 0, which is greedy; set that, or leave it out"


def unread_of_tokens(tokens: TokensConfig) -> Unread:
    if tokens.template == "none":
        for field in OF_A_TEMPLATE:
            yield f"tokens.{field}", "under tokens.template = none; leave it out, or name a template"


def unread_of_prompts() -> Unread:
    for field in ("turns", *MEANINGS):
        yield f"input.{field}", "where only prompts are read; leave it out"
