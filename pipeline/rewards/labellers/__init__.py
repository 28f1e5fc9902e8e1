"""How rows become labels: what is asked of a model, and how its answers are read. One kind a file.

    endogenous   the response's own tokens are scored; `label` and the reference of `implicit` too
    verifier     the word Yes is scored, behind a question about the response
    reference_answer  the right answer is scored behind a response's reasoning
    classifier   a trained scalar reward model reads prompt and response
    judge        a model writes a verdict, of one response or of two in both orders
    answerer     a policy answers a benchmark's question, and a rule checks the answer
    prompts      a policy responds to a corpus's prompts, and nobody checks
    beside       any of them prepares a shard in a process of its own

A labeller knows no actor and no Ray: `prepare` gives the requests of a shard, an engine answers each of them, `finish`
makes labels and failures of the answers.
"""

from pipeline.rewards.labellers.answerer import MathsAnswerer
from pipeline.rewards.labellers.base import Labeller, open_renderer
from pipeline.rewards.labellers.classifier import Classified
from pipeline.rewards.labellers.endogenous import Endogenous
from pipeline.rewards.labellers.judge import UNPARSABLE, PairwiseJudge, PointwiseJudge
from pipeline.rewards.labellers.prompts import PromptSampler
from pipeline.rewards.labellers.reference_answer import ReferenceAnswer
from pipeline.rewards.labellers.sampling import Sampling
from pipeline.rewards.labellers.verifier import Verifier

__all__ = [
    "UNPARSABLE",
    "Classified",
    "Endogenous",
    "Labeller",
    "MathsAnswerer",
    "PairwiseJudge",
    "PointwiseJudge",
    "PromptSampler",
    "ReferenceAnswer",
    "Sampling",
    "Verifier",
    "open_renderer",
]
