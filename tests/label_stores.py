"""Finished label stores that tests build as a run does it, but for Ray: rows of a file, prepared, scored, committed."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import EvaluateConfig
from pipeline.corpus import detect, find_files, plan_file, read_shards
from pipeline.corpus.sources import origin_of
from pipeline.models.loading import load_model
from pipeline.models.pictures import open_pictures
from pipeline.models.scoring import Scorer
from pipeline.rewards.labellers import Endogenous, Labeller
from pipeline.store import LabelStore, StoredInput, commit, documents, fingerprint, part_uri, shard_name
from pipeline.store.schema import FORMER_LABELS


@lru_cache(maxsize=8)
def _scorer(model: str, alpha: float) -> Scorer:
    source = EvaluateConfig.model_validate({"model": {"name": model}}).model
    loaded = load_model(source, "cpu", 0)
    return Scorer(loaded, alpha=alpha, pictures=open_pictures(source, loaded.config))


def label_store(
    folder: Path,
    model: Path,
    rows: Sequence[dict[str, Any]],
    *,
    kind: type[Labeller] = Endogenous,
    shard_rows: int = 2,
    shards: int | None = None,
    name: str | None = None,
    **sections: Any,
) -> LabelStore:
    """A store in `folder` of rows that `kind` labels with `model`; of the first `shards` shards, where it is given.

    Args:
        name: of the file of rows; default: that of the folder.
        sections: of the configuration, as `tokens={...}`. A classifier answers with the number of tokens.
    """
    config = EvaluateConfig.model_validate({"model": {"name": str(model)}, **sections})
    labeller = kind(config, config.model)
    source = folder.with_name(name) if name else folder.with_suffix(".jsonl")
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    [file] = find_files([str(source)])
    plan = plan_file(file, shard_rows=shard_rows)
    shape = replace(detect(list(plan.head), config.input), origin=origin_of(file, "auto", config.input))
    store, description = LabelStore(str(folder)), labeller.describe("float32")
    store.open_for_writing(description)
    store.add_input(StoredInput(file, "auto", shape, plan))
    for shard, raw in read_shards(file, "auto", plan.shards[:shards]):
        prepared = labeller.prepare(shard, 0, raw, shape)
        labels, failures = labeller.finish(prepared, _answers(labeller, prepared.requests))
        commit(store.uri, shard, fingerprint.digest(description), 0, labels, failures)
    return store


def as_format_1(store: LabelStore, extra_info: Callable[[dict[str, Any]], str] | None = None) -> None:
    """Make a store what it was before prompts kept their tokens and messages what else they hold: columns, description and
    digests. `extra_info` makes that column of a row as it is now."""
    run = documents.read(store.at("records", "run.json"))
    description = {k: v for k, v in run["description"].items() if k != "model.tokenizer"} | {"format": 1}
    digest = fingerprint.digest(description)
    documents.write(store.at("records", "run.json"), {"fingerprint": digest, "description": description})
    for record in list(store.records()):
        data = None
        if record.labels.rows:
            uri = part_uri(store.uri, "labels", record.shard)
            rows = pq.ParquetFile(uri).read().to_pylist()
            for row in rows:
                row["extra_info"] = extra_info(row) if extra_info else row["extra_info"]
                row["prompt"] = [{name: message[name] for name in ("role", "content")} for message in row["prompt"]]
            table = pa.table({f.name: [row[f.name] for row in rows] for f in FORMER_LABELS}, schema=FORMER_LABELS)
            pq.write_table(table, uri, compression="zstd", write_page_checksum=True)
            data = hashlib.sha256(Path(uri).read_bytes()).hexdigest()
        labels = replace(record.labels, sha256=data)
        content = replace(record, fingerprint=digest, labels=labels).to_json()
        documents.write(store.at("records", f"{shard_name(record.shard)}.json"), content)


def _answers(labeller: Labeller, requests: Sequence[Any]) -> list[Any]:
    if labeller.engine == "classifier":
        return [float(len(request.response_ids)) for request in requests]
    return list(_scorer(labeller.model.name, labeller.config.reward.alpha).score(requests))
