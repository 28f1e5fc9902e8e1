"""Tokens a second of scorer, learner and sampler, beside the floor of their FLOPs and transformers' own loops.

The floor is what must be computed, by the rate of a matrix product measured in the same process: 2 FLOPs for each weight of
the trunk and token, 2 D V for each scored token, attention over the keys that a query sees, three times that for a step with
gradients. For sampling it is the bytes of the weights for each step, by the rate of a copy. Rates are of response tokens.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from compiled import compile_layers

from device import models, plain
from device.cases import Case, Figures, Skip, free, on_device, synchronize
from pipeline.models.generation import Generator
from pipeline.models.questions import Question
from pipeline.models.scoring import Scorer
from pipeline.models.scoring.head import Head, reduce_logits
from pipeline.tokens import TokenizedTurn
from pipeline.training.batch import Response, collate
from pipeline.training.objectives.dpo import Dpo
from pipeline.training.policy import Policy, choose_layout

TOKENS = {"0.6B": 200_000, "1.5B": 120_000, "8B": 50_000, "toy": 600}  # of a corpus
PAIRS = {"0.6B": 32, "1.5B": 32, "8B": 16, "toy": 4}  # of a DPO step
CORPORA = ("hh", "rm-bench", "best-of-16")
BATCH = 32  # rows of the padded loop
BUDGETS = (16384, 65536)


class Bench:
    """A model on its device, the rates of the device, and what has been measured of it so far."""

    def __init__(self, size: str, device: str):
        self.name, self.size, self.device = size, models.SIZES[size], device
        self.toy = size == "toy"
        self.dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self.flops = self.bandwidth = float("nan")
        self.rates: dict[str, float] = {}
        self._model: Any = None

    @property
    def model(self) -> Any:
        if self._model is None:
            self._model = models.large(self.size, self.device, self.dtype)
        return self._model

    @property
    def trunk(self) -> int:
        """Weights of the trunk's matrices."""
        return sum(p.numel() for n, p in self.model.base_model.named_parameters() if p.dim() > 1 and "embed" not in n)

    def corpus(self, shape: str, share: float = 1.0) -> list[TokenizedTurn]:
        return models.corpus(shape, int(TOKENS[self.name] * share), self.size.vocabulary)

    def floor(self, turns: Sequence[TokenizedTurn], forwarded: int) -> float:
        """Seconds that scoring them must take."""
        scored, pairs = sum(len(t.response_ids) for t in turns), 0.0
        prompts = {tuple(t.prompt_ids) for t in turns}
        pairs += sum(len(p) ** 2 / 2 for p in prompts)
        pairs += sum(len(t.response_ids) * (len(t.prompt_ids) + len(t.response_ids) / 2) for t in turns)
        attention = 4.0 * pairs * self.size.heads * self.size.head_dim * self.size.layers
        products = 2.0 * self.trunk * forwarded + 2.0 * scored * self.size.hidden * self.size.vocabulary
        return (products + attention) / self.flops


def cases(size: str, device: str) -> list[Case]:
    bench = Bench(size, device)
    made = [Case(f"rates, {size}", lambda: rates(bench), 3.0), Case(f"model, {size}", lambda: build(bench), 10.0)]
    for shape in CORPORA:
        made.append(_scoring(bench, shape, BUDGETS[0]))
        made.append(Case(f"score {shape}, {size}, padded loop", _bound(padded_loop, bench, shape), 8.0))
    made += [
        Case(f"DPO step, {size}", lambda: dpo(bench), 8.0),
        Case(f"DPO step, {size}, transformers", lambda: plain_dpo(bench), 8.0),
        Case(f"sampling, {size}", lambda: sampling(bench), 15.0),
        Case(f"sampling, {size}, transformers", lambda: plain_sampling(bench), 12.0),
        Case(f"head, {size}", lambda: head(bench), 4.0),
        *(_scoring(bench, shape, budget) for shape in CORPORA for budget in BUDGETS[1:]),
        Case(f"score {CORPORA[1]}, {size}, layers compiled", lambda: compiled_layers(bench, CORPORA[1]), 40.0),
        Case(f"head, {size}, reduction compiled", lambda: compiled_head(bench), 25.0),
    ]
    return made


def _scoring(bench: Bench, shape: str, budget: int) -> Case:
    return Case(f"score {shape}, {bench.name}, budget {budget}", _bound(score, bench, shape, budget), 6.0)


def _bound(work: Callable[..., Figures], *arguments: Any) -> Callable[[], Figures]:
    return lambda: work(*arguments)


def timed(work: Callable[[], Any], most: float = 3.0, repeats: int = 3, warm: bool = False) -> tuple[float, float]:
    """Median seconds after one call that warms up, unless it is `warm`, and the peak of memory beyond what was held before,
    in MiB. It is repeated while `most` seconds are not gone."""
    if not warm:
        work()
    synchronize()
    free()
    before = peak(reset=True)
    took: list[float] = []
    while not took or (len(took) < repeats and sum(took) + took[-1] < most):
        started = time.perf_counter()
        work()
        synchronize()
        took.append(time.perf_counter() - started)
    return float(np.median(took)), peak() - before


def peak(reset: bool = False) -> float:
    """MiB that tensors have held at most; with `reset`, that they hold."""
    if not torch.cuda.is_available():
        return 0.0
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated() / 2**20


def rates(bench: Bench) -> Figures:
    """A square matrix product and a copy, in the model's dtype."""
    side = 256 if bench.device == "cpu" else 8192
    left = torch.randn(side, side, device=bench.device, dtype=bench.dtype)
    right, out = torch.randn_like(left), torch.empty_like(left)
    number = 3 if bench.device == "cpu" else 20

    def products() -> None:
        for _ in range(number):
            torch.mm(left, right, out=out)

    seconds, _ = timed(products)
    bench.flops = 2.0 * side**3 * number / seconds
    long = torch.empty((2**20 if bench.device == "cpu" else 2**32), dtype=torch.uint8, device=bench.device)
    there = torch.empty_like(long)
    seconds, _ = timed(lambda: there.copy_(long))
    bench.bandwidth = 2.0 * long.numel() / seconds
    return {"tflops": bench.flops / 1e12, "gb_per_s": bench.bandwidth / 1e9}


def build(bench: Bench) -> Figures:
    model = bench.model
    return {"parameters_m": sum(p.numel() for p in model.parameters()) / 1e6, "mib": peak(reset=True)}


# Scoring


def score(bench: Bench, shape: str, budget: int) -> Figures:
    turns = bench.corpus(shape)
    scorer = Scorer(bench.model, budget_tokens=budget)
    scorer.score(turns)
    forwarded = scorer.forwarded_tokens
    seconds, memory = timed(lambda: scorer.score(turns), warm=True)
    responses = sum(len(t.response_ids) for t in turns)
    bench.rates[shape] = max(bench.rates.get(shape, 0.0), responses / seconds)
    launched, tokens = batch_launches(scorer, turns, budget)
    return {
        "tokens_per_s": responses / seconds, "forwarded_per_s": forwarded / seconds,
        "of_floor": bench.floor(turns, forwarded) / seconds, "peak_mib": memory, "seconds": seconds,
        "launches": launched, "of_tokens": tokens, "layout": scorer.layout,
    }  # fmt: skip


def launches(work: Callable[[], Any]) -> int:
    """Kernels and copies of a piece of work; 0 where there is no device that counts them."""
    if not torch.cuda.is_available():
        work()
        return 0
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as prof:
        work()
        torch.cuda.synchronize()
    return len(on_device(prof.events()))


def batch_launches(scorer: Scorer, turns: list[TokenizedTurn], budget: int) -> tuple[int, int]:
    """Those of about one batch of at most `budget` tokens, and the tokens that it forwards."""
    part: list[TokenizedTurn] = []
    for turn in turns:
        if sum(len(t.response_ids) for t in part) + len(turn.prompt_ids) > budget // 2:
            break
        part.append(turn)
    before = scorer.forwarded_tokens
    return launches(lambda: scorer.score(part or turns[:1])), scorer.forwarded_tokens - before


def compiled_layers(bench: Bench, shape: str) -> Figures:
    """The scorer with the model's layers compiled, and what compiling took: whether it is to be an option."""
    started = time.perf_counter()
    compile_layers(bench.model, "inductor" if bench.device == "cuda" else "aot_eager")
    try:
        figures = score(bench, shape, BUDGETS[0])
    finally:
        for layer in bench.model.modules():
            layer._compiled_call_impl = None
    figures["compiled_s"] = time.perf_counter() - started
    return figures


def padded_loop(bench: Bench, shape: str) -> Figures:
    """A quarter of the corpus through full logits and log_softmax, in its order; the better of the attentions that are
    here."""
    turns = bench.corpus(shape, 0.25)
    responses = sum(len(t.response_ids) for t in turns)
    best, tokens = {}, 0
    for name in plain.attentions():
        bench.model.set_attn_implementation(name)

        def loop() -> None:
            nonlocal tokens
            with torch.inference_mode():
                parts = [(torch.cat(own).cpu(), n) for own, n in plain.padded_logprobs(bench.model, turns, BATCH)]
            tokens = sum(n for _, n in parts)

        best[name] = timed(loop, repeats=2)
    bench.model.set_attn_implementation("sdpa")
    name = min(best, key=lambda n: best[n][0])
    seconds, memory = best[name]
    ours = bench.rates.get(shape, float("nan"))
    return {
        "tokens_per_s": responses / seconds, "forwarded_per_s": tokens / seconds, "peak_mib": memory,
        "seconds": seconds, "attention": name, "scorer_is_times": ours * seconds / responses,
    }  # fmt: skip


def head(bench: Bench) -> Figures:
    """The head alone, beside its matrix products alone: what a fused kernel could win at most."""
    states, taken = scored_states(bench)
    figures: Figures = {}
    with torch.inference_mode():
        for chunk in (64, 512):
            own = Head(bench.model, chunk)
            figures[f"ms_tiles_{chunk}"] = timed(lambda own=own: own.score(states, taken, 1.0))[0] * 1e3  # type: ignore[misc]
            figures[f"ms_products_{chunk}"] = (
                timed(lambda own=own: [own.logits(h) for h in states.split(own.rows)])[0] * 1e3
            )  # type: ignore[misc]
    floor = 2.0 * len(states) * bench.size.hidden * bench.size.vocabulary / bench.flops * 1e3
    return figures | {"ms_floor": floor, "fused_wins_at_most": figures["ms_tiles_64"] / floor}


def scored_states(bench: Bench) -> tuple[torch.Tensor, torch.Tensor]:
    positions = 16 if bench.toy else 8192
    states = torch.randn(positions, bench.size.hidden, device=bench.device, dtype=bench.dtype)
    return states, torch.randint(bench.size.vocabulary, (positions,), device=bench.device)


def compiled_head(bench: Bench) -> Figures:
    """A slice of logits and its reduction as it is, and under `torch.compile`: what fusing what follows the product wins, and
    how far the results are apart. On a CPU it is traced and not fused."""
    states, taken = scored_states(bench)
    own = Head(bench.model, 512)
    part = slice(0, own.rows)
    fused: Any = torch.compile(reduce_logits, backend="inductor" if bench.device == "cuda" else "aot_eager")
    figures: Figures = {}
    with torch.inference_mode():
        logprobs = [each(own.logits(states[part]), taken[part], 1.0).logprobs for each in (reduce_logits, fused)]
        for name, reduce in (("plain", reduce_logits), ("compiled", fused)):
            seconds, memory = timed(lambda reduce=reduce: reduce(own.logits(states[part]), taken[part], 1.0))  # type: ignore[misc]
            figures |= {f"ms_{name}": seconds * 1e3, f"mib_{name}": memory}
    apart = float((logprobs[0] - logprobs[1]).abs().max())
    return figures | {
        "compiled_is_times": figures["ms_plain"] / figures["ms_compiled"],
        "apart": apart,
        "ok": apart < 1e-3,
    }


# A DPO step


def pairs(bench: Bench) -> list[Response]:
    turns = models.corpus("hh", 400 * PAIRS[bench.name], bench.size.vocabulary, seed=1)
    rows = turns[: 2 * PAIRS[bench.name]]
    return [
        Response(list(t.prompt_ids), list(t.response_ids), 0.0, np.full(len(t.response_ids), -11.0, np.float32))
        for t in rows
    ]


def policy_of(bench: Bench) -> Policy:
    policy = Policy(bench.model.requires_grad_(True))
    choose_layout(policy, policy, "auto")
    return policy


def dpo_step(policy: Policy, responses: list[Response]) -> torch.Tensor:
    outputs = policy(responses)  # type: ignore[arg-type]
    loss = Dpo(0.1).terms(collate(responses, *outputs)).losses.sum() / (len(responses) // 2)
    loss.backward()
    policy.zero_grad(set_to_none=True)
    return loss.detach()


def dpo(bench: Bench) -> Figures:
    responses, policy = pairs(bench), policy_of(bench)
    layout = policy.layout
    try:
        seconds, memory = timed(lambda: dpo_step(policy, responses))
        launched = launches(lambda: dpo_step(policy, responses))
    finally:
        policy.use_layout("padded")
        bench.model.requires_grad_(False)
    tokens = sum(len(r.response_ids) for r in responses)
    unique = {tuple(r.prompt_ids) for r in responses}
    forwarded = sum(map(len, unique)) + tokens - len(responses)
    turns = [TokenizedTurn(r.prompt_ids, r.response_ids, []) for r in responses]
    bench.rates["dpo"] = tokens / seconds
    return {
        "tokens_per_s": tokens / seconds, "of_floor": 3 * bench.floor(turns, forwarded) / seconds, "peak_mib": memory,
        "seconds": seconds, "pairs": len(responses) // 2, "layout": layout, "launches": launched,
    }  # fmt: skip


def plain_dpo(bench: Bench) -> Figures:
    """The same pairs through transformers, padded, 4 at a time, gradients added up."""
    responses, model = pairs(bench), bench.model.requires_grad_(True)
    turns = [TokenizedTurn(r.prompt_ids, r.response_ids, []) for r in responses]
    number = len(turns) // 2

    def step() -> None:
        for own, _ in plain.padded_logprobs(model, turns, 8):
            sums = torch.stack([part.sum() for part in own])
            reference = torch.tensor([-11.0 * len(part) for part in own], device=sums.device)
            (plain.dpo_loss(sums, reference, 0.1) / number).backward()
        model.zero_grad(set_to_none=True)

    try:
        seconds, memory = timed(step)
    finally:
        model.requires_grad_(False)
    tokens = sum(len(t.response_ids) for t in turns)
    ours = bench.rates.get("dpo", float("nan"))
    return {
        "tokens_per_s": tokens / seconds, "peak_mib": memory, "seconds": seconds, "policy_is_times": ours * seconds / tokens
    }  # fmt: skip


# Sampling


def questions(bench: Bench) -> tuple[list[Question], int]:
    """16 prompts of 150 tokens with 8 samples each, and how many tokens a sample has."""
    rng = np.random.default_rng(2)
    number, samples, length = (2, 2, 6) if bench.toy else (16, 8, 96)
    made = [Question(rng.integers(2, bench.size.vocabulary, 150).tolist(), samples, seed) for seed in range(number)]
    return made, length


def generator_of(bench: Bench, length: int) -> Generator:
    return Generator(
        bench.model, models.tokenizer(), max_new_tokens=length, temperature=1.0, logprobs=True, budget_tokens=65536
    )


def sampling(bench: Bench) -> Figures:
    asked, length = questions(bench)
    generator = generator_of(bench, length)
    warm = generator_of(bench, 2)
    warm.generate(asked)
    few, more = (launches(lambda long=long: generator_of(bench, long).generate(asked)) for long in (2, 6))  # type: ignore[misc]
    written = 0

    def draw() -> None:
        nonlocal written
        answers = generator.generate(asked)
        written = sum(len(c.token_ids) for each in answers for c in each)  # type: ignore[union-attr]

    seconds, memory = timed(draw, most=1.0, repeats=1)
    bench.rates["sampling"] = written / seconds
    weights = sum(p.numel() * p.element_size() for p in bench.model.parameters())
    return {
        "tokens_per_s": written / seconds, "of_floor": weights * length / bench.bandwidth / seconds, "peak_mib": memory,
        "seconds": seconds, "ms_per_step": seconds / length * 1e3, "launches_per_step": (more - few) / 4,
    }  # fmt: skip


def plain_sampling(bench: Bench) -> Figures:
    """transformers' generate on the same prompts, each repeated for its samples."""
    asked, length = questions(bench)
    ids = torch.tensor([list(q.prompt_ids) for q in asked for _ in range(q.samples)], device=bench.device)
    options = {
        "attention_mask": torch.ones_like(ids), "max_new_tokens": length, "do_sample": True, "temperature": 1.0,
        "top_k": 0, "pad_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    if not hasattr(bench.model, "generate"):
        raise Skip("the model does not generate")
    written = 0

    def draw() -> None:
        nonlocal written
        with torch.inference_mode():
            written = bench.model.generate(ids, **options)[:, ids.shape[1] :].numel()

    seconds, memory = timed(draw, most=1.0, repeats=1)
    ours = bench.rates.get("sampling", float("nan"))
    return {
        "tokens_per_s": written / seconds, "peak_mib": memory, "seconds": seconds,
        "sampler_is_times": ours * seconds / max(1, written),
    }  # fmt: skip
