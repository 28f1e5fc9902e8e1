"""Tokens: which of them are the prompt, which are scored, and how text becomes either.

texts      what of the configuration is text: system prompts, rubrics
templates  a conversation through a chat template: where the answer stands in it
bounded    where templates run: in a process beside, for so long
control    control tokens that a person typed
encoding   text -> ids that decode to it again, wherever it is cut
renderer   turn -> TokenizedTurn, for one tokenizer and one configuration
plain      turn -> TokenizedTurn, of a response that a question is about
turns      TokenizedTurn, and how it is cut where it is too long
prompts    a prompt's messages before they are rendered, and whether a rendering shows them all
thoughts   where a model's thoughts end and its answer begins
sampled    responses that `sample` wrote, scored by the very tokens that were drawn
"""

from pipeline.tokens.encoding import PROBE, Decode, pieces, special_ids, tokenizer_digest
from pipeline.tokens.plain import PlainRenderer
from pipeline.tokens.renderer import Ending, Renderer
from pipeline.tokens.templates import STAND_IN
from pipeline.tokens.texts import SPEAKERS, conversation_text, load_rubrics, read_texts
from pipeline.tokens.turns import NO_IDS, UNBOUNDED, Ids, TokenizedTurn

__all__ = [
    "NO_IDS",
    "PROBE",
    "SPEAKERS",
    "STAND_IN",
    "UNBOUNDED",
    "Decode",
    "Ending",
    "Ids",
    "PlainRenderer",
    "Renderer",
    "TokenizedTurn",
    "conversation_text",
    "load_rubrics",
    "pieces",
    "read_texts",
    "special_ids",
    "tokenizer_digest",
]
