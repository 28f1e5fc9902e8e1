"""Scorer, head, attention, learner and sampler on the device against float32 on the CPU, a family of models at a time.

The reference reads one response at a time, without padding, through transformers' own model in float32, whose weights are
exact in bfloat16: so both dtypes are held against the same numbers. In float32 what is left is the order of additions. In
bfloat16 the bound is 1.5 times the error of transformers' own bfloat16 forward on the same device.
"""

import copy
import pkgutil
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from device import models, plain
from device.cases import Case, Figures, Skip, on_device
from pipeline.errors import RowError
from pipeline.models import scoring
from pipeline.models.generation import Generator
from pipeline.models.questions import Completion, Question
from pipeline.models.scoring import Scorer, attention
from pipeline.models.scoring.head import Head
from pipeline.tokens import TokenizedTurn
from pipeline.training.batch import Response, collate
from pipeline.training.objectives.dpo import Dpo
from pipeline.training.policy import Policy, choose_layout

EXACT = 5e-4  # nats in float32, or of the norm of a gradient: orders of addition differ through layers
WORSE = 1.5  # times transformers' own error in bfloat16
ROUTED = (
    2.0  # where a rounded router sends a token elsewhere, which is no matter of degree: of few tokens the mean jumps
)
LEAST = 2e-3  # below which an error in bfloat16 is not compared: nats, or of a norm
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Subject:
    """A model and what is known of it, made when first asked for."""

    def __init__(self, family: str, groups: int, device: str):
        self.family, self.groups, self.device = family, groups, device
        self._model: Any = None
        self.siblings = 4 if device == "cuda" else 2  # a CPU has its minutes
        self._known: dict[Any, Any] = {}

    @property
    def model(self) -> Any:
        """In float32 on the CPU; the soft cap of an attention is lost by sdpa before transformers 5.21."""
        if self._model is None:
            self._model = models.small(self.family, self.groups)
            if self.family == "gemma2":
                self._model.set_attn_implementation("eager")
        return self._model

    def on_device(self, dtype: str) -> Any:
        """A copy of the model there."""
        return copy.deepcopy(self.model).to(self.device, DTYPES[dtype])

    def known(self, shared: bool) -> tuple[list[TokenizedTurn], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Turns and their Q, V, log pi."""
        if shared not in self._known:
            turns = models.awkward_turns(self.siblings if shared else 1)
            self._known[shared] = turns, plain.scores(self.model, turns)
        return self._known[shared]

    def once(self, name: str, work: Callable[[], Any]) -> Any:
        """What `work` gives, which several cases ask for."""
        if name not in self._known:
            self._known[name] = work()
        return self._known[name]


def apart(ours: torch.Tensor, due: torch.Tensor) -> tuple[float, float]:
    """Largest and mean absolute difference; not a number passes no bound."""
    difference = (ours.double().cpu() - due.double().cpu()).abs()
    return float(difference.max()), float(difference.mean())


def judged(dtype: str, ours: float, theirs: float | None, **further: Any) -> Figures:
    """Figures of an error and whether it may be that large. `theirs`: of transformers in bfloat16."""
    bound = EXACT if dtype == "float32" or theirs is None else max(WORSE * theirs, LEAST)
    return {"ok": ours <= bound, "error": ours, "bound": bound, **further}


def cases(family: str, device: str, every: bool) -> list[Case]:
    """`every`: all ratios of heads, else one."""
    made = []
    for groups in models.GROUPS if every else (4,):
        subject = Subject(family, groups, device)
        for dtype in DTYPES:
            for part, work in PARTS.items():
                name = f"{part}, {family}, {groups} heads a key head, {dtype}"
                made.append(Case(name, _call(work, subject, dtype), 2.0))
    return made


def _call(work: Callable[[Subject, str], Figures], subject: Subject, dtype: str) -> Callable[[], Figures]:
    return lambda: work(subject, dtype)


# Scoring


def score(subject: Subject, dtype: str, shared: bool) -> Figures:
    turns, due = subject.known(shared)
    model = subject.on_device(dtype)
    theirs = None
    if dtype == "bfloat16":
        theirs = apart(plain.scores(model, turns)[2], due[2])[1]
    scorer = Scorer(model, budget_tokens=700)  # several batches
    results = scorer.score(turns)
    lost = [r for r in results if isinstance(r, RowError)]
    if lost:
        return {"ok": False, "note": str(lost[0])}
    columns = [torch.from_numpy(np.concatenate([getattr(r, n) for r in results])) for n in ("q", "values", "logprobs")]
    worst, errors = zip(*(apart(a, b) for a, b in zip(columns, due, strict=True)), strict=True)
    alone = scorer.score(turns[-2:-1])[0]
    moved = float(np.abs(alone.logprobs - results[-2].logprobs).max())  # type: ignore[union-attr]
    figures = judged(dtype, worst[2] if dtype == "float32" else errors[2], theirs, moved_by_batch=moved)
    figures["layout"] = scorer.layout
    figures["of_q_and_v"] = max(worst[:2]) if dtype == "float32" else max(errors[:2])
    right = scorer.layout == "packed" and scorer.head is not None
    if dtype == "float32":
        right = right and moved <= EXACT and max(worst[:2]) <= EXACT
    figures["ok"] = figures["ok"] and right
    return figures


def head(subject: Subject, dtype: str) -> Figures:
    """The sliced output matrix against float64, on the same states. An error of 1e-3 would show rounded partial sums."""
    model = subject.on_device(dtype)
    states = torch.randn(500, 256, generator=torch.Generator().manual_seed(0)).to(DTYPES[dtype])
    taken = torch.randint(models.VOCABULARY, (500,), generator=torch.Generator().manual_seed(1))
    ours = Head(model, chunk_mb=1)
    with torch.inference_mode():
        scores = ours.score(states.to(subject.device), taken.to(subject.device), 0.7)
        logits = ours.reshape(states.double() @ subject.model.get_output_embeddings().weight.double().T)
    due = (logits.gather(1, taken[:, None])[:, 0], 0.7 * (logits / 0.7).logsumexp(1))
    error = max(apart(scores.q, due[0])[0], apart(scores.values, due[1])[0])
    error = max(error, apart(scores.logprobs, due[0] - logits.logsumexp(1))[0])
    return {"ok": error <= 1e-3, "error": error, "bound": 1e-3}


def attend(subject: Subject, dtype: str) -> Figures:
    """Packed attention and its gradients against the definition in float64: also with a window and a soft cap, which are
    the family's own matter elsewhere."""
    worst = {}
    for name, window, cap in (("full", None, None), ("window", 24, None), ("soft cap", None, 4.0)):
        worst[name] = max(_attention_errors(subject, dtype, window, cap))
    error, bound = max(worst.values()), 2e-2 if dtype == "bfloat16" else 1e-4
    return {"ok": error <= bound, "error": error, "bound": bound, **worst}


def _attention_errors(subject: Subject, dtype: str, window: int | None, cap: float | None) -> list[float]:
    """Of output, dq, dk, dv: the norm of the difference over the norm."""
    families = [(0, 1, [4, 0, 9]), (14, 70, [1, 65, 30]), (180, 33, [])]
    tokens, size = 213, 64
    draw = torch.Generator().manual_seed(3)
    shapes = [(1, heads, tokens, size) for heads in (8, 8 // subject.groups, 8 // subject.groups)]
    inputs = [torch.randn(shape, generator=draw).to(DTYPES[dtype]) for shape in shapes]
    slope = torch.randn(tokens, 8, size, generator=draw).to(DTYPES[dtype])
    here = [each.to(subject.device).requires_grad_(True) for each in inputs]
    module = torch.nn.Module()
    module.is_causal = True  # type: ignore[assignment]
    module.num_key_value_groups = subject.groups  # type: ignore[assignment]
    out, _ = attention.packed_attention(
        module, *here, None, packing=attention.Packing(families), scaling=size**-0.5, sliding_window=window, softcap=cap
    )
    ours = [out[0], *torch.autograd.grad(out[0], here, slope.to(subject.device))]
    exact = [each.double().requires_grad_(True) for each in inputs]
    how = {"families": families, "scaling": size**-0.5, "window": window, "softcap": cap}
    due_out = plain.attention(*exact, how)
    due = [due_out, *torch.autograd.grad(due_out, exact, slope.double())]
    return [float((a.double().cpu() - b).norm() / b.norm()) for a, b in zip(ours, due, strict=True)]


# Learning


def learn(subject: Subject, dtype: str, layout: str) -> Figures:
    """A DPO step's loss and gradients in all weights."""
    turns = models.awkward_turns(subject.siblings)
    weights = torch.linspace(0.9, 1.1, len(turns))
    reference = [
        np.full(len(t.response_ids), -6.0 * w, np.float32) for t, w in zip(turns, weights.tolist(), strict=True)
    ]
    sums_due = torch.tensor([float(each.sum()) for each in reference])
    lengths = [len(t.response_ids) for t in turns]

    def theirs(model: Any) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        logprobs = plain.logprobs(model, turns)
        sums = torch.stack([part.sum() for part in logprobs.split(lengths)])
        loss = plain.dpo_loss(sums, sums_due.to(sums.device), 0.01)
        loss.backward()
        return loss.detach(), logprobs.detach(), plain.gradients(model)

    due = subject.once("learner", lambda: theirs(copy.deepcopy(subject.model)))
    other = None
    if dtype == "bfloat16":
        other = subject.once("learner in bfloat16", lambda: theirs(subject.on_device(dtype)))
    model = subject.on_device(dtype)
    policy = Policy(model, head_chunk_mb=1, entropies=True)
    notes = choose_layout(policy, policy, "auto" if layout == "packed" else layout)
    responses = [
        Response(list(t.prompt_ids), list(t.response_ids), 0.0, r) for t, r in zip(turns, reference, strict=True)
    ]
    outputs = policy(responses)
    batch = collate(responses, *outputs)
    loss = Dpo(0.01).terms(batch).losses.sum()
    loss.backward()
    ours = loss.detach(), outputs.logprobs.detach(), plain.gradients(model)
    error, norm = apart(ours[1], due[1]), _gradient_error(ours[2], due[2])
    exact = dtype == "float32"
    their = None if other is None else apart(other[1], due[1])[1]
    figures = judged(dtype, error[0] if exact else error[1], their, layout=policy.layout, gradients=norm)
    bound = EXACT if other is None else max(WORSE * _gradient_error(other[2], due[2]), LEAST)
    figures |= {"gradients_bound": bound, "loss_apart": apart(ours[0], due[0])[0]}
    figures["ok"] = figures["ok"] and norm <= bound and policy.layout == layout and not notes
    return figures


def _gradient_error(ours: dict[str, torch.Tensor], due: dict[str, torch.Tensor]) -> float:
    """Of all weights together, in the 2-norm; infinite where one has none."""
    if ours.keys() != due.keys():
        return float("inf")
    apart_by = sum(float((ours[n] - due[n]).square().sum()) for n in due)
    return float((apart_by / sum(float(due[n].square().sum()) for n in due)) ** 0.5)


# Sampling


def sample(subject: Subject, dtype: str) -> Figures:
    """Log-probabilities of what is drawn are those of the model; a sample is its own whatever else is in the batch; greedy
    takes the most probable token."""
    model = subject.on_device(dtype)
    rng = np.random.default_rng(5)
    prompts = [rng.integers(2, models.VOCABULARY, n).tolist() for n in (1, 30, 9, 64)]
    questions = [Question(prompt, 3, seed) for seed, prompt in enumerate(prompts)]

    def generator(temperature: float) -> Generator:
        return Generator(
            model, models.tokenizer(), max_new_tokens=24, temperature=temperature, logprobs=True, budget_tokens=900
        )

    drawn = generator(1.0).generate(questions)
    [alone] = generator(1.0).generate(questions[1:2])
    greedy = generator(0.0).generate([Question(p, 1, 0) for p in prompts])
    if any(isinstance(each, RowError) for each in [*drawn, alone, *greedy]):
        return {"ok": False, "note": str([each for each in drawn if isinstance(each, RowError)])}
    same = sum(a.token_ids == b.token_ids for a, b in zip(alone, drawn[1], strict=True))  # type: ignore[arg-type]
    pairs = [(p, c) for p, answers in zip(prompts, drawn, strict=True) for c in answers]  # type: ignore[union-attr]
    turns = [TokenizedTurn(p, c.token_ids, []) for p, c in pairs]
    due = plain.scores(subject.model, turns)[2]
    ours = torch.from_numpy(np.concatenate([c.logprobs for _, c in pairs]))
    theirs = apart(plain.scores(model, turns)[2], due)[1] if dtype == "bfloat16" else None
    worst, mean = apart(ours, due)
    error = worst if dtype == "float32" else mean
    short = _greedy_shortfall(subject.model, prompts, [answers[0] for answers in greedy])  # type: ignore[index]
    theirs = theirs and theirs * (ROUTED / WORSE if subject.family == "moe" else 1.0)
    figures = judged(dtype, error, theirs, same_alone=f"{same} of 3", greedy_short_by=short)
    if dtype == "float32":
        figures["ok"] = figures["ok"] and same == 3 and short <= EXACT
    return figures


def _greedy_shortfall(model: Any, prompts: list[list[int]], answers: list[Completion]) -> float:
    """By how much, in nats, a token that was taken is less probable than the most probable one, at most."""
    short = 0.0
    with torch.inference_mode():
        for prompt, answer in zip(prompts, answers, strict=True):
            own = plain.logits(model, TokenizedTurn(prompt, answer.token_ids, []))
            picked = own.gather(1, torch.tensor(answer.token_ids)[:, None])[:, 0]
            short = max(short, float((own.amax(1) - picked).max()))
    return short


def varlen(subject: Subject, dtype: str) -> Figures:
    """Whether the two calls a layer are there, and take bfloat16 on this device; the numbers are those of `attention`."""
    rooms = [each.name for each in pkgutil.iter_modules(scoring.__path__) if "varlen" in each.name]
    names = rooms + [name for name in vars(attention) if "varlen" in name.lower()]
    if not names:
        raise Skip("pipeline.models.scoring has no variable-length attention")
    if subject.device == "cpu":
        raise Skip("variable-length attention runs on CUDA")
    if dtype != "bfloat16" or subject.family == "gemma2":
        raise Skip("float32 and soft caps take the path of segments")
    kernels = _kernels(subject, dtype)
    flash = [name for name in kernels if "flash" in name.lower() or "fmha" in name.lower()]
    return {"ok": bool(flash), "kernels": len(kernels), "flash": len(flash), "names": names[:6]}


def _kernels(subject: Subject, dtype: str) -> list[str]:
    """Names of the kernels of one scored batch."""
    from torch.profiler import ProfilerActivity, profile

    scorer = Scorer(subject.on_device(dtype))
    turns = models.awkward_turns(subject.siblings)
    scorer.score(turns)
    with profile(activities=[ProfilerActivity.CUDA]) as prof:
        scorer.score(turns)
        torch.cuda.synchronize()
    return [event.name for event in on_device(prof.events())]


PARTS: dict[str, Callable[[Subject, str], Figures]] = {
    "packed": lambda subject, dtype: score(subject, dtype, shared=False),
    "shared": lambda subject, dtype: score(subject, dtype, shared=True),
    "varlen": varlen,
    "attention": attend,
    "head": head,
    "learner": lambda subject, dtype: learn(subject, dtype, "packed"),
    "learner, padded": lambda subject, dtype: learn(subject, dtype, "padded"),
    "sampler": sample,
}
