"""`endoreward.reward` and `endoreward.remote` as TRL calls them: the same numbers, of the tokens that the policy wrote."""

import http.server
import inspect
import logging
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from serving import Client, client, model, scorer

import endoreward
from pipeline.errors import RunError

__all__ = ["client", "model", "scorer"]  # fixtures

TALK = [{"role": "user", "content": "ab?"}]
OTHER = [{"role": "user", "content": "cd"}]


@pytest.fixture(params=["in process", "remote"])
def function(request: pytest.FixtureRequest, scorer: endoreward.Scorer, client: Client) -> Any:
    return endoreward.reward(scorer) if request.param == "in process" else endoreward.remote(client.url)


def as_trl(scorer: endoreward.Scorer, prompts: list[Any], texts: list[list[str]]) -> dict[str, Any]:
    """What GRPOTrainer gives: `texts` are the pieces that a policy wrote, the end of its turn behind them."""
    tokenizer = scorer.renderer.tokenizer
    ids = [[i for piece in [*each, "<|im_end|>"] for i in tokenizer(piece)["input_ids"]] for each in texts]
    whole = ["".join(each) for each in texts]
    completions = [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(prompts, whole, strict=True)
    ]
    return {"prompts": prompts, "completions": completions, "completion_ids": ids}


def alone(scorer: endoreward.Scorer, prompt: Any, ids: list[int]) -> float:
    """From the logits of the scorer, without a word of the code under test: V(s_1) + log pi at alpha = gamma = 1."""
    from pipeline.tokens import TokenizedTurn

    if isinstance(prompt, str):
        prompt_ids = scorer.renderer.tokenizer(prompt)["input_ids"]
    else:
        prompt_ids = scorer.renderer.prompt_ids(prompt, True)
    [scores] = scorer.engine.score([TokenizedTurn(prompt_ids, ids, [])])  # type: ignore[arg-type]
    return float(scores.values[0] + scores.logprobs.sum())  # type: ignore[union-attr]


def test_completions_have_the_rewards_of_their_tokens(function: Any, scorer: endoreward.Scorer) -> None:
    """`abcd` in four pieces, an answer that ends at once, and a prompt that is text."""
    prompts = [TALK, TALK, TALK, OTHER, "ab?", "ab?"]
    given = as_trl(scorer, prompts, [["abcd"], ["a", "b", "c", "d"], [], ["cd"], ["cd"], []])
    rewards = function(**given, answer=["x"] * 6, trainer_state=None)
    assert rewards == pytest.approx(
        [alone(scorer, prompt, ids) for prompt, ids in zip(prompts, given["completion_ids"], strict=True)], rel=1e-5
    )
    assert rewards[0] != rewards[1] and all(type(each) is float for each in rewards)
    assert function.__name__ == "endogenous_reward" and not inspect.iscoroutinefunction(function)


def test_texts_alone_have_the_labels_of_label(function: Any, scorer: endoreward.Scorer, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            rewards = function(prompts=[TALK, TALK, TALK], completions=["cd", "", "abcd"])
            assert rewards[1] is None
            labels = scorer.score(TALK, ["cd", "abcd"])
            assert [rewards[0], rewards[2]] == pytest.approx([label.reward for label in labels], rel=1e-5)
    assert caplog.text.count("a completion has no reward, and so will others: empty_response: ") == 1


def test_tokens_of_another_tokenizer_are_refused(function: Any, scorer: endoreward.Scorer) -> None:
    given = as_trl(scorer, [TALK], [["cd"]])
    with pytest.raises(
        endoreward.RowError, match="other_tokens: response_token_ids read 'ab', and the response is 'cd'"
    ):
        function(**{**given, "completion_ids": as_trl(scorer, [TALK], [["ab"]])["completion_ids"]})


def test_another_tokenizer_renders_the_texts_anew(model: Path, scorer: endoreward.Scorer) -> None:
    anew = endoreward.reward(model, device="cpu", tokens={"sampled": "render"}, reward={"aggregation": "mean"})
    given = {**as_trl(scorer, [TALK], [["cd"]]), "completion_ids": [[1, 2, 3]]}
    assert anew(**given) == pytest.approx([scorer.score(TALK, "cd").reward_under(aggregation="mean")])
    with pytest.raises(TypeError, match="has its options already"):
        endoreward.reward(scorer, device="cpu")


def test_a_remote_reward_under_other_fields(client: Client, scorer: endoreward.Scorer) -> None:
    mean = endoreward.remote(f"{client.url}/", model="m", reward={"aggregation": "mean"})
    expected = scorer.score(TALK, "cd").reward_under(aggregation="mean")
    assert mean(prompts=[TALK], completions=["cd"]) == pytest.approx([expected], rel=1e-5)
    for options, sentence in (
        ({"model": "other"}, "v1/rewards answers 404: no such model is served here"),
        ({"reward": {"alpha": 3.0}}, "answers 400: reward.alpha is 1 on this server"),
    ):
        with pytest.raises(RunError, match=re.escape(sentence)):
            endoreward.remote(client.url, **options)(prompts=[TALK], completions=["cd"])


def test_a_busy_server_is_asked_again_and_a_token_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENDOREWARD_TOKEN", "t0ken")
    seen: list[Any] = []

    class Busy(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            seen.append(self.headers["authorization"])
            self.send_response({1: 503, 2: 429}.get(len(seen), 200))
            self.send_header("retry-after", "0.01")
            self.end_headers()
            self.wfile.write(b'{"data": [{"reward": 1.5}]}')

        def log_message(self, *arguments: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert endoreward.remote(url)(prompts=["a"], completions=["b"]) == [1.5]
        assert seen == ["Bearer t0ken"] * 3
        seen.clear()
        with pytest.raises(RunError, match="answers 429"):
            endoreward.remote(url, retries=1)(prompts=["a"], completions=["b"])
        server.shutdown()
    with pytest.raises(RunError, match=r"gives no answer: .*refused.*; is `endoreward serve` up"):
        endoreward.remote(url, retries=0)(prompts=["a"], completions=["b"])
