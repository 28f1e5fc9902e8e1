"""The actor that scores responses with a causal LM's own logits."""

from collections.abc import Sequence
from dataclasses import dataclass

from actors.actor import ActorSpec
from pipeline.errors import RowError
from pipeline.models.loading import load_model
from pipeline.models.pictures import open_pictures
from pipeline.models.scores import Scores
from pipeline.tokens import TokenizedTurn


@dataclass(frozen=True)
class ScorerSpec(ActorSpec):
    alpha: float = 1.0
    head_chunk_mb: int = 64
    certainty: bool = False

    def open(self) -> "ScorerEngine":
        return ScorerEngine(self)


class ScorerEngine:
    def __init__(self, spec: ScorerSpec):
        from pipeline.models.scoring import Scorer

        model = load_model(spec.model, spec.device, spec.gpus)
        self.scorer = Scorer(
            model,
            alpha=spec.alpha,
            budget_tokens=spec.budget_tokens,
            head_chunk_mb=spec.head_chunk_mb,
            certainty=spec.certainty,
            pictures=open_pictures(spec.model, model.config),
        )
        self.layout, self.notes = self.scorer.layout, self.scorer.notes

    @property
    def forwarded_tokens(self) -> int:
        return self.scorer.forwarded_tokens

    def answer(self, requests: Sequence[TokenizedTurn]) -> list[Scores | RowError]:
        return self.scorer.score(requests)

    def reward(self, answer: Scores) -> float:
        """alpha = 1 or not, what moves is a log-probability."""
        return float(answer.logprobs.sum())
