"""Tokens: which of them are the prompt, which are scored, and how text becomes either.

texts      what of the configuration is text: system prompts, rubrics
templates  a conversation through a chat template: where the answer stands in it
control    control tokens that a person typed
encoding   text -> ids that decode to it again, wherever it is cut
renderer   turn -> TokenizedTurn, for one tokenizer and one configuration
"""

from pipeline.tokens.encoding import PROBE, Decode, pieces, tokenizer_digest
from pipeline.tokens.renderer import Ending, PlainRenderer, Renderer, TokenizedTurn
from pipeline.tokens.templates import STAND_IN
from pipeline.tokens.texts import SPEAKERS, conversation_text, load_rubrics, read_texts

__all__ = [
    "PROBE",
    "SPEAKERS",
    "STAND_IN",
    "Decode",
    "Ending",
    "PlainRenderer",
    "Renderer",
    "TokenizedTurn",
    "conversation_text",
    "load_rubrics",
    "pieces",
    "read_texts",
    "tokenizer_digest",
]
