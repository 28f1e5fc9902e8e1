"""Where a job runs, how it behaves and where it writes."""

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, Field

from pipeline.config.section import OPERATORS, Place, Section, Unread

NAME = r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
LABEL = re.compile(rf"(?:{NAME}/)?{NAME}")
CONDITION = re.compile(rf"!?(?:{NAME}|in\({NAME}(?:, ?{NAME})*\))")


def _selector(selector: dict[str, str]) -> dict[str, str]:
    """Raises ValueError for what Ray does not take for a label, or for a condition on its value."""
    for label, condition in selector.items():
        if not LABEL.fullmatch(label):
            raise ValueError(f"{label!r} is no label's name; it looks like ray.io/market-type")
        if not CONDITION.fullmatch(condition):
            raise ValueError(
                f"{label} = {condition!r} is no condition: give a value, such as spot, or in(A100, H100), and ! in front of "
                "either for all others"
            )
    return selector


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether a node of these labels fulfils all conditions, as Ray reads them."""
    return all(_fulfils(labels.get(label), condition) for label, condition in selector.items())


def _fulfils(value: str | None, condition: str) -> bool:
    wanted = condition.removeprefix("!")
    values = wanted.removeprefix("in(").removesuffix(")").replace(" ", "").split(",")
    return (value in values) != condition.startswith("!")


class OutputConfig(Section):
    path: Place = Field(default="", description="directory of the label store, the evaluation or the training run")
    thumbnails: bool = Field(
        default=True, description="show small copies of prompts' pictures on the page of a label store"
    )


class ClusterConfig(Section):
    """Where the job runs. Nothing here changes a number."""

    ray_address: Annotated[Place | None, OPERATORS] = Field(
        default=None, description="cluster to join; default: $RAY_ADDRESS, else a local Ray"
    )
    num_cpus: int | None = Field(default=None, ge=1, description="CPUs of a local Ray; default: all")
    label_selector: Annotated[dict[str, str], AfterValidator(_selector)] = Field(
        default={},
        description="labels of the cluster's nodes that hold models, with the value each must have: "
        '{ "ray.io/market-type" = "spot" }; also "!spot", "in(A100, H100)" and "!in(T4, L4)"; default: any node',
    )
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
    wait_for_actors_s: float = Field(
        default=1800,
        gt=0,
        description="seconds after which the job gives up where not one actor could be started: no node has the room",
    )


def unread_of_cluster(run: ClusterConfig) -> Unread:
    if run.ray_address:
        yield "run.num_cpus", "under run.ray_address, whose cluster has the CPUs it has; leave it out"
