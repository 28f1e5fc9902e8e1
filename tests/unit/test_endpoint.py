"""An endpoint, against a server that fails in every way."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import faulty_server
import pytest
import tiny
from faulty_server import Request, Server, serving

from jobs.__main__ import main
from pipeline.config import EvaluateConfig, ModelConfig
from pipeline.errors import ConfigError, RowError, RunError
from pipeline.models.engines import Drawing, Endpoint, EngineSpec
from pipeline.models.engines.endpoint import EndpointEngine, checked
from pipeline.models.questions import Completion, Question
from pipeline.rewards.labellers import PointwiseJudge

KEY = "sk-very-secret-indeed"
DRAWING = Drawing(max_new_tokens=7, temperature=1.0, top_p=0.9, end_tokens=(3,), logprobs=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return ModelConfig(name=str(tiny.save_model(tmp_path_factory.mktemp("model"), tiny.CHATML)))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("pipeline.models.engines.http.FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(written) as running:
        yield running


def written(body: Request) -> Any:
    """The prompt's last letter again, or in a chat its last message."""
    usage = {"total_tokens": 9}
    if "messages" in body:
        return {"choices": [{"message": {"content": body["messages"][-1]["content"]}}], "usage": usage}
    tokenizer, prompt = tiny.tokenizer(), body["prompt"]
    ids = tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
    choice = {"text": tokenizer.decode(ids[-1:]), "token_ids": ids[-1:], "finish_reason": "stop"}
    return {
        "choices": [{**choice, "prompt_token_ids": ids, "logprobs": {"token_logprobs": [-0.5]}}],
        "usage": usage,
    }


def engine(server: Server, model: ModelConfig, drawing: Drawing = DRAWING, **settings: Any) -> EndpointEngine:
    endpoint = replace(Endpoint(server.url, "served", "completions", concurrency=4, retries=2), **settings)
    return EndpointEngine(EngineSpec(model, "cpu", drawing, engine="endpoint", endpoint=endpoint))


def test_tokens_go_and_come_in_order_each_with_a_seed_of_its_own(server: Server, model: ModelConfig) -> None:
    asked = engine(server, model)
    answers = asked.generate([Question([65 + i, 66 + i], 3, seed=i) for i in range(8)])
    assert [[each.token_ids for each in samples] for samples in answers] == [[[66 + i]] * 3 for i in range(8)]  # type: ignore[union-attr]
    first = answers[0][0]  # type: ignore[index]
    assert first == Completion(tiny.tokenizer().decode([66]), [66], True)
    assert first.logprobs is None and not any("logprobs" in request for request in server.asked), "of temperature 1"
    assert len({request["seed"] for request in server.asked}) == 24
    assert server.most_under_way <= 4 and asked.forwarded_tokens == 24 * 9
    for request in server.asked:
        assert request["path"] == "/v1/completions" and request["key"] == f"Bearer {KEY}"
        assert (request["temperature"], request["top_p"], request["max_tokens"]) == (1.0, 0.9, 7)
        assert request["stop_token_ids"] == [3] and request["return_token_ids"] and request["model"] == "served"


def test_log_probabilities_where_the_servers_are_of_what_is_drawn(server: Server, model: ModelConfig) -> None:
    [[first]] = engine(server, model, replace(DRAWING, top_p=1.0)).generate([Question([65, 66])])  # type: ignore[misc]
    assert first.logprobs.tolist() == [-0.5] and server.asked[0]["logprobs"] == 1


def chosen(**fields: Any) -> Callable[[Any], None]:
    """The answer that is due, but for this."""
    due = {"text": tiny.tokenizer().decode([66]), "token_ids": [66], "logprobs": {"token_logprobs": [-0.5]}}
    return lambda handler: handler.reply({"choices": [{**due, **fields}]})


FORM = "an answer of another form"
FAULTS: dict[str, tuple[str, Callable[[Any], None]]] = {
    "too many": ("status 429", faulty_server.status(429, Retry_After="0.05")),
    "broken": ("status 500", faulty_server.status(500, "half a character: \ud83d")),
    "nested within an error": ("status 500", lambda handler: handler.reply(b"[" * 60_000, 500)),
    "away": ("status 503", faulty_server.status(503)),
    "no JSON": ("an answer that is not JSON", faulty_server.wrong_json),
    "nested": ("an answer that is not JSON", faulty_server.too_deep),
    "no choices": (FORM, faulty_server.other_form),
    "no text": (FORM, chosen(text=["B"])),
    "half a character": (FORM, chosen(text="\ud83d")),
    "tokens that are none": (FORM, chosen(token_ids=[True])),
    "log-probabilities in a list": (FORM, chosen(logprobs=[0.1])),
    "log-probabilities that are letters": (FORM, chosen(logprobs={"token_logprobs": ["a"]})),
    "log-probabilities that are null": (FORM, chosen(logprobs={"token_logprobs": [None]})),
    "log-probabilities that are no numbers": (FORM, chosen(logprobs={"token_logprobs": [float("nan")]})),
    "aborted": (FORM, chosen(finish_reason="abort")),
    "ended by no word": (FORM, chosen(finish_reason=["stop"])),
    "half": ("half an answer", faulty_server.half_an_answer),
    "late": ("no answer within 0.25 s", faulty_server.hangs),
    "closed": ("no connection", faulty_server.closes),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_fails_is_asked_again_and_at_last_an_error_row(name: str, server: Server, model: ModelConfig) -> None:
    why, fault = FAULTS[name]
    asked = engine(server, model, replace(DRAWING, top_p=1.0), timeout_s=0.25 if "within" in why else 30.0)
    server.faults = [fault] * 2
    [[completion]] = asked.generate([Question([65, 66])])  # type: ignore[misc]
    assert completion.token_ids == [66] and len(server.asked) == 3
    [note] = asked.notes
    assert note == f"{server.url} gave {why}, and was asked again"
    server.faults = [fault] * 3
    failed, fine = asked.generate([Question([65, 66])]) + asked.generate([Question([65, 67])])
    assert isinstance(failed, RowError) and failed.reason == "endpoint_failed" and why in failed.detail
    assert failed.detail.encode(), "can be stored"
    assert not isinstance(fine, RowError), "a request that failed costs no other"


def test_too_many_requests_hold_all_for_as_long_as_the_server_says(server: Server, model: ModelConfig) -> None:
    server.faults = [faulty_server.status(429, Retry_After="0.2")]
    engine(server, model, concurrency=1).generate([Question([65, 66]), Question([65, 67])])
    assert server.times[1] - server.times[0] >= 0.19 and len(server.times) == 3


def test_requests_a_minute(server: Server, model: ModelConfig) -> None:
    engine(server, model, requests_per_minute=1200).generate([Question([65, 66], samples=5)])
    assert server.times[-1] - server.times[0] >= 0.19


def test_a_refused_request_is_an_error_row_and_is_not_sent_again(server: Server, model: ModelConfig) -> None:
    server.faults = [faulty_server.status(400, "max_tokens is too large")]
    [failed] = engine(server, model).generate([Question([65, 66])])
    assert isinstance(failed, RowError) and (failed.reason, len(server.asked)) == ("endpoint_refused", 1)
    assert failed.detail == "status 400: max_tokens is too large"


def test_an_answer_that_is_withheld_and_one_that_is_cut_off(server: Server, model: ModelConfig) -> None:
    """Neither is a finished answer: the one is an error row at once, the other says that it is not finished."""
    server.faults = [chosen(finish_reason="content_filter"), chosen(finish_reason="length")]
    withheld, cut = (engine(server, model).generate([Question([65, 66])])[0] for _ in range(2))
    assert isinstance(withheld, RowError) and withheld.reason == "endpoint_refused" and len(server.asked) == 2
    assert not isinstance(cut, RowError) and not cut[0].finished


def test_another_models_tokens_are_error_rows(server: Server, model: ModelConfig) -> None:
    def other(ids: list[int], text: str) -> Callable[[Any], None]:
        content = {"choices": [{"text": text, "token_ids": ids, "logprobs": {"token_logprobs": [0.0]}}]}
        return lambda handler: handler.reply(content)

    server.faults = [other([66], "Paris"), other([50000], "c")]
    failed = [engine(server, model).generate([Question([65, 66])])[0] for _ in range(2)]
    assert [each.reason for each in failed] == ["other_tokens"] * 2  # type: ignore[union-attr]


def test_a_key_that_is_refused_ends_the_run_and_stands_nowhere(server: Server, model: ModelConfig) -> None:
    server.faults = [faulty_server.status(401, f"Incorrect API key provided: {KEY}")] * 9
    asked = engine(server, model)
    with pytest.raises(RunError, match=r"refuses the key .* OPENAI_API_KEY") as refused:
        asked.generate([Question([65, 66], samples=5)])
    assert KEY not in str(refused.value) and KEY not in repr(asked.endpoint) and refused.value.__cause__ is None
    server.faults = [faulty_server.status(500, f"no luck with {KEY}")] * 3
    other = engine(server, model)
    [failed] = other.generate([Question([65, 66])])
    assert isinstance(failed, RowError) and KEY not in failed.detail and not any(KEY in note for note in other.notes)


@pytest.mark.parametrize("code", [400, 401, 429, 500])
def test_a_command_that_a_server_refuses_says_no_key(
    code: int, server: Server, model: ModelConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whole commands are held against it in tests/integration/test_endpoint_key.py."""
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "one?"}\n')
    server.faults = [faulty_server.status(code, f"no luck with {KEY} today", Retry_After="0")] * 9
    words = ["sample", "--policy", model.name, "--prompts", str(tmp_path / "prompts.jsonl")]
    words += ["--output", str(tmp_path / "out"), "--set", f"sampler.endpoint={server.url}"]
    assert main(words) == 2 and server.asked[0]["key"] == f"Bearer {KEY}"
    said = capsys.readouterr()
    assert "no luck with ... today" in " ".join(said.err.split()) and KEY not in said.out + said.err
    assert not [each for each in tmp_path.glob("**/*") if each.is_file() and KEY.encode() in each.read_bytes()]


def test_a_run_stops_before_it_costs_more_than_agreed(server: Server, model: ModelConfig) -> None:
    """Each request is reserved at its most, 2 + 7 tokens, and settled at what it took, 9."""
    with pytest.raises(RunError, match=r"36 tokens are spent, .* endpoint.max_tokens = 40; .*run the same again"):
        engine(server, model, max_tokens=40).generate([Question([65, 66], samples=8)])
    assert len(server.asked) == 4


def test_first_words_with_a_server(server: Server, model: ModelConfig) -> None:
    endpoint = Endpoint(server.url, "", "completions", retries=0)
    assert checked(endpoint, model).model == "served"
    server.models = ["one", "two"]
    with pytest.raises(ConfigError, match=r"serves one, two; say which with --set endpoint\.model=NAME"):
        checked(endpoint, model)
    assert checked(replace(endpoint, api="chat", model="one"), model).model == "one"
    server.answer = lambda body: {"choices": [{"text": "x", "prompt_token_ids": [1, 2]}]}
    with pytest.raises(ConfigError, match="makes other tokens of the same text"):
        checked(replace(endpoint, model="one"), model)
    server.answer = lambda body: {"choices": [{"text": "x"}]}
    with pytest.raises(ConfigError, match="gives no token ids, which samples are scored by"):
        checked(replace(endpoint, model="one"), model)
    with pytest.raises(ConfigError, match=r"127.0.0.1:9/v1 cannot be used: .*no connection.*with /v1\?"):
        checked(replace(endpoint, url="http://127.0.0.1:9/v1"), model)


def test_a_judge_that_chats(server: Server, model: ModelConfig) -> None:
    """Messages go, under the rubric; what comes is read as any judgement, and what cannot be read is an error row."""
    from pipeline.corpus import Shape, Shard

    config = EvaluateConfig.model_validate(
        {
            "model": {"name": model.name},
            "tokens": {"system_prompt": "Be strict."},
            "judge": {"pointwise_prompt": "{prompt} {response}", "endpoint": server.url + "/"},
        }
    )
    labeller = PointwiseJudge(config, config.model)
    assert labeller.settings()["judge.max_new_tokens"] == 512 and labeller.describe("float32")["engine"] == "endpoint"
    assert labeller.endpoint().url == server.url
    shard = Shard("a.jsonl", 0, 0, 1, 1, "0" * 64, 0, 10)
    shape = Shape((("chosen", "chosen"), ("rejected", "rejected")), prompt="prompt")
    long = "x" * 300  # the judge's context is its server's business
    prepared = labeller.prepare(shard, 0, [(0, {"prompt": "p", "chosen": f"{long} [[7]]", "rejected": "none"})], shape)
    asked = engine(server, model, replace(DRAWING, temperature=0.0), api="chat")
    labels, failures = labeller.finish(prepared, asked.generate(prepared.requests))
    assert [label.reward for label in labels] == [7.0]
    assert [failure.reason for failure in failures] == ["unparsable_judgement"]
    system, user = server.asked[0]["messages"]
    assert system == {"role": "system", "content": "Be strict."} and user["role"] == "user"
    assert "return_token_ids" not in server.asked[0] and server.asked[0]["path"] == "/v1/chat/completions"


def test_nothing_follows_a_redirect(server: Server, model: ModelConfig, tmp_path: Path) -> None:
    server.faults = [faulty_server.status(307, Location=f"{server.url}/elsewhere")]
    [failed] = engine(server, model).generate([Question([65, 66])])
    assert isinstance(failed, RowError) and failed.reason == "endpoint_refused" and len(server.asked) == 1
