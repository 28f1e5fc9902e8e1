"""The commands with vLLM, as a user runs them: sample, rl with a sampler that is killed, and a real server of vLLM's."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, SIBLING
from tiny import save_bigram

Cli = Callable[..., subprocess.CompletedProcess[str]]
ADDITION = ROOT / "examples/addition"


def settings(**fields: Any) -> list[str]:
    return [word for name, value in fields.items() for word in ("--set", f"{name.replace('__', '.')}={value}")]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join((ADDITION / "practice.jsonl").read_text().splitlines(keepends=True)[:32]))
    return file


def responses(output: Path) -> list[list[list[int]]]:
    [file] = output.glob("samples-*.jsonl")
    return [json.loads(line)["response_token_ids"] for line in file.read_text().splitlines()]


def test_sample_writes_what_the_reference_writes(cli: Cli, prompts: Path, tmp_path: Path) -> None:
    common = ["--policy", SIBLING, "--prompts", prompts]
    common += settings(sample__num_responses=4, sample__max_new_tokens=48, run__num_cpus=2)
    written = {}
    for engine in ("transformers", "vllm"):
        done = cli("sample", *common, "--output", tmp_path / engine, *settings(sampler__engine=engine), timeout=500)
        assert done.returncode == 0, done.stderr
        written[engine] = [each for row in responses(tmp_path / engine) for each in row]
    same = sum(a == b for a, b in zip(written["transformers"], written["vllm"], strict=True))
    assert same >= 0.95 * len(written["vllm"]) == 0.95 * 128
    again = cli("sample", *common, "--output", tmp_path / "vllm", timeout=240)
    assert again.returncode == 2 and "engine: the store has 'vllm', this run None" in again.stderr


def test_a_judge_answers_as_the_references_does(cli: Cli, tmp_path: Path) -> None:
    """A judge of whole words whose verdicts are known, in both orders; heads of 32, which vLLM has."""
    words = " ".join(f"w{i}" for i in range(22))  # that with the others make 32, the size of its one head
    judge = save_bigram(tmp_path / "judge", {"better": "[[A]]", "worse": "[[B]]"}, f"{words} what is it one")
    rows = [{"prompt": "what is it", "chosen": ["worse", "one worse"], "rejected": ["better"]} for _ in range(6)]
    rows += [{"prompt": "what is it", "chosen": ["better", "one better"], "rejected": ["better"]} for _ in range(2)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entries = {}
    for engine in ("transformers", "vllm"):
        done = cli(
            "evaluate", "--benchmark", "pairs", "--input", tmp_path / "a.jsonl", "--model", judge, "--output",
            tmp_path / engine, "--reward", "judge-pairwise", *settings(judge__engine=engine, run__num_cpus=2),
            *settings(judge__max_new_tokens=4, judge__pairwise_prompt="{prompt} {first} {second}"), timeout=500,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        [entries[engine]] = json.loads((tmp_path / engine / "results.json").read_text())["rewards"]
    assert entries["vllm"]["values"] == entries["transformers"]["values"]
    assert entries["vllm"]["judgements"] == entries["transformers"]["judgements"]
    assert entries["vllm"]["judgements"] == {"asked": 16, "unparsable": 0, "disagree": 4}


def test_a_head_size_that_it_has_not_is_refused(cli: Cli, prompts: Path, tmp_path: Path) -> None:
    common = ["--policy", ADDITION / "model", "--prompts", prompts, "--output", tmp_path / "out"]
    for command in ("sample", "rl"):
        done = cli(command, *common, *settings(sampler__engine="vllm"))
        assert done.returncode == 2 and "are of size 24, and vLLM has 32, 64" in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("lora", "lag"), [(0, 0), (4, 1)])
def test_twenty_steps_of_rl_with_a_sampler_that_is_killed(lora: int, lag: int, prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    words = ["rl", "--policy", SIBLING, "--prompts", prompts, "--output", output]
    words += settings(
        sampler__engine="vllm", sampler__actors=1, sampler__budget_tokens=4096, run__num_cpus=2, lora__rank=lora,
        rl__max_steps=20, rl__batch_size=4, rl__group_size=4, rl__max_new_tokens=32, rl__learning_rate=1e-3,
        rl__lag=lag, rl__keep_rollouts="true", tracking__tensorboard="false",
    )  # fmt: skip
    log = (tmp_path / "log").open("w")
    run = subprocess.Popen(
        [sys.executable, "-m", "jobs", *map(str, words)], cwd=ROOT, stdout=log, stderr=log, start_new_session=True
    )
    killed = False
    try:
        deadline = time.monotonic() + 560
        while run.poll() is None:
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
            if not killed and len(rows(output)) > 6:
                killed = kill_sampler(run.pid)
            time.sleep(0.5)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    steps = [row for row in rows(output) if row["step"]]
    assert [row["step"] for row in steps] == list(range(1, 21)), "each batch is learnt once"
    assert killed and sum("a sampler died and was started again" in str(row.get("warnings")) for row in steps) == 1
    apart = max(row["sampling/sampling_logp_difference/max"] for row in steps)
    assert apart > 1e-3 if lag else apart < 1e-3, "weights of a step before, or the learner's own"
    versions = kept_versions(output)
    assert versions == {step: {max(0, step - 1 - lag)} for step in range(1, 21)}, "the weights after so many steps"


def rows(output: Path) -> list[dict[str, Any]]:
    file = output / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def kill_sampler(session: int) -> bool:
    """The sampler of the run, found below it by name."""
    import psutil

    for process in psutil.Process(session).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any("ray::PolicySampler" in word for word in process.cmdline()):
                process.kill()
                return True
    return False


def kept_versions(output: Path) -> dict[int, set[int]]:
    """The versions of the weights that the responses of each step, counted from 1, come from."""
    from pipeline.rl.rollout_store import RolloutStore

    store = RolloutStore(str(output / "rollouts"))
    return {
        step + 1: {rollout.version for group in store.read(step) for rollout in group.rollouts}
        for step in range(store.steps())
    }


# A real server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """vLLM's own, of the sibling of the addition model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--model", str(SIBLING), "--served-model-name", "sibling", "--host", "127.0.0.1", "--port", str(port)]
    words += ["--dtype", "float32", "--max-model-len", "128", "--enforce-eager", "--max-num-seqs", "16"]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    environment |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_API_KEY": "sk-of-the-test"}
    log = (tmp_path_factory.mktemp("server") / "log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words],
        env=environment, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 400
        while True:
            assert process.poll() is None and time.monotonic() < deadline, Path(log.name).read_text()[-3000:]
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                break
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_tokens_and_log_probabilities_of_a_server(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the distribution that was asked for, whatever the server's own settings of generation say."""
    import numpy as np
    from conftest import opened

    from pipeline.config import ModelConfig
    from pipeline.errors import ConfigError
    from pipeline.models.engines import Drawing, Endpoint, EngineSpec, open_engine
    from pipeline.models.engines.endpoint import checked
    from pipeline.models.questions import Question

    model, endpoint = ModelConfig(name=str(SIBLING)), Endpoint(server, "", "completions")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-another")
    with pytest.raises(ConfigError, match=r"refuses the key \(status 401\)"):
        checked(endpoint, model)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-test")
    endpoint = checked(endpoint, model)
    assert endpoint.model == "sibling"
    drawing = Drawing(max_new_tokens=48, temperature=1.0, logprobs=True)
    engine = open_engine(EngineSpec(model, "cpu", drawing, engine="endpoint", endpoint=endpoint))
    reference = opened(str(SIBLING), "transformers")
    prompt = list(reference.generator.tokenizer("753+939=")["input_ids"])
    [samples] = engine.generate([Question(prompt, 16, 3)])
    assert not isinstance(samples, Exception) and len({tuple(each.token_ids) for each in samples}) > 1
    for each in samples:
        due = reference.logprobs(prompt + each.token_ids)[-len(each.token_ids) :]
        assert each.logprobs is not None
        np.testing.assert_allclose(each.logprobs, due, rtol=0, atol=1e-3)
        assert each.finished == (each.token_ids[-1] == reference.generator.tokenizer.eos_token_id)
    assert engine.forwarded_tokens == sum(len(prompt) + len(each.token_ids) for each in samples)


def test_samples_of_a_server(cli: Cli, server: str, prompts: Path, tmp_path: Path) -> None:
    """Tokens of the model's own, which label scores as it scores any; no key anywhere."""
    common = ["--policy", SIBLING, "--prompts", prompts, "--output", tmp_path / "served"]
    common += settings(sample__num_responses=2, sample__max_new_tokens=48, run__num_cpus=2, sampler__endpoint=server)
    refused = cli("sample", *common, env={"OPENAI_API_KEY": "sk-another"})
    assert refused.returncode == 2 and "refuses the key (status 401)" in refused.stderr
    done = cli("sample", *common, env={"OPENAI_API_KEY": "sk-of-the-test"}, timeout=400)
    assert done.returncode == 0, done.stderr
    assert "model sibling: about 64 requests" in " ".join(done.stdout.split())
    drawn = [each for row in responses(tmp_path / "served") for each in row]
    assert len(drawn) == 64 and len({tuple(each) for each in drawn}) > 16
    labelled = cli(
        "label", "--model", SIBLING, "--input", tmp_path / "served", "--output", tmp_path / "labels",
        *settings(run__num_cpus=2), timeout=400,
    )  # fmt: skip
    assert labelled.returncode == 0, labelled.stderr
    assert not [file for file in tmp_path.glob("**/*") if file.is_file() and b"sk-of-the-test" in file.read_bytes()]
