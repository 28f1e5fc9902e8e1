"""Rewards in OpenRLHF's and slime's shapes: the labels of `label` on the text as it was written."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import Client, described, served
from tiny import CHATML, save_model

import endoreward
from jobs.serve.frameworks import Standardiser

PROMPT = "<|im_start|>user\nab?<|im_end|>\n<|im_start|>assistant\n"
REWARD = {"aggregation": "discounted_sum", "gamma": 0.9}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "m", CHATML)


@pytest.fixture(scope="module")
def client(model: Path) -> Iterator[Client]:
    with served(described(model, reward=REWARD)) as client:
        yield client


@pytest.fixture(scope="module")
def written(model: Path) -> endoreward.Scorer:
    """`label` on text that no template is put around."""
    return endoreward.Scorer.from_pretrained(model, device="cpu", reward=REWARD, tokens={"template": "none"})


def of_label(scorer: endoreward.Scorer, prompt: str, response: str) -> float:
    return scorer.score(prompt, response).reward


def test_openrlhf_gets_the_labels_of_its_text(client: Client, written: endoreward.Scorer) -> None:
    pairs = [(PROMPT, "cd a"), (PROMPT, "abcd"), ("what", " abcd")]
    body = {"query": [p + r for p, r in pairs], "prompts": [p for p, _ in pairs], "labels": ["1", None, None]}
    answer = client.post("/get_reward", body).json
    labels = [written.score(prompt, response) for prompt, response in pairs]
    assert all(label.token_ids[-1] == written.renderer.tokenizer.eos_token_id for label in labels)
    np.testing.assert_allclose(answer["rewards"], [label.reward for label in labels], rtol=1e-5)
    means = [math.exp(label.logprob / label.num_tokens) for label in labels]
    np.testing.assert_allclose(answer["scores"], means, rtol=1e-5)
    assert answer["extra_logs"]["num_tokens"] == [label.num_tokens for label in labels]


def test_an_end_token_that_is_written_counts_once(client: Client, model: Path, written: endoreward.Scorer) -> None:
    """The tokenizer's, and the template's end of a turn, behind which nothing is put."""
    tokenizer = written.renderer.tokenizer
    for end, behind in (("", "</s>"), ("</s>", "</s>"), ("<|im_end|>", "<|im_end|>")):
        answer = client.post("/get_reward", {"query": [f"{PROMPT}cd a{end}"], "prompts": [PROMPT]}).json
        ids = [*tokenizer("cd a")["input_ids"], tokenizer.convert_tokens_to_ids(behind)]
        prompt_ids = tokenizer(PROMPT)["input_ids"]
        inputs = [{"prompt_token_ids": prompt_ids, "response_token_ids": [ids]}]
        [row] = client.post("/v1/rewards", {"inputs": inputs}).json["data"]
        assert answer["extra_logs"]["num_tokens"] == [len(ids)]
        assert answer["rewards"][0] == pytest.approx(row["reward"], rel=1e-5)
    with served(described(model, reward=REWARD, tokens={"append_eos": False})) as other:
        answer = other.post("/get_reward", {"query": [PROMPT + "cd a"], "prompts": [PROMPT]}).json
        assert answer["extra_logs"]["num_tokens"] == [len(tokenizer("cd a")["input_ids"])]
        assert other.post("/get_reward", {"query": [PROMPT], "prompts": [PROMPT]}).status == 422


def test_an_answer_that_ends_at_once_has_a_reward(client: Client) -> None:
    rewards = [
        client.post("/get_reward", {"query": [PROMPT + end], "prompts": [PROMPT]}).json["rewards"][0]
        for end in ("", "</s>", "<|im_end|>")
    ]
    assert rewards[0] == rewards[1] != rewards[2]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"query": ["ab"], "prompts": ["b"]}, "query 0 does not begin with its prompt"),
        ({"query": ["ab", "c"], "prompts": ["a"]}, "2 queries and 1 prompts"),
        ({"query": [], "prompts": []}, "query: List should have at least 1 item"),
        ({"query": "ab", "prompts": ["a"]}, "query: Input should be a valid list"),
    ],
)
def test_what_openrlhf_may_not_send(client: Client, body: dict[str, Any], sentence: str) -> None:
    answer = client.post("/get_reward", body)
    assert answer.status == 400 and sentence in answer.sentence


def test_slime_gets_a_number(client: Client, model: Path, written: endoreward.Scorer) -> None:
    answer = client.post("/rm", {"prompt": PROMPT, "response": "cd a", "label": "7"})
    assert answer.json == pytest.approx(of_label(written, PROMPT, "cd a"), rel=1e-5)
    talk = [{"role": "user", "content": "ab?"}]
    chat = endoreward.Scorer.from_pretrained(model, device="cpu", reward=REWARD)
    answer = client.post("/rm", {"prompt": talk, "response": "cd a", "label": None})
    assert answer.json == pytest.approx(chat.score(talk, "cd a").reward, rel=1e-5)
    assert client.post("/rm", {"prompt": 7, "response": "a"}).status == 400


def test_standardised_rewards_are_for_trainers_that_clip(model: Path) -> None:
    with served(described(model, serve={"normalize": True})) as client:
        texts = ("c", "dd", "aaaa bb")
        inputs = [{"prompt": "ab", "responses": [text], "as_written": True} for text in texts]
        raw = client.post("/v1/rewards", {"inputs": inputs}).json["data"]
        rewards = [row["reward"] for row in raw]
        shown = [
            client.post("/get_reward", {"query": [f"ab{text}"], "prompts": ["ab"]}).json["rewards"][0] for text in texts
        ]
    for count in range(1, 4):
        deviation = np.std(rewards[:count])
        expected = (rewards[count - 1] - np.mean(rewards[:count])) / deviation if count > 1 else 0.0
        assert shown[count - 1] == pytest.approx(expected, rel=1e-4)
    standardise = Standardiser()
    assert standardise([3.0, 3.0]) == [0.0, 0.0]
    values = np.random.default_rng(0).normal(1e6, 2.0, 50).tolist()
    own = Standardiser()
    np.testing.assert_allclose(own(values), (np.array(values) - np.mean(values)) / np.std(values), rtol=1e-6, atol=1e-6)
