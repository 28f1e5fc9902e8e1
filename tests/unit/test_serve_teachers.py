"""Log-probabilities of given tokens in three shapes, against the model's own logits; and where their learners end."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from serving import Client, described, served
from tiny import save_model

SEQUENCES = [[1, 2, 3, 4, 5], [7, 7, 7], [1, 2, 9], [5]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture(scope="module")
def client(model: Path) -> Iterator[Client]:
    with served(described(model)) as client:
        yield client


@pytest.fixture(scope="module")
def expected(model: Path) -> list[list[float]]:
    """log pi of each token but the first, from the model's own logits in float64."""
    own = transformers.AutoModelForCausalLM.from_pretrained(model, dtype="float64")
    with torch.no_grad():
        logs = [own(torch.tensor([ids])).logits[0].log_softmax(-1) for ids in SEQUENCES]
    return [
        [float(each[position, token]) for position, token in enumerate(ids[1:])]
        for each, ids in zip(logs, SEQUENCES, strict=True)
    ]


def sglang(ids: Any, **more: Any) -> dict[str, Any]:
    sampling = {"max_new_tokens": 0, "temperature": 0, "skip_special_tokens": False}
    return {"input_ids": ids, "sampling_params": sampling, "return_logprob": True, "logprob_start_len": 0, **more}


def completions(ids: Any, **more: Any) -> dict[str, Any]:
    return {"model": "m", "prompt": ids, "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 1, **more}


def tokens_in(ids: Any, **more: Any) -> dict[str, Any]:
    sampling = {"max_tokens": 1, "temperature": 1.0, "top_p": 1.0, "prompt_logprobs": 1, **more}
    return {"model": "m", "token_ids": ids, "sampling_params": sampling}


def test_sglang(client: Client, expected: list[list[float]]) -> None:
    answers = client.post("/generate", sglang(SEQUENCES)).json
    for ids, own, answer in zip(SEQUENCES, expected, answers, strict=True):
        entries = answer["meta_info"]["input_token_logprobs"]
        assert [token for _, token, _ in entries] == ids and entries[0] == [None, ids[0], None]
        np.testing.assert_allclose([logprob for logprob, _, _ in entries[1:]], own, rtol=1e-4, atol=1e-5)
    alone = client.post("/generate", sglang(SEQUENCES[0])).json
    np.testing.assert_allclose([e[0] for e in alone["meta_info"]["input_token_logprobs"][1:]], expected[0], rtol=1e-4)


def test_completions(client: Client, expected: list[list[float]]) -> None:
    answer = client.post("/v1/completions", completions(SEQUENCES)).json
    for number, (ids, own, choice) in enumerate(zip(SEQUENCES, expected, answer["choices"], strict=True)):
        first, *rest = choice["prompt_logprobs"]
        assert choice["index"] == number and first is None
        assert [list(each) for each in rest] == [[str(token)] for token in ids[1:]]
        np.testing.assert_allclose([next(iter(e.values()))["logprob"] for e in rest], own, rtol=1e-4, atol=1e-5)
    assert len(client.post("/v1/completions", completions(SEQUENCES[0])).json["choices"]) == 1


def test_tokens_in(client: Client, expected: list[list[float]]) -> None:
    for ids, own in zip(SEQUENCES, expected, strict=True):
        first, *rest = client.post("/inference/v1/generate", tokens_in(ids)).json["prompt_logprobs"]
        assert first is None
        np.testing.assert_allclose([next(iter(e.values()))["logprob"] for e in rest], own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        ("/generate", sglang([1, 2], return_logprob=False), 400, "return_logprob is false"),
        ("/generate", sglang([1, 2], sampling_params={}), 400, "set sampling_params.max_new_tokens = 0"),
        ("/generate", sglang([1, 2], logprob_start_len=1), 400, "set logprob_start_len = 0"),
        ("/generate", sglang([1, 2], top_logprobs_num=5), 400, "leave top_logprobs_num out"),
        ("/generate", sglang([[1], []]), 400, "list 1 of tokens is empty"),
        ("/generate", sglang([1] * 300), 400, "list 0 has 300 tokens, and 256 at most fit"),
        ("/generate", sglang([1, -1]), 400, "list 0 has a token id that no vocabulary has"),
        ("/generate", sglang([1, 5000]), 422, "list 0: unknown_token: "),
        ("/generate", {"text": "ab"}, 400, "input_ids: Field required"),
        ("/v1/completions", completions("ab"), 400, "prompt"),
        ("/v1/completions", completions([1, 2], temperature=0.7), 400, "of temperature 1"),
        ("/v1/completions", completions([1, 2], prompt_logprobs=100), 400, "set prompt_logprobs = 1"),
        ("/v1/completions", completions([1, 2], max_tokens=7), 400, "set max_tokens = 1"),
        ("/v1/completions", completions([1, 2], stream=True), 400, "leave stream out"),
        ("/v1/completions", completions([1, 2], model="other"), 404, "no such model"),
        ("/inference/v1/generate", tokens_in([1, 2], prompt_logprobs=None), 400, "set prompt_logprobs = 1"),
        ("/inference/v1/generate", tokens_in([]), 400, "token_ids: List should have at least 1 item"),
    ],
)
def test_what_asks_for_more_is_refused(client: Client, path: str, body: Any, status: int, sentence: str) -> None:
    answer = client.post(path, body)
    assert answer.status == status and sentence in answer.sentence, answer.content


def test_sharpness_scales_what_token_trainers_get(model: Path, expected: list[list[float]]) -> None:
    with served(described(model, serve={"sharpness": 2.0})) as client:
        entries = client.post("/generate", sglang(SEQUENCES[0])).json["meta_info"]["input_token_logprobs"]
        np.testing.assert_allclose([e[0] for e in entries[1:]], 2 * np.array(expected[0]), rtol=1e-4)
        _, *rest = client.post("/inference/v1/generate", tokens_in(SEQUENCES[0])).json["prompt_logprobs"]
        np.testing.assert_allclose(
            [next(iter(e.values()))["logprob"] for e in rest], 2 * np.array(expected[0]), rtol=1e-4
        )
        answer = client.post("/v1/completions", completions([1, 2]))
        assert answer.status == 400 and "neither softmax(s log pi) nor pi^s" in answer.sentence


def test_where_learners_end() -> None:
    """Two tokens of a vocabulary of three, exact gradients. What learns from l - log pi with l = s log pi_T and credits each
    token at once ends at softmax(s log pi_T) in every state; what credits the rest of the response, at the sequence's pi_T^s;
    TRL's sampled divergence, of the token and all others, at neither. At s = 1 they agree."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(3, generator=generator).double(), torch.randn(3, 3, generator=generator).double()
    teacher = [each.log_softmax(-1) for each in logits]
    s = 2.0
    served = [s * each for each in teacher]
    at_once = [each.softmax(-1) for each in served]
    joint = (s * (teacher[0][:, None] + teacher[1])).exp()
    sequence = [joint.sum(1) / joint.sum(), joint / joint.sum(1, keepdim=True)]
    for kind, wanted in (("at once", at_once), ("to go", sequence)):
        for own, end in zip(_learnt(served, kind), wanted, strict=True):
            torch.testing.assert_close(own, end, atol=5e-3, rtol=0)
    ends = (at_once[0], sequence[0], _learnt(served, "token and tail")[0])
    pairs = [(ends[0], ends[1]), (ends[0], ends[2]), (ends[1], ends[2])]
    assert all((one - other).abs().sum() / 2 > 0.02 for one, other in pairs), ends
    torch.testing.assert_close(_learnt(teacher, "token and tail")[0], teacher[0].exp(), atol=5e-3, rtol=0)


def _learnt(served: list[torch.Tensor], kind: str) -> list[torch.Tensor]:
    """pi of the first and of the second token, where the exact gradient is zero."""
    logits = [torch.zeros_like(each, requires_grad=True) for each in served]
    optimizer = torch.optim.Adam(logits, lr=0.05)
    for _ in range(200):
        first, second = (each.log_softmax(-1) for each in logits)
        credits = [(own - policy).detach() for own, policy in zip(served, (first, second), strict=True)]
        if kind == "to go":
            credits[0] = credits[0] + (second.exp() * credits[1]).sum(1).detach()
        gain = torch.zeros(())
        for policy, credit, own in zip((first, second), credits, served, strict=True):
            gain = gain + (_divergence(policy, own) if kind == "token and tail" else policy.exp() * credit).sum()
        optimizer.zero_grad()
        (-gain).backward()
        optimizer.step()
    return [each.detach().softmax(-1) for each in logits]


def _divergence(policy: torch.Tensor, served: torch.Tensor) -> torch.Tensor:
    """TRL's at beta = 1: of each sampled token and one bucket for all others."""
    chosen, others = policy.exp(), 1 - policy.exp()
    of_others = others * (others.log() - (-served.exp()).log1p())
    return -chosen.detach() * (chosen * (policy - served) + of_others)
