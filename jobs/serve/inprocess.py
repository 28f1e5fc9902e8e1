"""The model in this process, whose batches come one after another: of `serve --local`, and of each replica on Ray Serve."""

import threading
from collections.abc import Sequence

from actors.scorer import ScorerSpec
from jobs.serve.batching import Answers
from pipeline.config import ModelConfig, ServeConfig
from pipeline.tokens import TokenizedTurn

_computing = threading.Lock()
"""Models of one process take turns: they share its cores or its GPU, and what a forward sets of torch is the process's."""


class InProcess:
    """Raises ConfigError where the model cannot be loaded."""

    at_once = 1

    def __init__(self, spec: ScorerSpec):
        with _computing:
            self._engine = spec.open()
        self.batch_tokens = self._engine.scorer.batch_tokens
        self.layout = self._engine.layout

    def score(self, turns: Sequence[TokenizedTurn]) -> Answers:
        with _computing:
            return self._engine.answer(turns)


def scorer_spec(config: ServeConfig, model: ModelConfig, device: str, gpus: int = 1, threads: int = 1) -> ScorerSpec:
    return ScorerSpec(
        model,
        device,
        gpus,
        threads,
        config.scorer.budget_tokens,
        check_responses=0,
        alpha=config.reward.alpha,
        head_chunk_mb=config.scorer.head_chunk_mb,
        certainty=config.reward.token_certainty,
    )
