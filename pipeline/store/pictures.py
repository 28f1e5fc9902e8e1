"""What a label store has of pictures: a digest and a place for each, in the messages of its prompts."""

import json
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus.sources import has_own_file, read_place
from pipeline.errors import RowError

MARK = '"pictures"'


def pictured_rows(labels: pa.Table) -> list[int]:
    """The rows of a labels table whose prompt has a picture; a table without prompts has none."""
    if not labels.num_rows or "prompt" not in labels.column_names:
        return []
    prompt = labels["prompt"].combine_chunks()
    messages = prompt.flatten()
    if "other" not in messages.type.names or (other := messages.field("other")).null_count == len(other):
        return []
    marked = pc.fill_null(pc.match_substring(other, MARK), False)
    rows: list[int] = np.unique(pc.list_parent_indices(prompt).filter(marked).to_numpy()).tolist()
    return rows


def stored_pictures(labels: pa.Table) -> dict[str, str]:
    """The pictures of a labels table: digest by place. Needs `prompt`."""
    rows = pictured_rows(labels)
    found: dict[str, str] = {}
    for messages in labels["prompt"].take(rows).to_pylist() if rows else []:
        for message in messages:
            for picture in json.loads(message["other"] or "{}").get("pictures", []):
                found[picture["place"]] = picture["digest"]
    return found


def changed_pictures(tables: Iterable[pa.Table]) -> Iterator[str]:
    """Where pictures of labels tables lie in files of their own and are others now. The digest of a file of rows covers what
    lies in it, the web is not asked, and what is out of reach may be anywhere."""
    seen: set[str] = set()
    for table in tables:
        for place, digest in stored_pictures(table).items():
            if place in seen or not has_own_file(place):
                continue
            seen.add(place)
            try:
                changed = read_place(place).digest != digest
            except RowError:
                continue
            if changed:
                yield place
