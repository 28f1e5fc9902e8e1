"""The real corpora beside the checkout, in the formats their authors publish."""

import gzip
import json
from pathlib import Path

import pytest

from pipeline.config import InputConfig
from pipeline.corpus import detect, find_files, plan_file, read_shards, turns
from pipeline.errors import InputError

DATA = Path(__file__).parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"the corpora are not at {DATA}")

CORPORA = {
    "rm-bench/chat_filtered.json": ("prompt + chosen + rejected (text, 3 each)", 129, 774),
    "rm-bench/code_filtered.json": ("prompt + chosen + rejected (text, 3 each)", 228, 1368),
    "dsp/domain_specific_preference.test.json": ("query + responses (text by name, 5)", 661, 3305),
    "hh-rlhf/harmless-base-test.jsonl.gz": (
        "chosen + rejected (transcripts that carry the prompt, 1 each)", 2312, 4624,
    ),
    "dpo-demo/dpo_en_demo.json": ("conversations + chosen + rejected (messages, 1 each)", 300, 600),
    "soda-chat/preferences.jsonl": ("prompt + chosen + rejected (messages, 1 each)", 400, 800),
    "gsm8k/train.jsonl": ("question + answer (text, 1)", 7473, 7473),
    "tinystories/stories.jsonl": ("text (text, 1)", 1500, 1500),
}  # fmt: skip


def load(path):
    """Independently of the code under test."""
    data = path.read_bytes()
    data = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    try:
        return json.loads(data)
    except ValueError:
        return [json.loads(line) for line in data.split("\n") if line]


@pytest.mark.parametrize("name", CORPORA)
def test_a_published_corpus_needs_no_key(name):
    description, num_rows, num_responses = CORPORA[name]
    (file,) = find_files([str(DATA / name)])
    plan = plan_file(file)
    assert plan.rows == num_rows
    shape = detect(plan.head, InputConfig(), file.name)
    assert shape.describe() == description
    rows = [row for _, rows in read_shards(file, "auto", plan.shards) for row in rows]
    assert [row for _, row in rows] == load(DATA / name)
    samples = [shape.normalise(file.name, number, row) for number, row in rows]
    assert sum(len(sample.responses) + len(sample.failed) for sample in samples) == num_responses
    assert {failure.error.reason for sample in samples for failure in sample.failed} <= {"empty_response"}
    ids = [turn.id for sample in samples for turn in turns(sample)]
    assert len(set(ids)) == len(ids) == num_responses - sum(len(sample.failed) for sample in samples)


def test_transcripts_are_taken_apart_without_loss():
    (file,) = find_files([str(DATA / "hh-rlhf/harmless-base-test.jsonl.gz")])
    plan = plan_file(file, shard_rows=100)
    shape = detect(plan.head, InputConfig())
    _, rows = next(read_shards(file, "auto", plan.shards[:1]))
    for number, row in rows:
        for turn in turns(shape.normalise(file.name, number, row)):
            messages = [*turn.prompt, {"role": "assistant", "content": turn.response}]
            names = {"user": "Human", "assistant": "Assistant"}
            text = "".join(f"\n\n{names[message['role']]}: {message['content']}" for message in messages)
            assert text.split() == row[turn.preference].split()


def test_model_solutions_are_explained_and_load_with_keys():
    (file,) = find_files([str(DATA / "gsm8k/example_model_solutions.jsonl")])
    plan = plan_file(file)
    with pytest.raises(InputError) as raised:
        detect(plan.head, InputConfig(), file.name)
    for said in ("175b_finetuning.solution", "input.prompt_key=question", "input.response_key=6b_finetuning.solution"):
        assert file.name in str(raised.value) and said in str(raised.value)
    models = ["6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"]
    config = InputConfig(prompt_key="question", response_key=[f"{model}.solution" for model in models])
    shape = detect(plan.head, config, file.name)
    sample = shape.normalise(file.name, 0, plan.head[0])
    assert [response.extra["response_key"] for response in sample.responses] == config.response_key
    assert sample.extra["175b_verification"] == {"is_correct": True} and "ground_truth" in sample.extra


def test_the_whole_folder_is_one_input():
    files = find_files([str(DATA)])
    assert set(CORPORA) | {"gsm8k/example_model_solutions.jsonl"} == {file.name for file in files}
