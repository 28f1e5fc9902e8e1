"""`endoreward aggregate`: a finished store under another `reward.*`, as a store of its own. Needs no model.

Its description is the old one with the new reward, so that its fingerprint is that of labelling anew; every shard is
committed as `label` commits it. Killed anywhere, the same command goes on.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator

import pyarrow as pa

from jobs import terminal
from jobs.stores.finalize import find_decode, finish_store, is_final
from jobs.stores.inspect_store import warn_of_guesses
from pipeline import storage
from pipeline.config import LabelConfig, RewardConfig, load_config
from pipeline.errors import ConfigError, StoreError
from pipeline.rewards.derive import relabel, stored_reward
from pipeline.store import Failure, LabelStore, Record, Survey, WriterLock, commit, fingerprint, in_parallel
from pipeline.store.commit import rows_uri
from pipeline.store.manifest import Manifest
from pipeline.store.reading import read_recorded


def aggregate(uri: str, output: str, assignments: list[str], command: str = "") -> int:
    """Write `output` from the store at `uri` with `assignments` (`reward.field=value`) in place of what that has.

    Returns the exit code. Raises ConfigError for what cannot be made of the stored tokens, StoreError where `uri` is not
    finished, or `output` holds something else.
    """
    if not output:
        raise ConfigError("--output: none given")
    source, target = LabelStore(uri), LabelStore(_absolute(output))
    if _absolute(uri) == target.uri:
        raise StoreError(f"{output} is the store that is read; give another --output")
    target.check_place()
    source.require()
    records, whole = list(source.records()), Survey()
    for record in records:
        whole.add(record)
    manifest = Manifest.of_finished(source, whole)
    warn_of_guesses(source)
    stored = stored_reward(source.description())
    wanted = _changed(stored, assignments)
    for warning in wanted.warnings():
        terminal.warn(warning)
    config = _config(manifest.config, wanted, target.uri)
    description = {**source.description(), **wanted.described()}
    target.check_description(description)
    with contextlib.ExitStack() as stack:
        stack.enter_context(WriterLock(target.uri))
        target.open_for_writing(description)
        for stored_input in source.inputs():
            target.add_input(stored_input)
        left, survey = list(_pending(records, target)), Survey()
        if left:
            target.reopen()
        elif is_final(target):
            terminal.say(f"{target.uri}: all shards are aggregated already; nothing to do")
            return 0
        digest = fingerprint.digest(description)

        def anew(record: Record) -> Record:
            labels, errors = (_read(source, kind, record) for kind in ("labels", "errors"))
            relabelled = [] if labels is None else relabel(labels, stored, wanted)
            failures = [] if errors is None else [Failure(**row) for row in errors.to_pylist()]
            return commit(target.uri, record.shard, digest, record.generation, relabelled, failures)

        for _, committed in terminal.track(in_parallel(anew, left), len(left), "aggregate", "shards"):
            survey.add(committed)
        notes = [
            *manifest.notes,
            f"aggregated from the stored tokens of a store with fingerprint {source.fingerprint()}",
        ]
        return finish_store(target, config, find_decode(source, manifest), None, notes, command, survey=survey)


def _changed(stored: RewardConfig, assignments: list[str]) -> RewardConfig:
    """The stored reward with `assignments`. Raises ConfigError."""
    foreign = [text for text in assignments if not text.strip().startswith("reward.")]
    if foreign:
        raise ConfigError(f"--set {foreign[0]}: only reward.* can be set; for anything else label anew")
    fields = [(f"reward.{name}", value) for name, value in stored.model_dump().items()]
    try:
        wanted = load_config(None, fields, assignments).reward
    except ConfigError as error:
        raise ConfigError(f"{error}\nWhat is not set stays as the store has it: {_listed(stored)}") from None
    if wanted.alpha != stored.alpha:
        raise ConfigError(
            f"reward.alpha: the store has {stored.alpha:g}; another alpha needs the model: label anew with {wanted.alpha:g}"
        )
    if wanted.token_certainty != stored.token_certainty:
        raise ConfigError(
            f"reward.token_certainty: the store has {str(stored.token_certainty).lower()}, and its columns need the model: "
            f"label anew with {str(wanted.token_certainty).lower()}"
        )
    if wanted == stored:
        raise ConfigError(f"the store has this reward already: {_listed(stored)}; give --set reward.field=value")
    return wanted


def _listed(reward: RewardConfig) -> str:
    return ", ".join(f"{name} = {value}" for name, value in reward.model_dump().items())


def _config(stored: dict[str, dict[str, object]], wanted: RewardConfig, output: str) -> LabelConfig:
    """What labelling anew would have been told: the configuration of the old manifest, with its new reward and place."""
    sections = {name: stored[name] for name in LabelConfig.model_fields if name in stored}
    return LabelConfig.model_validate({**sections, "reward": wanted.model_dump(), "output": {"path": output}})


def _pending(records: Iterable[Record], target: LabelStore) -> Iterator[Record]:
    """Those that the target lacks, or has of an older generation."""
    generations = {record.name: record.generation for record in target.records()}
    for record in records:
        if record.generation > generations.get(record.name, -1):
            yield record


def _read(store: LabelStore, kind: str, record: Record) -> pa.Table | None:
    """One part, held against its record; None where it has no rows. Raises StoreError where it is not what was committed."""
    try:
        return read_recorded(store.uri, kind, record)
    except FileNotFoundError:
        uri = rows_uri(store.uri, kind, record)
        raise StoreError(f"{uri} is missing; endoreward validate {store.uri} says how to mend it") from None


def _absolute(place: str) -> str:
    return os.path.realpath(storage.absolute(place)) if storage.is_local(place) else place.rstrip("/")
