"""Where a job runs, how it behaves and where it writes."""

from pydantic import Field

from pipeline.config.section import Place, Section, Unread


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
    wait_for_actors_s: float = Field(
        default=1800,
        gt=0,
        description="seconds after which the job gives up where not one actor could be started: no node has the room",
    )


def unread_of_cluster(run: ClusterConfig) -> Unread:
    if run.ray_address:
        yield "run.num_cpus", "under run.ray_address, whose cluster has the CPUs it has; leave it out"
