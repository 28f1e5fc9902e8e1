"""The server's native route: the numbers of `label`, for whatever mixture of requests, as JSON and as Arrow."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import Client, described, served
from tiny import CHATML, save_model

import endoreward

REWARD = {"aggregation": "discounted_sum", "gamma": 0.9, "alpha": 2.0}
EVERYTHING = ["token_ids", "prompt_token_ids", "token_rewards", "token_logprobs", "token_values", "response"]
PROMPTS = [
    "ab?",
    "what is cd",
    [{"role": "user", "content": "ab?"}],
    [{"role": "system", "content": "c"}, {"role": "user", "content": "d"}],
]
RESPONSES = ["cd", "abcd abcd", "d a b", "cd a", "b" * 40]
KINDS = ("text", "ids", "sampled", "messages", "written", "/get_reward", "/rm", "/generate", "/v1/completions",
         "/inference/v1/generate")  # fmt: skip
REQUESTS = st.lists(
    st.tuples(
        st.sampled_from(PROMPTS), st.lists(st.sampled_from(RESPONSES), min_size=1, max_size=3), st.sampled_from(KINDS)
    ),
    min_size=1, max_size=8,
)  # fmt: skip


@pytest.fixture(scope="module", params=["chat template", "plain text"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "m", CHATML if request.param == "chat template" else None)


@pytest.fixture(scope="module")
def client(model: Path) -> Iterator[Client]:
    with served(described(model, reward=REWARD, scorer={"budget_tokens": 128, "device": "cpu"})) as client:
        yield client


@pytest.fixture(scope="module")
def scorer(model: Path) -> endoreward.Scorer:
    """Which gives the labels of `label` (test_front_door.py)."""
    return endoreward.Scorer.from_pretrained(model, device="cpu", reward=REWARD)


def ask(client: Client, *inputs: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    answer = client.post("/v1/rewards", {"inputs": list(inputs), "include": EVERYTHING, **more})
    assert answer.status == 200, answer.content
    data: list[dict[str, Any]] = answer.json["data"]
    return data


def assert_alike(row: dict[str, Any], label: endoreward.ScoredResponse) -> None:
    assert row["token_ids"] == label.token_ids and row["prompt_token_ids"] == label.prompt_token_ids
    assert (row["num_tokens"], row["truncated"]) == (label.num_tokens, label.truncated)
    np.testing.assert_allclose(row["reward"], label.reward, rtol=1e-5, atol=1e-5)
    for name in ("token_rewards", "token_logprobs", "token_values"):
        np.testing.assert_allclose(row[name], getattr(label, name), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def written(model: Path) -> endoreward.Scorer:
    """`label` on text that no template is put around."""
    return endoreward.Scorer.from_pretrained(model, device="cpu", reward=REWARD, tokens={"template": "none"})


@settings(max_examples=12, deadline=None)
@given(REQUESTS)
def test_every_route_has_the_labels_of_label_whoever_else_asks(
    client: Client, scorer: endoreward.Scorer, written: endoreward.Scorer, requests: list[tuple[Any, list[str], str]]
) -> None:
    """Text as `label` labels that text; ids as it labels the text whose tokens they are."""
    final = ("written", "/get_reward", "/rm")
    asked = [
        ("ab?" if kind in final and not isinstance(prompt, str) else prompt, responses, kind)
        for prompt, responses, kind in requests
    ]
    expected = [
        (written if kind in final else scorer).score(prompt, responses) for prompt, responses, kind in asked
    ]  # the server's own scorer is another
    with ThreadPoolExecutor(len(asked)) as pool:
        checks = [
            pool.submit(ask_as, client, kind, prompt, responses, labels)
            for (prompt, responses, kind), labels in zip(asked, expected, strict=True)
        ]
        for check in checks:
            check.result(60)


def ask_as(
    client: Client, kind: str, prompt: Any, responses: list[str], labels: list[endoreward.ScoredResponse]
) -> None:
    """A request of some kind, whose answer must be these labels."""
    ids = [label.token_ids for label in labels]
    prompt_ids = labels[0].prompt_token_ids
    rewards = [label.reward for label in labels]
    talk = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    rows: list[dict[str, Any]] = []
    if kind == "text" or (kind in ("sampled", "messages") and isinstance(prompt, str)):
        rows = ask(client, {"prompt": prompt, "responses": responses})
    elif kind == "ids":
        rows = ask(client, {"prompt_token_ids": prompt_ids, "response_token_ids": ids})
    elif kind == "sampled":
        rows = ask(client, {"prompt": prompt, "responses": responses, "response_token_ids": ids})
    elif kind == "messages":
        rows = ask(client, *({"messages": [*talk, {"role": "assistant", "content": each}]} for each in responses))
    elif kind == "written":
        rows = ask(client, {"prompt": prompt, "responses": responses, "as_written": True})
    elif kind == "/get_reward":
        body = {"query": [prompt + each for each in responses], "prompts": [prompt] * len(responses)}
        np.testing.assert_allclose(client.post(kind, body).json["rewards"], rewards, rtol=1e-5, atol=1e-5)
    elif kind == "/rm":
        served = [client.post(kind, {"prompt": prompt, "response": each, "label": None}).json for each in responses]
        np.testing.assert_allclose(served, rewards, rtol=1e-5, atol=1e-5)
    else:
        served_logprobs = _of_teacher(client, kind, [prompt_ids + own for own in ids])
        for own, label in zip(served_logprobs, labels, strict=True):
            np.testing.assert_allclose(own[-label.num_tokens :], label.token_logprobs, rtol=1e-5, atol=1e-5)
    for row, label in zip(rows, labels, strict=True) if rows else ():
        assert_alike(row, label)


def _of_teacher(client: Client, kind: str, sequences: list[list[int]]) -> list[list[float]]:
    """log pi of each token but the first."""
    if kind == "/generate":
        asked = {"input_ids": sequences, "return_logprob": True, "logprob_start_len": 0}
        answers = client.post(kind, {**asked, "sampling_params": {"max_new_tokens": 0}}).json
        return [[entry[0] for entry in each["meta_info"]["input_token_logprobs"][1:]] for each in answers]
    if kind == "/inference/v1/generate":
        sampling = {"max_tokens": 1, "prompt_logprobs": 1}
        bodies = [{"model": "m", "token_ids": ids, "sampling_params": sampling} for ids in sequences]
        given = [client.post(kind, body).json["prompt_logprobs"][1:] for body in bodies]
        return [[next(iter(each.values()))["logprob"] for each in own] for own in given]
    answer = client.post(kind, {"prompt": sequences, "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 1}).json
    return [[next(iter(each.values()))["logprob"] for each in own["prompt_logprobs"][1:]] for own in answer["choices"]]


def test_conversations_and_several_inputs_at_once(client: Client, scorer: endoreward.Scorer) -> None:
    talk = [{"role": "user", "content": "ab?"}, {"role": "assistant", "content": "cd"}, {"role": "user", "content": "a"},
            {"role": "assistant", "content": "abcd"}]  # fmt: skip
    first, second, third = ask(client, {"messages": talk}, {"prompt": "ab?", "responses": ["cd", "d a"]})
    assert [(row["input"], row["response_index"]) for row in (first, second, third)] == [(0, 0), (1, 0), (1, 1)]
    assert_alike(first, scorer.label([{"messages": talk}])[0])
    for row, label in zip((second, third), scorer.score("ab?", ["cd", "d a"]), strict=True):
        assert_alike(row, label)
    assert second["response"] == "cd"


def test_arrow_holds_what_json_holds(client: Client) -> None:
    body = {"inputs": [{"prompt": "ab?", "responses": ["cd", "", "d a"]}], "include": EVERYTHING}
    rows = client.post("/v1/rewards", body).json["data"]
    answer = client.post("/v1/rewards", body, accept="application/vnd.apache.arrow.stream")
    assert answer.headers["content-type"] == "application/vnd.apache.arrow.stream"
    table = pa.ipc.open_stream(answer.content).read_all()
    assert table["reason"].to_pylist() == [None, "empty_response", None]
    assert rows[1]["error"]["reason"] == "empty_response" and table["reward"].null_count == 1
    for row, other in zip(rows, table.to_pylist(), strict=True):
        for name in () if "error" in row else ("reward", "num_tokens", "token_ids", "token_logprobs", "response"):
            assert row[name] == other[name]


def test_reward_of_a_request_within_what_the_model_allows(client: Client, scorer: endoreward.Scorer) -> None:
    label = scorer.score("ab?", "cd a")
    for fields in ({"aggregation": "mean"}, {"gamma": 0.5}, {"aggregation": "sum", "gamma": 1.0}):
        [row] = ask(client, {"prompt": "ab?", "responses": ["cd a"]}, reward=fields)
        wanted = {**{k: v for k, v in REWARD.items() if k != "alpha"}, **fields}
        np.testing.assert_allclose(row["reward"], label.reward_under(**wanted), rtol=1e-5, atol=1e-5)
    for fields, sentence in (
        ({"alpha": 1.0}, "reward.alpha is 2 on this server, and another needs another server"),
        ({"token_certainty": True}, "reward.token_certainty is off on this server, and on needs another server"),
        ({"gama": 1.0}, "reward: gama: Extra inputs are not permitted"),
        ({"min_weight": 7}, "reward: min_weight: Input should be less than or equal to 1"),
    ):
        answer = client.post("/v1/rewards", {"inputs": [{"prompt": "a", "responses": ["b"]}], "reward": fields})
        assert (answer.status, answer.sentence) == (400, sentence)


def test_rewards_of_the_whole_distribution(model: Path) -> None:
    reward = {"token_certainty": True, "aggregation": "self_certainty"}
    label = endoreward.Scorer.from_pretrained(model, device="cpu", reward=reward).score("ab?", "cd a")
    with served(described(model, reward=reward, scorer={"device": "cpu"})) as client:
        [row] = ask(client, {"prompt": "ab?", "responses": ["cd a"]})
    np.testing.assert_allclose(row["reward"], label.reward, rtol=1e-5)


def test_a_response_that_a_policy_wrote_is_scored_by_its_tokens(client: Client, scorer: endoreward.Scorer) -> None:
    """`abcd` as four tokens, which is not how it is tokenised, and an answer that is its end token alone."""
    label = scorer.score(PROMPTS[2], "abcd")
    tokenizer = scorer.renderer.tokenizer
    own = [*tokenizer.convert_tokens_to_ids(list("abcd")), label.token_ids[-1]]
    prompt_ids = scorer.renderer.prompt_ids([{"role": "user", "content": "ab?"}], True)
    written = {"prompt": PROMPTS[2], "responses": ["abcd", ""], "response_token_ids": [own, own[-1:]]}
    sampled, ended = ask(client, written)
    ids = ask(client, {"prompt_token_ids": prompt_ids, "response_token_ids": [own, own[-1:]]})
    assert sampled["token_ids"] == own != label.token_ids and sampled["prompt_token_ids"] == prompt_ids
    for row, other in zip((sampled, ended), ids, strict=True):
        np.testing.assert_allclose(row["reward"], other["reward"], rtol=1e-5)
    page = client.get("/metrics").content.decode()
    [counted] = [line for line in page.splitlines() if line.startswith("endoreward_serve_other_tokens_total")]
    before = float(counted.split()[-1])
    ask(client, {"prompt_token_ids": prompt_ids, "response_token_ids": [own, label.token_ids, own[-1:]]})
    assert f'endoreward_serve_other_tokens_total{{model="m"}} {before + 1}' in client.get("/metrics").content.decode()
    [wrong] = client.post(
        "/v1/rewards", {"inputs": [{**written, "responses": ["cdab"], "response_token_ids": [own]}]}
    ).json["data"]
    assert wrong["error"]["reason"] == "other_tokens"


def test_what_is_too_long_is_cut_as_label_cuts_it(client: Client, scorer: endoreward.Scorer) -> None:
    long = "d" * 300
    label = scorer.score("ab?", long)
    [text] = ask(client, {"prompt": "ab?", "responses": [long]})
    [ids] = ask(
        client, {"prompt_token_ids": label.prompt_token_ids, "response_token_ids": [[label.token_ids[0]] * 300]}
    )
    assert label.truncated and text["truncated"] and ids["truncated"]
    assert text["num_tokens"] == ids["num_tokens"] == 256 - len(label.prompt_token_ids)
    assert_alike(text, label)


def test_state_of_the_server(client: Client) -> None:
    assert client.get("/health").json == {"status": "ready"}
    [model] = client.get("/v1/models").json["data"]
    assert (model["id"], model["max_model_len"], model["reward"]["alpha"]) == ("m", 256, 2.0)
    assert client.post("/v1/rewards", {"model": "m", "inputs": [{"prompt": "a", "responses": ["b"]}]}).status == 200
    page = client.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    text = page.content.decode()
    assert 'endoreward_serve_requests_total{route="/v1/rewards",status="200"}' in text
    assert "endoreward_serve_ready 1.0" in text and "endoreward_serve_in_hand 0.0" in text
    assert client.get("/docs").status == 200
    paths = client.get("/openapi.json").json["paths"]
    assert {"/v1/rewards", "/get_reward", "/rm", "/generate", "/v1/completions", "/inference/v1/generate"} <= set(paths)
