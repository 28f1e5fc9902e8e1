"""The actor that writes: a judge's verdicts, a policy's answers."""

from collections.abc import Sequence
from dataclasses import dataclass

from actors.actor import ActorSpec
from pipeline.errors import RowError
from pipeline.models.loading import load_model, load_tokenizer
from pipeline.models.questions import Completion, Question


@dataclass(frozen=True)
class GeneratorSpec(ActorSpec):
    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    end_tokens: tuple[int, ...] = ()  # beside those of model and tokenizer

    def open(self) -> "GeneratorEngine":
        return GeneratorEngine(self)


class GeneratorEngine:
    layout = "left padded"

    def __init__(self, spec: GeneratorSpec):
        from pipeline.models.generation import Generator

        self.generator = Generator(
            load_model(spec.model, spec.device, spec.gpus),
            load_tokenizer(spec.model),
            max_new_tokens=spec.max_new_tokens,
            temperature=spec.temperature,
            top_p=spec.top_p,
            budget_tokens=spec.budget_tokens,
            eos_token_ids=spec.end_tokens,
        )
        self.notes = self.generator.notes

    @property
    def forwarded_tokens(self) -> int:
        return self.generator.forwarded_tokens

    def answer(self, requests: Sequence[Question]) -> list[list[Completion] | RowError]:
        return self.generator.generate(requests)

    def reward(self, answer: list[Completion]) -> str:
        return "\n".join(completion.text for completion in answer)
