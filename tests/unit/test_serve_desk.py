"""Several models and rubrics by name in one server, and how many requests are in hand at once."""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import Client, described, served
from tiny import CHATML, save_model

import endoreward
from jobs.serve.batching import Answers
from jobs.serve.desk import Full
from jobs.serve.run import desk_of, open_renderers
from pipeline.config import ServeConfig
from pipeline.errors import ConfigError
from pipeline.models.scores import Scores
from pipeline.tokens import TokenizedTurn

TALK = [{"role": "user", "content": "ab?"}]
RUBRICS = {"kind": "a b a", "short": "d"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {name: str(save_model(folder / name, CHATML, seed=seed)) for seed, name in enumerate(("first", "second"))}


@pytest.fixture(scope="module")
def client(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    rubrics = tmp_path_factory.mktemp("rubrics") / "rubrics.toml"
    rubrics.write_text("".join(f"{name} = {json.dumps(text)}\n" for name, text in RUBRICS.items()))
    sections = {"serve": {"models": models}, "tokens": {"rubrics": str(rubrics)}, "scorer": {"device": "cpu"}}
    with served(ServeConfig.model_validate(sections)) as client:
        yield client


def test_each_name_is_a_model_under_a_rubric(client: Client, models: dict[str, str]) -> None:
    names = [f"{model}@{rubric}" for model in models for rubric in RUBRICS]
    assert [each["id"] for each in client.get("/v1/models").json["data"]] == names
    rewards = []
    for name in names:
        model, _, rubric = name.partition("@")
        tokens = {"system_prompt": RUBRICS[rubric]}
        label = endoreward.Scorer.from_pretrained(models[model], device="cpu", tokens=tokens).score(TALK, "cd a")
        answer = client.post("/v1/rewards", {"model": name, "inputs": [{"prompt": TALK, "responses": ["cd a"]}]})
        assert answer.json["model"] == name
        rewards.append(answer.json["data"][0]["reward"])
        np.testing.assert_allclose(rewards[-1], label.reward, rtol=1e-5)
        written = {"prompt": TALK, "response": "cd a", "label": None}  # a shape that has no place for a name
        assert client.post(f"/rm?model={name}", written).json == pytest.approx(rewards[-1], rel=1e-5)
        assert endoreward.remote(client.url, model=name)([TALK], [[{"role": "assistant", "content": "cd a"}]]) == (
            pytest.approx([rewards[-1]], rel=1e-5)
        )
    assert len(set(rewards)) == 4


def test_teachers_have_names_too(client: Client) -> None:
    sglang = {"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 0}, "return_logprob": True}
    sglang["logprob_start_len"] = 0
    first, second = (client.post(f"/generate?model={name}@kind", sglang).json for name in ("first", "second"))
    assert first["meta_info"]["input_token_logprobs"] != second["meta_info"]["input_token_logprobs"]
    sampling = {"max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 1}
    answer = client.post(
        "/inference/v1/generate", {"token_ids": [1, 2], "model": "second@kind", "sampling_params": sampling}
    )
    served = second["meta_info"]["input_token_logprobs"][1][0]
    assert answer.json["prompt_logprobs"][1]["2"]["logprob"] == pytest.approx(served, rel=1e-5)


@pytest.mark.parametrize(
    ("path", "status", "sentence"),
    [
        (
            "/rm",
            400,
            "several models are served here: give model, or ?model=NAME behind the route; there are first@kind",
        ),
        ("/rm?model=first", 404, "no such model is served here; there are first@kind, first@short, second@kind"),
        ("/rm?model=../first", 404, "no such model is served here"),
        ("/get_reward?model=third@kind", 404, "no such model is served here"),
    ],
)
def test_a_name_that_is_missing_or_unknown(client: Client, path: str, status: int, sentence: str) -> None:
    bodies: dict[str, Any] = {"/rm": {"prompt": "a", "response": "b"}, "/get": {"query": ["ab"], "prompts": ["a"]}}
    answer = client.post(path, bodies["/rm" if path.startswith("/rm") else "/get"])
    assert answer.status == status and answer.sentence.startswith(sentence)


def test_figures_are_of_each_model(client: Client) -> None:
    client.post("/rm?model=second@short", {"prompt": TALK, "response": "cd"})
    page = client.get("/metrics").content.decode()
    batches = {line.split()[0]: float(line.split()[1]) for line in page.splitlines() if "batches_total{" in line}
    assert set(batches) == {f'endoreward_serve_batches_total{{model="{name}"}}' for name in ("first", "second")}
    assert batches['endoreward_serve_batches_total{model="second"}'] >= 1


class Zeros:
    """A scorer of as many batches at once as it has replicas; `go`: what a batch waits for."""

    batch_tokens = 100

    def __init__(self, at_once: int = 1, go: threading.Event | None = None):
        self.at_once, self.go = at_once, go

    def score(self, turns: Sequence[TokenizedTurn]) -> Answers:
        if self.go:
            self.go.wait(10)
        return [Scores(*[np.zeros(len(turn.response_ids))] * 3) for turn in turns]


def test_places_are_bounded_and_come_back(models: dict[str, str]) -> None:
    config = described(models["first"], serve={"max_requests": 2})
    desk = desk_of(config, open_renderers(config), lambda name, model: Zeros())
    with desk.room(), desk.room():
        with pytest.raises(Full, match="2 requests are in hand already; try again in 1 s") as raised, desk.room():
            pass
        assert raised.value.retry_after_s == 1
    with desk.room():
        assert desk.in_hand == 1
    assert desk.in_hand == 0


def test_a_model_without_a_replica_keeps_no_other_from_answering(models: dict[str, str]) -> None:
    config = ServeConfig.model_validate({"serve": {"models": models}})
    scorers = {"first": Zeros(1), "second": Zeros(0)}
    desk = desk_of(config, open_renderers(config), lambda name, model: scorers[name])
    written = {"prompt": "ab", "response": "cd"}
    sglang = {"input_ids": [1, 2], "sampling_params": {"max_new_tokens": 0}, "return_logprob": True}
    sglang["logprob_start_len"] = 0
    bodies = {
        "/rm": written,
        "/get_reward": {"query": ["abcd"], "prompts": ["ab"]},
        "/v1/rewards": {"inputs": [{"prompt": "ab", "responses": ["cd"]}]},
        "/generate": sglang,
    }
    with served(config, desk=desk, ready=False) as client:
        while not desk.batchers["first"].ready:
            time.sleep(0.001)
        assert client.get("/health").status == 503
        for path, body in bodies.items():
            assert client.post(f"{path}?model=first", body).status == 200
            absent = client.post(f"{path}?model=second", body)
            assert (absent.status, absent.headers["retry-after"]) == (503, "5")
            assert absent.sentence == "the model is being loaded, or has no replica now; try again"
        scorers["second"].at_once = 1
        assert client.post("/rm?model=second", written).json == 0.0 and client.get("/health").status == 200


def test_all_models_end_within_the_time_of_one(models: dict[str, str]) -> None:
    go, loaded = threading.Event(), threading.Event()
    config = ServeConfig.model_validate({"serve": {"models": {**models, "third": models["first"]}, "shutdown_s": 0.5}})

    def open_model(name: str, model: Any) -> Zeros:
        if name == "third":
            loaded.wait(10)
        return Zeros(1, go)

    desk = desk_of(config, open_renderers(config), open_model)
    desk.start()
    turn = TokenizedTurn(np.array([1]), np.array([2]), [])
    futures = [desk.batchers[name].submit([turn]) for name in models]
    while not all(future.running() for future in futures):
        time.sleep(0.001)
    begun = time.monotonic()
    desk.close()
    assert 0.4 < time.monotonic() - begun < 1.3
    go.set(), loaded.set()
    assert all(future.result(10) for future in futures)


def test_rubrics_that_cannot_be_read(models: dict[str, str], tmp_path: Path) -> None:
    config = described(models["first"], tokens={"rubrics": str(tmp_path / "none.toml")})
    with pytest.raises(ConfigError, match=r"tokens\.rubrics: cannot read .*none\.toml"):
        open_renderers(config)
