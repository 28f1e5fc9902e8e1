"""A trained scalar reward model (sequence classification): it reads prompt and response, and gives one number."""

from dataclasses import dataclass
from typing import Any

from pipeline.config import TokensConfig
from pipeline.corpus.samples import Turn
from pipeline.rewards.labellers.base import OfResponses
from pipeline.tokens import TokenizedTurn


@dataclass(frozen=True)
class Classified(OfResponses):
    """The conversation is rendered whole, to the end of what the template says, as such models are trained."""

    name = "classifier"
    engine = "classifier"
    ending = "whole"

    @property
    def tokens(self) -> TokensConfig:
        """Texts are read: the tokens that a policy wrote are not the classifier's."""
        return self.config.tokens.model_copy(update={"sampled": "render"})

    def settings(self) -> dict[str, Any]:
        return {"classifier.output": self.config.classifier.output}

    def request(self, turn: Turn, tokens: TokenizedTurn) -> TokenizedTurn:
        return tokens

    def reward(self, answer: float) -> tuple[float, dict[str, Any]]:
        return answer, {}
