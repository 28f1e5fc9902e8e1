"""The server at saturation beside its scorer alone: tokens a second of `serve --local`, for one client process that sends
token ids, grouped by prompt, and takes Arrow, over those of `Scorer` on the same turns.

    python benchmarks/serving.py [--model FOLDER] [--prompts 48] [--group 8] [--output results/serving.json]
    python benchmarks/serving.py --vllm PYTHON     # vLLM's server by that python, asked for the same log-probabilities

The scorer and the server are processes of their own and take turns, so that load of others falls on both. The share of the
scorer's rate is given by wall clock and by CPU seconds of the process that computes, with the client's beside it; on a machine
that others use the second is the one to go by. **Claim: at least 0.9 of the scorer alone.** Every answer is compared with the
scorer's.
"""

import argparse
import http.client
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from machine import CONSOLE, ROOT, describe, table, verdict

SHARE = 0.9
CLIENTS = 16  # threads of the client's process
ARROW = "application/vnd.apache.arrow.stream"
Group = tuple[list[int], list[list[int]]]  # a prompt's tokens and those of each response


@dataclass
class Measured:
    """A side in one turn."""

    side: str
    seconds: float
    cpu_seconds: float  # of the process that computes
    client_cpu_seconds: float
    tokens_per_s: float  # of responses
    tokens_per_cpu_s: float
    p50_s: float
    p99_s: float


def groups(vocabulary: int, prompts: int, group: int, seed: int) -> list[Group]:
    """Lengths as those of short dialogues: 20 to 120 tokens a prompt, 10 to 90 a response."""
    rng = np.random.default_rng(seed)

    def ids(low: int, high: int) -> list[int]:
        return rng.integers(3, vocabulary, rng.integers(low, high)).tolist()

    return [(ids(20, 120), [ids(10, 90) for _ in range(group)]) for _ in range(prompts)]


def size(asked: Sequence[Group]) -> int:
    return sum(len(response) for _, responses in asked for response in responses)


def scoring(model: str, pipe: Any) -> None:
    """A process with the scorer alone: scores what comes, and answers with its CPU seconds and rewards."""
    from pipeline.config import ModelConfig, RewardConfig
    from pipeline.corpus.samples import Turn
    from pipeline.models.loading import load_model
    from pipeline.models.scores import Scores
    from pipeline.models.scoring import Scorer
    from pipeline.rewards.labelling import labels_of
    from pipeline.tokens import TokenizedTurn

    scorer = Scorer(load_model(ModelConfig(name=model), "cpu"))
    pipe.send(None)
    while (asked := pipe.recv()) is not None:
        turns = [TokenizedTurn(prompt, response, []) for prompt, responses in asked for response in responses]
        begun, cpu = time.perf_counter(), time.process_time()
        scores = scorer.score(turns)
        took, spent = time.perf_counter() - begun, time.process_time() - cpu
        named = Turn("r", "r", None, 0, 0, [], "", False, None, {})
        scored = [(named, turn, each) for turn, each in zip(turns, scores, strict=True) if isinstance(each, Scores)]
        pipe.send((took, spent, [label.reward for label in labels_of(scored, RewardConfig())]))


def client(port: int, pipe: Any) -> None:
    """The one process of clients: a request a group, CLIENTS at once, each on a connection that stays."""
    while (asked := pipe.recv()) is not None:
        begun, cpu = time.perf_counter(), time.process_time()
        with ThreadPoolExecutor(CLIENTS) as pool:
            parts = list(pool.map(lambda part: _ask(port, part), [asked[own::CLIENTS] for own in range(CLIENTS)]))
        took, spent = time.perf_counter() - begun, time.process_time() - cpu
        rewards = [parts[number % CLIENTS][number // CLIENTS][0] for number in range(len(asked))]
        pipe.send((took, spent, [each for own in rewards for each in own], [s for part in parts for _, s in part]))


def _ask(port: int, asked: Sequence[Group]) -> list[tuple[list[float], float]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    answers = []
    headers = {"content-type": "application/json", "accept": ARROW}
    for prompt, responses in asked:
        begun = time.perf_counter()
        body = json.dumps({"inputs": [{"prompt_token_ids": prompt, "response_token_ids": responses}]})
        connection.request("POST", "/v1/rewards", body, headers)
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {content[:300]!r}")
        rewards = pa.ipc.open_stream(content).read_all()["reward"].to_pylist()
        answers.append((rewards, time.perf_counter() - begun))
    connection.close()
    return answers


def start_server(model: str) -> tuple["subprocess.Popen[bytes]", int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["-m", "jobs", "serve", "--local", "--model", model, "--port", str(port), "--set", "scorer.device=cpu"]
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL)
    _until_ready(process, f"http://127.0.0.1:{port}/health")
    return process, port


def _until_ready(process: "subprocess.Popen[bytes]", address: str) -> None:
    while True:
        try:
            with urllib.request.urlopen(address):
                return
        except OSError:
            if process.poll() is not None:
                raise SystemExit(f"the server ended with {process.returncode} before it was ready") from None
            time.sleep(0.5)


def cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def compare(model: str, vocabulary: int, options: argparse.Namespace) -> list[Measured]:
    """Both sides in turns, each time with the same groups on both; the first turn, which warms up, is left out."""
    spawn = multiprocessing.get_context("spawn")
    (own, scorers), (ours, clients) = spawn.Pipe(), spawn.Pipe()
    server, port = start_server(model)
    workers = [spawn.Process(target=scoring, args=(model, scorers)), spawn.Process(target=client, args=(port, clients))]
    measured: list[Measured] = []
    try:
        for worker in workers:
            worker.start()
        own.recv()
        for turn in range(options.turns + 1):
            asked = groups(vocabulary, options.prompts, options.group, turn)
            own.send(asked)
            took, spent, rewards = own.recv()
            before = cpu_seconds(server.pid)
            ours.send(asked)
            served_s, client_s, served, seconds = ours.recv()
            of_server = cpu_seconds(server.pid) - before
            np.testing.assert_allclose(served, rewards, rtol=1e-5, atol=1e-4)
            if turn:
                measured.append(_measured("Scorer", asked, took, spent, 0.0, [took]))
                measured.append(_measured("serve --local", asked, served_s, of_server, client_s, seconds))
        own.send(None)
        ours.send(None)
    finally:
        server.terminate()
        server.wait(300)
        for worker in workers:
            worker.join(5)
            worker.kill()
    return measured


def _measured(
    side: str, asked: Sequence[Group], took: float, cpu: float, client_s: float, seconds: Sequence[float]
) -> Measured:
    tokens = size(asked)
    p50, p99 = np.percentile(seconds, (50, 99))
    return Measured(side, took, cpu, client_s, tokens / took, tokens / cpu, float(p50), float(p99))


def beside_vllm(python: str, model: str, vocabulary: int, options: argparse.Namespace) -> Measured | None:
    """vLLM's server, asked for `prompt_logprobs` of the same tokens; None where that python has no vLLM."""
    if subprocess.run([python, "-c", "import vllm"], capture_output=True).returncode:
        CONSOLE.print(f"skipped: {python} has no vLLM")
        return None
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["-m", "vllm.entrypoints.openai.api_server", "--model", model, "--port", str(port), "--dtype", "float32"]
    words += ["--enforce-eager"]  # else it compiles for minutes
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen([python, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        _until_ready(process, f"http://127.0.0.1:{port}/health")
        seconds: list[float] = []
        for turn in range(2):  # the first warms up
            asked = groups(vocabulary, options.prompts, options.group, turn)
            own, children = time.process_time(), _tree_seconds(process.pid)
            begun = time.perf_counter()
            with ThreadPoolExecutor(CLIENTS) as pool:
                seconds = list(pool.map(lambda group: _ask_vllm(port, model, group), asked))
            took = time.perf_counter() - begun
            cpu, client_s = _tree_seconds(process.pid) - children, time.process_time() - own
        return _measured("vLLM's server", asked, took, cpu, client_s, seconds)
    finally:
        process.terminate()
        process.wait(60)


def _ask_vllm(port: int, model: str, group: Group) -> float:
    begun = time.perf_counter()
    prompts = [group[0] + response for response in group[1]]
    body = {"model": model, "prompt": prompts, "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0}
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(asked) as answer:
        json.load(answer)
    return time.perf_counter() - begun


def _tree_seconds(pid: int) -> float:
    return cpu_seconds(pid) + sum(cpu_seconds(each.pid) for each in psutil.Process(pid).children(recursive=True))


def random_model(folder: Path) -> tuple[str, int]:
    """Of 20M parameters beside its output matrix."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = 8000
    torch.manual_seed(0)
    settings = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=512, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=1024,
    )  # fmt: skip
    transformers.LlamaForCausalLM(settings).save_pretrained(folder)
    words = {"<s>": 0, "</s>": 1, "<unk>": 2, **{f"w{number}": number for number in range(3, vocabulary)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return str(folder), vocabulary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a local folder; default: a random Llama of 20M parameters")
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--group", type=int, default=8, help="responses to each prompt")
    parser.add_argument("--turns", type=int, default=3, help="of both sides")
    parser.add_argument("--vllm", metavar="PYTHON", help="compare with vLLM's server too, by this python")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "serving.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        model, vocabulary = random_model(Path(place)) if options.model is None else (options.model, 0)
        if options.model is not None:
            vocabulary = json.loads((Path(model) / "config.json").read_text())["vocab_size"]
        measured = compare(model, vocabulary, options)
        if options.vllm and (other := beside_vllm(options.vllm, model, vocabulary, options)):
            measured.append(other)
    columns = ("", "response tokens/s", "... a CPU second", "CPU s", "client's", "p50 s", "p99 s")
    shown = table(f"{options.prompts} groups of {options.group}", *columns)
    for each in measured:
        shown.add_row(
            each.side, f"{each.tokens_per_s:,.0f}", f"{each.tokens_per_cpu_s:,.0f}", f"{each.cpu_seconds:.1f}",
            f"{each.client_cpu_seconds:.2f}", f"{each.p50_s:.2f}", f"{each.p99_s:.2f}",
        )  # fmt: skip
    CONSOLE.print(shown)
    alone, served = ([each for each in measured if each.side == side] for side in ("Scorer", "serve --local"))
    by_wall = float(np.median([s.tokens_per_s / a.tokens_per_s for a, s in zip(alone, served, strict=True)]))
    by_cpu = float(np.median([s.tokens_per_cpu_s / a.tokens_per_cpu_s for a, s in zip(alone, served, strict=True)]))
    load = os.getloadavg()[0]
    content = {"machine": describe(), "load": load, "prompts": options.prompts, "group": options.group}
    shares = {"share": by_wall, "share_by_cpu": by_cpu}
    options.output.write_text(json.dumps({**content, **shares, "runs": [asdict(m) for m in measured]}, indent=1) + "\n")
    CONSOLE.print(
        f"load of the machine at the end: {load:.1f}; share of the scorer's rate by CPU seconds: {by_cpu:.2f}"
    )
    verdict({f"the server's rate is at least {SHARE} of the scorer's ({by_wall:.2f})": by_wall >= SHARE})


if __name__ == "__main__":
    main()
