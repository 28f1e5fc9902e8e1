"""Score responses with a causal LM's own logits: `Scorer` is the whole interface."""

from pipeline.models.scores import Scores
from pipeline.models.scoring.scorer import Scorer

__all__ = ["Scorer", "Scores"]
