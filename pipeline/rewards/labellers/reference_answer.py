"""How likely a response's reasoning makes the right answer: the response's own answer is replaced by the reference y*, and y*
is scored behind the prompt x and the reasoning z, in one pass.

    answer-likelihood             log pi(y* | x, z)
    answer-likelihood (VeriFree)  pi(y* | x, z) (Zhou et al. 2025, arXiv 2505.21493)
    answer-likelihood (RLPR)      clip(mean_t pi(y*_t | x, z) - mean_t pi(y*_t | x), 0, 1) (Yu et al. 2025, arXiv 2506.18254)
    answer-likelihood (NOVER)     less the perplexity exp(-log pi(y* | x, z) / |y*|) (Liu et al. 2025, arXiv 2505.16022)

All at temperature 1. For RLPR y* is scored a second time, behind the prompt alone, as the whole response; siblings share that
prompt in one pass. NOVER divides the exponent by a normalised length of the reasoning too, and rewards ranks within a group:
both are left out here, where a response is rated by itself.

What stands before the answer (`\\boxed{`, thoughts) is reasoning. The tokens scored are those that share a character with y*:
one which reaches across its edge counts whole.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.config import EvaluateConfig
from pipeline.corpus import NumberedRow, Shape, Shard
from pipeline.corpus.columns import lookup
from pipeline.corpus.samples import OPENS_THOUGHTS, Turn
from pipeline.errors import RowError
from pipeline.models.scores import Scores
from pipeline.rewards.answers import final_answer
from pipeline.rewards.confidence import answer_span, tokens_of
from pipeline.rewards.labellers.base import Asking
from pipeline.rewards.labelling import Prepared, failure, make_label, prepare
from pipeline.store.schema import Failure, Label
from pipeline.tokens import TokenizedTurn, pieces


@dataclass(frozen=True)
class ReferenceAnswer(Asking):
    """The label's reward is log pi(y* | x, z); `reward_info` holds what the other forms are made of."""

    config: EvaluateConfig
    name = "answer-likelihood"

    def settings(self) -> dict[str, Any]:
        return {
            f"answer_likelihood.{name}": value for name, value in self.config.answer_likelihood.model_dump().items()
        }

    def prepare(self, shard: Shard, generation: int, rows: Iterable[NumberedRow], shape: Shape) -> Prepared:
        out = prepare(shard, generation, rows, shape, self.counter, self.config.input.turns)
        asked: list[tuple[Turn, TokenizedTurn]] = []
        requests: list[TokenizedTurn] = []
        for turn, tokens in zip(out.turns, out.tokens, strict=True):
            try:
                requests += self.requests(turn)
                asked.append((turn, tokens))
            except RowError as error:
                out.failures.append(failure(turn.id, turn.prompt_id, error))
        out.requests, out.turns, out.tokens = requests, [turn for turn, _ in asked], [tokens for _, tokens in asked]
        out.notes, out.counts = list(self.renderer.notes), self.renderer.take_counts()
        return out

    def requests(self, turn: Turn) -> tuple[TokenizedTurn, TokenizedTurn]:
        """The reference behind prompt and reasoning, and behind the prompt alone. Raises RowError."""
        section = self.config.answer_likelihood
        given = lookup(turn.extra, section.answer_key)
        if isinstance(given, dict | list) or not str("" if given is None else given).strip():
            raise RowError(
                "no_reference", f"column {section.answer_key!r} is {given!r}; the text of a right answer is due"
            )
        reference = (final_answer(str(given)) or str(given)).strip()
        span = answer_span(turn.response, section.span, turn.extra.get(OPENS_THOUGHTS) is True)
        if span is None:
            raise RowError(
                "no_answer", f"no answer by answer_likelihood.span = {section.span}; what precedes it is the reasoning"
            )
        return self._behind(turn, turn.response[: span[0]], reference), self._behind(
            replace(turn, beside={}), "", reference
        )

    def _behind(self, turn: Turn, reasoning: str, reference: str) -> TokenizedTurn:
        """The tokens of the reference as what is scored, all before them as the prompt."""
        view = replace(turn, response=reasoning + reference, prompt_token_ids=None, response_token_ids=None)
        whole = self.fitted(view)
        ids = whole.response_ids.tolist()
        texts = pieces(self.renderer.tokenizer)(ids)
        text = "".join(texts)
        if not text.endswith(reference):
            raise RowError(
                "not_reversible", f"the tokens of the response do not end with the right answer {reference!r}"
            )
        first = tokens_of(texts, (len(text) - len(reference), len(text)))[0]
        prompt_ids = np.concatenate([whole.prompt_ids, whole.response_ids[:first]])
        return TokenizedTurn(prompt_ids, whole.response_ids[first:], whole.prompt)

    def finish(self, prepared: Prepared, answers: Sequence[Scores | RowError]) -> tuple[list[Label], list[Failure]]:
        labels, failures = [], list(prepared.failures)
        both = zip(answers[::2], answers[1::2], strict=True)
        for turn, tokens, (behind, alone) in zip(prepared.turns, prepared.tokens, both, strict=True):
            wrong = next((each for each in (behind, alone) if isinstance(each, RowError)), None)
            if wrong is not None:
                failures.append(failure(turn.id, turn.prompt_id, wrong))
                continue
            assert isinstance(behind, Scores) and isinstance(alone, Scores)
            kept = {
                "answer_tokens": len(behind.logprobs),
                "mean_probability": float(np.exp(behind.logprobs).mean()),
                "mean_probability_alone": float(np.exp(alone.logprobs).mean()),
            }
            labels.append(make_label(turn, tokens, float(behind.logprobs.sum()), kept=kept))
        return labels, failures


FORMS: dict[str, tuple[str, Callable[[float, Mapping[str, Any]], float]]] = {
    "answer-likelihood": ("log pi of the right answer behind the reasoning", lambda logprob, kept: logprob),
    "answer-likelihood (VeriFree)": ("its probability", lambda logprob, kept: float(np.exp(logprob))),
    "answer-likelihood (RLPR)": (
        "mean pi of its tokens, less that without the reasoning, within 0 and 1",
        lambda logprob, kept: min(1.0, max(0.0, kept["mean_probability"] - kept["mean_probability_alone"])),
    ),
    "answer-likelihood (NOVER)": (
        "less its perplexity",
        lambda logprob, kept: -float(np.exp(-logprob / kept["answer_tokens"])),
    ),
}
"""Each form: its name, its formula for people, and how it follows from a label's reward and its `reward_info`."""
