"""The actor that holds a model in memory and scores shards. Arithmetic lives in `pipeline`."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.config import ModelConfig
from pipeline.errors import RowError
from pipeline.models import load_model
from pipeline.scores import Scores
from pipeline.tokens import TokenizedTurn


@dataclass(frozen=True)
class ScorerSpec:
    """All that an actor needs to build its scorer."""

    model: ModelConfig
    device: str  # "cpu" or "cuda"
    gpus: int
    threads: int
    alpha: float
    budget_tokens: int
    head_chunk_mb: int


@dataclass(frozen=True)
class Scored:
    """The scores of one shard's turns, one each, and what they cost."""

    scores: list[Scores | RowError]
    forwarded_tokens: int
    seconds: float
    layout: str
    notes: list[str]


class ShardScorer:
    """One model, one process; `score` takes the turns of one shard, so that no batch crosses a shard."""

    def __init__(self, spec: ScorerSpec):
        import torch

        from pipeline.scoring import Scorer

        torch.set_num_threads(spec.threads)
        self.scorer = Scorer(
            load_model(spec.model, spec.device, spec.gpus),
            alpha=spec.alpha,
            budget_tokens=spec.budget_tokens,
            head_chunk_mb=spec.head_chunk_mb,
        )

    def score(self, turns: Sequence[TokenizedTurn]) -> Scored:
        started, before = time.perf_counter(), self.scorer.forwarded_tokens
        scores = self.scorer.score(turns)
        seconds = time.perf_counter() - started
        notes, self.scorer.notes = self.scorer.notes, []
        return Scored(scores, self.scorer.forwarded_tokens - before, seconds, self.scorer.layout, notes)
