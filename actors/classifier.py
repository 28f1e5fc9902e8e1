"""The actor that holds a trained scalar reward model."""

from collections.abc import Sequence
from dataclasses import dataclass

from actors.actor import ActorSpec
from pipeline.errors import RowError
from pipeline.models.loading import load_classifier
from pipeline.tokens import TokenizedTurn


@dataclass(frozen=True)
class ClassifierSpec(ActorSpec):
    output: int = 0

    def open(self) -> "ClassifierEngine":
        return ClassifierEngine(self)


class ClassifierEngine:
    layout = "equal lengths"

    def __init__(self, spec: ClassifierSpec):
        from pipeline.models.classification import Classifier

        model = load_classifier(spec.model, spec.device, spec.gpus)
        self.classifier = Classifier(model, output=spec.output, budget_tokens=spec.budget_tokens)
        self.notes = self.classifier.notes

    @property
    def forwarded_tokens(self) -> int:
        return self.classifier.forwarded_tokens

    def answer(self, requests: Sequence[TokenizedTurn]) -> list[float | RowError]:
        return self.classifier.score(requests)

    def reward(self, answer: float) -> float:
        return answer
