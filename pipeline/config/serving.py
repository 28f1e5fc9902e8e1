"""The whole configuration of `serve`."""

import ipaddress
import os
import re
from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from pipeline.config.models import ModelConfig, ScorerConfig, unread_revision
from pipeline.config.rewards import RewardConfig
from pipeline.config.running import ClusterConfig, unread_of_cluster
from pipeline.config.section import OPERATORS, Place, Section, Unread
from pipeline.config.tokens import TokensConfig, unread_of_tokens
from pipeline.errors import ConfigError

OF_THE_POOL = ("min_actors", "max_actors", "max_restarts", "max_task_retries")
"""Fields of `scorer` for which `serve` has its own."""
OF_RAY = (
    "serve.replicas",
    "serve.min_replicas",
    "serve.max_replicas",
    "scorer.gpus_per_actor",
    "scorer.cpus_per_actor",
)
"""Fields, beside those of `run`, that one process has no use for."""
NAME = re.compile(r"[\w.-]+")
NAMED = re.compile(rf"({NAME.pattern})=(.+)")  # --model NAME=PATH


def _names(models: dict[str, str]) -> dict[str, str]:
    wrong = sorted(name for name in models if not NAME.fullmatch(name))
    if wrong:
        raise ValueError(f"a model's name is of letters, digits, _ . and -; wrong: {', '.join(wrong)}")
    return models


class ServeSection(Section):
    """Where the server listens, what it takes on, and how it shows rewards to trainers."""

    host: str = Field(
        default="127.0.0.1", description="address to listen on; another than this machine's own needs a token"
    )
    port: int = Field(default=8000, ge=0, le=65535, description="0 takes any that is free")
    name: str = Field(default="", description="the model's name in requests; default: the last part of model.name")
    models: Annotated[dict[str, Place], AfterValidator(_names)] = Field(
        default={},
        description="several models in the place of model.name: a local folder or a model hub's name for each name",
    )
    replicas: int = Field(default=1, ge=1, description="of each model on Ray, each with a scorer's CPUs and GPUs")
    min_replicas: int = Field(default=1, ge=1, description="where serve.max_replicas is set: as many at least")
    max_replicas: int | None = Field(
        default=None, ge=1, description="replicas of each model come and go with the load, up to this many"
    )
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
    def most_replicas(self) -> int:
        return self.max_replicas or self.replicas

    @property
    def least_replicas(self) -> int:
        return self.replicas if self.max_replicas is None else self.min_replicas

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas = {self.max_replicas} is less than min_replicas = {self.min_replicas}")
        if self.models and self.name:
            raise ValueError("name is of one model, and models have names of their own; leave name out")
        return self

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
    run: ClusterConfig = ClusterConfig()

    @property
    def models(self) -> dict[str, ModelConfig]:
        """By their names in requests; under rubrics these are NAME@RUBRIC."""
        if self.serve.models:
            return {name: self.model.named(place, None) for name, place in self.serve.models.items()}
        return {self.serve.name or self.model.name.rstrip("/").rpartition("/")[2]: self.model}

    def unread(self) -> Unread:
        yield from unread_revision("model", self.model.name)
        for field in OF_THE_POOL:
            yield f"scorer.{field}", "on serve, whose replicas are those of serve.replicas; leave it out"
        if self.serve.models:
            yield "model.name", "where serve.models names models; leave one of them out"
            yield "model.revision", "where serve.models names models; leave it out"
        if self.serve.max_replicas is None:
            yield "serve.min_replicas", "without serve.max_replicas; set that, or serve.replicas for a fixed number"
        else:
            yield "serve.replicas", "under serve.max_replicas; leave one of them out"
        yield from unread_of_tokens(self.tokens)
        yield from unread_of_cluster(self.run)


def unread_without_ray() -> Unread:
    """What `serve --local` has no use for."""
    for path in ("run", *OF_RAY):
        yield path, "on serve --local, which is one process without Ray; leave it out, or leave --local out"


def named_models(given: Sequence[str]) -> list[tuple[str, Any]]:
    """(field, value) of `--model`, which is one model, or NAME=PATH as often as there are models. Raises ConfigError."""
    pairs = [NAMED.fullmatch(each) if not os.path.isdir(each) else None for each in given]
    named = {pair[1]: pair[2] for pair in pairs if pair is not None}
    if len(named) == len(given):
        return [("serve.models", named)] if named else []
    if len(given) > 1:
        raise ConfigError("several --model want a name each, and each another: --model NAME=PATH --model NAME=PATH")
    return [("model.name", given[0])]
