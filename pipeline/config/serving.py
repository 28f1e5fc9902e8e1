"""The whole configuration of `serve`."""

import ipaddress
from typing import Annotated, Self

from pydantic import Field, model_validator

from pipeline.config.models import ModelConfig, ScorerConfig, unread_revision
from pipeline.config.rewards import RewardConfig
from pipeline.config.section import OPERATORS, Section, Unread
from pipeline.config.tokens import TokensConfig, unread_of_tokens

OF_THE_POOL = (
    "min_actors", "max_actors", "gpus_per_actor", "cpus_per_actor", "max_restarts", "max_task_retries",
)  # fmt: skip
"""Fields of `scorer` that one process has no use for."""


class ServeSection(Section):
    """Where the server listens, what it takes on, and how it shows rewards to trainers."""

    host: str = Field(
        default="127.0.0.1", description="address to listen on; another than this machine's own needs a token"
    )
    port: int = Field(default=8000, ge=0, le=65535, description="0 takes any that is free")
    name: str = Field(default="", description="the model's name in requests; default: the last part of model.name")
    token_variable: Annotated[str, OPERATORS] = Field(
        default="ENDOREWARD_TOKEN",
        min_length=1,
        description="the environment variable with the token that requests must bear; where it is set, on loopback too",
    )
    max_requests: int = Field(
        default=256, ge=1, description="requests in hand at once; others get 429 and when to come back"
    )
    max_body_mb: float = Field(default=32.0, gt=0, allow_inf_nan=False, description="MiB of a request's body")
    timeout_s: float = Field(
        default=120.0,
        gt=0,
        allow_inf_nan=False,
        description="of a request, from its first byte to the last of its answer",
    )
    shutdown_s: float = Field(default=30.0, ge=0, allow_inf_nan=False, description="requests in hand may take to end")
    sharpness: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="s of s * log pi, which routes of teachers serve; 1 distils",
    )
    normalize: bool = Field(
        default=False,
        description="/get_reward and /rm standardise rewards by all that they gave before, for trainers that clip",
    )

    @property
    def on_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


class ServeConfig(Section):
    """Everything `serve` can be told."""

    model: ModelConfig = ModelConfig()
    tokens: TokensConfig = TokensConfig()
    reward: RewardConfig = RewardConfig()
    scorer: ScorerConfig = ScorerConfig()
    serve: ServeSection = ServeSection()

    @property
    def name(self) -> str:
        """The model's, in requests."""
        return self.serve.name or self.model.name.rstrip("/").rpartition("/")[2]

    def unread(self) -> Unread:
        yield from unread_revision("model", self.model.name)
        for field in OF_THE_POOL:
            yield f"scorer.{field}", "on serve, which holds one model in one process; leave it out"
        yield from unread_of_tokens(self.tokens)

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if self.tokens.rubrics is not None:
            raise ValueError(
                "tokens.rubrics: a server has one rubric; give tokens.system_prompt, and start one for each"
            )
        return self
