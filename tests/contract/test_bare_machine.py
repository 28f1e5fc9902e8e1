"""Rendering, scoring, generation, log pi and rewards on a machine that has only torch, transformers, numpy and pyarrow; and
what `make gpu` runs, which is made for one."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tiny

ROOT = Path(__file__).parents[2]
LACKING = ("pydantic", "ray", "deepspeed", "peft", "rich")
MESSAGES = [{"role": "user", "content": "name a colour"}]
ANSWERS = ("red, abcd", "blue")
MODEL = {"revision": None, "dtype": "float32", "trust_remote_code": False, "allow_pickle": False}
TOKENS = {
    "template": "auto", "system_prompt": None, "rubrics": None, "max_length": None, "over_length": "reject",
    "append_eos": True, "template_kwargs": {}, "date": None, "thoughts": "score", "control": "text",
    "trailing_space": "move", "sampled": "exact",
}  # fmt: skip


def figures(folder: str) -> dict[str, Any]:
    """The tokens of two answers, their log-probabilities by the scorer and by the policy, and a completion."""
    import torch

    from pipeline.corpus.samples import Turn
    from pipeline.models.generation import Generator
    from pipeline.models.loading import context_length, load_model, load_tokenizer
    from pipeline.models.questions import Question
    from pipeline.models.scoring import Scorer
    from pipeline.rewards.endogenous import token_rewards
    from pipeline.tokens import Renderer
    from pipeline.training.policy import Policy

    torch.set_num_threads(1)
    source = SimpleNamespace(name=folder, **MODEL)
    model, tokenizer = load_model(source, "cpu"), load_tokenizer(source)
    renderer = Renderer(tokenizer, SimpleNamespace(**TOKENS), context_length(model.config, tokenizer))  # type: ignore[arg-type]
    asked = [
        Turn(f"a:0:response:{i}:0", "a:0", None, i, 0, MESSAGES, answer, True, None, {})  # type: ignore[arg-type]
        for i, answer in enumerate(ANSWERS)
    ]
    turns = [renderer.tokenize(turn) for turn in asked]
    generator = Generator(model, tokenizer, max_new_tokens=8, temperature=1.0, logprobs=True)
    [[completion]] = generator.generate([Question(renderer.prompt_ids(MESSAGES, True), seed=3)])  # type: ignore[arg-type,misc]
    with torch.no_grad():
        logprobs = Policy(model)(turns).logprobs
    scores = Scorer(model).score(turns)
    return {
        "tokens": [[turn.prompt_ids.tolist(), turn.response_ids.tolist()] for turn in turns],
        "scores": [each.logprobs.tolist() for each in scores],  # type: ignore[union-attr]
        "rewards": [token_rewards(each.q, each.values).tolist() for each in scores],  # type: ignore[union-attr]
        "policy": logprobs.tolist(),
        "completion": [completion.token_ids, completion.logprobs.tolist()],  # type: ignore[union-attr]
    }


BARE = f"""
import json, sys
sys.modules.update(dict.fromkeys({LACKING!r}))  # as import reads it: there are no such modules
from test_bare_machine import figures
sys.path.append("benchmarks")
from device import correctness, memory, profiles, speed  # what `make gpu` runs
print("FIGURES", json.dumps(figures(sys.argv[1])))
importers = [name for name, module in sys.modules.items() if name.startswith("pipeline.") and hasattr(module, "yaml")]
assert not importers, importers  # PyYAML comes with transformers, of which we do not ask it
"""


def test_models_run_without_pydantic(tmp_path: Path) -> None:
    folder = str(tiny.save_model(tmp_path / "model", tiny.CHATML))
    done = subprocess.run(
        [sys.executable, "-c", BARE, folder], cwd=ROOT, capture_output=True, text=True, timeout=240,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{Path(__file__).parent}", "PATH": "", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    bare = json.loads(done.stdout.rpartition("FIGURES ")[2])
    assert len(bare["scores"]) == len(ANSWERS) and all(all(value < 0 for value in each) for each in bare["scores"])
    assert bare == json.loads(json.dumps(figures(folder)))
