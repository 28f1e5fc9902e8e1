"""Whom the driver tells how a labelling run goes: the terminal, whoever asks for `status`, Prometheus."""

import contextlib
from typing import Self

from jobs import terminal
from jobs.label.backlog import Backlog
from jobs.label.work import Done, PoolState
from jobs.stores.metrics import RunMetrics
from pipeline.store.status import StatusFile, Workforce


class Watch:
    """For as long as the block runs.

    Args:
        store: the label store, which the driver has locked.
        name: of what is labelled.
        backlog: what is to be labelled.
    """

    def __init__(self, store: str, name: str, backlog: Backlog):
        self.backlog = backlog
        rows, done_rows = backlog.total_rows, backlog.total_rows - backlog.rows
        self.progress = terminal.LabelProgress(rows, done_rows, name)
        self.status = StatusFile(store, rows, done_rows)
        self.metrics = RunMetrics(store, rows - done_rows)
        self.stack = contextlib.ExitStack()
        self._plan()
        self.tokens = self.forwarded = self.scored = 0  # of responses that are committed; given to a model for them

    def __enter__(self) -> Self:
        for each in (self.progress, self.status, self.metrics):
            self.stack.enter_context(each)
        return self

    def __exit__(self, *raised: object) -> bool | None:
        return self.stack.__exit__(*raised)  # type: ignore[arg-type]

    def committed(self, done: Done) -> None:
        self._plan()
        record = done.record
        self.tokens += record.stats.tokens
        self.forwarded += done.forwarded_tokens
        self.progress.advance(record.shard.rows, record.stats.tokens, done.forwarded_tokens)
        self.status.commit(record.shard.rows, record.stats.tokens, dict(record.reasons))
        self.metrics.add(record, done.forwarded_tokens, done.score_seconds)

    def pool(self, state: PoolState) -> None:
        """How the actors are. Of shards that are not committed it is known what their models were given, prompts included;
        their response tokens are reckoned from those of the shards before, of the first ones by the actors themselves."""
        self._plan()
        waits = state.sentence() if state.running < state.wanted else None
        in_hand = state.rows_in_hand, state.tokens_in_hand
        self.progress.look(state.running, state.wanted, state.forwarded_tokens, state.sentence(), *in_hand)
        self.metrics.actors(state.running)
        self.metrics.waiting(state.pending)
        self.status.staff(
            Workforce(
                actors_wanted=state.wanted,
                actors_running=state.running,
                nodes=state.nodes,
                nodes_pending=state.nodes_pending,
                waiting=waits,
            )
        )
        scored = round(state.tokens_in_hand)
        if self.forwarded:
            scored = state.forwarded_tokens * self.tokens // self.forwarded
        self.status.score(max(0, scored - self.scored), state.rows_in_hand)
        self.scored = max(self.scored, scored)

    def _plan(self) -> None:
        """How many rows there are, as far as files are planned."""
        rows, whole = self.backlog.total_rows, self.backlog.whole
        if (rows, whole) != (self.status.rows, self.status.whole):
            self.metrics.expect(rows - self.status.rows)
            self.progress.plan(rows, whole)
            self.status.plan(rows, whole)
