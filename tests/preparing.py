"""What tests have done in a process that may not import torch."""

import sys

from pipeline.corpus.samples import Turn
from pipeline.rewards.labellers import Labeller
from pipeline.tokens import TokenizedTurn


def tokens(labeller: Labeller, turn: Turn) -> TokenizedTurn:
    assert sys.modules["torch"] is None
    return labeller.renderer.tokenize(turn)
