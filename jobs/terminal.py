"""What a person sees while a run works: a line of progress, and tables."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

console = Console(highlight=False, soft_wrap=True)
errors = Console(highlight=False, soft_wrap=True, stderr=True)

LOG_EVERY_S = 10.0
LEAST_S = 1.0  # of steps, before the time left is guessed from them

Item = TypeVar("Item")


class LabelProgress:
    """Rows done, response tokens per second and time left: a bar on a terminal, a line every ten seconds in a log. What is in
    hand counts as far as the models have come with it."""

    def __init__(self, rows: int, done_rows: int, name: str = "label"):
        self.name = name
        self.rows, self.done_rows = rows, done_rows
        self.first_rows, self.tokens = done_rows, 0
        self.rows_in_hand = self.tokens_in_hand = 0.0
        self.forwarded = self.forwarded_by_done = 0
        self.started = self.logged = time.perf_counter()
        self.running, self.whole = False, True
        self.state = ""  # of the actors, while some are missing
        self.bar = Progress(
            TextColumn(name),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("rows  {task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=errors,
            disable=not errors.is_terminal,
        )
        self.task = self.bar.add_task(name, total=rows, completed=done_rows, rate="starting")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.bar.stop()

    @property
    def seconds(self) -> float:
        """Since the first actor was there."""
        return time.perf_counter() - self.started

    def plan(self, rows: int, whole: bool) -> None:
        """So many rows are known of the input; whether these are all."""
        self.rows, self.whole = rows, whole
        self.bar.update(self.task, total=rows)

    def advance(self, rows: int, tokens: int, forwarded: int) -> None:
        """A shard is done: its rows, their response tokens, and all tokens that a model was given for them."""
        self.running = True
        self.done_rows += rows
        self.tokens += tokens
        self.forwarded_by_done += forwarded
        self._show()

    def look(
        self,
        running: int,
        wanted: int,
        forwarded: int,
        state: str,
        rows_in_hand: float = 0.0,
        tokens_in_hand: float = 0.0,
    ) -> None:
        """How the actors are, the tokens that their models were given so far, and how far shards in hand are answered, which
        counts until the first is done: rows, and tokens of their responses. A log gets the state at once when the first
        actors are waited for, and with each line while some are missing."""
        if running and not self.running:
            self.running, self.started = True, time.perf_counter()
        if not (running or self.state):
            self.logged = float("-inf")
        self.forwarded = forwarded
        self.rows_in_hand, self.tokens_in_hand = rows_in_hand, tokens_in_hand
        self.state = state if running < wanted else ""
        self._show(state if not running else "")

    def _show(self, waits: str = "") -> None:
        ahead = max(0, self.forwarded - self.forwarded_by_done)  # with shards that are not done
        done = self.done_rows - self.first_rows
        reached = done + (ahead * done / self.forwarded_by_done if self.forwarded_by_done else 0)
        reached = min(reached if done else self.rows_in_hand, self.rows - self.first_rows)
        if reached:
            tokens = self.tokens * reached / done if done else self.tokens_in_hand
            rate = f"{tokens / self.seconds:,.0f} tokens/s"
        else:
            rate = f"none yet, {self.forwarded:,} tokens read" if self.forwarded else "none yet"
        self.bar.update(self.task, completed=self.first_rows + reached, rate=waits or rate)
        now = time.perf_counter()
        if errors.is_terminal or (now - self.logged < LOG_EVERY_S and (self.done_rows < self.rows or not self.whole)):
            return
        self.logged = now
        left = (self.rows - self.first_rows - reached) * self.seconds / reached if reached else None
        when = f"about {left:,.0f} s left" if left is not None and self.whole else "time left unknown"
        parts = [waits] if waits else [rate, when, *([self.state] if self.state and self.done_rows < self.rows else [])]
        rows = f"{'' if self.whole else 'at least '}{self.rows:,} rows"
        errors.print(f"{self.name}: {self.done_rows:,} of {rows}, {', '.join(parts)}")


class TrainProgress:
    """Optimiser steps done and what they measured: a bar on a terminal, a line every ten seconds in a log.

    Args:
        steps: of the whole run.
        done_steps: the step of the checkpoint that the run goes on from.
    """

    def __init__(self, steps: int, done_steps: int = 0, name: str = "train"):
        self.steps = steps
        self.bar = Progress(
            TextColumn(name),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps  {task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=errors,
            disable=not errors.is_terminal,
        )
        self.task = self.bar.add_task(name, total=steps, completed=done_steps, figures="starting")
        self.done_steps = done_steps
        self.first_step: int | None = None  # that came in since the workers were started, `started` ago
        self.accuracy: float | None = None
        self.started = self.logged = time.perf_counter()

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.bar.stop()

    def update(self, row: Mapping[str, Any]) -> None:
        """A row of metrics.jsonl. One of an earlier step than the last means that the workers were started again.

        An accuracy stays in sight until the next one is measured.
        """
        step = row["step"]
        now = time.perf_counter()
        again = step <= self.done_steps
        if again or self.first_step is None:
            self.first_step, self.started = step, now
        if again:
            self.bar.reset(self.task, total=self.steps, completed=step, figures="starting")
        self.done_steps = step
        self.accuracy = row.get("eval_accuracy", self.accuracy)
        figures = figures_of({"eval_accuracy": self.accuracy, **row})
        self.bar.update(self.task, completed=step, figures=figures)
        for warning in row.get("warnings", []):
            warn(f"step {step:,}: {warning}")
        held_out = figures_of({name.removeprefix("eval_"): v for name, v in row.items() if name.startswith("eval_")})
        if held_out:
            errors.print(f"step {step:,}, kept prompts: {held_out}")
        if figures and not errors.is_terminal and (now - self.logged > LOG_EVERY_S or step == self.steps):
            self.logged = now
            since = now - self.started
            left = (self.steps - step) * since / max(1, step - self.first_step)
            when = f"about {left:,.0f} s left" if since > LEAST_S or step == self.steps else "time left unknown"
            errors.print(f"step {step:,} of {self.steps:,}, {figures}, {when}")


def figures_of(row: Mapping[str, Any]) -> str:
    """What a row of metrics.jsonl says in a line, of what there is.

    `epoch 0.42, loss 0.6123, accuracy 64.1%, 12,345 tokens/s` of a training run; of an online one
    `reward 1.23, KL 0.012, accuracy 64.1%, 182 tokens long, 3.4 s a step`.
    """
    online = (
        ("reward", "reward {:.3g}"),
        ("kl", "KL {:.3g}"),
        ("accuracy", "accuracy {:.1%}"),
        ("eval_accuracy", "accuracy {:.1%}"),
        ("completions/mean_length", "{:,.0f} tokens long"),
        ("step_time", "{:.1f} s a step"),
    )
    trained = (
        ("epoch", "epoch {:.2f}"),
        ("loss", "loss {:.4f}"),
        ("rewards/accuracies", "accuracy {:.1%}"),
        ("reward", "reward {:.3g}"),
        ("tokens_per_second", "{:,.0f} tokens/s"),
    )
    shown = online if "completions/mean_length" in row else trained
    # rounded, since a KL of 1e-14 is none
    return ", ".join(form.format(round(row[name], 9)) for name, form in shown if row.get(name) is not None)


def print_table(title: str, rows: Iterable[tuple[str, str]]) -> None:
    table = Table(
        title=Text(title), title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False
    )
    table.add_column(style="dim")
    table.add_column(justify="left")
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    console.print(table)


def print_grid(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table with a heading for each column; the first column is names, the others are figures. Nothing is cut off."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    console.print(Text(title, "bold italic"))
    for number, (name, *figures) in enumerate(lines):
        cells = [name.ljust(widths[0]), *map(str.rjust, figures, widths[1:])]
        console.print(Text("  ".join(cells).rstrip(), "" if number else "dim"))


def track(items: Iterable[Item], total: int, verb: str, noun: str) -> Iterator[Item]:
    """`items` as they come, with how far they are: a bar on a terminal, a line every ten seconds in a log."""
    started = logged = time.perf_counter()
    columns = (TextColumn(verb), BarColumn(), MofNCompleteColumn(), TextColumn(noun), TimeRemainingColumn())
    with Progress(*columns, console=errors, disable=not errors.is_terminal, transient=True) as bar:
        task = bar.add_task(verb, total=total)
        for done, item in enumerate(items, 1):
            yield item
            bar.update(task, completed=done)
            now = time.perf_counter()
            if not errors.is_terminal and now - logged > LOG_EVERY_S:
                logged = now
                left = (total - done) * (now - started) / done
                errors.print(f"{verb}: {done:,} of {total:,} {noun}, about {left:,.0f} s left")


def warn(text: str) -> None:
    errors.print(Text.assemble(("warning: ", "yellow"), text))


def say(text: str) -> None:
    console.print(text, markup=False)
