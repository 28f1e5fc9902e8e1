"""Where the time of scorer, DPO step and sampler goes: the ten kernels that take most, and how busy the device is.

A device that is busy for half of the time waits for launches, and fewer of them are the next change; a busy one is made
faster by other kernels.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from device import speed
from device.cases import Case, Figures, on_device, synchronize

TOP = 10


def cases(size: str, device: str) -> list[Case]:
    bench = speed.Bench(size, device)
    return [
        *(
            Case(f"profile of scoring {shape}, {size}", _of(scoring, bench, shape), 12.0)
            for shape in ("hh", "rm-bench")
        ),
        Case(f"profile of a DPO step, {size}", lambda: step(bench), 12.0),
        Case(f"profile of sampling, {size}", lambda: sampling(bench), 15.0),
    ]


def _of(work: Callable[..., Figures], *arguments: Any) -> Callable[[], Figures]:
    return lambda: work(*arguments)


def scoring(bench: speed.Bench, shape: str) -> Figures:
    turns = bench.corpus(shape, 0.25)
    scorer = speed.Scorer(bench.model, budget_tokens=16384)
    return profiled(lambda: scorer.score(turns))


def step(bench: speed.Bench) -> Figures:
    responses, policy = speed.pairs(bench), speed.policy_of(bench)
    try:
        return profiled(lambda: speed.dpo_step(policy, responses))
    finally:
        policy.use_layout("padded")
        bench.model.requires_grad_(False)


def sampling(bench: speed.Bench) -> Figures:
    asked, _ = speed.questions(bench)
    generator = speed.generator_of(bench, 4 if bench.toy else 16)
    return profiled(lambda: generator.generate(asked))


def profiled(work: Callable[[], Any]) -> Figures:
    """Seconds without the profiler, the share of them that the device works, and the top ten of device and host."""
    work()
    synchronize()
    started = time.perf_counter()
    work()
    synchronize()
    seconds = time.perf_counter() - started
    cuda = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as prof:
        work()
        synchronize()
    of_device: dict[str, list[float]] = defaultdict(list)
    of_host: dict[str, list[float]] = defaultdict(list)
    events = prof.events()
    kernels = on_device(events)
    for event in kernels:
        of_device[event.name].append(event.time_range.elapsed_us() / 1e3)
    own = set(map(id, kernels))
    for event in events:
        if id(event) not in own:
            of_host[event.name].append(event.self_cpu_time_total / 1e3)
    busy = sum(map(sum, of_device.values()))
    return {
        "seconds": seconds, "busy": busy / 1e3 / seconds, "launches": len(kernels),
        "top": ranked(of_device), "host": ranked(of_host),
    }  # fmt: skip


def ranked(times: dict[str, list[float]]) -> list[list[Any]]:
    """Name, milliseconds and calls of those that take most."""
    rows = sorted(([name, round(sum(each), 3), len(each)] for name, each in times.items()), key=lambda row: -row[1])
    return [[row[0][:90], *row[1:]] for row in rows[:TOP]]
