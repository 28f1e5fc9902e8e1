"""`manifest.json` of a label store: what a finished run says of the whole store. It is written when every shard is committed,
and taken away before more is (`LabelStore.reopen`); docs/store.md explains each field."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Self

from pipeline.errors import StoreError
from pipeline.store import typed
from pipeline.store.store import LabelStore, StoredInput
from pipeline.store.summary import Summary
from pipeline.store.survey import Survey

AGAIN = "run its label command again, what is committed is kept"


class InputEntry(typed.Entry):
    """One input file. Rollouts have no place that they were read from."""

    name: str
    uri: str | None = None
    rows: int
    sha256: str
    shape: str

    @classmethod
    def of(cls, stored: StoredInput) -> Self:
        plan = stored.plan
        return cls(
            name=stored.file.name,
            uri=stored.file.uri,
            rows=plan.rows,
            sha256=plan.digest,
            shape=stored.shape.describe(),
        )


class Counts(typed.Entry):
    """Over the whole store: `responses` is labels and errors."""

    rows: int
    responses: int
    labels: int
    errors: int
    shards: int


class BatchCheckEntry(typed.Entry):
    """Some requests answered within their batch and once more alone (`actors.actor.BatchCheck`)."""

    responses: int
    worst: float  # largest difference in reward; for texts, 1 where they differ
    moved: int = 0


class TimingEntry(typed.Entry):
    """What the run cost that finished the store; `jobs.stores.finalize.Timing` measures it."""

    seconds: float
    score_seconds: float
    tokens_per_second: float
    tokens_per_second_scoring: float
    response_tokens: int
    forwarded_tokens: int
    layout: str
    batch_check: BatchCheckEntry | None = None


class Manifest(typed.Document):
    """A label store's manifest. `config` is of `label`, `evaluate` or `sample`; of rollouts, a part of an online run's."""

    REMEDY = f"delete it and {AGAIN}"

    fingerprint: str
    created: str
    command: str = ""
    config: dict[str, Any]
    inputs: list[InputEntry]
    counts: Counts
    errors: dict[str, int]
    summary: Summary
    notes: list[str]
    timing: TimingEntry | None = None
    versions: dict[str, str]

    @classmethod
    def of(
        cls,
        store: LabelStore,
        *,
        survey: Survey | None = None,
        config: dict[str, Any],
        inputs: Sequence[InputEntry],
        notes: Sequence[str],
        timing: TimingEntry | None,
        versions: Mapping[str, str],
        **more: Any,
    ) -> Self:
        """Of a store whose every shard is committed: counts, errors and figures of its records. `more`: `command`.

        Args:
            survey: of the whole store, where its records have been read already.
        """
        survey = store.survey() if survey is None else survey
        return cls(
            fingerprint=store.fingerprint(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            config=config,
            inputs=list(inputs),
            counts=Counts(
                rows=sum(each.rows for each in inputs),
                responses=survey.labels + survey.errors.total(),
                labels=survey.labels,
                errors=survey.errors.total(),
                shards=len(survey),
            ),
            errors=dict(survey.errors.most_common()),
            summary=survey.stats.summary(),
            notes=list(notes),
            timing=timing,
            versions=dict(versions),
            **more,
        )

    @classmethod
    def find(cls, store: LabelStore) -> Self | None:
        """The manifest as it stands, None where there is none. Raises StoreError for a damaged one."""
        try:
            return cls.read_plain(store.at("manifest.json"))
        except FileNotFoundError:
            return None

    @classmethod
    def of_finished(cls, store: LabelStore, survey: Survey | None = None) -> Self:
        """Raises StoreError where the store is not finished, or being written. `survey`: as `of` takes it."""
        progress = store.progress(survey)
        if progress.writer:
            raise StoreError(f"{store.uri} is being written by {progress.writer}; wait until it is finished")
        if not progress.complete:
            raise StoreError(
                f"{store.uri} is not finished: {progress.done_shards:,} of {progress.shards:,} shards are labelled; {AGAIN}"
            )
        manifest = cls.find(store)
        if manifest is None:
            raise StoreError(f"{store.uri} has no manifest.json: its run was stopped before the end; {AGAIN}")
        return manifest
