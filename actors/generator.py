"""The actor that writes: a judge's verdicts, a policy's answers."""

from collections.abc import Sequence
from dataclasses import dataclass

from actors.actor import ActorSpec
from pipeline.errors import RowError
from pipeline.models.engines import Drawing, Endpoint, EngineSpec, open_engine
from pipeline.models.questions import Completion, Question


@dataclass(frozen=True)
class GeneratorSpec(ActorSpec):
    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    end_tokens: tuple[int, ...] = ()  # beside those of model and tokenizer
    engine: str = "transformers"
    endpoint: Endpoint | None = None  # where the engine is one

    def open(self) -> "GeneratorEngine":
        return GeneratorEngine(self)


class GeneratorEngine:
    def __init__(self, spec: GeneratorSpec):
        drawing = Drawing(
            max_new_tokens=spec.max_new_tokens,
            temperature=spec.temperature,
            top_p=spec.top_p,
            budget_tokens=spec.budget_tokens,
            end_tokens=spec.end_tokens,
        )
        self.engine = open_engine(EngineSpec(spec.model, spec.device, drawing, spec.gpus, spec.engine, spec.endpoint))
        self.layout, self.notes = self.engine.layout, self.engine.notes

    @property
    def forwarded_tokens(self) -> int:
        return self.engine.forwarded_tokens

    def answer(self, requests: Sequence[Question]) -> list[list[Completion] | RowError]:
        return self.engine.generate(requests)

    def reward(self, answer: list[Completion]) -> str:
        return "\n".join(completion.text for completion in answer)
