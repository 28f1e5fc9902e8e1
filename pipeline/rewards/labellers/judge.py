"""LLM as a judge (Zheng et al. 2023, arXiv 2306.05685): a model writes a verdict, which is read from its last match behind
its thoughts.

A judgement that cannot be read is an error row, `unparsable_judgement`, and never a guess. Nor does reading one take for
ever: a pattern of one's own may try so many ways that it is given up, in a process beside this one. A pairwise judge sees
every pair in both orders; where it prefers the same place rather than the same response, the pair is a tie that is counted as
a disagreement.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any, NamedTuple

from pipeline.apart import Apart, Died, TimedOut
from pipeline.config import EvaluateConfig, JudgeConfig
from pipeline.corpus import NumberedRow, Shape, Shard
from pipeline.corpus.samples import Message, Turn
from pipeline.errors import RowError
from pipeline.models.questions import Completion, Question
from pipeline.rewards.labellers.base import Asking, OfResponses, Writer, filled
from pipeline.rewards.labellers.sampling import with_system
from pipeline.rewards.labelling import Prepared, failure, make_label, prepare
from pipeline.store.schema import Failure, Label
from pipeline.tokens import TokenizedTurn, conversation_text
from pipeline.tokens.thoughts import behind_thoughts

UNPARSABLE = "unparsable_judgement"
READ_WITHIN_S = 10.0
WINNERS = {"A": 1, "B": -1, "C": 0, "TIE": 0}


class Judging(Asking):
    """Base of both: a model writes."""

    config: EvaluateConfig

    engine = "generator"

    @property
    def writer(self) -> Writer:
        return self.config.judge.writer

    @property
    def address(self) -> str:
        return self.config.judge.endpoint

    @property
    def thinks(self) -> bool:
        """Whether a judgement begins inside thoughts; a server that renders messages itself gives them whole."""
        return self.rendering.opens_thoughts and not self.chats


@dataclass(frozen=True)
class PointwiseJudge(Judging, OfResponses):
    """The reward is the rating."""

    name = "judge-pointwise"

    def settings(self) -> dict[str, Any]:
        return judge_settings(self.config.judge, "pointwise")

    def request(self, turn: Turn, tokens: TokenizedTurn) -> Question:
        text = filled(self.config.judge.pointwise_prompt, prompt=conversation_text(turn.prompt), response=turn.response)
        return ask(self, turn, text)

    def reward(self, answer: list[Completion]) -> tuple[float, dict[str, Any]]:
        [judgement] = answer
        judge = self.config.judge
        word = verdict(judge.pointwise_pattern, judgement, self.thinks)
        try:
            rating = float(word)
        except ValueError:
            raise unparsable(judgement, f"{word!r} is no number") from None
        if not judge.lowest <= rating <= judge.highest:
            raise unparsable(judgement, f"{word} is not from {judge.lowest:g} to {judge.highest:g}")
        return rating, {"judgement": judgement.text}


class Shown(NamedTuple):
    """One question to a pairwise judge: turns by position, in the order shown."""

    first: int
    second: int

    @property
    def swapped(self) -> "Shown":
        return Shown(self.second, self.first)


@dataclass(frozen=True)
class PairwiseJudge(Judging):
    """Every chosen response against every rejected one; without preferences, every response against every other.

    The reward of a response is the share of its readable comparisons that it wins in both orders; a response without any
    is an error row. `extra_info` keeps `verdicts`, by the other response (`rejected:0`): 1 won, -1 lost, 0 where the two
    orders disagree or see a tie, None where either could not be read; and the `judgements`.
    """

    config: EvaluateConfig

    name = "judge-pairwise"

    def settings(self) -> dict[str, Any]:
        return judge_settings(self.config.judge, "pairwise")

    def prepare(self, shard: Shard, generation: int, rows: Iterable[NumberedRow], shape: Shape) -> Prepared:
        out = prepare(shard, generation, rows, shape, self.counter, self.config.input.turns)
        requests: list[Question] = []
        shown: list[Shown] = []
        refused: dict[int, RowError] = {}
        for pair in compared(out.turns):
            try:
                both = [self._ask(out.turns[each.first], out.turns[each.second]) for each in (pair, pair.swapped)]
            except RowError as error:
                refused |= dict.fromkeys(pair, error)
                continue
            requests += both
            shown += [pair, pair.swapped]
        out.requests, out.plan = requests, (shown, refused)
        out.notes, out.counts = list(self.renderer.notes), self.renderer.take_counts()
        return out

    def _ask(self, first: Turn, second: Turn) -> Question:
        shown = {"first": first.response, "second": second.response}
        text = filled(self.config.judge.pairwise_prompt, prompt=conversation_text(first.prompt), **shown)
        return ask(self, first, text)

    def finish(
        self, prepared: Prepared, answers: Sequence[list[Completion] | RowError]
    ) -> tuple[list[Label], list[Failure]]:
        shown, refused = prepared.plan
        answered = dict(zip(shown, answers, strict=True))
        labels, failures = [], list(prepared.failures)
        for position, (turn, tokens) in enumerate(zip(prepared.turns, prepared.tokens, strict=True)):
            try:
                kept = self._outcome(position, prepared.turns, answered, refused.get(position))
            except RowError as error:
                failures.append(failure(turn.id, turn.prompt_id, error))
                continue
            readable = [outcome for outcome in kept["verdicts"].values() if outcome is not None]
            labels.append(make_label(turn, tokens, readable.count(1) / len(readable), kept=kept))
        return labels, failures

    def _outcome(
        self,
        position: int,
        turns: Sequence[Turn],
        answered: Mapping[Shown, list[Completion] | RowError],
        refused: RowError | None,
    ) -> dict[str, Any]:
        """What is kept of one response's comparisons. Raises RowError where not one could be read."""
        verdicts: dict[str, int | None] = {}
        judgements: list[dict[str, Any]] = []
        why = refused or RowError("nothing_to_compare", "no other response to this prompt could be compared with it")
        for pair in (each for each in answered if each.first == position):
            other = _short_name(turns[pair.second])
            try:
                first, second = (self._winner(answered[each]) for each in (pair, pair.swapped))
                verdicts[other] = first if first == -second else 0
            except RowError as error:
                verdicts[other], why = None, error
            if pair.first < pair.second:  # each judgement once, with the response that comes first
                judgements += [
                    {"shown": [_short_name(turns[turn]) for turn in each], "text": answer[0].text}
                    for each in (pair, pair.swapped)
                    if isinstance(answer := answered[each], list)
                ]
        if all(outcome is None for outcome in verdicts.values()):
            raise why
        return {"verdicts": verdicts, "judgements": judgements}

    def _winner(self, answer: list[Completion] | RowError) -> int:
        """1 where the answer prefers what was shown first, -1 the second, 0 for a tie. Raises RowError."""
        if isinstance(answer, RowError):
            raise answer
        [judgement] = answer
        word = verdict(self.config.judge.pairwise_pattern, judgement, self.thinks).upper()
        if word not in WINNERS:
            raise unparsable(judgement, f"{word!r} is not one of {', '.join(WINNERS)}")
        return WINNERS[word]


def compared(turns: Sequence[Turn]) -> Iterator[Shown]:
    """Pairs of turns of one prompt and rubric that a pairwise judge compares, each once. The last turn of a response
    stands for it."""
    groups: dict[tuple[str, str | None], dict[tuple[str | None, int], int]] = {}
    for position, turn in enumerate(turns):
        groups.setdefault((turn.prompt_id, turn.rubric), {})[turn.preference, turn.response_index] = position
    for group in groups.values():
        chosen, rejected, others = (
            [position for (kind, _), position in group.items() if kind == wanted]
            for wanted in ("chosen", "rejected", None)
        )
        for first, second in (*product(chosen, rejected), *combinations(others, 2)):
            yield Shown(first, second)


def ask(judge: Asking, turn: Turn, text: str) -> Question:
    """A question to the judge, under the turn's rubric. Raises RowError where it does not fit."""
    messages = [Message(role="user", content=text)]
    ids = judge.prompt_ids(messages, True, turn.rubric)
    if not judge.chats:
        return Question(ids)
    shown = with_system(messages, judge.renderer.rubrics[turn.rubric])
    return Question(ids, messages=tuple({"role": each["role"], "content": each["content"]} for each in shown))


def verdict(pattern: str, judgement: Completion, thinking: bool = False) -> str:
    """The pattern's group in its last match behind the judge's thoughts, which the prompt opens where `thinking`. Raises
    RowError where there is none, or it is not found in time."""
    answer = behind_thoughts(judgement.text, thinking)
    if answer is None:
        raise unparsable(judgement, "its thoughts do not end")
    try:
        matches = _beside.call(re.findall, pattern, answer, timeout_s=READ_WITHIN_S)
    except (TimedOut, Died, RecursionError, MemoryError):
        raise unparsable(
            judgement,
            f"the pattern {pattern} came to no end within {READ_WITHIN_S:g} s; write it without repetitions inside others",
        ) from None
    if not matches:
        raise unparsable(judgement, f"it holds nothing of the form {pattern}")
    last: str = matches[-1]  # the pattern has one group
    return last


_beside = Apart()


def unparsable(judgement: Completion, why: str) -> RowError:
    at_limit = "" if judgement.finished else " at judge.max_new_tokens"
    ending = judgement.text.strip()[-60:]
    return RowError("unparsable_judgement", f"the judge gave no verdict: {why}; it ended with {ending!r}{at_limit}")


def judge_settings(judge: JudgeConfig, kind: str) -> dict[str, Any]:
    names = [f"{kind}_prompt", f"{kind}_pattern", "max_new_tokens"]
    names += ["lowest", "highest"] if kind == "pointwise" else []
    return {f"judge.{name}": getattr(judge, name) for name in names}


def _short_name(turn: Turn) -> str:
    return f"{turn.preference or 'response'}:{turn.response_index}"
