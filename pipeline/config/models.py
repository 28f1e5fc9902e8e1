"""Which model, and how it is run."""

import os
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.section import (
    OPERATORS,
    Place,
    Section,
    Unread,
)
from pipeline.objects import is_objects


class ModelConfig(Section):
    name: Place = Field(default="", description="a local folder or a model hub's name")
    revision: str | None = Field(default=None, description="branch, tag or commit on the hub")
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = Field(
        default="auto", description="auto: bfloat16 on a GPU, float32 on a CPU"
    )
    trust_remote_code: Annotated[bool, OPERATORS] = Field(
        default=False, description="run Python code that the model folder brings"
    )
    allow_pickle: Annotated[bool, OPERATORS] = Field(
        default=False, description="load .bin weights, which can run code, where no safetensors are"
    )

    def named(self, name: str, revision: str | None) -> Self:
        """Another model under the same rules; this one where `name` is empty."""
        return self.model_copy(update={"name": name, "revision": revision}) if name else self


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
    budget_tokens: int | None = Field(
        default=None,
        ge=1,
        description="tokens forwarded at once, on a CPU at most 2,048 of them; halved when memory runs out; default: 16,384, "
        "on a GPU what half of its free memory has room for, up to 65,536, or where a model writes, its cache",
    )
    head_chunk_mb: int = Field(
        default=64,
        ge=1,
        description="largest slice of [tokens, vocabulary] held, in MiB of float32; on a CPU 24 at most",
    )
    max_restarts: int = Field(default=10, ge=0, description="how often a dead actor is started again")
    max_task_retries: int = Field(default=3, ge=0, description="how often a shard is tried again when its actor dies")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_actors is not None and self.max_actors < self.min_actors:
            raise ValueError(f"max_actors = {self.max_actors} is less than min_actors = {self.min_actors}")
        return self


def unread_revision(section: str, name: str) -> Unread:
    if os.path.isdir(name) or is_objects(name):
        yield f"{section}.revision", f"on the folder {name}; leave it out, or name a model of a hub"
