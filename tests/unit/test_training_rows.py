"""Rows as tokens, against what the labeller itself made of them; policies that do not fit, and what each is told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import transformers
from label_stores import as_format_1, label_store
from tiny import CHATML, save_bigram, save_model, tokenizer

from pipeline.config import EvaluateConfig, ModelConfig
from pipeline.corpus import read_shards
from pipeline.errors import ConfigError, StoreError
from pipeline.rewards.labellers import Classified, Endogenous, Labeller, MathsAnswerer, Verifier
from pipeline.store import LabelStore
from pipeline.training import rows as rows_module
from pipeline.training.config import TrainConfig
from pipeline.training.examples import Examples, find_examples
from pipeline.training.rows import RowReader, check_rows, stored_reference, stored_renderer

BARE = [{"prompt": f"what is {n} ab", "chosen": f"abcd {n}", "rejected": "no" * (n + 1)} for n in range(5)]
TALK = [
    {
        "chosen": [*said, {"role": "assistant", "content": f"cd {n}"}],
        "rejected": [*said, {"role": "assistant", "content": " spaced  out "}],
    }
    for n in range(4)
    for said in [
        [
            {"role": "user", "content": f"hello {n} ☃"},
            {"role": "assistant", "content": "yes?"},
            {"role": "user", "content": "ab abcd"},
        ]
    ]
]
PLAIN = [{"text": f"a text of its own, {n}"} for n in range(3)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), CHATML)


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("base"))


def examples_of(*stores: LabelStore) -> Examples:
    told = {"labels": [store.uri for store in stores], "objective": "sft"}
    return find_examples(TrainConfig.model_validate({"train": told, "sft": {"select": "all"}}))


def reader_of(examples: Examples, policy: Path, hold: int = 8) -> RowReader:
    return RowReader(examples.sources, examples.parts, ModelConfig(name=str(policy)), hold)


def labelled_tokens(
    store: LabelStore, model: Path, kind: type[Labeller] = Endogenous, **sections: Any
) -> dict[str, tuple[list[int], list[int]]]:
    """What the labeller itself tokenised, by id: prompt and response."""
    config = EvaluateConfig.model_validate({"model": {"name": str(model)}, **sections})
    labeller = kind(config, config.model)
    found = {}
    for stored in store.inputs():
        for shard, raw in read_shards(stored.file, stored.format, stored.plan.shards):
            prepared = labeller.prepare(shard, 0, raw, stored.shape)
            for turn, tokens in zip(prepared.turns, prepared.tokens, strict=True):
                found[turn.id] = (tokens.prompt_ids.tolist(), tokens.response_ids.tolist())
    return found


RUBRICS = 'kind = "Be kind."\nbrief = "Be brief, ab."\n'
NO_SYSTEM = CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")


@pytest.mark.parametrize(
    ("corpus", "template", "tokens"),
    [
        (BARE, CHATML, {}),
        (TALK, CHATML, {}),
        (BARE, None, {}),
        (TALK, None, {}),
        (PLAIN, None, {}),
        (PLAIN, CHATML, {"template": "none"}),
        (BARE, None, {"append_eos": False}),
        (BARE, CHATML, {"system_prompt": "Be brief."}),
        (BARE, None, {"system_prompt": "Be brief."}),
        (TALK, None, {"system_prompt": "Be brief."}),
        (BARE, NO_SYSTEM, {"system_prompt": "Be brief."}),
        (BARE, CHATML, {"rubrics": RUBRICS}),
        (TALK, None, {"rubrics": RUBRICS}),
        (TALK, CHATML, {"over_length": "cut_prompt", "max_length": 40}),
        (TALK, None, {"over_length": "cut_prompt", "max_length": 20}),
        (BARE, None, {"over_length": "cut_prompt", "max_length": 12}),
        (TALK, CHATML, {"over_length": "cut_response", "max_length": 64}),
        (TALK, CHATML, {"template": CHATML.replace("im_start", "im_end")}),
    ],
)
def test_rows_are_the_tokens_that_were_labelled(
    tmp_path: Path, corpus: list[dict[str, Any]], template: str | None, tokens: dict[str, Any]
) -> None:
    """Whatever the store was made with, told by nothing but the store and the tokenizer."""
    trained = save_model(tmp_path / "model", template)
    if "rubrics" in tokens:
        (tmp_path / "rubrics.toml").write_text(RUBRICS)
        tokens = {**tokens, "rubrics": str(tmp_path / "rubrics.toml")}
    if "m in messages" in tokens.get("template", ""):
        (tmp_path / "template.jinja").write_text(tokens["template"])
        tokens = {**tokens, "template": str(tmp_path / "template.jinja")}
    sections = {"tokens": tokens, "input": {"turns": "all"}}
    store = label_store(tmp_path / "store", trained, corpus, **sections)
    expected = labelled_tokens(store, trained, **sections)
    for name in ("rubrics.toml", "template.jinja"):
        (tmp_path / name).unlink(missing_ok=True)
    examples = examples_of(store)
    found = reader_of(examples, trained).read(examples, np.arange(len(examples.rows)))
    assert {row.id: (row.prompt_ids.tolist(), row.response_ids.tolist()) for row in found} == expected
    assert [len(row.prompt_ids) for row in found] == examples.prompt_tokens.tolist()
    assert [len(row.response_ids) for row in found] == examples.tokens.tolist()
    assert [row.reward for row in found] == examples.rewards.tolist()
    stored = {row["id"]: row for row in pq.read_table(f"{store.uri}/labels").to_pylist()}
    assert any(row["truncated"] for row in stored.values()) == ("max_length" in tokens)
    for row in found:
        kept = stored[row.id]
        for column, name in ((row.logprobs, "logprobs"), (row.values, "values"), (row.token_rewards, "rewards")):
            assert column is not None and column.dtype == np.float32
            np.testing.assert_array_equal(column, np.float32(kept[f"token_{name}"]))


@pytest.mark.parametrize("kind", [Verifier, Classified])
def test_rewards_of_whole_responses_have_no_columns_of_tokens(
    tmp_path: Path, model: Path, kind: type[Labeller]
) -> None:
    """A verifier's responses are plain text, a classifier's are rendered to the template's end."""
    store = label_store(tmp_path / "store", model, BARE, kind=kind)
    examples = examples_of(store)
    found = reader_of(examples, model).read(examples, np.arange(len(examples.rows)))
    expected = labelled_tokens(store, model, kind)
    assert {row.id: (row.prompt_ids.tolist(), row.response_ids.tolist()) for row in found} == expected
    assert all(row.logprobs is row.values is row.token_rewards is None for row in found)


def rewritten(store: LabelStore, **columns: Any) -> None:
    """Puts something else into the columns of each part; a function of the row's own value."""
    for path in Path(store.uri, "labels").iterdir():
        table = pq.read_table(path)
        for name, change in columns.items():
            values = pa.array([change(value) for value in table[name].to_pylist()], table.schema.field(name).type)
            table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), values)
        pq.write_table(table, path)


def test_sampled_answers_need_not_be_cut_as_a_tokenizer_cuts_them(tmp_path: Path, model: Path) -> None:
    """`abcd` is one token when it is read; a policy may write it in four, without an end, or write nothing at all."""
    store = label_store(tmp_path / "store", model, [{"prompt": "q", "response": "abcd"}])
    tok = tokenizer(CHATML)
    letters = tok.convert_tokens_to_ids(list("abcd"))
    rewritten(store, token_ids=lambda ids: letters, num_tokens=lambda n: 4)
    examples = examples_of(store)
    [row] = reader_of(examples, model).read(examples, [0])
    assert row.response_ids.tolist() == letters and tok.decode(row.prompt_ids.tolist()).endswith("assistant\n")
    rewritten(store, token_ids=lambda ids: letters[:3], truncated=lambda cut: True)
    assert reader_of(examples, model).read(examples, [0])[0].response_ids.tolist() == letters[:3]
    rewritten(store, token_ids=lambda ids: [tok.eos_token_id], response=lambda text: "", truncated=lambda cut: False)
    assert reader_of(examples, model).read(examples, [0])[0].response_ids.tolist() == [tok.eos_token_id]
    assert rows_module.KINDS["policy"] is MathsAnswerer
    sampled = {**store.description(), "labeller": "policy", "model.max_length": 3}
    assert stored_renderer(tok, sampled).max_length > 10**6


def test_parts_are_kept_as_far_as_told(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = label_store(tmp_path / "store", model, BARE, shard_rows=1)
    examples = examples_of(store)
    opened: list[str] = []
    real = rows_module.read_columns

    def counted(uri: str, columns: list[str]) -> pa.Table:
        opened.append(uri)
        return real(uri, columns)

    monkeypatch.setattr(rows_module, "read_columns", counted)
    reader = reader_of(examples, model, hold=2)
    everything = np.arange(len(examples.rows))
    first = [row.id for row in reader.read(examples, everything)]
    assert len(opened) == len(set(opened)) == 5  # once in a call, however many are held
    backwards = [row.id for row in reader.read(examples, everything[::-1])]
    assert backwards == first[::-1] and len(opened) == 10
    for _ in range(3):
        reader.read(examples, [8, 6, 9, 7])
    assert len(opened) == 10  # the last two are held
    reader.read(examples, [0])
    reader.read(examples, [9])
    assert len(opened) == 11
    for position in (2, 9):  # the part of 0 makes room: that of 9 was used after it
        reader.read(examples, [position])
    assert len(opened) == 12
    held, kept = examples.take([3, 0]), reader_of(examples.take([3, 0]), model)
    assert [row.id for row in kept.read(held, [1, 0, 2])] == [first[i] for i in (7, 6, 0)]


def refused(examples: Examples, policy: Path, count: int = 64) -> str:
    with pytest.raises(ConfigError) as error:
        check_rows(reader_of(examples, policy), examples, count)
    return str(error.value)


def test_another_tokenizer_is_refused(tmp_path: Path, model: Path) -> None:
    store = label_store(tmp_path / "store", model, BARE)
    examples = examples_of(store)
    check_rows(reader_of(examples, model), examples)
    words = save_bigram(tmp_path / "words", {"a": "b"}, "what is ab no")
    said = refused(examples, words)
    assert "is outside the vocabulary" in said and store.uri in said and "train a policy that has the tokenizer" in said
    marked = save_model(tmp_path / "marked", CHATML)
    tokenizer(CHATML, bos=True).save_pretrained(marked)
    plain = examples_of(label_store(tmp_path / "plain", model, BARE, tokens={"template": "none"}))
    said = refused(plain, marked)
    assert "row plain.jsonl:0:chosen:0:0: its prompt has 11 tokens in the labels and 12 or " in said
    assert "not the one that the labels were made with" in said
    swapped = save_model(tmp_path / "swapped", CHATML)
    swap(swapped, "a", "n")
    said = refused(examples, swapped)
    assert "a policy whose vocabulary differs from the stored token ids" in said and "its prompt's tokens read" in said
    as_format_1(store)
    said = refused(examples_of(store), swapped)
    assert "a policy whose vocabulary differs from the stored token ids" in said and "and its text is" in said


def swap(folder: Path, left: str, right: str) -> None:
    """Exchanges two tokens of a saved tokenizer: texts have as many tokens as before, and other ones."""
    saved = transformers.AutoTokenizer.from_pretrained(folder).backend_tokenizer.to_str()
    content = json.loads(saved)
    words = content["model"]["vocab"]
    words[left], words[right] = words[right], words[left]
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(content))


def test_a_context_that_is_too_short_is_refused_by_the_longest_row(tmp_path: Path, model: Path) -> None:
    corpus = [*({"prompt": "q", "response": f"{n}"} for n in range(99)), {"prompt": "q", "response": "no" * 60}]
    corpus.insert(50, corpus.pop())
    examples = examples_of(label_store(tmp_path / "store", model, corpus, shard_rows=50))
    short = save_model(tmp_path / "short", CHATML, context=100)
    assert "row store.jsonl:50:response:0:0" in (said := refused(examples, short, 2))
    assert "takes 100; label with tokens.max_length = 100" in said


def test_a_damaged_part_says_where(tmp_path: Path, model: Path) -> None:
    store = label_store(tmp_path / "store", model, BARE)
    examples = examples_of(store)
    Path(examples.parts[1].uri).write_bytes(b"PAR1 and no more")
    with pytest.raises(StoreError, match=r"cannot be read.*endoreward validate"):
        reader_of(examples, model).read(examples, np.arange(len(examples.rows)))


def test_the_reference_is_stored_where_the_policy_labelled(tmp_path: Path, model: Path, base_model: Path) -> None:
    [source] = examples_of(label_store(tmp_path / "store", model, BARE)).sources
    moved = save_model(tmp_path / "moved", CHATML)  # the same weights at another place
    assert stored_reference([source], ModelConfig(name=str(moved)), "float32") == (True, [])
    same, notes = stored_reference([source], ModelConfig(name=str(model)), "bfloat16")
    assert same and "made in float32; the policy computes in bfloat16" in notes[0]
    other = save_model(tmp_path / "other", CHATML, seed=1)
    assert stored_reference([source], ModelConfig(name=str(other)), "float32") == (False, [])
    [judged] = examples_of(label_store(tmp_path / "judged", model, BARE, kind=Verifier)).sources
    assert stored_reference([judged], ModelConfig(name=str(model)), "float32") == (False, [])
    assert stored_reference([source, judged], ModelConfig(name=str(model)), "float32") == (False, [])
    hub = {"model.name": "org/name", "model.revision": "v1", "model.dtype": "float32"}
    named = replace_description(source, hub)
    assert stored_reference([named], ModelConfig(name="org/name", revision="v1"), "float32") == (True, [])
    assert stored_reference([named], ModelConfig(name="org/name", revision="v2"), "float32") == (False, [])
    assert stored_reference([named], ModelConfig(name=str(model)), "float32") == (False, [])


def replace_description(source: Any, model: dict[str, Any]) -> Any:
    kept = {name: value for name, value in source.description.items() if not name.startswith("model.")}
    return source._replace(description=kept | model)
