"""A small corpus read as `label` reads one, up to the turns that would be scored: the same functions, no model."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

from jobs.label.plan import plan_inputs
from pipeline.config import InputConfig, load_config
from pipeline.corpus import find_files, read_shards, turns
from pipeline.corpus.samples import Turn
from pipeline.errors import RowError
from pipeline.store import StoredInput

Row = dict[str, Any]


def write(folder: Path, rows: list[Row], name: str = "corpus.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def plan(folder: Path, config: InputConfig | None = None) -> list[StoredInput]:
    return plan_inputs(None, find_files([str(folder)]), config or InputConfig())


def scored(inputs: list[StoredInput], which: str = "last") -> list[list[Turn] | str]:
    """Of each row its turns, or the reason of its error; a response that fails has its reason in place of turns."""
    found: list[list[Turn] | str] = []
    for stored in inputs:
        for _, rows in read_shards(stored.file, stored.format, stored.plan.shards):
            for number, row in rows:
                assert not isinstance(row, RowError)
                try:
                    sample = stored.shape.normalise(stored.file.name, number, row)
                except RowError as error:
                    found.append(error.reason)
                    continue
                assert not sample.failed, [str(failed.error) for failed in sample.failed]
                found.append(list(turns(sample, which)))  # type: ignore[arg-type]
    return found


def preferences(inputs: list[StoredInput]) -> list[tuple[str | None, str | None] | str]:
    """Of each row (the chosen text, the rejected text), or the reason of its error."""
    found: list[tuple[str | None, str | None] | str] = []
    for each in scored(inputs):
        if isinstance(each, str):
            found.append(each)
        else:
            by = {turn.preference: turn.response for turn in each}
            found.append((by.get("chosen"), by.get("rejected")))
    return found


def obeyed(message: str, config: InputConfig | None = None) -> list[InputConfig]:
    """The configurations that an error's advice gives when it is typed as it stands: one for each of its alternatives."""
    stated = config.model_dump(exclude_unset=True) if config else {}
    given = [(f"input.{name}", value) for name, value in stated.items()]
    ways = []
    for alternative in re.split(r"(?<!,) or (?=--set)|, or (?=--set)", message):
        said = re.findall(r"--set ('[^']*'|\S+)", alternative)
        if said:
            ways.append(load_config(None, given, [shlex.split(each)[0].rstrip(";,.") for each in said]).input)
    return ways
