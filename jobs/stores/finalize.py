"""The end of a run: the manifest, the report and the table, all from the store's records."""

import os
import time
from collections import Counter
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from actors.actor import BatchCheck
from jobs import terminal
from jobs.stores.inspect_store import error_rows
from pipeline import __version__, storage
from pipeline.config import LabelConfig, ModelConfig
from pipeline.errors import ConfigError, RunError, StoreError
from pipeline.models.loading import load_tokenizer
from pipeline.report.labels import draw_report
from pipeline.store import LabelStore, Survey, documents
from pipeline.store.manifest import BatchCheckEntry, InputEntry, Manifest, TimingEntry
from pipeline.store.summary import summary_rows
from pipeline.tokens import Decode, Renderer, pieces, tokenizer_digest

REPORT_ROWS = 5000


class Timing:
    """What a run cost; `seconds` is everything from starting Ray on, the scores' seconds are those of all actors."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.seconds = self.score_seconds = 0.0
        self.response_tokens = self.forwarded_tokens = 0
        self.layout = ""
        self.check = BatchCheck()

    def add(
        self, response_tokens: int, forwarded_tokens: int, score_seconds: float, layout: str, check: BatchCheck
    ) -> None:
        self.check += check
        self.response_tokens += response_tokens
        self.forwarded_tokens += forwarded_tokens
        self.score_seconds += score_seconds
        self.layout = layout or self.layout

    def stop(self) -> "Timing":
        self.seconds = time.perf_counter() - self.started
        return self

    @property
    def scoring_rate(self) -> float:
        """Response tokens per second of one actor, its model loaded."""
        return self.response_tokens / max(self.score_seconds, 1e-9)

    def entry(self) -> TimingEntry:
        return TimingEntry(
            seconds=round(self.seconds, 3),
            score_seconds=round(self.score_seconds, 3),
            tokens_per_second=round(self.response_tokens / self.seconds, 1),
            tokens_per_second_scoring=round(self.scoring_rate, 1),
            response_tokens=self.response_tokens,
            forwarded_tokens=self.forwarded_tokens,
            layout=self.layout,
            batch_check=BatchCheckEntry(**asdict(self.check)) if self.check.responses else None,
        )


def finalize(
    store: LabelStore,
    config: LabelConfig,
    renderer: Renderer,
    timing: Timing | None,
    notes: list[str],
    command: str,
    *,
    survey: Survey | None = None,
    quiet: bool = False,
) -> int:
    """Write manifest and report, show the table. A run that found nothing to do leaves a finished store as it is.

    Args:
        survey: of the shards that this run committed: their records are not read again.

    Returns the exit code. Raises RunError where not one response could be labelled.
    """
    if timing is None and is_final(store):
        return 0
    decode = pieces(renderer.tokenizer)
    return finish_store(store, config, decode, timing, notes, command, survey=survey, quiet=quiet)


def is_final(store: LabelStore) -> bool:
    """Whether a finished run wrote both files that speak of the whole store."""
    return storage.exists(store.at("manifest.json")) and storage.exists(store.at("report.html"))


def finish_store(
    store: LabelStore,
    config: LabelConfig,
    decode: Decode,
    timing: Timing | None,
    notes: list[str],
    command: str,
    *,
    survey: Survey | None = None,
    quiet: bool = False,
) -> int:
    """`finalize`, with any way to show a token as text, on a store whose every shard is committed."""
    store.settle()
    survey = store.survey(survey)
    manifest = Manifest.of(
        store,
        survey=survey,
        command=command,
        config=config.model_dump(exclude={"run"}),
        inputs=[InputEntry.of(stored) for stored in store.inputs()],
        notes=notes,
        timing=timing.entry() if timing is not None else None,
        versions=versions(),
    )
    manifest.write_plain(store.at("manifest.json"))
    drawn = write_report(store, manifest, decode, survey)
    errors = Counter(manifest.errors)
    rows = [*summary_rows(manifest.summary), *error_rows(errors)]
    if timing is not None:
        rows.append(("Speed", f"{timing.scoring_rate:,.0f} tokens/s an actor, {timing.seconds:,.1f} s in all"))
    if not quiet:
        terminal.print_table(store.uri, rows)
    if not drawn and not quiet:
        raise RunError(f"not one response could be labelled ({counted(errors)}); see {store.at('errors')}")
    if not quiet:
        terminal.say(f"report: {store.at('report.html')}")
    return 0


def write_report(store: LabelStore, manifest: Manifest, decode: Decode, survey: Survey | None = None) -> bool:
    """Draw report.html from a manifest and a sample of the labels. False where there are no labels to draw.

    Args:
        survey: of the whole store, where its records have been read already.
    """
    sample = store.sample(REPORT_ROWS, shards=None if survey is None else survey.shards)
    if sample is not None:
        documents.write_bytes(store.at("report.html"), draw_report(manifest, sample, decode).encode())
    return sample is not None


def stored_tokenizer(store: LabelStore, manifest: Manifest) -> Any:
    """The tokenizer of a store's tokens. Of what a manifest says of the model only its name and revision are taken: others may
    have written it, and it does not say that code may run. Raises StoreError, or ConfigError where it cannot be loaded."""
    model, description = manifest.config.get("model"), store.description()
    name, revision = (model.get("name"), model.get("revision")) if isinstance(model, dict) else (None, None)
    if not isinstance(name, str) or not name or not isinstance(revision, str | None):
        raise StoreError(f"{store.at('manifest.json')} does not name the model, whose tokenizer is needed")
    if "model.content" in description and not (os.path.isdir(name) or storage.is_objects(name)):
        raise StoreError(
            f"{store.uri}: its model was a folder, {name}, which is not here, and is no hub's model of that name; take the "
            "store that was labelled, where its model is"
        )
    try:
        tokenizer = load_tokenizer(ModelConfig(name=name, revision=revision))
    except ConfigError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise StoreError(
            f"{store.uri}: the tokenizer of {name} brings code of its own, which no store may run"
        ) from None
    if description.get("model.tokenizer") not in (None, tokenizer_digest(tokenizer)):
        raise StoreError(
            f"{store.uri}: {name} has another tokenizer than the model that labelled; put that model in its place"
        )
    return tokenizer


def find_decode(store: LabelStore, manifest: Manifest) -> Decode:
    """The text of tokens where the tokenizer can be reached from here, else their numbers, and a warning."""
    try:
        return pieces(stored_tokenizer(store, manifest))
    except ConfigError as error:
        terminal.warn(f"the report shows numbers in place of tokens' texts: {error}")
        return lambda ids: [f" {token}" for token in ids]


def versions() -> dict[str, str]:
    """What made a document."""
    return {"endoreward": __version__, **{n: version(n) for n in ("ray", "torch", "transformers", "pyarrow")}}


def counted(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
