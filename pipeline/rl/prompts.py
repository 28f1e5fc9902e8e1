"""The prompts that a policy practises on, and those that it is measured on: rows of a corpus as the policy's tokens.

Read as `sample` reads its prompts, and held in memory whole, with what else their rows hold for the rewards to see.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from pipeline.corpus import Choice, Shape, find_files, plan_file, read_shards
from pipeline.corpus.columns import RawRow, jsonable
from pipeline.errors import InputError, RowError
from pipeline.rewards.labellers.base import open_renderer
from pipeline.rewards.labellers.prompts import prompt_of, prompt_shape
from pipeline.rl.config import RlConfig
from pipeline.rl.rollouts import Prompt
from pipeline.tokens import Renderer

FEWEST_TOKENS = 2  # of a response: one and its end


@dataclass(frozen=True)
class Prompts:
    """What was read.

    Attributes:
        digest: sha256 of the content of all files, in their order.
        shapes: which of their columns were read as what, one for each way.
        left_out: prompts that cannot be asked, as `file:row: why`.
        short: prompts that leave less than rl.max_new_tokens for a response.
        skipped: sentences that name the files which are not read.
    """

    prompts: list[Prompt]
    digest: str
    left_out: list[str]
    short: int
    skipped: tuple[str, ...] = ()
    shapes: tuple[dict[str, Any], ...] = ()


def read_prompts(config: RlConfig, paths: Sequence[str], wanted: str) -> Prompts:
    """All prompts of some files, for the policy.

    Args:
        wanted: the configuration's name of `paths`, for messages.

    Raises:
        InputError: where a file is broken, of no known shape, or no prompt can be asked.
        ConfigError: where the policy's tokenizer cannot be loaded.
    """
    renderer = open_renderer(config.policy, config.tokens)
    prompts: list[Prompt] = []
    left_out: list[str] = []
    digest = hashlib.sha256()
    shapes: list[dict[str, Any]] = []
    learnt_from = wanted == "input.paths"  # input.split and input.config are of these alone
    choice = Choice(config.input.config, config.input.split) if learnt_from else Choice()
    files = find_files(list(paths), choice, section="input" if learnt_from else None)
    for file in files:
        plan = plan_file(file, config.input.format, config.input.shard_rows, config.input.shard_bytes)
        digest.update(f"{file.name} {plan.digest}\n".encode())
        if not plan.rows:
            continue
        if not plan.head:
            raise InputError(f"{file.uri}: not one row can be read; of the first: {plan.trouble}")
        shape = prompt_shape(list(plan.head), config.input, file.name)
        shapes += [described] if (described := _described(shape)) not in shapes else []
        for _, rows in read_shards(file, config.input.format, plan.shards):
            for number, row in rows:
                try:
                    prompts.append(_prompt(file.name, number, row, shape, renderer))
                except RowError as error:
                    left_out.append(f"{file.name}:{number}: {error.detail}")
    if not prompts:
        reason = f"; the first of {len(left_out):,}: {left_out[0]}" if left_out else ": every file is empty"
        raise InputError(f"{wanted}: no prompt can be asked{reason}")
    short = sum(renderer.max_length - len(prompt.ids) < config.rl.max_new_tokens for prompt in prompts)
    return Prompts(prompts, digest.hexdigest(), left_out, short, tuple(files.notes()), tuple(shapes))


def _described(shape: Shape) -> dict[str, Any]:
    """What of a shape is not as it is by default, as it comes back from a document."""
    values = shape.to_json()
    set_here = {
        each.name: values[each.name]
        for each in fields(shape)
        if each.compare and each.name in values and values[each.name] != each.default
    }
    plain: dict[str, Any] = json.loads(json.dumps(set_here))
    return plain


def _prompt(file: str, number: int, row: RawRow | RowError, shape: Shape, renderer: Renderer) -> Prompt:
    """Raises RowError."""
    if isinstance(row, RowError):
        raise row
    asked = prompt_of(file, number, row, shape)
    ids = renderer.prompt_ids(asked.prompt, asked.conversational, asked.tools)
    if len(ids) + FEWEST_TOKENS > renderer.max_length:
        raise RowError(
            "prompt_too_long",
            f"the prompt leaves no room for a response in {renderer.max_length} tokens; shorten it, or take a policy with a "
            "longer context",
        )
    return Prompt(
        f"{file}:{number}", asked.prompt, asked.conversational, ids, jsonable(asked.extra), jsonable(asked.tools)
    )
