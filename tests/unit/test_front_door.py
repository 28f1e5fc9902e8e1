"""What `import endoreward` gives: the numbers of `label`, and errors that say where."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from label_stores import label_store
from tiny import CHATML, save_model

import endoreward
from pipeline.rewards.derive import relabel
from pipeline.store import documents

CHAT = [
    {"messages": [{"role": "user", "content": "ab?"}, {"role": "assistant", "content": f"cd {text}"}]}
    for text in ("a", "abcd", "dd")
]
UNCLEAR = [{"prompt": "a", "response_a": "b", "response_b": "c", "label": 1}]  # which is better is not guessed
PAIRS = [{"prompt": f"what {i}", "chosen": f"this {i}", "rejected": "that abcd " * (i + 1)} for i in range(5)]


@pytest.fixture(scope="module", params=["chat template", "plain text"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "m", CHATML if request.param == "chat template" else None)


def test_labels_are_those_of_the_label_command(model: Path, tmp_path: Path) -> None:
    """To the last bit, error rows and all: a store, made by the labeller on the same rows, has the same columns."""
    rows = [*PAIRS, {"prompt": "and", "chosen": "", "rejected": "not empty"}]
    reward = {"aggregation": "discounted_sum", "gamma": 0.9, "alpha": 2.0}
    label_store(tmp_path / "store", model, rows, reward=reward)
    stored, errors = endoreward.read_labels(tmp_path / "store"), endoreward.read_errors(tmp_path / "store")
    scorer = endoreward.Scorer.from_pretrained(model, device="cpu", reward=reward)
    results = scorer.label(rows, input={"shard_rows": 2}, on_error="return")
    scored = [each for each in results if isinstance(each, endoreward.ScoredResponse)]
    assert len(scored) == stored.num_rows == 11
    for one, row in zip(scored, stored.to_pylist(), strict=True):
        assert one.id == row["id"].replace("store.jsonl", "rows.jsonl")
        for name in ("reward", "preference", "response", "num_tokens", "token_ids", "prompt_token_ids", "extra_info"):
            assert getattr(one, name) == row[name], name
        for name in ("token_logprobs", "token_values", "token_rewards"):
            array = getattr(one, name)
            assert array.dtype == np.float32 and array.tolist() == row[name]
        assert len(one.tokens) == one.num_tokens and "".join(one.tokens).startswith(one.response)
    [error] = [each for each in results if isinstance(each, endoreward.RowError)]
    assert [error.reason] == errors["reason"].to_pylist() == ["empty_response"]
    assert error.detail.startswith("row 5, chosen 0: ")
    assert results.index(error) == 11  # behind the responses of its row


def test_rewards_of_a_response_are_those_of_aggregate(model: Path, tmp_path: Path) -> None:
    label_store(tmp_path / "store", model, PAIRS[:2])
    stored = endoreward.read_labels(tmp_path / "store")
    scored = endoreward.Scorer.from_pretrained(model, device="cpu").label(PAIRS[:2])
    for fields in ({"aggregation": "mean"}, {"aggregation": "discounted_sum", "gamma": 0.95}, {}):
        anew = relabel(stored, endoreward.RewardConfig(), endoreward.RewardConfig(**fields))
        for one, label in zip(scored, anew, strict=True):
            assert one.reward_under(**fields) == label.reward == one.rewards[fields.get("aggregation", "sum")]
    one = scored[0]
    assert endoreward.aggregate(one.token_rewards, one.token_values, one.config) == one.reward
    assert one.logprob == one.token_logprobs.astype(np.float64).sum()
    with pytest.raises(endoreward.ConfigError, match="another alpha than 1"):
        one.reward_under(alpha=2.0)
    with pytest.raises(endoreward.ConfigError, match=r"reward\.gama: no such field"):
        one.reward_under(gama=0.9)


def test_a_prompt_and_its_responses(model: Path) -> None:
    scorer = endoreward.Scorer.from_pretrained(model, device="cpu")
    one, several = scorer.score("ab?", "cd a"), scorer.score("ab?", ["cd a", "abcd"])
    assert isinstance(several, list) and [each.response for each in several] == ["cd a", "abcd"]
    np.testing.assert_allclose(one.token_rewards, several[0].token_rewards, rtol=1e-4)
    assert repr(one) == f"ScoredResponse(reward={one.reward:.4g}, {one.num_tokens} tokens, 'cd a')"
    assert repr(scorer).startswith(f"Scorer('{model}', float32 on cpu, packed, aggregation='sum'")
    if scorer.renderer.template is not None:
        assert scorer.score([{"role": "user", "content": "ab?"}], "cd a").token_ids == one.token_ids
        assert scorer.label(CHAT)[0].token_ids == one.token_ids
        ruled = endoreward.Scorer.from_pretrained(model, device="cpu", tokens={"system_prompt": "Be brief."})
        assert ruled.score("ab?", "cd a").prompt[0] == {"role": "system", "content": "Be brief."}
    assert scorer.score("ab?", []) == scorer.label([]) == []


def test_each_rubric_gives_a_score(model: Path, tmp_path: Path) -> None:
    (tmp_path / "rubrics.toml").write_text('brief = "Be brief."\nkind = "Be kind."\n')
    scorer = endoreward.Scorer.from_pretrained(model, device="cpu", tokens={"rubrics": str(tmp_path / "rubrics.toml")})
    assert [each.rubric for each in scorer.label([{"prompt": "ab?", "response": "cd"}])] == ["brief", "kind"]
    with pytest.raises(endoreward.ConfigError, match="use `label`, whose `rubric` says which"):
        scorer.score("ab?", "cd")


def test_a_model_of_ones_own(model: Path) -> None:
    import transformers

    own = transformers.AutoModelForCausalLM.from_pretrained(model, dtype="float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    scorer = endoreward.Scorer(own, tokenizer, reward={"aggregation": "mean"})
    loaded = endoreward.Scorer.from_pretrained(model, device="cpu", reward={"aggregation": "mean"})
    assert scorer.score("ab?", "cd").reward == loaded.score("ab?", "cd").reward
    assert repr(scorer).startswith("Scorer('LlamaForCausalLM', ")


def test_what_cannot_be_scored_says_where(model: Path) -> None:
    scorer = endoreward.Scorer.from_pretrained(model, device="cpu")
    with pytest.raises(endoreward.RowError, match="empty_response: response 1: the assistant's text is empty"):
        scorer.score("ab?", ["cd", ""])
    with pytest.raises(endoreward.RowError, match=r"empty_response: row 1, chosen 0: .* \(1 more cannot be scored; "):
        scorer.label([PAIRS[0], {**PAIRS[1], "chosen": ""}, {**PAIRS[2], "rejected": ""}])
    for rows, sentence in (
        (PAIRS[0], "rows is a single one"),
        (["ab"], "row 0 is str; a dict by column is due"),
        ([{"prompt": "a", "response": {1, 2}}], "row 0 holds what JSON cannot"),
        ([{"q": "a"}], "its columns do not say what is the prompt"),
        (UNCLEAR, r"input\.label_.* --set input\.x=value is input={'x': value}"),
    ):
        with pytest.raises(endoreward.ConfigError, match=sentence):
            scorer.label(rows)
    with pytest.raises(endoreward.ConfigError, match=r"input\.paths: has no effect on a list of rows"):
        scorer.label(PAIRS, input={"paths": ["a.jsonl"]})
    with pytest.raises(endoreward.ConfigError, match="score whole conversations by `label`"):
        scorer.score("ab?", CHAT)
    with pytest.raises(endoreward.ConfigError, match=r"(?s)tokens\.max_length: .*reward\.alpa: no such field"):
        endoreward.Scorer.from_pretrained(model, reward={"alpa": 1}, tokens={"max_length": 1})
    with pytest.raises(endoreward.ConfigError, match="there is no model folder /nowhere"):
        endoreward.Scorer.from_pretrained("/nowhere")


def test_only_committed_rows_are_read(model: Path, tmp_path: Path) -> None:
    store = label_store(tmp_path / "store", model, PAIRS)
    whole = endoreward.read_labels(store.uri)
    assert whole["prompt_id"].to_pylist() == [f"store.jsonl:{i}" for i in range(5) for _ in range(2)]
    first = next(iter(sorted(store.records(), key=lambda record: record.shard.index)))
    [record] = [path for path in Path(store.uri, "records").iterdir() if _shard_of(path) == first.shard.index]
    content = record.read_bytes()
    record.unlink()
    with pytest.warns(UserWarning, match="1 of 3 shards are missing; run the same `endoreward label`"):
        rest = endoreward.read_labels(store.uri, ["reward", "id"])
    assert rest.column_names == ["reward", "id"]
    assert rest.equals(whole.select(["reward", "id"]).slice(4))
    record.write_bytes(content)
    part = next(Path(store.uri, "labels").glob("*-000000.parquet"))
    pq.write_table(pq.read_table(part).slice(1), part)
    with pytest.raises(endoreward.StoreError, match=r"has 3 rows and its record 4; `endoreward validate`"):
        endoreward.read_labels(store.uri)
    part.unlink()
    with pytest.raises(endoreward.StoreError, match="cannot be read"):
        endoreward.read_labels(store.uri)
    with pytest.raises(endoreward.ConfigError, match="have no column rewards; there are id, "):
        endoreward.read_labels(store.uri, ["rewards"])
    with pytest.raises(endoreward.StoreError, match="is not a label store"):
        endoreward.read_labels(tmp_path)
    empty = endoreward.read_errors(store.uri)
    assert isinstance(empty, pa.Table) and not empty.num_rows and "reason" in empty.column_names


def _shard_of(record: Path) -> int | None:
    if record.name == "run.json" or record.name.startswith("input-"):
        return None
    return documents.read(str(record))["shard"]["index"]


def test_every_public_name_is_there() -> None:
    from endoreward import public

    assert endoreward.__all__ == public.__all__ == sorted(public.__all__)
    assert set(endoreward.__all__) <= set(dir(endoreward))
    for name in endoreward.__all__:
        assert getattr(endoreward, name) is getattr(public, name)
    with pytest.raises(AttributeError, match="no attribute 'Scorers'"):
        _ = endoreward.Scorers  # type: ignore[attr-defined]
