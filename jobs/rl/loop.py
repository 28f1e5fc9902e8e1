"""What each worker of an online run does, inside Ray Train: the loop in which a policy learns from its own samples.

    gather       the first worker asks samplers and rewarders; all hear of it     jobs.rl.source
    advantages   of every token                                                   the algorithm
    learn        each worker its part, under DeepSpeed                            actors.learner
    send         the new weights to the samplers, under the number of the step

Sampling waits for learning and learning for sampling: what is learnt from always comes from the weights that learn. Each
sample says which version it comes from and how likely it was there, so an algorithm with importance ratios would bear it
if sampling ran ahead. `jobs.learning.worker` has what any training run's workers do besides, `jobs.rl.logbook` what the
first writes.
"""

from collections.abc import Sequence
from typing import Any

import ray
import torch
import torch.distributed as dist

from actors.learner import Learner, LearnerSpec
from jobs.learning.worker import export, guarded, keep, place_of, restore
from jobs.rl.logbook import Clock, Logbook
from jobs.rl.online import Online
from jobs.rl.source import Gathering, Replay
from pipeline.rl.algorithms import algorithm_of
from pipeline.rl.config import RlConfig
from pipeline.rl.experience import Experience, forecast, plan
from pipeline.rl.rollouts import Group, Tokens
from pipeline.training.metrics import Row
from pipeline.training.schedule import learning_rate


def improve(told: dict[str, Online]) -> None:
    """The function that Ray Train runs on every worker."""
    online = told["told"]
    guarded(online.output, lambda: _improve(online))


def _improve(online: Online) -> None:
    config, algorithm = online.config, algorithm_of(online.config)
    torch.set_num_threads(config.learner.cpus_per_worker)
    rank, _ = place_of()
    learner = Learner(
        LearnerSpec(config, algorithm, online.device, online.deepspeed, critic=algorithm.uses_critic, entropies=True)
    )
    state = restore(learner, {})
    source = _source(online) if rank == 0 else None
    weights = learner.weights()
    book = Logbook(online, source, state["step"], weights, learner.notes) if source and weights else None
    for step in range(state["step"], config.rl.max_steps):
        clock = Clock()
        with clock.of("waiting"):
            groups = _heard(source.step(step) if source else None)
        with clock.of("learning"):
            values = _critic_values(config, learner, groups) if algorithm.uses_critic else None
            row, tokens = _learn(online, learner, Experience(config, algorithm, groups, values), step)
        with clock.of("weights"):
            weights = learner.weights()
            if source and weights:
                source.take(step + 1, weights)
        state |= {"step": step + 1, "num_tokens": state["num_tokens"] + tokens}
        due = step + 1 == config.rl.max_steps or (step + 1) % config.checkpoint.every_steps == 0
        row = {"step": step + 1, "num_tokens": state["num_tokens"], **row, **clock.spent()}
        if book:
            book.write(row, groups, due)
        if due:
            keep(learner, online.output, state, row)
    export(learner, online.output, "hf")
    if book:
        book.close()


def _source(online: Online) -> Gathering | Replay:
    """Where groups come from."""
    if online.samplers is None or online.rewarders is None:
        return Replay(online.config)
    return Gathering(online.config, ray.get(online.practice), online.samplers, online.rewarders)


def _heard(told: Any) -> Any:
    """What the first worker was told, on every worker."""
    said = [told]
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(said)
    return said[0]


def _learn(online: Online, learner: Learner, experience: Experience, step: int) -> tuple[Row, int]:
    """Learn from a batch. Returns its metrics, means over the steps of the optimizer, and how many tokens were seen."""
    told = online.config.rl
    rate = learning_rate(told, online.rate, step, told.max_steps)
    rows, tokens = [], 0
    for epoch in range(told.epochs):
        for numbers in experience.minibatches(step, epoch):
            part = experience.part(numbers, learner.rank, learner.world)
            rows.append(learner.step(part.micro_batches, part.totals, rate))
            tokens += part.tokens
    means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    means.pop("reference_drift", None)  # `kl` says it better
    sampled = {name: value for name, value in rows[0].items() if name.startswith("sampling/")}
    return means | sampled, tokens  # how far samplers are from the learner shows before its first step


def _critic_values(config: RlConfig, learner: Learner, groups: Sequence[Group]) -> list[Tokens]:
    """V(s_h) of every response of the batch, as `forecast` has them: every worker computes its part, and hears the others'."""
    mine = plan(config, groups, range(len(groups)), learner.world)[learner.rank]
    responses = forecast(config, groups)
    found = learner.values([[responses[position] for position in micro] for micro in mine])
    parts: list[Any] = [None] * learner.world
    dist.all_gather_object(parts, list(zip((p for micro in mine for p in micro), found, strict=True)))
    return [values for _, values in sorted((pair for part in parts for pair in part), key=lambda pair: pair[0])]
