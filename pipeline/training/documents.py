"""The documents of a training run's directory, `train`'s and `rl`'s: what it is, and what it says when it is done."""

from typing import Any, ClassVar

from pydantic import Field

from pipeline.store import typed


class PolicyEntry(typed.Entry):
    """The model that a run started from, as it was named."""

    name: str
    revision: str | None = None


class LabelsEntry(typed.Entry):
    """A label store that `train` learns from."""

    path: str
    fingerprint: str
    reward: dict[str, Any] | None = None
    model: str | None = None


class Repeat(typed.Entry):
    """A start of an online run after a kill: `repeated` steps that were done after `step`, the last checkpoint's, are done
    once more."""

    step: int
    repeated: int
    why: str = ""


class Run(typed.Document):
    """`run.json`: written when a run begins. What decides its bits is `description`, and `fingerprint` is of that."""

    REMEDY = "put it back from a copy, or give another --output"

    created: str
    command: str = ""
    kind: str | None = None  # "rl" of an online run
    objective: str  # or algorithm
    config: dict[str, Any]
    description: dict[str, Any]
    fingerprint: str
    policy: PolicyEntry
    steps: int
    device: str = ""
    notes: list[str] = Field(default_factory=list)
    labels: list[LabelsEntry] = Field(default_factory=list)
    examples: list[list[Any]] = Field(default_factory=list)  # of `train`: what the labels gave, (name, count) each
    reward_model: PolicyEntry | None = None  # of `rl`, as are the following two: counts of prompts
    prompts: int | None = None
    held_out: int | None = None
    seconds: float | None = None  # of the start that finished it; this and what follows is known of a run that is done
    tokens: int | float | None = None  # learnt from
    repeated: list[Repeat] = Field(default_factory=list)
    versions: dict[str, str] = Field(default_factory=dict)

    @property
    def online(self) -> bool:
        """Whether it is one of `rl`, and not of `train`."""
        return self.kind == "rl"


class Repeats(typed.Document):
    """`repeated.json` of an online run."""

    REMEDY = "put it back from a copy, or delete it: the page is drawn without it"

    repeated: list[Repeat]


class Stopped(typed.Document):
    """`stopped.json`: why a run cannot go on. It is deleted when the run is started again."""

    REMEDY = "delete it, and run the same again"

    sentence: str


class Policies(typed.Document):
    """`policies.json`: which files the policies in the folders of the same names are of."""

    REMEDY = (
        "put it back from a copy, or delete it, and hf/ and best/ where they are of a run whose place another takes"
    )

    hf: list[str] = Field(default_factory=list)  # relative paths
    best: list[str] = Field(default_factory=list)

    def files(self) -> dict[str, list[str]]:
        return {name: files for name in ("hf", "best") if (files := getattr(self, name))}

    def content(self) -> dict[str, Any]:
        """Without a version: 0.2.0 reads every key as the name of a policy."""
        return self.files()


class CheckpointState(typed.Document):
    """`endoreward.json` in a checkpoint: where a run goes on. What else its loop keeps stands with it."""

    REMEDY = "go on from another checkpoint, or begin anew in another --output"

    step: int  # how many are done
    num_tokens: int | float  # learnt from
    workers: int  # that wrote it

    def state(self) -> dict[str, Any]:
        return self.model_dump(exclude_unset=True, exclude={"version"})


class RunManifest(Run):
    """`manifest.json`: what the run was, and what it came to; a run that has one is done."""

    seconds: float
    tokens: int | float
    last: dict[str, Any]  # row of metrics


class SampledResponse(typed.Entry):
    """One response to a prompt of a measurement; `parts` is the reward of each source."""

    text: str
    reward: float
    parts: dict[str, float] = Field(default_factory=dict)
    tokens: int
    finished: bool = True  # not cut off
    right: bool | None = None  # None where that is not known


class PromptSamples(typed.Entry):
    """The responses of highest and lowest reward, or the only one."""

    prompt: str
    responses: list[SampledResponse]


class SamplesLine(typed.Entry):
    """A line of `samples.jsonl` of an online run: samples of the measurement after `step`."""

    REMEDY: ClassVar[str] = "put it back from a copy, or delete it: the page is drawn without it"

    step: int
    samples: list[PromptSamples]


class RlResults(typed.Document):
    """`results.json` of an online run: what it measured on held-out prompts, before and after where answers are checked."""

    REMEDY = "put it back from a copy, or delete it: the page is drawn without it"

    held_out: int  # prompts
    steps: int
    accuracy_before: float | None = None
    accuracy_before_interval: list[float] | None = None  # 95%, Wilson's
    accuracy_after: float | None = None
    accuracy_after_interval: list[float] | None = None

    def accuracy(self, when: str) -> tuple[float, list[float] | None] | None:
        """`before` or `after` the run, and its interval; None where answers were not checked."""
        known = {
            "before": (self.accuracy_before, self.accuracy_before_interval),
            "after": (self.accuracy_after, self.accuracy_after_interval),
        }
        value, interval = known[when]
        return None if value is None else (value, interval)
