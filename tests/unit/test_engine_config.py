"""Which engine writes: what is configured, refused and stored of it."""

import gzip
import importlib.machinery
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from faulty_server import Request, serving

from jobs.label.writers import Estimate, checked_writer
from jobs.sample.run import sample
from pipeline.config import EvaluateConfig, SampleConfig, load_config_as
from pipeline.errors import ConfigError, RunError
from pipeline.models.engines import checks
from pipeline.models.engines.weights import Held, check_weights
from pipeline.models.loading import load_model, load_settings
from pipeline.rewards.labellers import PairwiseJudge, PromptSampler
from pipeline.rl.config import RlConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.save_model(tmp_path_factory.mktemp("model"), tiny.CHATML, hidden=128))


def sampling(model: str, *assignments: str) -> PromptSampler:
    config = load_config_as(SampleConfig, None, [("model.name", model)], list(assignments))
    return PromptSampler(config, config.model)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: json.__spec__)
    monkeypatch.setattr(checks, "_known_architectures", lambda: {"LlamaForCausalLM"})


@pytest.mark.parametrize(
    ("kind", "assignments", "message"),
    [
        (SampleConfig, ["sampler.engine=sglang"], "sampler.engine: Input should be 'transformers' or 'vllm'"),
        (SampleConfig, ["sampler.endpoint=host:8000"], "sampler.endpoint: is no address of a server"),
        (SampleConfig, ["sampler.endpoint=http://me:secret@host/v1"], "holds credentials"),
        (SampleConfig, ["endpoint.concurrency=3"], "endpoint.concurrency: has no effect without sampler.endpoint"),
        (SampleConfig, ["sampler.endpoint=http://h/v1", "sampler.engine=vllm"], "sampler.engine: has no effect under"),
        (SampleConfig, ["sampler.endpoint=http://h/v1", "endpoint.api=chat"], "chat gives no tokens"),
        (EvaluateConfig, ["judge.endpoint=http://h/v1", "judge.engine=vllm"], "judge.engine: has no effect under"),
        (EvaluateConfig, ["endpoint.max_tokens=3"], "endpoint.max_tokens: has no effect without judge.endpoint"),
        (RlConfig, ["rl.replay=out/x", "sampler.engine=vllm"], "sampler.engine: has no effect under rl.replay"),
    ],
)
def test_what_would_have_no_effect_is_refused(kind: Any, assignments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config_as(kind, None, [], assignments)


def test_the_reference_leaves_no_trace_in_a_description_and_others_do(model: str) -> None:
    reference = sampling(model).describe("float32")
    assert "engine" not in reference, "stores from before there were engines keep their fingerprint"
    other = sampling(model, "sampler.engine=vllm").describe("float32")
    assert other == {**reference, "engine": "vllm"}
    served = sampling(model, "sampler.endpoint=http://h/v1/", "endpoint.model=m").describe("float32")
    assert served == {**reference, "engine": "endpoint", "endpoint.model": "m", "endpoint.api": "completions"}
    config = EvaluateConfig.model_validate({"model": {"name": model}, "judge": {"engine": "vllm"}})
    assert PairwiseJudge(config, config.model).describe("float32")["engine"] == "vllm"


# vLLM


def test_an_engine_that_is_not_installed(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = importlib.machinery.ModuleSpec("vllm", None)  # of this name, such as that of tests here
    for spec in (None, folder):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, spec=spec: spec)
        with pytest.raises(
            ConfigError, match=r"sampler.engine = vllm: it is not installed; pip install 'endoreward\[vllm\]'"
        ):
            checked_writer(sampling(model, "sampler.engine=vllm"), "cpu")
    assert checked_writer(sampling(model), "cpu").writer == "transformers"


@pytest.mark.usefixtures("installed")
def test_a_model_that_vllm_cannot_run(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked_writer(sampling(model, "sampler.engine=vllm"), "cpu")
    small = tiny.save_model(tmp_path / "small", hidden=48)  # 2 heads of 24
    wanted = (
        r"heads of .*small are of size 24, and vLLM has 32, 64, 80, .* on a CPU; take sampler.engine = transformers"
    )
    with pytest.raises(ConfigError, match=wanted):
        checked_writer(sampling(str(small), "sampler.engine=vllm"), "cpu")
    checked_writer(sampling(str(small), "sampler.engine=vllm"), "cuda")
    monkeypatch.setattr(checks, "_known_architectures", lambda: {"Other"})
    with pytest.raises(ConfigError, match="it has no architecture LlamaForCausalLM"):
        checked_writer(sampling(model, "sampler.engine=vllm"), "cpu")


@pytest.mark.usefixtures("installed")
def test_a_tokenizer_with_tokens_that_the_model_lacks(model: str, tmp_path: Path) -> None:
    tiny.save_model(tmp_path, hidden=128)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    with pytest.raises(ConfigError, match="has tokens up to 263 and the model knows 100; resize"):
        checked_writer(sampling(str(tmp_path), "sampler.engine=vllm"), "cpu")


def test_weights_are_held_against_the_complete_set(model: str) -> None:
    config = sampling(model).model
    held = Held.of(load_settings(config))
    weights = dict(load_model(config, "cpu").named_parameters())
    check_weights(weights, held.shapes)
    assert dict(held.whole(weights)).keys() == weights.keys(), "nothing is tied here"
    lacking = {name: each for name, each in weights.items() if name != "lm_head.weight"}
    with pytest.raises(RunError, match=r"lm_head.weight is missing$"):
        check_weights(lacking, held.shapes)
    strange = {**lacking, "lm_head.weight": torch.ones(2, 3), "other": torch.ones(1)}
    with pytest.raises(
        RunError, match=r"other is none of the model's, lm_head.weight is \[2, 3\] and should be \[\d+, 128\]"
    ):
        check_weights(strange, held.shapes)


def test_tied_weights_go_by_both_names(model: str) -> None:
    """On a CPU vLLM's output layer would go on with the weights before."""
    settings = load_settings(sampling(model).model)
    settings.tie_word_embeddings = True
    held = Held.of(settings)
    assert "lm_head.weight" not in held.shapes and held.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    embedding = torch.ones(2)
    assert dict(held.whole({"model.embed_tokens.weight": embedding}))["lm_head.weight"] is embedding


# What a server is going to cost


def test_a_server_is_announced_with_its_estimate_before_the_first_call(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each file has its weight by its rows, in however many pieces it is read."""
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "a.jsonl").write_text("".join(json.dumps({"prompt": "ab"}) + "\n" for _ in range(300)))
    long = "".join(json.dumps({"prompt": "ab" * 50}) + "\n" for _ in range(300))
    (rows / "b.jsonl.gz").write_bytes(gzip.compress(long.encode()))

    def answer(body: Request) -> Any:
        ids = tiny.tokenizer()(body["prompt"])["input_ids"]
        return {"choices": [{"text": "", "token_ids": [], "prompt_token_ids": ids}]}

    with serving(answer) as server:
        settings = [f"sampler.endpoint={server.url}", "sample.num_responses=2", "sample.max_new_tokens=10"]
        settings += ["endpoint.input_price=1000", "endpoint.output_price=100", "endpoint.max_tokens=100"]
        settings += ["input.shard_rows=1"]
        config = load_config_as(
            SampleConfig,
            None,
            [("model.name", model), ("input.paths", [str(rows)]), ("output.path", str(tmp_path / "out"))],
            settings,
        )
        with pytest.raises(
            ConfigError, match=r"prompts alone are about [\d,]+ tokens, more than endpoint.max_tokens = 100"
        ):
            sample(config)
        assert len(server.asked) == 1, "one token, to see whose tokens it makes"
    texts = [f"<|im_start|>user\n{'ab' * number}<|im_end|>\n<|im_start|>assistant\n" for number in (1, 50)]
    prompt = sum(len(tiny.tokenizer()(text)["input_ids"]) for text in texts)
    said = " ".join(capsys.readouterr().out.split())
    assert (
        f"model served: about 1,200 requests with {600 * prompt:,} tokens of prompts, at most 12,000 tokens of answers"
        in said
    )
    assert f"at these prices {0.6 * prompt:,.2f} to {0.6 * prompt + 1.2:,.2f}" in said


def test_costs() -> None:
    assert Estimate(10, 2e6, 1e6).cost(1.5, 4.0) == (3.0, 7.0)
