"""The label store: schema, commit, lock, fingerprint, validation."""

from pipeline.store import documents, fingerprint, places, typed
from pipeline.store.commit import Committed, Record, commit, find_record, part_uri, shard_name
from pipeline.store.index import RecordIndex
from pipeline.store.lock import WriterLock, holder_of
from pipeline.store.reading import READERS, in_parallel, read_part
from pipeline.store.schema import ERRORS, LABELS, Failure, Label, extra_json
from pipeline.store.status import Status, StatusFile, Workforce
from pipeline.store.store import LabelStore, Progress, StoredInput
from pipeline.store.survey import Survey
from pipeline.store.validate import problems

__all__ = [
    "ERRORS",
    "LABELS",
    "READERS",
    "Committed",
    "Failure",
    "Label",
    "LabelStore",
    "Progress",
    "Record",
    "RecordIndex",
    "Status",
    "StatusFile",
    "StoredInput",
    "Survey",
    "Workforce",
    "WriterLock",
    "commit",
    "documents",
    "extra_json",
    "find_record",
    "fingerprint",
    "holder_of",
    "in_parallel",
    "part_uri",
    "places",
    "problems",
    "read_part",
    "shard_name",
    "typed",
]
