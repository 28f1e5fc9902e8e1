"""Score responses with a causal LM's own logits: `Scorer` is the whole interface."""

from pipeline.scores import Scores
from pipeline.scoring.scorer import Scorer

__all__ = ["Scorer", "Scores"]
