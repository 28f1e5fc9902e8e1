"""The whole configuration of `label`, `evaluate` and `sample`."""

from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from pipeline.config.engines import EndpointConfig, SamplerConfig, unread_of_endpoint
from pipeline.config.inputs import InputConfig, unread_of_prompts
from pipeline.config.models import ModelConfig, ScorerConfig, unread_revision
from pipeline.config.rewards import (
    REWARDS,
    AnswerConfidenceConfig,
    AnswerLikelihoodConfig,
    AnswersConfig,
    BestOfNConfig,
    ClassifierConfig,
    ContrastConfig,
    ImplicitConfig,
    JudgeConfig,
    RewardConfig,
    VerifierConfig,
)
from pipeline.config.running import OutputConfig, RunConfig, unread_of_cluster
from pipeline.config.section import Place, Section, Unread, load_config_as, set_but_unread
from pipeline.config.tokens import TokensConfig, refuse_sampled, unread_of_tokens


class EvaluateSection(Section):
    benchmark: str = Field(default="", description="which benchmark; an unknown name lists the known")
    rewards: list[str] = Field(
        default=["endogenous"], min_length=1, description=f"which rewards, of {', '.join(REWARDS)}"
    )
    labels: Place | None = Field(default=None, description="a label store to evaluate instead of scoring anew")
    picture_control: bool = Field(
        default=False,
        description="score the endogenous reward with a grey picture and with another row's too: what the picture explains",
    )
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
    contrast: ContrastConfig = ContrastConfig()
    answer_confidence: AnswerConfidenceConfig = AnswerConfidenceConfig()
    answer_likelihood: AnswerLikelihoodConfig = AnswerLikelihoodConfig()
    verifier: VerifierConfig = VerifierConfig()
    judge: JudgeConfig = JudgeConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    answers: AnswersConfig = AnswersConfig()
    best_of_n: BestOfNConfig = BestOfNConfig()
    endpoint: EndpointConfig = EndpointConfig()

    def unread(self) -> Unread:
        yield from super().unread()
        yield from unread_of_endpoint("judge", self.judge.endpoint)
        for section in ("verifier", "judge", "classifier"):
            if not getattr(self, section).model:
                yield f"{section}.revision", f"without {section}.model; give that, or leave it out"
            yield from unread_revision(section, getattr(self, section).model)
        yield from unread_revision("implicit", self.implicit.reference)
        if self.evaluate.labels:
            own = [f"input.{field}" for field in InputConfig.model_fields if field != "paths"]
            own += [
                "run.max_error_rate",
                "run.num_cpus",
                "run.ray_address",
                "run.label_selector",
                "evaluate.check_responses",
                "evaluate.picture_control",
            ]
            for section in ("model", "tokens", "scorer", *own):
                yield section, "with --labels, whose store was made already; leave it out, or label anew"
        yield from unread_of_samples("answers", self.answers.temperature)

    def idle(self) -> list[str]:
        """What has no effect in this run and may stay: one file can describe all rewards, which are asked one by one."""
        unread: list[tuple[str, str]] = []
        for section, names in {
            "implicit": {"implicit"},
            "contrast": {"contrast"},
            "answer_confidence": {"answer-confidence"},
            "answer_likelihood": {"answer-likelihood"},
            "verifier": {"verifier"},
            "classifier": {"classifier"},
            "judge": {"judge-pointwise", "judge-pairwise"},
            "judge.pairwise_prompt": {"judge-pairwise"},
            "judge.pairwise_pattern": {"judge-pairwise"},
            "judge.pointwise_prompt": {"judge-pointwise"},
            "judge.pointwise_pattern": {"judge-pointwise"},
            "judge.lowest": {"judge-pointwise"},
            "judge.highest": {"judge-pointwise"},
            "reward": {
                "endogenous",
                "likelihood",
                "self-certainty",
                "negative-entropy",
                "answer-confidence",
                "implicit",
                "contrast",
            },
        }.items():
            if not names.intersection(self.evaluate.rewards):
                unread.append((section, f"without --reward {' or '.join(sorted(names))}"))
        return set_but_unread(self, unread)


class SampleConfig(LabelConfig):
    """Everything `sample` can be told: what `label` can of input, model, tokens and actors, and how responses are drawn."""

    sample: SampleSection = SampleSection()
    sampler: SamplerConfig = SamplerConfig()
    endpoint: EndpointConfig = EndpointConfig()

    def unread(self) -> Unread:
        yield from super().unread()
        yield from unread_of_endpoint("sampler", self.sampler.endpoint)
        if self.sampler.endpoint:
            yield "scorer", "under sampler.endpoint, whose server runs the model; leave it out"
        yield from unread_of_prompts()
        yield "output.thumbnails", "on sampling, which draws no page of labels; leave it out"
        yield "scorer.head_chunk_mb", "on sampling, which scores nothing; leave it out"
        yield "tokens.over_length", "on sampling: a prompt is never cut; leave it out"
        for field in ("thoughts", "trailing_space"):
            yield f"tokens.{field}", "on sampling, where only prompts are rendered; leave it out"
        yield from unread_of_samples("sample", self.sample.temperature)

    @field_validator("endpoint")
    @classmethod
    def _with_tokens(cls, endpoint: EndpointConfig) -> EndpointConfig:
        if endpoint.api == "chat":
            raise ValueError(
                "api = chat gives no tokens, which samples are scored by; leave it out, or set completions"
            )
        return endpoint

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


def load_config(toml_path: str | None, overrides: list[tuple[str, Any]], assignments: list[str]) -> LabelConfig:
    """Build the configuration of `label`: see `load_config_as`."""
    return load_config_as(LabelConfig, toml_path, overrides, assignments)


def unread_of_samples(section: str, temperature: float) -> Unread:
    if temperature == 0:
        for field in ("top_p", "seed"):
            yield f"{section}.{field}", f"under {section}.temperature = 0, which is greedy; set that, or leave it out"
