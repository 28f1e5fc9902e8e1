"""The label store: one directory, resumable, that can say of itself whether it is whole.

OUTPUT/labels/part-*.parquet     one row per scored response
OUTPUT/errors/part-*.parquet     one row per response or input row that could not be scored
OUTPUT/records/run.json          the fingerprint and what it stands for
OUTPUT/records/input-*.json      one per input file: its content digest, its shape, its shards
OUTPUT/records/<shard>.json      one per committed shard; only these count, and those in segments
OUTPUT/records/segments/         many records in one file: an index of them, or what `compact` merged
OUTPUT/manifest.json             what a finished run says of itself
OUTPUT/report.html               what a person looks at
OUTPUT/status.json               how the last run went, or goes
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import pyarrow as pa
from pydantic import PlainValidator, TypeAdapter

from pipeline import storage
from pipeline.corpus import FilePlan, InputFile, Shape
from pipeline.corpus.labels.rules import Guessed
from pipeline.errors import StoreError
from pipeline.store import documents, fingerprint, places, typed
from pipeline.store.commit import Committed, Record, file_key, part_name, rows_uri, shard_name
from pipeline.store.compaction import clean, settle
from pipeline.store.lock import holder_of
from pipeline.store.pictures import changed_pictures
from pipeline.store.reading import READERS, in_parallel, read_part
from pipeline.store.segments import FOLDER as SEGMENTS
from pipeline.store.segments import Segment, merged_name, segment_names, segment_uri
from pipeline.store.standing import Standing
from pipeline.store.status import NAME as STATUS
from pipeline.store.survey import Survey

INPUT_VERSION = 2  # 1: a list of shards in the place of columns
NEED_THE_MODEL = ("reward.alpha", "reward.token_certainty")  # all other fields of a reward follow from stored tokens
KINDS = ("labels", "errors")
EXPECTED = "run.expected.json"  # names of input files that a run began with and had not planned


def _shape(stored: Any) -> Shape:
    try:
        return Shape.from_json(stored)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"no shape of a file that this version knows ({error})") from error


@dataclass(frozen=True)
class StoredInput:
    """What the store knows of one input file."""

    file: InputFile
    format: str  # input.format, as configured when it was read
    shape: Annotated[Shape, PlainValidator(_shape)]
    plan: FilePlan

    def to_json(self) -> dict[str, Any]:
        return {
            "version": INPUT_VERSION,
            "file": asdict(self.file),
            "format": self.format,
            "shape": self.shape.to_json(),
            "plan": self.plan.to_json(),
        }

    @staticmethod
    def read(uri: str) -> "StoredInput":
        """Raises FileNotFoundError, and StoreError for a damaged one, or one of another form."""
        content = documents.read(uri)
        typed.check_version(content, INPUT_VERSION, uri, typed.Document.REMEDY)
        return typed.parse(_INPUTS.validate_python, content, uri, typed.Document.REMEDY)


_INPUTS = TypeAdapter(StoredInput)


class StoreRun(typed.Document):
    """`records/run.json`: what the labels of a store are, and the fingerprint of that.

    Version 2 says that records may be in segments, of which version 1 knows nothing: a store is of version 1 until then.
    """

    version: int = 2
    fingerprint: str
    description: dict[str, Any]


@dataclass
class Progress:
    """How far a store is."""

    shards: int = 0  # an input file that is not planned yet counts as one
    done_shards: int = 0
    rows: int = 0
    done_rows: int = 0
    labels: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    writer: str | None = None

    @property
    def complete(self) -> bool:
        return self.done_shards == self.shards


class LabelStore:
    """A store at a location; nothing is read or written before it is asked for."""

    def __init__(self, uri: str):
        self.uri = uri
        self._segments: dict[str, Segment] = {}  # that were read; none of them ever changes

    def at(self, *names: str) -> str:
        return storage.join(self.uri, *names)

    # Opening

    def check_place(self) -> None:
        """Raises StoreError where the directory holds something that is not a label store."""
        places.check(self.uri, places.STORE)

    def check_description(self, description: dict[str, Any]) -> None:
        """Raises StoreError where the store was made under another description; says what differs."""
        try:
            stored = self.description()
        except FileNotFoundError:
            return
        if stored.get("format") != description.get("format"):
            raise StoreError(
                f"{self.uri} holds labels of format {stored.get('format')}, and this version makes those of format "
                f"{description.get('format')}, which count other tokens in some rows (CHANGELOG.md): it can be validated, "
                "exported, aggregated, evaluated and trained on, but nothing is added to it; give another --output"
            )
        lines = fingerprint.differences(stored, description)
        if lines:
            derivable = all(line.startswith("reward.") and not line.startswith(NEED_THE_MODEL) for line in lines)
            remedy = (
                " or make a store with it from this one, without the model: endoreward aggregate" if derivable else ""
            )
            raise StoreError(
                f"{self.uri} holds labels of another run and is left as it is; give another --output{remedy}. What differs:"
                "\n  " + "\n  ".join(lines)
            )

    def open_for_writing(self, description: dict[str, Any]) -> None:
        """Create the store, or check that it is of the same run and clear what killed writers left. Needs the lock."""
        self.check_description(description)
        if not places.is_ours(self.uri, places.STORE):
            run = StoreRun(fingerprint=fingerprint.digest(description), description=description)
            documents.write(self.at("records", "run.json"), {**run.content(), "version": 1})
        for folder in self._folders():
            documents.remove_temporaries(folder)
        clean(self.uri, self._segments)

    def settle(self) -> None:
        """At the end of a run: rows of shards that were retried leave the files that `compact` merged. Needs the lock."""
        settle(self.uri, self._segments)

    def reopen(self) -> None:
        """Take away manifest and report, which speak of a finished store, before more is committed."""
        documents.remove(self.at("manifest.json"))
        documents.remove(self.at("report.html"))

    def discard(self) -> None:
        """Delete the store: what its records name, then these, its manifest and report. What nobody recorded stays, and so
        does all of it where this is no label store."""
        if not places.is_ours(self.uri, places.STORE):
            return
        self.reopen()
        for folder in self._folders():
            documents.remove_temporaries(folder)
        planned = {shard_name(shard) for stored in self.inputs() for shard in stored.plan.shards}
        for name in sorted(planned | {record.name for record in self.records()}):
            documents.remove(self.at("records", f"{name}.json"))
            for kind in KINDS:
                documents.remove(self.at(kind, part_name(name)))
        for name in segment_names(self.uri):
            documents.remove(segment_uri(self.uri, name))
            for kind in KINDS:
                documents.remove(self.at(kind, merged_name(name)))
        for stored in self.inputs():
            documents.remove(self._input_uri(stored.file.name))
        documents.remove(self.at("records", EXPECTED))
        documents.remove(self.at(STATUS))
        documents.remove(self.at("records", "run.json"))
        for folder in reversed(self._folders()):
            storage.remove_if_empty(folder)

    def _folders(self) -> list[str]:
        return [self.uri, *map(self.at, (*KINDS, "records")), self.at(*SEGMENTS)]

    def run(self) -> StoreRun:
        """Raises FileNotFoundError where there is no store, StoreError where a newer version made its labels."""
        run = StoreRun.read(self.at("records", "run.json"))
        form = run.description.get("format", 0)
        if not isinstance(form, int) or form > fingerprint.FORMAT:
            raise StoreError(
                f"{self.uri} holds labels of format {form}, which a newer version of endoreward made; this one knows up to "
                f"{fingerprint.FORMAT}: update endoreward"
            )
        return run

    def fingerprint(self) -> str:
        """Raises what `run` does."""
        return self.run().fingerprint

    def description(self) -> dict[str, Any]:
        """What the fingerprint stands for. Raises what `run` does."""
        return self.run().description

    def began_on(self) -> str | None:
        """The day that a template got which asks for the date; None where there is no store or it has no such template."""
        try:
            return self.description().get("tokens.date")
        except FileNotFoundError:
            return None

    # Inputs

    def find_input(self, name: str) -> StoredInput | None:
        try:
            return StoredInput.read(self._input_uri(name))
        except FileNotFoundError:
            return None

    def add_input(self, stored: StoredInput) -> None:
        """Keep what is known of an input file; nothing is written where nothing is new."""
        if self.find_input(stored.file.name) != stored:
            documents.write(self._input_uri(stored.file.name), stored.to_json())

    def expect_inputs(self, names: Iterable[str], known: Iterable[str] = ()) -> None:
        """Keep the names of input files that are planned later, beside those that a run before left; without those that are
        known."""
        before = self._expected()
        expected = {*before, *names} - {*known}
        if expected and expected != before:
            documents.write(self.at("records", EXPECTED), {"files": sorted(expected)})
        elif before and not expected:
            documents.remove(self.at("records", EXPECTED))

    def unplanned(self) -> list[str]:
        """Names of input files that a run began with and did not come to."""
        expected = self._expected()
        there = set(storage.list_names(self.at("records"))) if expected else set()
        return sorted(name for name in expected if f"input-{file_key(name)}.json" not in there)

    def _expected(self) -> set[str]:
        uri = self.at("records", EXPECTED)
        return set(documents.read(uri)["files"]) if storage.is_file(uri) else set()

    def inputs(self) -> list[StoredInput]:
        return sorted(self._read_inputs(), key=lambda stored: stored.file.name)

    def _read_inputs(self) -> Iterator[StoredInput]:
        there = storage.each_name(self.at("records"))
        names = sorted(n for n in there if n.startswith("input-") and n.endswith(".json"))
        return (StoredInput.read(self.at("records", n)) for n in names)

    def _plans(self) -> Iterator[tuple[str, FilePlan]]:
        """Of each input file, one in memory at a time."""
        return ((stored.file.name, stored.plan) for stored in self._read_inputs())

    def guesses(self) -> list[str]:
        """A sentence for each input file whose labels an earlier version guessed."""
        rules = [(stored.file.name, stored.shape.label) for stored in self.inputs()]
        return [
            f"{self.uri}: which response is better was guessed for {name}: {rule.first_label} in column {rule.column!r} was "
            "taken for the first response. Chosen and rejected may be swapped; label the file again into another --output"
            for name, rule in rules
            if isinstance(rule, Guessed)
        ]

    def _input_uri(self, name: str) -> str:
        return self.at("records", f"input-{file_key(name)}.json")

    # Records

    def look(self) -> Standing:
        """Which records count now."""
        return Standing(self.uri, self._segments)

    def remember(self, segment: Segment) -> None:
        """A segment that was just written need not be read, unless its records are asked for."""
        self._segments[segment.name] = segment.without_lines()

    def done(self) -> Set[str]:
        """Names of the committed shards: one listing, whatever the number of rows. Raises StoreError where a segment is
        damaged."""
        return self.look().names()

    def records(self) -> Iterator[Record]:
        """Every record, in the order of their names. Raises StoreError for a damaged one."""
        look = self.look()
        yield from look.records(look.names())

    def changed_pictures(self) -> Iterator[str]:
        """Where pictures of labelled rows lie that are others by now. Raises StoreError for a damaged record."""
        pictured = (rows_uri(self.uri, "labels", record) for record in self.records() if record.stats.pictured)
        yield from changed_pictures(table for _, table in in_parallel(lambda uri: read_part(uri, ["prompt"]), pictured))

    def survey(self, begun: Survey | None = None) -> Survey:
        """What all records come to; with `begun` only those are read that are no part of it yet. Raises StoreError for a
        damaged one."""
        survey, look = Survey() if begun is None else begun, self.look()
        for record in look.records_of(lambda name: name not in survey):
            survey.add(record)
        return survey

    def progress(self, survey: Survey | None = None) -> Progress:
        """How far the store is, by `survey` where that has been made. Raises StoreError where there is no store, its
        description is damaged, or a newer version made its labels."""
        self.require()
        places.is_ours(self.uri, places.STORE)
        self.run()
        planned = {name: (len(plan.shards), plan.rows) for name, plan in self._plans()}  # large while they are read
        survey = self.survey() if survey is None else survey
        return Progress(
            shards=sum(shards for shards, _ in planned.values()) + len(self.unplanned()),
            done_shards=sum(survey.committed(name, shards) for name, (shards, _) in planned.items()),
            rows=sum(rows for _, rows in planned.values()),
            done_rows=survey.rows,
            labels=survey.labels,
            errors=Counter(survey.errors),
            writer=holder_of(self.uri),
        )

    def require(self) -> None:
        """Raises StoreError where there is no store."""
        if storage.exists(self.at("records", "run.json")):
            return
        if storage.exists(self.at("evaluation.json")):
            raise StoreError(
                f"{self.uri} is an evaluation; its label stores are in {self.at('rewards')}: give one of them"
            )
        raise StoreError(f"{self.uri} is not a label store: it has no records/run.json")

    # Reading

    def read(
        self, kind: str, shards: Iterable[Committed], columns: list[str] | None = None, workers: int = READERS
    ) -> Iterator[tuple[Committed, pa.Table]]:
        """The rows of one kind (labels, errors) of each shard that has any, in the order of the shards; a few are read
        ahead, by `workers` threads."""
        with_rows = (shard for shard in shards if getattr(shard, kind).rows)
        return in_parallel(lambda shard: self.read_rows(kind, shard, columns), with_rows, workers)

    def read_rows(self, kind: str, shard: Committed | Record, columns: list[str] | None = None) -> pa.Table:
        """The rows of one kind of a shard that has some, wherever `compact` put them since its record was read."""
        while True:
            place = rows_uri(self.uri, kind, shard)
            try:
                return read_part(place, columns)
            except FileNotFoundError:
                look = Standing(self.uri)
                if shard.name not in look.merged:
                    raise
                [shard] = look.records([shard.name])
                if rows_uri(self.uri, kind, shard) == place:  # not moved, but gone
                    raise

    def sample(
        self, rows: int, columns: list[str] | None = None, shards: Sequence[Committed] | None = None
    ) -> pa.Table | None:
        """About `rows` labels: whole parts, spread evenly over the store, so that siblings stay together; None of none.
        `shards` are the store's, where its records have been read already."""
        shards = self.survey().shards if shards is None else shards
        parts = total = 0
        for shard in shards:
            parts, total = parts + (shard.labels.rows > 0), total + shard.labels.rows
        if not parts:
            return None
        wanted = max(1, min(parts, round(parts * rows / total)))
        places = {i * parts // wanted for i in range(wanted)}
        with_rows = (shard for shard in shards if shard.labels.rows)
        picked = [shard for place, shard in enumerate(with_rows) if place in places]
        return pa.concat_tables(table for _, table in self.read("labels", picked, columns))
