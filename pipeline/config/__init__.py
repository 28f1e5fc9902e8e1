"""What a run is, as data: every field documented, every mistake reported at once with its dotted path.

Sources, later ones win: defaults, one TOML file, command-line flags, `--set a.b=value`. Reading a configuration imports
neither torch nor Ray. Training and online RL have sections of their own (`training.config`, `rl.config`).
"""

from pipeline.config.commands import (
    EvaluateConfig,
    EvaluateSection,
    LabelConfig,
    SampleConfig,
    SampleSection,
    load_config,
    unread_of_samples,
)
from pipeline.config.engines import EndpointConfig, LocalEngine, SamplerConfig
from pipeline.config.inputs import MEANINGS, InputConfig, unread_of_prompts
from pipeline.config.models import ModelConfig, ScorerConfig, unread_revision
from pipeline.config.rewards import (
    CERTAINTY,
    DISCOUNTED,
    REWARDS,
    SUMS,
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
from pipeline.config.running import ClusterConfig, OutputConfig, RunConfig, unread_of_cluster
from pipeline.config.section import (
    Place,
    Section,
    Unread,
    load_config_as,
    refuse_secrets,
    refuse_unread,
    section_fields,
    set_but_unread,
)
from pipeline.config.serving import ServeConfig, named_models
from pipeline.config.tokens import OF_A_TEMPLATE, OURS_TO_GIVE, TokensConfig, refuse_sampled, unread_of_tokens

__all__ = [
    "CERTAINTY",
    "DISCOUNTED",
    "MEANINGS",
    "OF_A_TEMPLATE",
    "OURS_TO_GIVE",
    "REWARDS",
    "SUMS",
    "AnswerConfidenceConfig",
    "AnswerLikelihoodConfig",
    "AnswersConfig",
    "BestOfNConfig",
    "ClassifierConfig",
    "ClusterConfig",
    "ContrastConfig",
    "EndpointConfig",
    "EvaluateConfig",
    "EvaluateSection",
    "ImplicitConfig",
    "InputConfig",
    "JudgeConfig",
    "LabelConfig",
    "LocalEngine",
    "ModelConfig",
    "OutputConfig",
    "Place",
    "RewardConfig",
    "RunConfig",
    "SampleConfig",
    "SampleSection",
    "SamplerConfig",
    "ScorerConfig",
    "Section",
    "ServeConfig",
    "TokensConfig",
    "Unread",
    "VerifierConfig",
    "load_config",
    "load_config_as",
    "named_models",
    "refuse_sampled",
    "refuse_secrets",
    "refuse_unread",
    "section_fields",
    "set_but_unread",
    "unread_of_cluster",
    "unread_of_prompts",
    "unread_of_samples",
    "unread_of_tokens",
    "unread_revision",
]
