"""`endoreward export`: a store's labels in a format that other tools read. Needs no model.

Shard by shard into one file, which shows under its name when it is complete.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs import terminal
from jobs.stores.formats import ENDINGS, ENDINGS_OF, FORMATS, pairs_table
from jobs.stores.inspect_store import warn_of_guesses
from pipeline import storage
from pipeline.errors import ConfigError, StoreError
from pipeline.store import LabelStore, documents, in_parallel
from pipeline.store.pairs import PAIR_COLUMNS, PairCounts, preference_pairs


def export(uri: str, format: str, output: str) -> int:
    """Write the pairs of the store at `uri` to the file `output`; its ending says Parquet or JSON lines.

    Args:
        format: of whose loader: FORMATS.

    Returns:
        0. Raises ConfigError for an unknown format or ending, StoreError where the store is not finished, holds no
        pair, or `output` exists.
    """
    ending = _check(format, output)
    store = LabelStore(uri)
    store.require()
    survey = store.survey()
    progress = store.progress(survey)
    if not progress.complete:
        raise StoreError(
            f"{uri} is not finished: {progress.done_shards:,} of {progress.shards:,} shards are labelled; run its label "
            "command again, then export"
        )
    warn_of_guesses(store)
    form, counts, left_out, written = FORMATS[format](store), PairCounts(), Counter[str](), 0

    def parts() -> Iterator[list[dict[str, Any]]]:
        nonlocal counts, written
        shards = survey.labelled
        columns = [*PAIR_COLUMNS, *form.extra]
        made = in_parallel(
            lambda shard: preference_pairs(store.read_rows("labels", shard, columns), form.extra), shards
        )
        for _, (pairs, of_part) in terminal.track(made, len(shards), "export", "shards"):
            converted = [form.convert(pair) for pair in pairs]
            rows = [row for row in converted if not isinstance(row, str)]
            left_out.update(reason for reason in converted if isinstance(reason, str))
            counts, written = counts + of_part, written + len(rows)
            yield rows

    try:
        with documents.whole_file(output, replace=False) as path:
            write = _write_parquet if ending == ".parquet" else _write_json_lines
            write(path, parts(), form.schema)
            if left_out and not written:
                raise StoreError(f"{uri}: none of its pairs fits --format {format}: {next(iter(left_out))}; take trl")
            if not written:
                raise StoreError(
                    f"{uri} holds no pair: each of its prompts has one response, or responses that neither the input nor "
                    "the reward tells apart"
                )
    except FileExistsError:
        raise already_there(output) from None
    for reason, count in left_out.most_common():
        terminal.warn(f"{count:,} pairs left out: {reason}")
    for sentence in (*explain(counts), form.advice, f"{written:,} pairs: {output}"):
        terminal.say(sentence)
    return 0


def _check(format: str, output: str) -> str:
    """The ending of a new file. Raises ConfigError, StoreError."""
    if format not in FORMATS:
        raise ConfigError(f"--format {format}: unknown; there is {', '.join(FORMATS)}")
    ending = next((e for e in ENDINGS if output.partition("?")[0].endswith(e)), None)
    if ending is None:
        raise ConfigError(f"--output {output}: the name has to end in {' or '.join(ENDINGS)}")
    if ending not in ENDINGS_OF.get(format, ENDINGS):
        raise ConfigError(f"--output {output}: --format {format} is read from {' or '.join(ENDINGS_OF[format])} alone")
    refuse_existing(output)
    return ending


def explain(counts: PairCounts) -> list[str]:
    """What is in the file and what is not, a sentence each."""
    sentences = []
    if counts.known:
        sentences.append(
            f"{counts.known:,} pairs with the preference of the input; in {counts.against:,} of them the rejected response "
            "has the higher reward, so their margin is negative."
        )
    if counts.by_score:
        sentences.append(
            f"Of these, {counts.by_score:,} pairs are by score or rank: every response against every lower one."
        )
    if counts.undecided:
        sentences.append(f"{counts.undecided:,} prompts left out: their scores or ranks prefer no response.")
    if counts.by_reward:
        sentences.append(
            f"{counts.by_reward:,} pairs of prompts without a known preference: the highest reward is chosen, the lowest "
            "rejected."
        )
    if counts.ties:
        sentences.append(f"{counts.ties:,} prompts left out: all their responses have the same reward.")
    if counts.alone:
        sentences.append(f"{counts.alone:,} prompts left out: they have no two responses to compare.")
    return sentences


def refuse_existing(output: str) -> None:
    """Raises StoreError where a file would be written over."""
    if storage.exists(output):
        raise already_there(output)


def already_there(output: str) -> StoreError:
    return StoreError(f"{output} exists already and is left as it is; remove it, or give another --output")


def _write_parquet(path: str, parts: Iterable[list[dict[str, Any]]], schema: pa.Schema) -> None:
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        for pairs in parts:
            if pairs:
                writer.write_table(pairs_table(pairs, schema))


def _write_json_lines(path: str, parts: Iterable[list[dict[str, Any]]], schema: pa.Schema) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for pairs in parts:
            file.writelines(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs)
