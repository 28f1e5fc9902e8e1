"""The key of a server is in no output, file or log of a command, however often the server says it."""

import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faulty_server
import pytest
import tiny
from faulty_server import Request, serving

KEY = "sk-very-secret-indeed"
SAID = f"no luck with {KEY} today"


@pytest.mark.slow
def test_a_key_is_nowhere(cli: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model", tiny.CHATML)
    rows = tmp_path / "prompts.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{number}?"}) + "\n" for number in range(4)))
    faults = [faulty_server.status(code, SAID) for code in (500, 429, 400)] + [faulty_server.half_an_answer]

    def answer(body: Request) -> Any:
        tokenizer = tiny.tokenizer()
        if isinstance(body["prompt"], str):  # the first word, after which it fails
            server.faults = list(faults)
            ids = tokenizer(body["prompt"])["input_ids"]
            return {"choices": [{"text": "", "token_ids": [], "prompt_token_ids": ids}]}
        return {"choices": [{"text": tokenizer.decode([66]), "token_ids": [66], "finish_reason": "stop"}]}

    words = ["sample", "--policy", model, "--prompts", rows, "--output", tmp_path / "out", "--set", "run.num_cpus=2"]
    words += ["--set", "run.verbose=true", "--set", "sample.num_responses=2", "--set", "sample.max_new_tokens=4"]
    with tempfile.TemporaryDirectory(prefix="ray") as logs, serving(answer) as server:  # Ray's paths must be short
        environment = {"OPENAI_API_KEY": KEY, "RAY_TMPDIR": logs}
        done = cli(*words, "--set", f"sampler.endpoint={server.url}", env=environment)
        server.faults = [faulty_server.status(401, SAID)]
        refused = cli(
            *words[:5], "--output", tmp_path / "no", "--set", f"sampler.endpoint={server.url}", env=environment
        )
        files = [file for top in (Path(logs), tmp_path) for file in top.glob("**/*") if file.is_file()]
        contents = {file: file.read_bytes() for file in files}
    assert (done.returncode, refused.returncode) == (0, 2), (done.stderr, refused.stderr)
    assert "endpoint_refused 1" in done.stderr, "whose row is stored with what the server said"
    assert {request["key"] for request in server.asked} == {f"Bearer {KEY}"}
    said = [done.stdout, done.stderr, refused.stdout, refused.stderr]
    assert "no luck with ... today" in refused.stderr and not any(KEY in each for each in said)
    assert any(logs in str(file) for file in contents) and any("out" in str(file) for file in contents)
    assert not [file for file, content in contents.items() if KEY.encode() in content]
