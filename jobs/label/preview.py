"""What a run is about to do, shown before it does it: one rendered example, and an estimate of the whole."""

from collections.abc import Mapping, Sequence
from itertools import product

from jobs import terminal
from jobs.label.label_run import LabelRun
from jobs.label.later import Later
from jobs.label.plan import pending
from jobs.label.sizing import Sample
from jobs.label.writers import announce
from pipeline.corpus import read_shards
from pipeline.corpus.ranking import ranked_pairs
from pipeline.corpus.samples import Response
from pipeline.errors import RowError
from pipeline.rewards.labellers import Labeller
from pipeline.rewards.labellers.beside import Preparation
from pipeline.rewards.labelling import Prepared
from pipeline.store import StoredInput
from pipeline.tokens import pieces

SHOWN_CHARACTERS = 600
SHOWN_FILES = 10
QUOTED_CHARACTERS = 60


def show_inputs(inputs: list[StoredInput], later: Sequence[Later] = ()) -> None:
    """Print what was found in each file, and once for files that are read alike which response counts as better."""
    shown = set()
    for stored in inputs[:SHOWN_FILES]:
        terminal.say(f"input {stored.file.name}: {stored.plan.rows:,} rows of {stored.shape.describe()}")
        read_alike = (stored.shape.label, stored.shape.responses)
        if read_alike not in shown and (better := first_preference(stored)) is not None:
            terminal.say(f"  {better}")
            shown.add(read_alike)
    rows = sum(stored.plan.rows for stored in inputs)
    if len(inputs) > SHOWN_FILES:
        terminal.say(f"... and {len(inputs) - SHOWN_FILES} more files, {rows:,} rows in all")
    if later:
        size = sum(each.file.size for each in later) / 1e6
        terminal.say(
            f"... and {len(later):,} files of {size:,.0f} MB, which are planned while these {rows:,} rows are labelled"
        )


def first_preference(stored: StoredInput) -> str | None:
    """In words, which response of the first pair counts as better, and why; None where the first shard has no pair."""
    for number, row in next(read_shards(stored.file, stored.format, stored.plan.shards[:1]), (None, []))[1]:
        try:
            if isinstance(row, RowError):
                continue
            sample, decision = stored.shape.normalise(stored.file.name, number, row), stored.shape.judge(row)
        except RowError:
            continue
        sides = [[r for r in sample.responses if r.preference == kind] for kind in ("chosen", "rejected")]
        ranked = ranked_pairs([response.extra for response in sample.responses])
        pairs = [*product(*sides), *((sample.responses[i], sample.responses[j]) for i, j in ranked)]
        if pairs:
            better, worse = map(_quoted, pairs[0])
            return f"better in row {number}: {better}, not {worse}, because {decision.because}"
    return None


def _quoted(response: Response) -> str:
    text = " ".join(response.messages[-1]["content"].split())
    return f'"{text}"' if len(text) <= QUOTED_CHARACTERS else f'"{text[: QUOTED_CHARACTERS - 3]}..."'


def show_runs(runs: Mapping[str, LabelRun], retry_errors: bool) -> None:
    """Print what is left to do for each of some label stores, by name, and what a server is going to be asked for it. Raises
    ConfigError where that is more than the run may cost."""
    grid = []
    for name, run in runs.items():
        backlog = pending(run.store, run.inputs, retry_errors)
        rows = sum(stored.plan.rows for stored in run.inputs)
        grid.append(
            (
                name,
                run.labeller.model.name,
                run.labeller.writer or "scores",
                f"{backlog.rows:,} of {rows:,}",
                run.store.uri,
            )
        )
        if backlog.shards and run.labeller.writer == "endpoint":
            announce(run.labeller, backlog)
    terminal.print_grid("What is left to do", ("store", "model", "by", "rows", "place"), grid)


class Preview:
    """Looks at the first rows of an input as `label` would see them, in a process beside this one."""

    def __init__(self, labeller: Labeller, preparation: Preparation):
        self.labeller, self.preparation = labeller, preparation

    def show_example(self, inputs: list[StoredInput]) -> None:
        """Print the first response that can be scored, its scored tokens marked off; nothing where there is none."""
        for stored in inputs:
            prepared = self._first_shard(stored)
            if prepared.turns:
                break
        else:
            return
        for note in prepared.notes:
            terminal.warn(note)
        turn, tokens = prepared.turns[0], prepared.tokens[0]
        decode = pieces(self.labeller.renderer.tokenizer)
        prompt = _indented(_shortened("".join(decode(tokens.prompt_ids.tolist()))))
        scored = _indented(_shortened("|".join(decode(tokens.response_ids.tolist()))))
        cut = " (cut to fit)" if tokens.truncated else ""
        terminal.say(f"\nexample {turn.id}\n  prompt, {len(tokens.prompt_ids)} tokens:\n{prompt}")
        terminal.say(f"  scored, {len(tokens.response_ids)} tokens{cut}, one between each |:\n{scored}\n")

    def sample(self, inputs: list[StoredInput]) -> Sample:
        """Count the first shard of up to 16 files."""
        rows, shards = (
            sum(counts) for counts in zip(*((i.plan.rows, len(i.plan.shards)) for i in inputs), strict=True)
        )
        sample = Sample(rows, len(inputs), shards)
        for stored in inputs[:: max(1, len(inputs) // 16)]:
            prepared = self._first_shard(stored)
            prompt = sum(len(ids) for ids in {t.prompt_ids.tobytes(): t.prompt_ids for t in prepared.tokens}.values())
            response = sum(len(t.response_ids) for t in prepared.tokens)
            sample.sampled_rows += prepared.shard.rows
            sample.responses += len(prepared.turns)
            sample.prompt_tokens += prompt
            sample.response_tokens += response
            sample.truncated += sum(t.truncated for t in prepared.tokens)
            sample.errors.update(f.reason for f in prepared.failures)
            sample.tokens_a_row.append((prompt + response) / prepared.shard.rows)
        return sample

    def _first_shard(self, stored: StoredInput) -> Prepared:
        shard, rows = next(read_shards(stored.file, stored.format, stored.plan.shards[:1]))
        return self.preparation.prepare(self.labeller, shard, 0, rows, stored.shape)


def _shortened(text: str) -> str:
    half = SHOWN_CHARACTERS // 2
    return (
        text
        if len(text) <= SHOWN_CHARACTERS
        else f"{text[:half]}\n... {len(text) - 2 * half:,} characters ...\n{text[-half:]}"
    )


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
