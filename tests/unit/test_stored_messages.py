"""What a store keeps of a conversation, and stores of format 1, which keep less: read, exported, drawn, trained on."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from label_stores import as_format_1, label_store
from tiny import CHATML, save_model

from jobs.stores.aggregate import aggregate
from jobs.stores.export import export
from jobs.stores.finalize import finish_store
from jobs.stores.formats import pairs_table
from jobs.stores.redraw import redraw
from pipeline.config import LabelConfig, ModelConfig
from pipeline.corpus.samples import Message, Turn
from pipeline.errors import StoreError
from pipeline.report.responses import draw_responses
from pipeline.rewards.derive import relabel, stored_reward
from pipeline.rewards.labelling import make_label
from pipeline.store import LABELS, LabelStore, part_uri, problems, read_part
from pipeline.store.commit import Record
from pipeline.store.pairs import PREFERENCES, preference_pairs
from pipeline.store.schema import FORMER_LABELS, labels_table, read_messages, stored_messages
from pipeline.tokens import TokenizedTurn
from pipeline.training.config import TrainConfig
from pipeline.training.examples import find_examples
from pipeline.training.rows import RowReader

CALL = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "☃"}}}]
TALK: list[Message] = [
    {"role": "user", "content": "1 + 2?"},
    {"role": "assistant", "content": "", "tool_calls": CALL, "reasoning_content": "a sum"},
    {"role": "tool", "content": "3", "tool_call_id": "x1", "name": "add"},
]
PAIRS = [{"prompt": f"what is {n} ab", "chosen": f"abcd {n}", "rejected": "no" * (n + 1)} for n in range(4)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), CHATML)


def finished(store: LabelStore, model: Path) -> LabelStore:
    config = LabelConfig.model_validate({"model": {"name": str(model)}, "output": {"path": store.uri}})
    assert finish_store(store, config, lambda ids: [str(i) for i in ids], None, [], "", quiet=True) == 0
    return store


def test_the_end_of_a_run_reads_each_record_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = label_store(tmp_path / "store", model, PAIRS)
    read, reads = Record.read, []

    def counted(uri: str) -> Record:
        reads.append(uri)
        return read(uri)

    monkeypatch.setattr(Record, "read", counted)
    finished(store, model)
    assert sorted(reads) == [store.at("records", f"{name}.json") for name in sorted(store.done())] and reads


def test_messages_come_back_whole() -> None:
    stored = stored_messages(TALK)
    assert read_messages(pa.array([stored], LABELS.field("prompt").type).to_pylist()[0]) == TALK
    assert stored[0]["other"] is None
    assert json.loads(stored[1]["other"]) == {"reasoning_content": "a sum", "tool_calls": CALL}
    former = [{"role": "user", "content": "q"}]
    assert read_messages(former) == former


def chosen_and_rejected() -> list[Any]:
    """Labels of two responses, the chosen one with thoughts and a call of a tool beside its text."""
    labels = []
    for preference, beside in (("chosen", {"reasoning_content": "hm", "tool_calls": CALL}), ("rejected", {})):
        turn = Turn(f"a:0:{preference}:0:1", "a:0", preference, 0, 1, TALK, "3", True, None, {}, beside)  # type: ignore[arg-type]
        one = np.ones(1, np.float32)
        labels.append(make_label(turn, TokenizedTurn([5, 6], [7], TALK), 1.0, (one, one, one)))
    return labels


def test_nothing_of_a_conversation_is_dropped() -> None:
    table = labels_table(chosen_and_rejected())
    assert table.schema.equals(LABELS) and table["prompt_token_ids"].to_pylist() == [[5, 6]] * 2
    [pair], _ = preference_pairs(table)
    assert pair["prompt"] == TALK
    assert pair["chosen"] == [
        {"role": "assistant", "content": "3", "reasoning_content": "hm", "tool_calls": CALL},
    ]
    assert pair["rejected"] == [{"role": "assistant", "content": "3"}]
    with pytest.raises(StoreError, match=r"a:0: a message has .*reasoning_content.* ends in \.jsonl"):
        pairs_table([pair], PREFERENCES)
    page = draw_responses(table, lambda ids: [str(i) for i in ids], "r")
    assert "a sum" in page and "tool_call_id" in page


def test_a_store_of_other_rewards_keeps_them(model: Path, tmp_path: Path) -> None:
    store = label_store(tmp_path / "store", model, PAIRS)
    [first, *_] = [read_part(part_uri(store.uri, "labels", r.shard)) for r in store.records()]
    stored = stored_reward(store.description())
    assert labels_table(relabel(first, stored, stored)).equals(first)
    field = LABELS.field("prompt")
    prompts = pa.array([stored_messages(TALK)] * first.num_rows, field.type)
    talk = first.set_column(first.column_names.index("prompt"), field, prompts)
    assert labels_table(relabel(talk, stored, stored)).equals(talk)


# Stores of format 1


@pytest.fixture
def former(model: Path, tmp_path: Path) -> LabelStore:
    store = label_store(tmp_path / "store", model, PAIRS)
    as_format_1(store)
    return finished(store, model)


def test_a_store_of_format_1_is_valid_and_drawn(former: LabelStore) -> None:
    assert list(problems(former)) == [] and redraw(former.uri) == 0
    part = part_uri(former.uri, "labels", next(former.records()).shard)
    assert pq.read_schema(part).equals(FORMER_LABELS)
    read = read_part(part, ["id", "prompt_token_ids", "response_other"])
    assert read.num_rows and read["prompt_token_ids"].null_count == read.num_rows


def test_a_store_of_format_1_is_exported(former: LabelStore, tmp_path: Path) -> None:
    for name in ("pairs.parquet", "pairs.jsonl"):
        assert export(former.uri, "trl", str(tmp_path / name)) == 0
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert rows == pq.read_table(tmp_path / "pairs.parquet").to_pylist() and len(rows) == len(PAIRS)
    assert rows[0]["chosen"] == [{"role": "assistant", "content": "abcd 0"}]


def test_a_store_of_format_1_is_aggregated(former: LabelStore, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "mean"
    assert aggregate(former.uri, str(output), ["reward.aggregation=mean"]) == 0
    made = LabelStore(str(output))
    assert list(problems(made)) == []
    table = made.sample(99)
    assert table is not None and table.schema.equals(LABELS) and table["prompt_token_ids"].null_count == table.num_rows


def test_a_store_of_format_1_is_trained_on_by_its_counts(former: LabelStore, model: Path, tmp_path: Path) -> None:
    anew = label_store(tmp_path / "anew", model, PAIRS)
    seen = []
    for store in (former, anew):
        told = TrainConfig.model_validate({"train": {"labels": [store.uri], "objective": "dpo"}})
        examples = find_examples(told)
        reader = RowReader(examples.sources, examples.parts, ModelConfig(name=str(model)), 8)
        rows = reader.read(examples, range(len(examples.rows)))
        seen.append([(row.id.partition(":")[2], row.prompt_ids.tolist(), row.response_ids.tolist()) for row in rows])
    assert seen[0] == seen[1]


def test_labels_without_tokens_of_their_prompt_are_null() -> None:
    [label, *_] = chosen_and_rejected()
    assert labels_table([replace(label, prompt_token_ids=None)])["prompt_token_ids"].to_pylist() == [None]
