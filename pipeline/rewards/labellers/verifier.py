"""A generative verifier (Zhang et al. 2024, arXiv 2408.15240) as a special case of the scorer: another view of the
sample. The prompt is a question about the response, the response is the word Yes, and nothing behind it is scored.

The answer is scored, not written, so it stands where the template puts an answer without thoughts: under a template that
thinks behind a closed block of them. Right behind the generation prompt it would be a first thought, and its probability
that of thinking `Yes`. A verifier that thinks before it judges is a judge.

The candidates of one prompt become different prompts here, so V(s_1) does not cancel between them: the reward is
log pi(Yes) alone, at temperature 1.
"""

from dataclasses import dataclass, replace
from typing import Any

from pipeline.corpus.samples import Message, Turn
from pipeline.models.scores import Scores
from pipeline.rewards.labellers.base import Asking, OfResponses, filled
from pipeline.tokens import TokenizedTurn, conversation_text


@dataclass(frozen=True)
class Verifier(Asking, OfResponses):
    name = "verifier"

    def settings(self) -> dict[str, Any]:
        return {f"verifier.{name}": getattr(self.config.verifier, name) for name in ("question", "answer")}

    def request(self, turn: Turn, tokens: TokenizedTurn) -> TokenizedTurn:
        question = filled(self.config.verifier.question, prompt=conversation_text(turn.prompt), response=turn.response)
        view = replace(turn, prompt=[Message(role="user", content=question)], response=self.config.verifier.answer)
        return self.fitted(replace(view, conversational=True, beside={}, tools=None))

    def reward(self, answer: Scores) -> tuple[float, dict[str, Any]]:
        return float(answer.logprobs.sum()), {}
