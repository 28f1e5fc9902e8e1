"""Sampling in this process, as a worker does it, and what `label` makes of the rows that come out."""

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny import CHATML, save_bigram, save_model

from jobs.sample.run import check_names, is_written, samples_name, write_samples
from pipeline.config import InputConfig, LabelConfig, SampleConfig, load_config_as
from pipeline.corpus import FilePlan, InputFile, Shard, Shards, detect, turns
from pipeline.corpus.samples import Turn
from pipeline.corpus.shapes import SAMPLED
from pipeline.errors import ConfigError, InputError, RowError, RunError, StoreError
from pipeline.models.generation import Generator
from pipeline.models.loading import load_model
from pipeline.models.questions import Completion
from pipeline.rewards.labellers import Endogenous, PromptSampler
from pipeline.rewards.labellers.prompts import prompt_shape, sampled
from pipeline.store import LabelStore, StoredInput, commit, fingerprint, shard_name
from pipeline.store.schema import Failure, Label, labels_table

Row = dict[str, Any]


def configured(model: Path, *, tokens: Row | None = None, **sample: Any) -> SampleConfig:
    return SampleConfig.model_validate({"model": {"name": str(model)}, "sample": sample, "tokens": tokens or {}})


def ran(
    config: SampleConfig, rows: Sequence[Row], numbers: Sequence[int] | None = None, budget: int = 16384
) -> tuple[list[Label], list[Failure]]:
    """Labels and failures of some rows of one file, which are all of it unless `numbers` says which they are."""
    labeller = PromptSampler(config, config.model)
    shape = prompt_shape(rows, config.input, "a.jsonl")
    shard = Shard("a.jsonl", 0, 0, len(rows), len(rows), "0" * 64, 0, 10)
    prepared = labeller.prepare(shard, 0, list(zip(numbers or range(len(rows)), rows, strict=True)), shape)
    generator = Generator(
        load_model(config.model, "cpu"),
        labeller.renderer.tokenizer,
        **labeller.drawn.model_dump(include={"max_new_tokens", "temperature", "top_p"}),
        budget_tokens=budget,
        eos_token_ids=labeller.renderer.end_tokens(),
    )
    return labeller.finish(prepared, generator.generate(prepared.requests))


def texts(found: tuple[list[Label], list[Failure]]) -> dict[str, str]:
    return {label.id: label.response for label in found[0]}


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("chat"), CHATML)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("base"))


PROMPTS = [{"prompt": text} for text in ("What is it?", "ab", "a longer question, abcd abcd", "ab")]


def test_greedy_responses_are_those_of_transformers(chat: Path) -> None:
    labels, failures = ran(configured(chat, num_responses=1, temperature=0, max_new_tokens=12), PROMPTS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(chat)
    model = transformers.AutoModelForCausalLM.from_pretrained(chat)
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    for label, row in zip(labels, PROMPTS, strict=True):
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True, return_tensors="pt"
        )
        out = model.generate(**asked, do_sample=False, max_new_tokens=12, eos_token_id=ends, pad_token_id=0)
        made = out[0, asked["input_ids"].shape[1] :].tolist()
        assert list(label.token_ids) == made
        assert label.response == tokenizer.decode(made, skip_special_tokens=True)
        assert label.truncated == (made[-1] not in ends) and label.reward == float(not label.truncated)
    assert not failures


def test_texts_follow_from_seed_and_row_alone(chat: Path) -> None:
    config = configured(chat, num_responses=4, max_new_tokens=8)
    want = texts(ran(config, PROMPTS))
    assert list(want) == [f"a.jsonl:{row}:response:{i}:0" for row in range(4) for i in range(4)]
    alone = [texts(ran(config, [row], [number])) for number, row in enumerate(PROMPTS)]
    assert {name: text for each in alone for name, text in each.items()} == want
    assert texts(ran(config, PROMPTS, budget=60)) == want
    fewer = texts(ran(configured(chat, num_responses=2, max_new_tokens=8), PROMPTS))
    assert fewer.items() < want.items()
    other = texts(ran(configured(chat, num_responses=4, max_new_tokens=8, seed=1), PROMPTS))
    assert len({*want.values()} | {*other.values()}) == 32  # siblings, equal prompts of two rows, seeds: all their own


def test_samples_are_distributed_as_the_policy(tmp_path: Path) -> None:
    """A model whose next word depends on the last alone: every response of up to two tokens, enumerated in float64."""
    model = save_bigram(tmp_path / "policy", {"go": "left", "left": "right"}, "up")
    count, temperature = 2000, 4.0
    labels, _ = ran(
        configured(model, num_responses=count, temperature=temperature, max_new_tokens=2), [{"prompt": "go"}]
    )
    counts = Counter(tuple(label.token_ids) for label in labels)
    weights = transformers.AutoModelForCausalLM.from_pretrained(model).lm_head.weight.double()
    scale = math.sqrt(weights.shape[1])  # a one-hot state, normalised to a root mean square of 1
    p = torch.softmax(scale * weights / temperature, 0).detach()  # [next, last]
    go = transformers.AutoTokenizer.from_pretrained(model).convert_tokens_to_ids("go")
    end, vocabulary = 1, range(len(p))
    expected = {(end,): float(p[end, go])}
    for first, second in itertools.product(vocabulary, vocabulary):
        if first != end:
            expected[first, second] = float(p[first, go] * p[second, first])
    assert sum(expected.values()) == pytest.approx(1, abs=1e-5) and set(counts) <= set(expected)
    for response, share in expected.items():
        assert abs(counts[response] - count * share) <= 4.5 * math.sqrt(count * share * (1 - share)) + 1, response
    finished = sum(count * share for response, share in expected.items() if response[-1] == end)
    assert sum(label.reward for label in labels) == pytest.approx(finished, abs=4.5 * math.sqrt(count) / 2)
    assert max(expected.values()) < 0.5  # it is a distribution, not one answer


def test_a_prompt_too_long_is_an_error_row_and_the_last_that_fits_is_answered(tmp_path: Path) -> None:
    model = save_bigram(tmp_path / "short", {"go": "left"}, context=8)
    rows: list[Row] = [{"prompt": " ".join(["go"] * words)} for words in (1, 7, 8, 20)]
    rows += [{"prompt": None}]
    labels, failures = ran(configured(model, num_responses=2, max_new_tokens=4), rows)
    assert [(label.prompt_id, label.response_index) for label in labels] == [
        ("a.jsonl:0", 0), ("a.jsonl:0", 1), ("a.jsonl:1", 0), ("a.jsonl:1", 1),
    ]  # fmt: skip
    assert max(len(label.token_ids) for label in labels if label.prompt_id == "a.jsonl:1") == 1
    assert {failure.prompt_id: failure.reason for failure in failures} == {
        "a.jsonl:2": "prompt_too_long", "a.jsonl:3": "prompt_too_long", "a.jsonl:4": "null",
    }  # fmt: skip
    shorter = configured(model, num_responses=1, tokens={"max_length": 7})
    assert [failure.row for failure in ran(shorter, rows)[1]] == [1, 2, 3, 4]


USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be brief."}
PAIR = {"chosen": [USER, ASSISTANT], "rejected": [USER, {"role": "assistant", "content": "No"}]}
CORPORA: dict[str, tuple[Row, Any, Row]] = {  # a row, its prompt, and what else comes out
    "prompt alone": ({"prompt": "Hi"}, "Hi", {}),
    "an answer that is no response": ({"prompt": "Hi", "answer": "3"}, "Hi", {"answer": "3"}),
    "an answer that is a number": ({"problem": "Hi", "answer": 3.5}, "Hi", {"answer": 3.5}),
    "question": ({"question": "Hi", "level": 2}, "Hi", {"level": 2}),
    "text pair": (
        {"prompt": "Hi", "chosen": "a", "rejected": "b"}, "Hi", {"input_chosen": "a", "input_rejected": "b"},
    ),
    "pair that carries its prompt": (PAIR, [USER], {f"input_{name}": value for name, value in PAIR.items()}),
    "transcripts": (
        {"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Hi\n\nAssistant: b"}, [USER],
        {"input_chosen": "\n\nHuman: Hi\n\nAssistant: a", "input_rejected": "\n\nHuman: Hi\n\nAssistant: b"},
    ),
    "messages as prompt": ({"prompt": [SYSTEM, USER], "response": "x"}, [SYSTEM, USER], {"input_response": "x"}),
    "conversation": ({"messages": [USER, ASSISTANT]}, [USER], {"input_response": "Hello"}),
    "conversation that waits": ({"messages": [USER, ASSISTANT, USER]}, [USER, ASSISTANT, USER], {}),
    "instruction": ({"instruction": "Add", "input": "1 2", "output": "3"}, "Add\n\n1 2", {"output": "3"}),
    "system before text": ({"prompt": "Hi", "system": "Be brief."}, "Hi", {"system": "Be brief."}),
    "system before messages": ({"messages": [USER], "system": "Be brief."}, [SYSTEM, USER], {}),
    "system already": ({"prompt": [SYSTEM, USER], "system": "Other."}, [SYSTEM, USER], {"input_system": "Other."}),
    "sampled before": (
        {"prompt": "Hi", "responses": ["a"], "truncated": [False], "input_responses": 1}, "Hi",
        {"input_input_responses": ["a"], "input_truncated": [False], "input_responses": 1},
    ),
    "empty": ({"prompt": "", "completion": "x"}, "", {"completion": "x"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CORPORA)
@pytest.mark.parametrize("kind", ["chat", "base"])
def test_label_sees_the_prompt_that_was_sampled(name: str, kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    row, prompt, other = CORPORA[name]
    config = configured(model, num_responses=3, max_new_tokens=6)
    labels, failures = ran(config, [row])
    assert not failures
    [samples] = sampled(labels_table(labels))
    out = json.loads(json.dumps(samples.row))
    tokens = {name: out.pop(name) for name in SAMPLED}
    assert out.pop("prompt") == prompt and len(out.pop("responses")) == len(out.pop("truncated")) == 3 and out == other
    shape = detect([samples.row], InputConfig(), "samples")
    assert shape.prompt == "prompt" and shape.responses == (("responses", None),)
    asked = PromptSampler(config, config.model).prepare(
        Shard("a.jsonl", 0, 0, 1, 1, "0" * 64, 0, 10), 0, [(0, row)], prompt_shape([row], InputConfig(), "a.jsonl")
    )
    renderer = Endogenous(LabelConfig(model=config.model), config.model).renderer
    seen = [renderer.tokenize(turn) for turn in turns(shape.normalise("samples", 0, samples.row))]
    assert [each.prompt_ids.tolist() for each in seen] == [asked.requests[0].prompt_ids] * len(seen) and seen
    assert tokens["prompt_token_ids"] == seen[0].prompt_ids.tolist() and tokens["rendering"] == renderer.identity
    assert tokens["response_token_ids"] == [list(label.token_ids) for label in labels]


def test_the_space_of_a_transcript_is_not_said_twice(base: Path) -> None:
    """Without a template a conversation ends in `Assistant:`, and label puts a space before the response itself."""
    config = configured(base, num_responses=1)
    labeller = PromptSampler(config, config.model)
    for row, said in (({"messages": [USER]}, "Hello"), ({"prompt": "Hi"}, " Hello")):
        shape = prompt_shape([row], config.input, "a.jsonl")
        prepared = labeller.prepare(Shard("a.jsonl", 0, 0, 1, 1, "0" * 64, 0, 10), 0, [(0, row)], shape)
        ids = labeller.renderer.tokenizer(" Hello</s>")["input_ids"]
        [label], _ = labeller.finish(prepared, [[Completion(" Hello", ids, True)]])
        assert label.response == said
        [samples] = sampled(labels_table([label]))
        [turn] = turns(detect([samples.row], InputConfig()).normalise("a", 0, samples.row))
        assert scored_tokens(config, turn) == ids


def scored_tokens(config: SampleConfig, turn: Turn) -> list[int]:
    """The tokens that `label` scores of a turn."""
    return Endogenous(LabelConfig(model=config.model), config.model).renderer.tokenize(turn).response_ids.tolist()


@pytest.mark.parametrize(
    ("row", "keys", "said"),
    [
        ({"text": "plain"}, {}, "no column is known to hold a prompt; columns: text"),
        ({"foo": "x", "n": 1}, {}, "--set input.prompt_key=foo"),
        ({"prompt": 3}, {}, "no column is known to hold a prompt"),
        ({"prompt": "x"}, {"prompt_key": "ask"}, "there is no column 'ask'"),
    ],
)
def test_a_corpus_without_prompts_is_refused(row: Row, keys: Row, said: str) -> None:
    with pytest.raises(InputError, match=r"a\.jsonl") as error:
        prompt_shape([row], InputConfig(**keys), "a.jsonl")
    assert said in str(error.value)


def test_a_key_names_the_prompt() -> None:
    rows = [{"prompt": "no", "ask": {"text": None}}, {"prompt": "no", "ask": {"text": "yes"}}]
    shape = prompt_shape(rows, InputConfig(prompt_key="ask.text"), "a")
    assert shape.describe() == "ask.text (text)"
    assert shape.normalise("a", 1, rows[1]).prompt == [{"role": "user", "content": "yes"}]


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("reward.gamma=0.5", "sampling gives no reward"),
        ("sample.temperature=0", "num_responses = 8 of greedy responses are all the same"),
        ("tokens.rubrics=r.toml", "tokens.system_prompt"),
        ("sample.num_responses=0", "sample.num_responses"),
    ],
)
def test_what_has_no_meaning_is_refused(assignment: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config_as(SampleConfig, None, [], [assignment])
    assert said in str(error.value)


# The files


@pytest.fixture
def stored(chat: Path, tmp_path: Path) -> tuple[LabelStore, list[Row]]:
    """A store of two input files, in two shards and one, filled with rows that are hard to write."""
    rows: list[Row] = [
        {"prompt": "Hi"},
        {"prompt": [USER], "note": "half \ud800 a character"},
        {"prompt": "line\nbreak \u2028", "answer": 1.5},
        {"prompt": "zwölf"},
        {"prompt": None},
    ]
    config = configured(chat, num_responses=2, max_new_tokens=4)
    labeller = PromptSampler(config, config.model)
    generator = Generator(
        load_model(config.model, "cpu"), labeller.renderer.tokenizer, max_new_tokens=4, temperature=1.0
    )
    description = labeller.describe("float32")
    store = LabelStore(str(tmp_path / "out/_store"))
    store.open_for_writing(description)
    for file, cuts in (("b/x.parquet", (0, 2, 3)), ("a.jsonl", (3, 5))):
        shards = tuple(
            Shard(file, i, start, stop, stop - start, "0" * 64, 0, 10)
            for i, (start, stop) in enumerate(itertools.pairwise(cuts))
        )
        shape = prompt_shape(rows, config.input, file)
        plan = FilePlan(file, cuts[-1] - cuts[0], "0" * 64, Shards.of(file, shards))
        store.add_input(StoredInput(InputFile(file, f"/{file}", 1, 1), "auto", shape, plan))
        for shard in shards:
            prepared = labeller.prepare(shard, 0, list(enumerate(rows))[shard.start : shard.stop], shape)
            labels, failures = labeller.finish(prepared, generator.generate(prepared.requests))
            commit(store.uri, shard, fingerprint.digest(description), 0, labels, failures)
    return store, rows


def read(output: Path) -> Iterator[Row]:
    for file in sorted(output.glob("samples-*.jsonl")):
        yield from map(json.loads, file.read_bytes().removesuffix(b"\n").split(b"\n"))


def test_the_files_hold_every_prompt_once_in_its_inputs_order(
    stored: tuple[LabelStore, list[Row]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, rows = stored
    output = tmp_path / "out"
    assert not is_written(store, str(output))
    summary = write_samples(store, str(output))
    assert is_written(store, str(output))
    (output / "samples-00000-a.jsonl").unlink()  # as if the run had been stopped on the way
    assert not is_written(store, str(output))
    write_samples(store, str(output))
    record = next(iter(store.records()))
    Path(store.at("records", f"{shard_name(record.shard)}.json")).rename(tmp_path / "aside")
    assert not is_written(store, str(output))  # another content
    unfinished = "samples-00000-" + record.shard.file.replace("/", "-")
    assert not any(name.startswith(unfinished) for name in write_samples(store, str(output)).files)
    (tmp_path / "aside").rename(store.at("records", f"{shard_name(record.shard)}.json"))
    assert write_samples(store, str(output)) == summary
    assert summary.files == ["samples-00000-a.jsonl", "samples-00000-b-x.parquet.jsonl"]
    found = list(read(output))
    assert [{k: v for k, v in row.items() if k not in ("responses", "truncated", *SAMPLED)} for row in found] == [
        rows[3], rows[0], rows[1], rows[2],
    ]  # fmt: skip
    assert [getattr(summary, name) for name in ("prompts", "responses")] == [4, 8] and summary.errors == {"null": 1}
    assert summary.cut_off == sum(sum(row["truncated"]) for row in found)
    assert summary.distinct == sum(len(set(row["responses"])) for row in found)
    before = {path.name: path.read_bytes() for path in output.glob("*.json*")}
    assert write_samples(store, str(output)) == summary
    assert {path.name: path.read_bytes() for path in output.glob("*.json*")} == before
    monkeypatch.setattr("jobs.sample.run.FILE_BYTES", 1)
    smaller = write_samples(store, str(output))
    assert len(smaller.files) == 4 and next(read(output)) == found[0]
    assert sorted(map(str, read(output))) == sorted(map(str, found))  # the larger files are gone
    assert samples_name("b/x.parquet", 2) in smaller.files


def test_samples_that_no_run_wrote_stay(stored: tuple[LabelStore, list[Row]], tmp_path: Path) -> None:
    store, output = stored[0], tmp_path / "out"
    mine = output / "samples-00007-mine.jsonl"
    mine.write_text("mine")
    write_samples(store, str(output))
    (output / "_samples.json").unlink()  # as if killed before there was one, by a version that wrote it last
    write_samples(store, str(output))
    assert mine.read_text() == "mine" and is_written(store, str(output))
    (output / "_samples.json").unlink()
    first = output / "samples-00000-a.jsonl"
    first.write_text("theirs")
    with pytest.raises(StoreError, match=r"samples-00000-a\.jsonl is in the way"):
        write_samples(store, str(output))
    assert first.read_text() == "theirs"
    first.unlink()
    write_samples(store, str(output))
    assert is_written(store, str(output))


def test_a_store_without_one_response_is_a_failed_run(chat: Path, tmp_path: Path) -> None:
    config = configured(chat)
    labeller = PromptSampler(config, config.model)
    store = LabelStore(str(tmp_path / "_store"))
    store.open_for_writing(labeller.describe("float32"))
    shard = Shard("a.jsonl", 0, 0, 1, 1, "0" * 64, 0, 10)
    shape = prompt_shape([{"prompt": "x"}], config.input, "a.jsonl")
    plan = FilePlan("a.jsonl", 1, "0" * 64, Shards.of("a.jsonl", [shard]))
    store.add_input(StoredInput(InputFile("a.jsonl", "/a.jsonl", 1, 1), "auto", shape, plan))
    prepared = labeller.prepare(shard, 0, [(0, RowError("not_json", "the line is not JSON"))], shape)
    commit(store.uri, shard, "f", 0, *labeller.finish(prepared, []))
    with pytest.raises(RunError, match="not_json 1"):
        write_samples(store, str(tmp_path))
    assert not list(tmp_path.glob("samples-*"))


def test_samples_of_two_inputs_do_not_share_a_name() -> None:
    check_names([InputFile(name, f"/{name}", 1, 1) for name in ("a.jsonl", "b/a.jsonl", "a.json")])
    with pytest.raises(InputError, match=r"b/a\.jsonl and of b-a\.jsonl"):
        check_names([InputFile(name, f"/{name}", 1, 1) for name in ("b/a.jsonl", "b-a.jsonl")])
