"""What a run is about to do, shown before it does it: one rendered example, and an estimate of the whole."""

from collections import Counter

from jobs import terminal
from pipeline.config import LabelConfig
from pipeline.corpus import read_shards
from pipeline.labellers import Endogenous
from pipeline.labellers.beside import Preparation
from pipeline.labelling import Prepared
from pipeline.store import StoredInput
from pipeline.tokens import Renderer, pieces

SHOWN_CHARACTERS = 600
SHOWN_FILES = 10


def show_inputs(inputs: list[StoredInput]) -> None:
    """Print what was found in each file."""
    for stored in inputs[:SHOWN_FILES]:
        terminal.say(f"input {stored.file.name}: {stored.plan.rows:,} rows of {stored.shape.describe()}")
    if len(inputs) > SHOWN_FILES:
        rows = sum(stored.plan.rows for stored in inputs)
        terminal.say(f"... and {len(inputs) - SHOWN_FILES} more files, {rows:,} rows in all")


def show_example(inputs: list[StoredInput], renderer: Renderer, config: LabelConfig) -> None:
    """Print the first response that can be scored, its scored tokens marked off; nothing where there is none."""
    preparation = Preparation()
    for stored in inputs:
        prepared = _first_shard(stored, config, preparation)
        if prepared.turns:
            break
    else:
        return
    preparation.beside.stop()
    for note in prepared.notes:
        terminal.warn(note)
    turn, tokens = prepared.turns[0], prepared.tokens[0]
    decode = pieces(renderer.tokenizer)
    prompt = "".join(decode(tokens.prompt_ids))
    scored = "|".join(decode(tokens.response_ids))
    cut = " (cut to fit)" if tokens.truncated else ""
    terminal.say(f"\nexample {turn.id}\n  prompt, {len(tokens.prompt_ids)} tokens:\n{_indented(_shortened(prompt))}")
    terminal.say(
        f"  scored, {len(tokens.response_ids)} tokens{cut}, one between each |:\n{_indented(_shortened(scored))}\n"
    )


def estimate(inputs: list[StoredInput], config: LabelConfig) -> list[tuple[str, str]]:
    """Rows of a table: the tokens of the first shard of up to 16 files, scaled to all rows."""
    rows = turns = prompt = response = truncated = 0
    errors: Counter[str] = Counter()
    preparation = Preparation()
    for stored in inputs[:: max(1, len(inputs) // 16)]:
        prepared = _first_shard(stored, config, preparation)
        rows += prepared.shard.rows
        turns += len(prepared.turns)
        prompt += sum(len(ids) for ids in {tuple(t.prompt_ids) for t in prepared.tokens})
        response += sum(len(t.response_ids) for t in prepared.tokens)
        truncated += sum(t.truncated for t in prepared.tokens)
        errors.update(f.reason for f in prepared.failures)
    total = sum(stored.plan.rows for stored in inputs)
    scale = total / max(1, rows)
    found = [
        ("Rows", f"{total:,} in {len(inputs):,} files, {sum(len(i.plan.shards) for i in inputs):,} shards"),
        ("Sampled rows", f"{rows:,}"),
        ("Responses", f"{turns * scale:,.0f}"),
        ("Response tokens", f"{response * scale:,.0f}"),
        ("Tokens to forward", f"{(prompt + response) * scale:,.0f} (a shared prompt once)"),
        ("Truncated", f"{truncated * scale:,.0f}"),
    ]
    return found + [(f"Error {reason}", f"{count * scale:,.0f}") for reason, count in errors.most_common()]


def _first_shard(stored: StoredInput, config: LabelConfig, preparation: Preparation) -> Prepared:
    shard, rows = next(read_shards(stored.file, stored.format, stored.plan.shards[:1]))
    return preparation.prepare(Endogenous(config, config.model), shard, 0, rows, stored.shape)


def _shortened(text: str) -> str:
    half = SHOWN_CHARACTERS // 2
    return (
        text
        if len(text) <= SHOWN_CHARACTERS
        else f"{text[:half]}\n... {len(text) - 2 * half:,} characters ...\n{text[-half:]}"
    )


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
