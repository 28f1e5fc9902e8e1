"""TRL 1.16.0: its trainers with our reward functions, its client of a teacher, and its format of preferences."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from project import MODEL, STORE, ours

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
torch = pytest.importorskip("torch")

import endoreward  # noqa: E402

pytestmark = pytest.mark.shims
PROMPTS = ["345+678=", "12+7="]


class Kept:
    """A reward function, and what it was asked and answered."""

    __name__ = "endogenous_reward"

    def __init__(self, function: Any):
        self.function, self.calls = function, []  # type: ignore[var-annotated]

    def __call__(self, **asked: Any) -> list[float | None]:
        rewards: list[float | None] = self.function(**asked)
        self.calls.append((asked, rewards))
        return rewards


@pytest.mark.parametrize("kind", ["GRPO", "RLOO"])
@pytest.mark.parametrize("place", ["in process", "remote"])
def test_a_trainer_learns_from_the_reward_of_its_own_tokens(
    kind: str, place: str, server: str, tmp_path: Path, tokenizer: Any, token_rewards: Callable[..., list[float]]
) -> None:
    reward = endoreward.reward(MODEL, device="cpu") if place == "in process" else endoreward.remote(server)
    function = Kept(reward)
    config = getattr(trl, f"{kind}Config")(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=8, num_generations=4, max_completion_length=40,
        use_cpu=True, report_to=[], logging_steps=1, bf16=False, save_strategy="no", temperature=1.0,
    )  # fmt: skip
    rows = datasets.Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS * 4])
    trainer = getattr(trl, f"{kind}Trainer")(
        model=str(MODEL), reward_funcs=function, args=config, train_dataset=rows, processing_class=tokenizer
    )
    trainer.train()
    assert len(function.calls) == 2
    for (asked, rewards), logged in zip(function.calls, trainer.state.log_history, strict=False):
        expected = [
            sum(token_rewards(tokenizer(prompt)["input_ids"], ids))
            for prompt, ids in zip(asked["prompts"], asked["completion_ids"], strict=True)
        ]
        assert rewards == pytest.approx(expected, abs=1e-3)
        assert logged["rewards/endogenous_reward/mean"] == pytest.approx(sum(expected) / 8, abs=1e-3)


def test_the_shim_is_that_line(server: str, shim: Callable[[str], Path]) -> None:
    namespace: dict[str, Any] = {}
    exec(shim("trl").read_text().replace("http://127.0.0.1:8000", server), namespace)
    [reward] = namespace["reward_funcs"](prompts=["1+1="], completions=["2"])
    assert isinstance(reward, float)


def test_its_client_of_a_teacher_reads_our_answers(
    server: str, monkeypatch: pytest.MonkeyPatch, tokenizer: Any, token_rewards: Callable[..., list[float]]
) -> None:
    """`VLLMClient` wants vLLM to be installed, of which asking a teacher needs nothing."""
    from trl.generation import vllm_client

    monkeypatch.setattr(vllm_client, "is_vllm_available", lambda: True)
    client = vllm_client.VLLMClient(base_url=server, connection_timeout=5.0)
    prompt, answer = tokenizer("345+678=")["input_ids"], tokenizer("1023", add_special_tokens=False)["input_ids"]
    read = client.get_sequence_logprobs([prompt + answer], [len(prompt)], top_logprobs=1)
    model = _float64()
    with torch.no_grad():
        logprobs = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    expected = [float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(answer)]
    assert [each[0] for each in read["actual_logprobs"][0]] == pytest.approx(expected, abs=1e-4)
    assert [each[0] for each in read["actual_token_ids"][0]] == answer


def _float64() -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float64)


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_pairs_are_read_by_datasets_and_trained_on(ending: str, tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / f"pairs.{ending}"
    ours("export", STORE, "--format", "trl", "--output", path)
    kind = "json" if ending == "jsonl" else ending
    rows = datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == 8 and rows[0]["margin"] == rows[0]["chosen_reward"] - rows[0]["rejected_reward"]
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    config = trl.DPOConfig(
        output_dir=str(tmp_path / "out"), max_steps=1, per_device_train_batch_size=4, use_cpu=True, bf16=False,
        report_to=[], save_strategy="no",
    )  # fmt: skip
    trainer = trl.DPOTrainer(model=str(MODEL), args=config, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    first = trainer.train_dataset[0]
    assert tokenizer.decode(first["prompt_ids"]) == rows[0]["prompt"][0]["content"]


def test_a_published_store_is_loaded_by_datasets(tmp_path: Path) -> None:
    ours("push", STORE, "--to", tmp_path / "d")
    for kind, count in (("labels", 16), ("errors", 1)):
        rows = datasets.load_dataset(str(tmp_path / "d"), kind, split="train", cache_dir=str(tmp_path / "cache"))
        assert len(rows) == count
    rows = datasets.load_dataset(str(tmp_path / "d"), split="train", cache_dir=str(tmp_path / "cache"))
    assert {"reward", "token_rewards", "prompt"} <= set(rows.column_names), "labels are what is loaded by default"
    assert json.loads((tmp_path / "d/manifest.json").read_text())["counts"]["labels"] == 16
