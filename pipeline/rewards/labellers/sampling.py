"""What the kinds share in which a policy answers prompts itself, several times each.

The seed of a prompt's answers follows from the configured seed and the prompt's id, and each answer has a stream of its
own (`pipeline.models.generation`): neither batch nor worker changes a text, and the first answers of many are those of few.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.config import AnswersConfig, SampleSection
from pipeline.corpus import NumberedRow, Shape, Shard
from pipeline.corpus.samples import Message, Turn, turn_id
from pipeline.errors import RowError
from pipeline.models.questions import Completion, Question
from pipeline.rewards.labellers.base import Asking
from pipeline.rewards.labelling import Prepared, failure, make_label
from pipeline.store.schema import Failure, Label
from pipeline.tokens import NO_IDS, TokenizedTurn


@dataclass(frozen=True)
class Asked:
    """What a row asks of the policy. `extra` is kept with each of the answers."""

    prompt: list[Message]
    conversational: bool  # as in `Sample`
    extra: dict[str, Any]
    tools: list[dict[str, Any]] | None = None  # as in `Sample`


class Sampling(Asking):
    """Base of these kinds: a row gives a prompt, and each answer to it becomes a label."""

    engine = "generator"

    @property
    def drawn(self) -> AnswersConfig | SampleSection:
        """How the policy is sampled."""
        raise NotImplementedError

    @property
    def answers(self) -> int:
        """How many answers a prompt gets."""
        raise NotImplementedError

    def asked(self, file: str, number: int, row: dict[str, Any], shape: Shape) -> Asked:
        """What one row asks. Raises RowError."""
        raise NotImplementedError

    def judged(self, turn: Turn, completion: Completion) -> tuple[float, dict[str, Any]]:
        """The reward of an answer, and what else is worth keeping."""
        raise NotImplementedError

    def prepare(self, shard: Shard, generation: int, rows: Iterable[NumberedRow], shape: Shape) -> Prepared:
        out = Prepared(shard, generation)
        requests: list[Question] = []
        plan: list[tuple[Turn, TokenizedTurn]] = []
        for number, row in rows:
            prompt_id = f"{shard.file}:{number}"
            try:
                if isinstance(row, RowError):
                    raise row
                asked = self.asked(shard.file, number, row, shape)
            except RowError as error:
                out.failures.append(failure(prompt_id, prompt_id, error))
                continue
            for rubric, system in self.renderer.rubrics.items():
                turn = _turn(prompt_id, asked, rubric)
                try:
                    ids = self.prompt_ids(asked.prompt, asked.conversational, rubric, asked.tools)
                except RowError as error:
                    out.failures.append(failure(turn.id, prompt_id, error))
                    continue
                seed = hashlib.sha256(f"{self.drawn.seed}:{turn.id}".encode()).digest()
                requests.append(Question(ids, self.answers, int.from_bytes(seed[:4], "big")))
                plan.append((turn, TokenizedTurn(np.array(ids), NO_IDS, with_system(asked.prompt, system))))
        out.requests, out.plan = requests, plan
        out.notes, out.counts = list(self.renderer.notes), self.renderer.take_counts()
        return out

    def finish(
        self, prepared: Prepared, answers: Sequence[list[Completion] | RowError]
    ) -> tuple[list[Label], list[Failure]]:
        labels, failures = [], list(prepared.failures)
        for (turn, tokens), answer in zip(prepared.plan, answers, strict=True):
            if isinstance(answer, RowError):
                failures.append(failure(turn.id, turn.prompt_id, answer))
                continue
            for sample, completion in enumerate(answer):
                answered = replace(
                    turn,
                    id=turn_id(turn.prompt_id, None, sample, 0, turn.rubric),
                    response_index=sample,
                    response=self._text(turn, completion),
                )
                tokenized = replace(
                    tokens, response_ids=np.array(completion.token_ids), truncated=not completion.finished
                )
                reward, kept = self.judged(answered, completion)
                labels.append(make_label(answered, tokenized, reward, kept=kept))
        return labels, failures

    def _text(self, turn: Turn, completion: Completion) -> str:
        """The answer without the space that a transcript puts after `Assistant:`, which is no part of what was said."""
        transcript = turn.conversational and not self.rendering.templated
        return completion.text.removeprefix(" ") if transcript else completion.text


def _turn(prompt_id: str, asked: Asked, rubric: str | None) -> Turn:
    return Turn(
        id=turn_id(prompt_id, None, 0, 0, rubric),
        prompt_id=prompt_id,
        preference=None,
        response_index=0,
        turn=0,
        prompt=asked.prompt,
        response="",
        conversational=asked.conversational,
        rubric=rubric,
        extra=asked.extra,
        tools=asked.tools,
    )


def with_system(messages: list[Message], system: str | None) -> list[Message]:
    """A prompt under a system prompt, as `Renderer` shows it: one of its own follows."""
    if not system:
        return messages
    own = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
    whole = system if own is None else f"{system}\n\n{own}"
    return [Message(role="system", content=whole), *messages[own is not None :]]
