"""The learner on two workers under ZeRO, against one process and against a plain loop of torch; with a critic too."""

import datetime
import json
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Glm4MoeConfig, Glm4MoeForCausalLM

from pipeline.config import ModelConfig
from pipeline.models.engines.probe import Probe, probe_text
from pipeline.training.adapters import with_adapters
from pipeline.training.batch import Response
from pipeline.training.config import TrainConfig
from pipeline.training.objectives import objective_of
from pipeline.training.objectives.base import Batch, Objective, Terms

STEPS, PAIRS, RATE = 10, 6, 3e-3
SETTINGS = {
    "alone": {},
    "zero1": {"learner": {"zero_stage": 1}},
    "zero2": {"learner": {"zero_stage": 2}},
    "zero3": {"learner": {"zero_stage": 3}},
    "offload": {"learner": {"zero_stage": 2, "offload": "optimizer"}},
    "lora": {"learner": {"zero_stage": 1}, "lora": {"rank": 4}},
    "lora3": {"learner": {"zero_stage": 3}, "lora": {"rank": 4}},
    "offload3": {"learner": {"zero_stage": 3, "offload": "all"}},
    "bfloat16": {"learner": {"zero_stage": 2, "dtype": "bfloat16"}},
    "bfloat16-1": {"learner": {"zero_stage": 1, "dtype": "bfloat16"}},
    "recomputed": {"learner": {"zero_stage": 1, "gradient_checkpointing": True}},
}
HARD = ("alone", "zero1", "lora3", "offload3", "bfloat16-1")  # the others are between these: with `make chaos`


def hard_first(names: Sequence[str]) -> list[Any]:
    return [name if name in HARD else pytest.param(name, marks=pytest.mark.slow) for name in names]


def pairs(step: int) -> list[list[Response]]:
    """The pairs of a step: chosen and rejected, with a reference that is not the policy's."""
    rng = np.random.default_rng(step)

    def response(prompt: list[int]) -> Response:
        tokens = rng.integers(0, 250, rng.integers(1, 12)).tolist()
        return Response(prompt, tokens, float(rng.normal()), reference=rng.normal(-5, 1, len(tokens)))

    found = []
    for _ in range(PAIRS):
        prompt = rng.integers(0, 250, rng.integers(1, 9)).tolist()
        found.append([response(prompt), response(prompt)])
    return found


def totals(found: list[list[Response]]) -> dict:
    return {
        "pairs": len(found),
        "responses": 2 * len(found),
        "tokens": sum(len(r.response_ids) for pair in found for r in pair),
    }


def part(found: list[list[Response]], rank: int, world: int) -> list[list[Response]]:
    """Micro-batches of one pair, and of two; the second worker has nothing in the last."""
    cut = [found[:1], found[1:3], found[3:5], found[5:], [], []] if world == 2 else [found[:4], found[4:]]
    return [[r for pair in micro for r in pair] for micro in cut[rank::world]]


def join(rank: int, world: int, port: int) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    os.environ["DS_ACCELERATOR"] = "cuda"  # of this machine, say; a learner knows better
    store = dist.TCPStore("127.0.0.1", port, world, rank == 0, datetime.timedelta(seconds=60))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)


def told(folder: str, name: str) -> tuple[TrainConfig, str | None]:
    """The setting, and the DeepSpeed configuration of a user."""
    config = TrainConfig(policy=ModelConfig(name=f"{folder}/base"), **SETTINGS[name])
    whole = json.dumps(
        {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    )  # else all is small enough to stay
    return config, whole if config.learner.zero_stage == 3 else None


def work(rank: int, world: int, port: int, folder: str, names: Sequence[str], stop: int | None) -> None:
    """Train under each setting, through a checkpoint at step `stop` that a second learner takes up, and export."""
    from actors.learner import Learner, LearnerSpec

    join(rank, world, port)
    for name in names:
        config, deepspeed = told(folder, name)
        spec = LearnerSpec(config, objective_of(config), "cpu", deepspeed)
        learner = Learner(spec)
        rows = []
        for step in range(STEPS):
            if step == stop:
                learner.save(f"{folder}/{name}-checkpoint", step)
                dist.barrier()
                learner = Learner(spec)
                assert learner.restore(f"{folder}/{name}-checkpoint") == step
            found = pairs(step)
            rows.append(learner.step(part(found, rank, world), totals(found), RATE))
        learner.export(f"{folder}/{name}")
        probed = learner.probe()
        if rank == 0:
            np.save(f"{folder}/{name}-probe.npy", probed)
            Path(f"{folder}/{name}.json").write_text(json.dumps(rows))
    dist.destroy_process_group()


def spawn(worker: Callable[..., None], world: int, *args: object) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(worker, (world, port, *args), world)


def train(folder: Path, names: Sequence[str], world: int, stop: int | None = None) -> None:
    spawn(work, world, str(folder), names, stop)


def logprob(model: torch.nn.Module, response: Response) -> torch.Tensor:
    logits = model(torch.tensor([response.prompt_ids + response.response_ids])).logits[0].log_softmax(-1)
    begin = len(response.prompt_ids) - 1
    return sum(logits[begin + h, token] for h, token in enumerate(response.response_ids))


def plain_loop(model: torch.nn.Module) -> list[tuple[float, float]]:
    """Loss and gradient norm of every step by a loop of torch alone: DPO's equation on the model's own logits."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    rows = []
    for step in range(STEPS):
        losses = []
        for pair in pairs(step):
            chosen, rejected = (logprob(model, response) - response.reference.sum() for response in pair)
            losses.append(-torch.nn.functional.logsigmoid(0.1 * (chosen - rejected)))
        loss = sum(losses) / len(losses)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        rows.append((loss.item(), norm.item()))
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the losses and the exported policy of every setting that was asked for."""
    folder = tmp_path_factory.mktemp("zero")
    tiny.save_model(folder / "base")
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> Callable[[str], None]:
    """Trains under a setting, and under those that go with it."""

    @lru_cache
    def together(hard: bool) -> None:
        train(folder, [name for name in SETTINGS if name != "alone" and (name in HARD) == hard], 2, stop=4)
        if hard:
            train(folder, ["alone"], 1)

    return lambda name: together(name in HARD)


@pytest.fixture(scope="module")
def plain(folder: Path) -> tuple[torch.nn.Module, list[tuple[float, float]]]:
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    return model, plain_loop(model)


@pytest.fixture(scope="module")
def plain_lora(folder: Path) -> tuple[torch.nn.Module, list[tuple[float, float]]]:
    torch.manual_seed(0)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "base"), lora)
    return model, plain_loop(model)


@pytest.mark.parametrize("name", hard_first([*SETTINGS]))
def test_losses_and_policy_are_those_of_a_plain_loop(
    folder: Path, trained: Callable[[str], None], name: str, request: pytest.FixtureRequest
) -> None:
    """On two workers, through a checkpoint; `alone` on one without."""
    trained(name)
    model, due = request.getfixturevalue("plain_lora" if "lora" in name else "plain")
    rows = json.loads((folder / f"{name}.json").read_text())
    rough = name.startswith("bfloat16")
    np.testing.assert_allclose(
        [(row["loss"], row["grad_norm"]) for row in rows], due, rtol=0.1 if rough else 1e-4, atol=0.02 if rough else 0
    )
    assert due[-1][0] != pytest.approx(due[0][0], rel=1e-2), "something was learned"
    exported = AutoModelForCausalLM.from_pretrained(folder / name)
    for pair in pairs(99):
        for response in pair:
            told = logprob(exported.float(), response)
            torch.testing.assert_close(told, logprob(model, response), rtol=5e-2 if rough else 1e-3, atol=1e-3)
    text = probe_text(exported.config.vocab_size)  # by which an engine is held against the learner
    logits = exported(torch.tensor([text])).logits[0, :-1].log_softmax(-1)
    own = logits.gather(1, torch.tensor(text[1:])[:, None])[:, 0].detach().numpy()
    Probe("bfloat16" if rough else "float32").check(STEPS, np.load(folder / f"{name}-probe.npy"), own)


@pytest.mark.parametrize("name", hard_first(["lora", "lora3"]))
def test_lora_trains_its_own_weights_only(folder: Path, trained: Callable[[str], None], name: str) -> None:
    trained(name)
    base, merged = (AutoModelForCausalLM.from_pretrained(folder / each).state_dict() for each in ("base", name))
    adapter = load_file(folder / name / "adapter" / "adapter_model.safetensors")
    assert all("lora_" in key for key in adapter)
    for key, weight in base.items():
        stem = "base_model.model." + key.removesuffix("weight")
        if f"{stem}lora_A.weight" in adapter:
            weight = weight + 2 * adapter[f"{stem}lora_B.weight"] @ adapter[f"{stem}lora_A.weight"]
            assert not torch.equal(merged[key], base[key])
            torch.testing.assert_close(merged[key], weight, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(merged[key], weight), key


def export(rank: int, folder: str) -> None:
    """A policy that is trained by nobody, on one worker."""
    from actors.learner import Learner, LearnerSpec

    os.environ["LOCAL_RANK"] = "0"
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    config = TrainConfig(policy=ModelConfig(name=f"{folder}/base"))
    Learner(LearnerSpec(config, objective_of(config), "cpu")).export(f"{folder}/out")
    dist.destroy_process_group()


def test_buffers_that_are_saved_with_a_model_are_exported(tmp_path: Path) -> None:
    """The routing of some mixtures of experts is corrected by a bias that is no parameter."""
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "moe_intermediate_size": 8,
        "num_hidden_layers": 2,
        "head_dim": 8,
    }
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "n_routed_experts": 4, "num_experts_per_tok": 2}
    tokenizer = tiny.tokenizer()
    torch.manual_seed(0)
    model = Glm4MoeForCausalLM(Glm4MoeConfig(**sizes, **heads, vocab_size=len(tokenizer), first_k_dense_replace=1))
    [name] = [name for name, _ in model.named_buffers() if name.endswith("e_score_correction_bias")]
    model.get_buffer(name).normal_()
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    mp.spawn(export, (str(tmp_path),), 1)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(exported.get_buffer(name), model.get_buffer(name), rtol=0, atol=0)


@dataclass(frozen=True)
class Cliff(Objective):
    """A loss that is a number and whose gradient is none."""

    name = "cliff"

    def terms(self, batch: Batch) -> Terms:
        return Terms((batch.logprobs - batch.logprobs.detach()).sqrt(), {})


@dataclass(frozen=True)
class Weighted(Objective):
    """Likelihood, weighted by the rewards."""

    name = "weighted"

    def terms(self, batch: Batch) -> Terms:
        return Terms(-batch.rewards[batch.owners] * batch.logprobs, {})


LITTLE, TIMES = 2.0**-9, 32  # one alone is lost beside 1 in bfloat16, whose next number is 1 + 2^-7
ADDING = [("float32", 1), ("bfloat16", 1), ("bfloat16", 2), ("bfloat16", 3)]


def work_adding(rank: int, world: int, port: int, folder: str) -> None:
    """Norms of the gradient of one micro-batch, and of it and many little ones. And what is said of a gradient that is no
    number."""
    from actors.learner import Diverged, Learner, LearnerSpec

    join(rank, world, port)
    rows = []
    for dtype, stage in ADDING:
        config = TrainConfig(policy=ModelConfig(name=f"{folder}/base"), learner={"zero_stage": stage, "dtype": dtype})
        learner = Learner(LearnerSpec(config, Weighted(), "cpu"))
        one, little = ([Response([5, 6], [7, 8, 9], weight)] for weight in (1.0, LITTLE))
        norms = [learner.step(micro, {"tokens": 3}, 0.0)["grad_norm"] for micro in ([one], [one] + [little] * TIMES)]
        learner.objective = Cliff()
        try:
            said = str(learner.step([one], {"tokens": 3}, 0.0))
        except Diverged as error:
            said = str(error)
        rows.append((norms, said))
    Path(f"{folder}/rows.json").write_text(json.dumps(rows))
    dist.destroy_process_group()


def test_gradients_are_added_up_without_rounding_and_one_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    tiny.save_model(tmp_path / "base")
    spawn(work_adding, 1, str(tmp_path))
    for name, ((alone, together), said) in zip(ADDING, json.loads((tmp_path / "rows.json").read_text()), strict=True):
        assert together == pytest.approx(alone * (1 + TIMES * LITTLE), rel=1e-3), name
        assert said.startswith(("the gradient's norm is nan; lower", "the gradient's norm is inf; lower")), name


ONLINE, ONLINE_STEPS, HALF = ("zero1", "lora3", "offload3", "bfloat16-1"), 8, 3


@dataclass(frozen=True)
class ActorCritic(Objective):
    """Everything that a policy gives in one loss."""

    name = "actor-critic"

    def terms(self, batch: Batch) -> Terms:
        assert batch.entropies is not None and batch.values is not None and batch.returns is not None
        losses = -batch.advantages * batch.logprobs - 0.5 * batch.entropies + (batch.values - batch.returns).square()
        values = batch.values.detach()
        return Terms(losses, {"entropy": batch.entropies.detach(), "value/max": values, "value/mean": values})


def samples(step: int) -> list[list[Response]]:
    """As `pairs`, credited."""
    rng = np.random.default_rng(1000 + step)

    def credited(response: Response) -> Response:
        advantages, returns = rng.normal(size=(2, len(response.response_ids)))
        return replace(response, reference=None, advantages=advantages, returns=returns + 2)

    return [[credited(response) for response in pair] for pair in pairs(step)]


def work_online(rank: int, world: int, port: int, folder: str, names: Sequence[str]) -> None:
    """Train with a critic, through a checkpoint; keep what the learner says of itself."""
    from actors.learner import Learner, LearnerSpec

    join(rank, world, port)
    for name in names:
        config, deepspeed = told(folder, name)
        spec = LearnerSpec(config, ActorCritic(), "cpu", deepspeed, critic=True, entropies=True)
        learner, rows = Learner(spec), []
        for step in range(ONLINE_STEPS):
            if step == HALF:
                learner.save(f"{folder}/{name}-checkpoint", step)
                dist.barrier()
                learner = Learner(spec)
                assert learner.restore(f"{folder}/{name}-checkpoint") == step
            found = samples(step)
            rows.append(learner.step(part(found, rank, world), totals(found), RATE))
        values = learner.values(part(samples(99), rank, world))
        weights = learner.weights()
        assert (weights is None) == (rank > 0)
        weights = weights and {key: tensor.clone() for key, tensor in weights.items()}
        again = learner.weights()
        learner.export(f"{folder}/{name}")
        torch.save((rows, values), f"{folder}/{name}-{rank}.pt")
        if weights is not None:
            assert all(torch.equal(weights[key], again[key]) for key in weights), "merging changes no weight"
            torch.save(weights, f"{folder}/{name}-weights.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("online")
    tiny.save_model(folder / "base")
    spawn(work_online, 2, str(folder), ONLINE)
    return folder


def plain_critic() -> torch.nn.Module:
    """Of the published parts, with the first weights of seed 0."""
    critic = torch.nn.Sequential(
        torch.nn.LayerNorm(16, elementwise_affine=False),
        torch.nn.Linear(16, 16),
        torch.nn.SiLU(),
        torch.nn.Linear(16, 1),
    )
    for parameter in critic.parameters():
        torch.nn.init.zeros_(parameter)
    critic[1].weight.data = torch.randn(16, 16, generator=torch.Generator().manual_seed(0)) / 4
    return critic


def plain_outputs(
    model: torch.nn.Module, critic: torch.nn.Module, response: Response
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities, entropies and values, [H] each."""
    ids = torch.tensor([response.prompt_ids + response.response_ids])
    out = model(ids, output_hidden_states=True)
    scored = slice(len(response.prompt_ids) - 1, -1)
    logprobs = out.logits[0, scored].log_softmax(-1)
    taken = logprobs.gather(1, torch.tensor(response.response_ids)[:, None])[:, 0]
    return taken, -(logprobs.exp() * logprobs).sum(1), critic(out.hidden_states[-1][0, scored].detach())[:, 0]


@pytest.fixture(scope="module", params=["full", "lora"])
def plain_online(
    online: Path, request: pytest.FixtureRequest
) -> tuple[str, torch.nn.Module, torch.nn.Module, list[list]]:
    """A loop of torch alone: which policy, the policy, its critic, and rows of every step."""
    critic = plain_critic()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(online / "base")
    if request.param == "lora":
        lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, lora)
    trained = [p for p in (*model.parameters(), *critic.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    rows = []
    for step in range(ONLINE_STEPS):
        found = [(r, plain_outputs(model, critic, r)) for pair in samples(step) for r in pair]
        parts = [
            -torch.tensor(r.advantages) * logprobs - 0.5 * entropies + (values - torch.tensor(r.returns)).square()
            for r, (logprobs, entropies, values) in found
        ]
        values, entropies = torch.cat([out[2] for _, out in found]), torch.cat([out[1] for _, out in found])
        loss = torch.cat(parts).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        rows.append([each.item() for each in (loss, norm, entropies.mean(), values.max(), values.mean())])
    return request.param, model, critic, rows


def test_a_critic_and_entropies_are_those_of_a_plain_loop(online: Path, plain_online: tuple) -> None:
    """On two workers, through a checkpoint."""
    which, model, critic, due = plain_online
    for name in ONLINE:
        if ("lora" in name) != (which == "lora"):
            continue
        rough = name.startswith("bfloat16")
        near = {"rtol": 0.1, "atol": 0.05} if rough else {"rtol": 2e-4, "atol": 2e-5}
        ranks = [torch.load(online / f"{name}-{rank}.pt", weights_only=False) for rank in (0, 1)]
        for rows, _ in ranks:
            keys = ("loss", "grad_norm", "entropy", "value/max", "value/mean")
            np.testing.assert_allclose([[row[key] for key in keys] for row in rows], due, **near, err_msg=name)
        for rank, (_, values) in enumerate(ranks):
            responses = [response for micro in part(samples(99), rank, 2) for response in micro]
            for got, response in zip(values, responses, strict=True):
                naively = plain_outputs(model, critic, response)[2].detach().numpy()
                assert got.dtype == np.float32
                np.testing.assert_allclose(got, naively, rtol=0.1 if rough else 1e-3, atol=0.05 if rough else 1e-3)
    assert due[0][3] == 0 and due[-1][4] > 0.05, "values start at 0 and something was learned"


@pytest.mark.parametrize("name", ONLINE)
def test_weights_for_samplers_are_those_of_the_exported_policy(online: Path, name: str) -> None:
    """Into the model that samplers hold, which is the first one; the critic is in neither."""
    weights = torch.load(online / f"{name}-weights.pt")
    exported = AutoModelForCausalLM.from_pretrained(online / name)
    sampler = AutoModelForCausalLM.from_pretrained(online / "base", dtype=exported.dtype)
    ids = torch.arange(40)[None]
    first = sampler(ids).logits
    if "lora" in name:
        with_adapters(sampler, told(str(online), name)[0].lora, seed=1)
    found = sampler.load_state_dict(weights, strict=False)
    assert found.unexpected_keys == []
    assert ("lora" in name) == bool(found.missing_keys)
    torch.testing.assert_close(sampler(ids).logits, exported(ids).logits, rtol=1e-5, atol=1e-5)
    assert (sampler(ids).logits - first).abs().max() > 0.05
    assert not any("critic" in key for key in load_file(online / name / "model.safetensors"))
