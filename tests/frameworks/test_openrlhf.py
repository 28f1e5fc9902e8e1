"""OpenRLHF 0.11.2: its client of a remote reward and its loader of pairs; and axolotl 0.19's strategy of pairs."""

import asyncio
import importlib.util
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from project import STORE, asked, ours

pytestmark = pytest.mark.shims
datasets = pytest.importorskip("datasets")


def module_of(package: str, path: str) -> Any:
    """One module of a package that was installed without what it asks for, whose __init__ would import the rest."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    root = Path(next(iter(spec.submodule_search_locations)))
    name = f"{package}.{path.removesuffix('.py').replace('/', '.')}"
    parent = name.rpartition(".")[0]
    while parent.count("."):
        bare = types.ModuleType(parent)
        bare.__path__ = [str(root.joinpath(*parent.split(".")[1:]))]
        sys.modules.setdefault(parent, bare)
        parent = parent.rpartition(".")[0]
    return importlib.import_module(name)


def test_its_client_gets_our_reward(server: str, tokenizer: Any) -> None:
    agent = module_of("openrlhf", "utils/agent.py")
    flags = dict(re.findall(r"^(--\S+) (.+)$", ours("shim", "openrlhf").stdout, re.MULTILINE))
    url = flags["--reward.remote_url"].replace("http://127.0.0.1:8000", server)
    executor = agent.SingleTurnAgentExecutor(url)

    class Engine:
        """What vLLM gives it: the tokens of an answer, the end token with them."""

        async def generate(self, prompt_ids: list[int], params: Any, multi_modal_data: Any = None) -> Any:
            ids = [*tokenizer("1023", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            return SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids, logprobs=None, finish_reason="stop")])

    params = SimpleNamespace(max_tokens=16, logprobs=None)
    output = asyncio.run(executor.execute("345+678=", "1023", params, 64, tokenizer, Engine()))
    assert output["reward"] == pytest.approx([asked(server, "345+678=", "1023")], abs=1e-4)
    assert 0 < output["scores"][0] < 1 and output["extra_logs"].keys() == {"logprob", "num_tokens"}


def test_its_flags_are_those_of_the_shim() -> None:
    spec = importlib.util.find_spec("openrlhf")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("openrlhf is not installed")
    source = Path(next(iter(spec.submodule_search_locations)), "cli/train_ppo_ray.py").read_text()
    flags = re.findall(r"^(--\S+)", ours("shim", "openrlhf").stdout, re.MULTILINE)
    assert flags and all(f'"{flag}"' in source for flag in flags)
    assert re.search(r'"--reward\.clip_range", type=float, nargs=2, default=\(-10, 10\)', source), (
        "what the shim warns of"
    )


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
@pytest.mark.parametrize("is_dpo", [False, True])
def test_pairs_are_read_by_its_loader(ending: str, is_dpo: bool, tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / f"pairs.{ending}"
    ours("export", STORE, "--format", "openrlhf", "--output", path)
    kind = "json" if ending == "jsonl" else ending
    rows = datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    tokenizer.chat_template = CHAT
    keys = SimpleNamespace(prompt_key="prompt", chosen_key="chosen", rejected_key="rejected", apply_chat_template=True)
    loader = module_of("openrlhf", "datasets/reward_dataset.py").RewardDataset
    read = loader(
        rows, tokenizer, 128, SimpleNamespace(args=SimpleNamespace(data=keys)), is_dpo=is_dpo, num_processors=1
    )
    assert len(read) == 8
    for i, row in enumerate(rows):
        assert read.prompts[i] == f"[user]{row['prompt'][0]['content']}[/][assistant]"
        assert read.chosens[i] == f"{row['chosen'][0]['content']}[/]"
        assert read.rejects[i] == f"{row['rejected'][0]['content']}[/]"
        assert is_dpo or read.extras[i] == row["margin"]


CHAT = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}[/]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_pairs_are_read_by_axolotls_strategy(
    ending: str, tmp_path: Path, tokenizer: Any, shim: Callable[[str], Path]
) -> None:
    path = tmp_path / f"pairs.{ending}"
    ours("export", STORE, "--format", "axolotl", "--output", path)
    kind = "json" if ending == "jsonl" else ending
    rows = datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    tokenizer.chat_template = CHAT
    strategy = module_of("axolotl", "prompt_strategies/dpo/chat_template.py")
    config = {"datasets": [{"path": str(path), "type": "chat_template.default", "chat_template": "tokenizer_default"}]}
    transform, options = strategy.default(config)
    assert options == {"remove_columns": ["messages"]} and len(rows) == 8
    for row in rows:
        read = transform(row, tokenizer=tokenizer)
        assert read["prompt"] == f"[user]{row['messages'][0]['content']}[/][assistant]"
        assert (read["chosen"], read["rejected"]) == tuple(
            f"{row[side]['content']}[/]" for side in ("chosen", "rejected")
        )
        assert row["margin"] == row["chosen_reward"] - row["rejected_reward"]
