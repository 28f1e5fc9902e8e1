"""Responses as plain text, for who asks a model about them."""

from collections.abc import Sequence
from dataclasses import replace

from pipeline.corpus.samples import Turn
from pipeline.errors import RowError
from pipeline.tokens.prompts import PromptUnder
from pipeline.tokens.renderer import Renderer, TurnText


class PlainRenderer(Renderer):
    """Counts the tokens of responses that a model reads about, in a question: each is plain text, tokenised alone. Thoughts
    beside the text are not part of what is judged; a response that calls tools cannot be judged as text."""

    def _text(self, turn: Turn, known: list[tuple[Turn, PromptUnder]]) -> TurnText:
        if turn.beside.get("tool_calls"):
            raise RowError(
                "no_template", "the response calls tools, and a question about it shows text alone; leave it out"
            )
        return super()._text(replace(turn, beside={}, tools=None), known)

    def _pair(self, text: TurnText, prompt: str) -> tuple[str, str]:
        return prompt, text.rendering.text

    def _cut(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]] | RowError]:
        known = self.encoding.ids_of(text for pair in pairs for text in pair)
        return [(known[prompt], known[response]) for prompt, response in pairs]
