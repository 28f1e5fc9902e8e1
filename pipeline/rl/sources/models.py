"""The models of a mixture: each in memory once, whoever names it."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.config import ModelConfig
from pipeline.errors import RowError
from pipeline.models.loading import identify_model, load_model
from pipeline.models.scores import Scores
from pipeline.rl.config import RlConfig
from pipeline.rl.reward_sections import RewardSource
from pipeline.tokens import TokenizedTurn

if TYPE_CHECKING:
    from pipeline.models.scoring import Scorer


def reward_model(config: RlConfig, source: RewardSource) -> ModelConfig:
    """The model that a source names, or that of all sources."""
    base = config.reward_model
    return base.named(source.model or base.name, source.revision or (None if source.model else base.revision))


class Models:
    """The models in memory. Those of equal content and dtype are one.

    Args:
        device: "cpu" or "cuda".
        dtype: of a model whose own is auto.
        gpus: as for `load_model`.
        alpha: temperature of V.
        budget_tokens: tokens forwarded at once; None: as the memory has it, of which `gpu_share` is ours.
        certainty: whether scores hold the entropy and the self-certainty of each token.
    """

    def __init__(
        self,
        device: str,
        dtype: str,
        gpus: int,
        alpha: float,
        budget_tokens: int | None,
        certainty: bool = False,
        gpu_share: float = 1.0,
    ):
        self.device, self.dtype, self.gpus = device, dtype, gpus
        self.alpha, self.budget_tokens, self.certainty = alpha, budget_tokens, certainty
        self.gpu_share = gpu_share
        self.identities: dict[ModelConfig, str] = {}
        self.scorers: dict[str, Scorer] = {}
        self.known: dict[tuple[str, bytes, bytes], Scores | RowError] = {}

    @property
    def notes(self) -> list[str]:
        return [note for scorer in self.scorers.values() for note in scorer.notes]

    def open(self, model: ModelConfig) -> None:
        """Load a model unless it is here. Raises ConfigError."""
        from pipeline.models.memory import scoring_budget
        from pipeline.models.scoring import Scorer

        dtype = self.dtype if model.dtype == "auto" else model.dtype
        identity = json.dumps(identify_model(model, dtype), sort_keys=True)
        self.identities[model] = identity
        if identity not in self.scorers:
            weights = load_model(model.model_copy(update={"dtype": dtype}), self.device, self.gpus)
            budget = self.budget_tokens or scoring_budget(weights, self.gpu_share)
            self.scorers[identity] = Scorer(weights, alpha=self.alpha, budget_tokens=budget, certainty=self.certainty)

    def score(self, model: ModelConfig, turns: Sequence[TokenizedTurn]) -> list[Scores | RowError]:
        """The model's scores of each turn. What it has scored since `forget` it does not score again."""
        identity = self.identities[model]
        keys = [(identity, turn.prompt_ids.tobytes(), turn.response_ids.tobytes()) for turn in turns]
        new = {key: turn for key, turn in zip(keys, turns, strict=True) if key not in self.known}
        self.known.update(zip(new, self.scorers[identity].score(list(new.values())), strict=True))
        return [self.known[key] for key in keys]

    def forget(self) -> None:
        self.known.clear()
