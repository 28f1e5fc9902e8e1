"""`endoreward shim`: each file against a real server, its framework by the documented types. The frameworks' own code runs in
tests/frameworks, where it installs."""

import abc
import asyncio
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple, TypedDict

import pytest
import torch
from serving import Client, client, model, scorer

import endoreward
from jobs.serve.shim import SHIMS, shim_of
from pipeline.rewards.endogenous import token_rewards

__all__ = ["client", "model", "scorer"]  # fixtures

TALK = [{"role": "user", "content": "ab?"}]
VERSIONS = {
    "trl": "TRL 1.16.0", "verl": "verl 0.9.1", "openrlhf": "OpenRLHF 0.11.2", "slime": "slime 0.3.1", "nemo-rl": "0.7.0",
    "skyrl": "August 2026", "prime-rl": "August 2026",
}  # fmt: skip


def module(name: str, **content: Any) -> ModuleType:
    made = ModuleType(name)
    made.__dict__.update(content)
    return made


@pytest.fixture
def loaded(client: Client, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """A shim, run as the module that a user saves, beside modules that stand for the framework."""

    def load(name: str, **modules: ModuleType) -> dict[str, Any]:
        monkeypatch.setenv("ENDOREWARD_URL", client.url)
        for each, content in modules.items():
            monkeypatch.setitem(sys.modules, each.replace("__", "."), content)
        namespace: dict[str, Any] = {"__name__": f"endoreward_{name}"}
        exec(compile(shim_of(name), name, "exec"), namespace)
        return namespace

    return load


@pytest.mark.parametrize("name", SHIMS)
def test_each_is_printed_whole_with_the_version_it_was_checked_against(
    name: str, here: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    done = here("shim", name)
    assert done.returncode == 0 and done.stdout == shim_of(name) and done.stdout.endswith("\n")
    assert VERSIONS[name] in done.stdout and "# client.py" not in done.stdout
    assert len(done.stdout.splitlines()) < 140
    if SHIMS[name].endswith(".py"):
        imported = set(re.findall(r"^\s*(?:import|from) (\w+)", done.stdout, re.MULTILINE))
        assert not imported & {"jobs", "pipeline", "actors"} and ("endoreward" in imported) == (name == "trl")


def test_a_framework_without_one(here: Callable[..., "subprocess.CompletedProcess[str]"]) -> None:
    done = here("shim", "keras")
    assert done.returncode == 2 and done.stdout == ""
    assert "keras: no such framework; there are trl, verl, openrlhf, slime, nemo-rl, skyrl, prime-rl" in done.stderr


def test_configurations_name_routes_that_are_there(client: Client) -> None:
    routes = client.get("/openapi.json").json["paths"]
    places = {
        place
        for name in ("openrlhf", "slime")
        for place in re.findall(r"http://127\.0\.0\.1:8000(/\S+)", shim_of(name))
    }
    assert places == {"/get_reward", "/rm", "/generate"} and places <= routes.keys()
    teacher = tomllib.loads(shim_of("prime-rl"))["orchestrator"]["algo"]["teacher"]
    body = {"model": "m", "token_ids": [1, 2], "sampling_params": {"max_tokens": 1, "prompt_logprobs": 1}}
    answer = client.post("/inference/v1/generate", body)
    assert teacher["base_url"] == "http://127.0.0.1:8000" and answer.status == 200


def test_the_page_has_the_settings_of_the_files_and_a_request_that_is_answered(client: Client) -> None:
    page = (Path(__file__).parents[2] / "docs/serving.md").read_text()
    assert set(re.findall(r"reward\.\w+\.\S+?(?==)", page)) == set(
        re.findall(r"reward\.\w+\.\S+?(?==)", shim_of("verl"))
    )
    for name, begin in (("openrlhf", "--reward."), ("slime", "--rm-")):
        flags = (
            re.findall(rf"(?<!\S){re.escape(begin)}\S+", page.replace("`", " ")),
            re.findall(rf"{begin}\S+", shim_of(name)),
        )
        assert flags[0] and set(flags[0]) <= set(flags[1])
    [body] = re.findall(r"v1/rewards -H '[^']+' -d '(.*?)'", page, re.DOTALL)
    answer = client.post("/v1/rewards", json.loads(body))
    assert answer.status == 200 and [row["num_tokens"] for row in answer.json["data"]] == [
        len(row["token_rewards"]) for row in answer.json["data"]
    ]


class StepOutput(TypedDict):
    observations: list[dict[str, str]]
    reward: float
    done: bool
    metadata: dict[str, Any]


class BaseTextEnv:
    def __init__(self) -> None:
        self.turns, self.max_turns = 0, 1


def test_skyrl_steps_once_and_gets_the_reward_of_the_answer(loaded: Any, scorer: endoreward.Scorer) -> None:
    base = module("base_text_env", BaseTextEnv=BaseTextEnv, BaseTextEnvStepOutput=StepOutput)
    shim = loaded(
        "skyrl", skyrl_gym=module("skyrl_gym"), skyrl_gym__envs=module("envs"), skyrl_gym__envs__base_text_env=base
    )
    environment = shim["EndorewardEnv"](env_config=None, extras={"max_turns": 1})
    with pytest.raises(RuntimeError, match="step before init"):
        environment.step("cd")
    assert environment.init([*TALK]) == (TALK, {})
    output = environment.step("cd")
    assert output["reward"] == pytest.approx(scorer.score(TALK, "cd").reward, rel=1e-5)
    assert (output["done"], output["observations"], environment.turns) == (True, [], 1)
    with pytest.raises(RuntimeError, match="empty_response"):
        environment.step("")


class EnvironmentReturn(NamedTuple):
    observations: list[dict[str, str]]
    metadata: list[Any]
    next_stop_strings: list[Any]
    rewards: torch.Tensor
    terminateds: torch.Tensor
    answers: list[str | None] | None = None


class EnvironmentInterface(abc.ABC):
    @abc.abstractmethod
    def step(self, message_log_batch: list[Any], metadata: list[Any]) -> EnvironmentReturn: ...

    @abc.abstractmethod
    def global_post_process_and_metrics(self, batch: Any) -> tuple[Any, dict[str, Any]]: ...


def test_nemo_rl_ends_its_episodes_with_rewards(loaded: Any, model: Path, scorer: endoreward.Scorer) -> None:
    registered: dict[str, str] = {}
    interfaces = module("interfaces", EnvironmentInterface=EnvironmentInterface, EnvironmentReturn=EnvironmentReturn)
    registry: dict[str, str] = {}
    shim = loaded(
        "nemo-rl",
        nemo_rl=module("nemo_rl"),
        nemo_rl__environments=module("environments"),
        nemo_rl__environments__interfaces=interfaces,
        nemo_rl__environments__utils=module("utils", register_env=registered.__setitem__),
        nemo_rl__distributed=module("distributed"),
        nemo_rl__distributed__ray_actor_environment_registry=module("r", ACTOR_ENVIRONMENT_REGISTRY=registry),
        nemo_rl__distributed__virtual_cluster=module("v", PY_EXECUTABLES=SimpleNamespace(SYSTEM="python")),
        ray=module("ray", remote=lambda kind: ("remote", kind)),
    )
    shim["register"]()
    assert registered == {"endoreward": "endoreward_nemo_rl.EndorewardEnvironment"}
    assert registry == {"endoreward_nemo_rl.EndorewardEnvironment": "python"}
    assert shim["EndorewardEnvironment"] == ("remote", shim["Environment"])
    written = "<|im_start|>user\nab?<|im_end|>\n<|im_start|>assistant\n"
    logs = [
        [{"role": "user", "content": written}, {"role": "assistant", "content": answer}] for answer in ("cd", "abcd")
    ]
    step = shim["Environment"]({"templated": True}).step(logs, [{}, {}])
    final = endoreward.Scorer.from_pretrained(model, device="cpu", tokens={"template": "none"})
    assert step.rewards.tolist() == pytest.approx([final.score(written, a).reward for a in ("cd", "abcd")], rel=1e-4)
    assert step.terminateds.all() and step.answers == ["cd", "abcd"] and len(step.observations) == 2
    raw = [[*TALK, {"role": "assistant", "content": "cd"}]]
    assert shim["Environment"]({"templated": False}).step(raw, [{}]).rewards.tolist() == pytest.approx(
        [scorer.score(TALK, "cd").reward], rel=1e-4
    )
    assert shim["Environment"]().global_post_process_and_metrics("batch") == ("batch", {})


class RewardManagerBase:
    def __init__(self, config: Any, tokenizer: Any, compute_score: Any):
        self.config, self.tokenizer, self.compute_score = config, tokenizer, compute_score


class Data:
    """As verl's DataProto: a batch that slices."""

    def __init__(self, **tensors: torch.Tensor):
        self.batch = tensors

    def __getitem__(self, part: slice) -> "Data":
        return Data(**{name: tensor[part] for name, tensor in self.batch.items()})


def test_verl_gets_the_reward_of_tokens_in_padded_batches(loaded: Any, scorer: endoreward.Scorer) -> None:
    names = (
        "verl",
        "verl.experimental",
        "verl.experimental.reward_loop",
        "verl.experimental.reward_loop.reward_manager",
    )
    modules = {name.replace(".", "__"): module(name) for name in names}
    base = module("base", RewardManagerBase=RewardManagerBase)
    shim = loaded("verl", **modules, verl__experimental__reward_loop__reward_manager__base=base)
    prompt = torch.tensor([[0, 0, 5, 6]])
    response = torch.tensor([[7, 8, 0]])
    data = Data(
        prompts=prompt,
        responses=response,
        input_ids=torch.cat([prompt, response], 1),
        attention_mask=torch.tensor([[0, 0, 1, 1, 1, 1, 0]]),
    )
    from pipeline.tokens import TokenizedTurn

    [scores] = scorer.engine.score([TokenizedTurn([5, 6], [7, 8], [])])  # type: ignore[arg-type]
    tokens = token_rewards(scores.q, scores.values)  # type: ignore[union-attr]
    config = SimpleNamespace(
        reward=SimpleNamespace(
            reward_model=SimpleNamespace(enable=True, enable_resource_pool=False),
            custom_reward_function=SimpleNamespace(path="here.py"),
        )
    )
    manager = shim["EndorewardManager"](config, None, None)
    assert manager.row(data).keys() == {
        "input",
        "response_index",
        "reward",
        "num_tokens",
        "num_prompt_tokens",
        "truncated",
    }
    whole = asyncio.run(manager.run_single(data))
    assert whole["reward_score"] == pytest.approx(float(tokens.sum()), rel=1e-4)
    each = asyncio.run(shim["EndorewardTokenManager"](config, None, None).run_single(data))
    assert each["reward_score"] == pytest.approx(tokens.tolist(), rel=1e-4)
    rewards = shim["EndorewardTokenManager"].assemble_rm_scores(data, [each["reward_score"]])
    assert rewards.tolist()[0] == pytest.approx([*tokens.tolist(), 0.0], rel=1e-4)
    config.reward.custom_reward_function.path = None
    with pytest.raises(ValueError, match="colocated path alone"):
        shim["EndorewardTokenManager"](config, None, None)
    data.batch["input_ids"] = torch.tensor([[0, 0, 9, 9, 9, 9, 0]])
    with pytest.raises(RuntimeError, match="do not add up to input_ids"):
        shim["EndorewardManager"](config, None, None).row(data)
    with pytest.raises(ValueError, match="verl gives compute_score no prompt"):
        shim["compute_score"]("a", "cd", "7", extra_info={"num_turns": 2})
    scored = shim["compute_score"]("a", "cd", "7", extra_info={"prompt": TALK})
    assert scored == pytest.approx(scorer.score(TALK, "cd").reward, rel=1e-5)


def test_a_model_is_named_by_the_environment(
    loaded: Any, client: Client, scorer: endoreward.Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = module("base_text_env", BaseTextEnv=BaseTextEnv, BaseTextEnvStepOutput=StepOutput)
    modules = {"skyrl_gym": module("a"), "skyrl_gym__envs": module("b"), "skyrl_gym__envs__base_text_env": base}
    [name] = client.desk.services
    monkeypatch.setenv("ENDOREWARD_MODEL", name)
    [row] = loaded("skyrl", **modules)["ask"]([{"prompt": TALK, "responses": ["cd"]}])
    assert row["reward"] == pytest.approx(scorer.score(TALK, "cd").reward, rel=1e-5)
    monkeypatch.setenv("ENDOREWARD_MODEL", "other")
    with pytest.raises(RuntimeError, match=rf"answers 404: .*no such model is served here; there are {name}"):
        loaded("skyrl", **modules)["ask"]([{"prompt": TALK, "responses": ["cd"]}])


def test_a_server_that_refuses_is_quoted(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    base = module("base_text_env", BaseTextEnv=BaseTextEnv, BaseTextEnvStepOutput=StepOutput)
    modules = {"skyrl_gym": module("a"), "skyrl_gym__envs": module("b"), "skyrl_gym__envs__base_text_env": base}
    shim = loaded("skyrl", **modules)
    with pytest.raises(RuntimeError, match=r"answers 400: .*inputs"):
        shim["ask"]([{"prompt": 7}])
    shim["URL"], shim["TRIES"] = "http://127.0.0.1:9", 1
    with pytest.raises(RuntimeError, match=r"gives no answer: .*refused.*; is `endoreward serve` up"):
        shim["ask"]([])
