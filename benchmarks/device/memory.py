"""Loading straight to the device, weights from a learner to a sampler, rewards of scores, and memory that runs out."""

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from device import models
from device.cases import Case, Figures, Skip, free
from pipeline.errors import RowError
from pipeline.models.generation import Generator
from pipeline.models.loading import load_model
from pipeline.models.questions import Question
from pipeline.models.scoring import Scorer


def cases(device: str) -> list[Case]:
    made = [Case(f"loading, {dtype}", _loading(device, dtype), 3.0) for dtype in ("float32", "bfloat16")]
    return [
        *made,
        Case("weights handed over", lambda: hand_over(device), 3.0),
        Case("endogenous rewards", lambda: rewards(device), 3.0),
        Case("out of memory, scorer", lambda: scorer_out_of_memory(device), 10.0),
        Case("out of memory, sampler", lambda: sampler_out_of_memory(device), 15.0),
    ]


def _loading(device: str, dtype: str) -> Any:
    return lambda: loading(device, dtype)


def loading(device: str, dtype: str) -> Figures:
    """Every weight is bit for bit what was saved, and on the device."""
    model = models.small("qwen3", 4).to(getattr(torch, dtype))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        source = SimpleNamespace(name=folder, revision=None, dtype=dtype, trust_remote_code=False, allow_pickle=False)
        here = load_model(source, device)
    due = model.state_dict()
    state = here.state_dict()
    elsewhere = [n for n, p in state.items() if p.device.type != device]
    wrong = [n for n, p in state.items() if not torch.equal(p.cpu(), due[n])]
    return {"ok": not elsewhere and not wrong and not here.training, "elsewhere": elsewhere[:3], "wrong": wrong[:3]}


def hand_over(device: str) -> Figures:
    """From the device through arrays of bytes into another model there, in float32 and in bfloat16."""
    try:
        from actors.sampler import deserialized, serialize
        from pipeline.models.engines.transformers import load_into
    except ImportError as error:
        raise Skip(f"actors.sampler needs more than is here ({error})") from None
    wrong = []
    for dtype in (torch.float32, torch.bfloat16):
        learnt = models.small("moe", 4).to(device, dtype)
        sampling = copy.deepcopy(learnt)
        with torch.no_grad():
            for parameter in sampling.parameters():
                parameter.zero_()
        weights = serialize({n: p.detach().cpu() for n, p in learnt.named_parameters()})
        load_into(sampling, dict(deserialized(weights)))
        own = dict(sampling.named_parameters())
        wrong += [n for n, p in learnt.named_parameters() if not torch.equal(p, own[n])]
    return {"ok": not wrong, "wrong": wrong[:3]}


def rewards(device: str) -> Figures:
    """r_h of scores from the device telescopes: its sum is V(s_1) + log pi of the response, at alpha = gamma = 1."""
    from pipeline.rewards.endogenous import token_rewards

    turns = models.awkward_turns(2)
    scores = Scorer(models.small("qwen3", 4).to(device, torch.bfloat16)).score(turns)
    worst = 0.0
    for each in scores:
        if isinstance(each, RowError):
            return {"ok": False, "note": str(each)}
        due = each.values[0] + each.logprobs.sum()
        worst = max(worst, abs(float(token_rewards(each.q, each.values).sum() - due)) / len(each.q))
    return {"ok": worst <= 1e-4, "error": worst, "bound": 1e-4}


@contextmanager
def limited(room: float) -> Iterator[None]:
    """This process may allocate `room` bytes more than it holds."""
    free()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + room) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        free()


def growth(work: Any) -> float:
    """Bytes that it takes at most, beyond what is held before it."""
    free()
    before = torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    work()
    return float(torch.cuda.max_memory_reserved() - before)


def _wide_model(device: str) -> Any:
    size = models.Size(1024, 4096, 2, 8, 4, True, 128, 32000)
    return models.large(size, device, torch.bfloat16)


def scorer_out_of_memory(device: str) -> Figures:
    """With half of what a batch takes, the budget is halved until it fits, and the labels are the same but for rounding."""
    if device == "cpu":
        raise Skip("memory is provoked to run out on CUDA only")
    turns = models.corpus("rm-bench", 60_000, 32000)
    model = _wide_model(device)
    due = Scorer(model, budget_tokens=60_000).score(turns)
    taken = growth(lambda: Scorer(model, budget_tokens=60_000).score(turns))
    with limited(taken / 2):
        scorer = Scorer(model, budget_tokens=60_000)
        results = scorer.score(turns)
    lost = [each for each in results if isinstance(each, RowError)]
    if lost:
        return {"ok": False, "note": f"{len(lost)} of {len(results)} responses: {lost[0]}"}
    apart = np.mean([np.abs(a.logprobs - b.logprobs).mean() for a, b in zip(results, due, strict=True)])  # type: ignore[union-attr]
    halved = scorer.budget_tokens < 60_000 and bool(scorer.notes)
    return {
        "ok": halved and apart < 0.02,
        "error": float(apart),
        "budget": scorer.budget_tokens,
        "taken_mib": taken / 2**20,
    }


def sampler_out_of_memory(device: str) -> Figures:
    if device == "cpu":
        raise Skip("memory is provoked to run out on CUDA only")
    model = _wide_model(device)
    rng = np.random.default_rng(0)
    questions = [Question(rng.integers(2, 32000, 400).tolist(), 4, seed) for seed in range(64)]

    def generator() -> Generator:
        return Generator(
            model, models.tokenizer(), max_new_tokens=16, temperature=1.0, logprobs=True, budget_tokens=200_000
        )

    generator().generate(questions[:2])  # what is loaded once is not of the batch
    taken = growth(lambda: generator().generate(questions))
    with limited(taken / 2):
        limited_one = generator()
        answers = limited_one.generate(questions)
    lost = sum(isinstance(each, RowError) for each in answers)
    halved = limited_one.budget_tokens < 200_000
    return {"ok": halved and not lost, "lost": lost, "budget": limited_one.budget_tokens, "taken_mib": taken / 2**20}
