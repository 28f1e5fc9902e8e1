"""What stops a labelling run before its end: too many error rows, or a step that failed. Both end as a sentence."""

from collections import Counter
from collections.abc import Generator, Iterable

from jobs.label.work import Done
from jobs.stores.finalize import counted
from pipeline.config import EvaluateConfig, LabelConfig
from pipeline.errors import EndorewardError, RunError
from pipeline.rewards.labellers import UNPARSABLE
from pipeline.store import Record

OVER_LENGTH = {"prompt_too_long", "too_long", "question_too_long"}
"""Answers to tokens.over_length, not faults of the corpus."""
JUDGED_AFTER = 100  # responses before the error rate is judged


class TooManyErrors(RunError):
    """A run that mostly makes error rows; what is labelled is kept."""


class ErrorRate:
    """Stops a run that mostly makes error rows, each kind by its own limit."""

    def __init__(self, config: LabelConfig):
        self.limits = {"run.max_error_rate": config.run.max_error_rate}
        if isinstance(config, EvaluateConfig):
            self.limits["judge.max_unparsable"] = config.judge.max_unparsable
        self.responses, self.errors = 0, Counter[str]()
        self.reasons = {name: Counter[str]() for name in self.limits}  # by the limit that they count against

    def add(self, record: Record) -> None:
        self.responses += record.labels.rows + record.errors.rows
        for reason, count in record.reasons.items():
            judged = reason == UNPARSABLE and "judge.max_unparsable" in self.limits
            if reason not in OVER_LENGTH:
                self.reasons["judge.max_unparsable" if judged else "run.max_error_rate"][reason] += count
        self.errors.update(record.reasons)
        if self.responses < JUDGED_AFTER:
            return
        if self.errors.total() == self.responses and self.limits["run.max_error_rate"] < 1:
            raise TooManyErrors(
                f"stopped: not one of {self.responses:,} responses could be labelled ({counted(self.errors)}); see errors/"
            )
        for name, most in self.limits.items():
            share = self.reasons[name].total() / self.responses
            if share > most:
                raise TooManyErrors(
                    f"stopped: {share:.0%} of {self.responses:,} responses are in error "
                    f"({counted(self.reasons[name])}), more than {name} = {most:g}; see errors/, what is labelled is kept"
                )


def explained(results: Iterable[Done]) -> Generator[Done]:
    """What a step raised, as a sentence for the operator. The run had started, so the exit code is 1."""
    from ray.exceptions import RayError

    committed = "What is committed is kept; run the same again to go on"
    try:
        yield from results
    except EndorewardError as error:
        raise RunError(f"{error}\n{committed}") from error
    except (RayError, RuntimeError) as error:
        if "low on memory" in str(error):  # in one line of many, and of an actor not in the first
            raise RunError(
                "the flow stopped: Ray's memory monitor ended its workers, because a node ran low on memory, more often than "
                "they may be started again; no row is blamed. Give scorer.max_actors or scorer.budget_tokens a lower value, "
                f"or take machines with more memory\n{committed}"
            ) from error
        raise RunError(
            f"the flow stopped: {_first_line(error)}\n{committed}, with --set run.verbose=true to see the workers' logs"
        ) from error


def _first_line(error: BaseException) -> str:
    """Of the innermost cause: Ray wraps what happened into what it did about it."""
    while (cause := getattr(error, "cause", None) or error.__cause__) is not None and cause is not error:
        error = cause
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
