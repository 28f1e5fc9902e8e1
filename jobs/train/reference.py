"""The reference's log-probabilities, where the labels do not hold them: a pool of actors, a part of the labels at a time.

Parts that are there are not computed again, so a run that was killed goes on here too.
"""

from collections.abc import Mapping
from typing import Any

import ray
import ray.exceptions
from ray.util import ActorPool

from actors.scorer import ScorerEngine, ScorerSpec
from jobs import terminal
from pipeline.config import ModelConfig
from pipeline.errors import EndorewardError, RunError
from pipeline.models.loading import identify_model
from pipeline.store import fingerprint
from pipeline.training.examples import Examples
from pipeline.training.reference import missing_parts, score_part
from pipeline.training.rows import RowReader
from pipeline.training.run import RunFolder


class _Referee:
    """An actor that holds the reference."""

    def __init__(self, spec: ScorerSpec, place: str, examples: Examples, policy: ModelConfig):
        import torch

        torch.set_num_threads(spec.threads)
        self.scorer = ScorerEngine(spec).scorer
        self.place, self.examples = place, examples
        self.reader = RowReader(examples.sources, examples.parts, policy, 1)

    def score(self, part: int) -> int:
        score_part(self.place, self.examples, part, self.reader, self.scorer)
        return part


def compute_references(
    folder: RunFolder,
    spec: ScorerSpec,
    policy: ModelConfig,
    examples: Examples,
    actors: int,
    retries: int,
    nodes: Mapping[str, Any],
) -> str:
    """Compute what is missing and return where it all is. Call it connected.

    Args:
        spec: of the reference; `policy` is whose tokenizer renders.
        retries: how often a part is tried again when its actor dies.
        nodes: options that say on which nodes, of `jobs.cluster.placed`.

    Raises:
        EndorewardError: of what an actor raised, or where they die.
    """
    dtype = spec.model.dtype
    decides = {"reference": identify_model(spec.model, dtype), "policy": identify_model(policy, dtype)}
    key = fingerprint.digest({**decides, "labels": examples.describe(), "rows": examples.rows_digest})[:12]
    place = folder.at("reference", key)
    missing = missing_parts(place, examples)
    if missing:
        terminal.say(f"computing the reference's log-probabilities with {spec.model.name} ...")
        options: dict[str, Any] = {
            "num_cpus": spec.threads,
            "num_gpus": spec.gpus,
            "max_restarts": retries,
            "max_task_retries": retries,
            **nodes,
        }
        shared = ray.put(examples)
        kind: Any = ray.remote(**options)(_Referee)
        referees = [kind.remote(spec, place, shared, policy) for _ in range(min(actors, len(missing)))]
        pool = ActorPool(referees)
        scored = pool.map_unordered(lambda actor, part: actor.score.remote(part), missing)
        try:
            for _ in terminal.track(scored, len(missing), "reference", "parts"):
                pass
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            raise (cause if isinstance(cause, EndorewardError) else RunError(f"the reference: {cause!r}")) from None
        except ray.exceptions.RayActorError as error:
            raise RunError(
                "the reference's actors died, most often of memory; lower learner.budget_tokens and run the same again: parts "
                "that are done are kept"
            ) from error
        finally:
            for referee in referees:  # learners may need what they reserve, and a Ray that was there before stays
                ray.kill(referee)
    return place
