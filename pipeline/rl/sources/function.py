"""Rewards that a Python function gives, after the convention of TRL's reward functions.

    def name(prompts, completions, **columns): ...

`prompts` are texts, or lists of messages where the input has conversations; `completions` are always texts. Each other
column of the rows is a list of the same length under its own name, None where a row lacks it; columns that are called
`prompts` or `completions` are left out. It returns a number for each completion, or None where it has nothing to say.
"""

import importlib.util
import inspect
import math
import numbers
import os
import sys
import traceback
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any

from pipeline.errors import ConfigError, RunError
from pipeline.rl.config import RlConfig
from pipeline.rl.rollouts import Prompt
from pipeline.rl.sources.base import Earned, Sampled, Source
from pipeline.rl.sources.models import Models

GIVEN = ("prompts", "completions")
LONGEST = 200  # characters of a value that is shown


class Function(Source):
    def __init__(self, name: str, config: RlConfig):
        super().__init__(name, config)
        self.function = load_function(f"{self.who}.function", self.section.function)

    def earned(self, sampled: Sequence[Sampled], models: Models) -> list[Earned | None]:
        named = f"{self.who}: {self.section.function}"
        asked = [(prompt, rollout.text) for prompt, rollout in sampled]
        return [
            None if value is None else Earned.whole(value, len(rollout.ids))
            for value, (_, rollout) in zip(call(named, self.function, asked), sampled, strict=True)
        ]


def load_function(field: str, place: str) -> Callable[..., Any]:
    """What `path.py:name` names; a file is imported once. Raises ConfigError, which names the configuration's `field`."""
    path, _, name = place.rpartition(":")
    if not path.endswith(".py") or not name:
        raise ConfigError(f"{field} = {place!r} is not path.py:name")
    if not os.path.isfile(path):
        raise ConfigError(f"{field}: there is no file {path}")
    try:
        module = _module(os.path.abspath(path))
    except (Exception, SystemExit) as error:  # whatever the file does
        raise ConfigError(f"{field}: {path} cannot be imported: {_last_line(error)}; mend it") from error
    function = getattr(module, name, None)
    if not callable(function):
        there = [n for n, value in vars(module).items() if inspect.isfunction(value) and not n.startswith("_")]
        raise ConfigError(f"{field}: {path} has no function {name!r}; it has {', '.join(there) or 'none'}")
    reward: Callable[..., Any] = function
    return reward


@lru_cache(maxsize=64)
def _module(path: str) -> ModuleType:
    name = f"{os.path.basename(path)[:-3]}_{zlib.crc32(path.encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look there
    spec.loader.exec_module(module)
    return module


def call(named: str, function: Callable[..., Any], asked: Sequence[tuple[Prompt, str]]) -> list[float | None]:
    """The function's numbers for (Prompt, completion) pairs, from one call; none for none. Raises RunError."""
    if not asked:
        return []
    names = dict.fromkeys(name for prompt, _ in asked for name in prompt.columns if name not in GIVEN)
    columns = {name: [prompt.columns.get(name) for prompt, _ in asked] for name in names}
    prompts = [p.messages if p.conversational else "\n\n".join(m["content"] for m in p.messages) for p, _ in asked]
    of = f"for {len(asked)} responses, the first to prompt {asked[0][0].id}"
    try:
        found = function(prompts=prompts, completions=[text for _, text in asked], **columns)
        values = _listed(found)
    except (Exception, SystemExit) as error:  # it is the user's
        raise RunError(
            f"{named} raised {of}: {_last_line(error)}; mend the function; once there is a "
            "checkpoint that is another run, which takes another --output"
        ) from error
    if values is None:
        raise RunError(f"{named} gave {_shown(found)} {of}; let it return a list, a number for each")
    if len(values) != len(asked):
        raise RunError(f"{named} gave {len(values)} values {of}; let it return one for each, None where it has none")
    read = [_number(value) for value in values]
    for (prompt, _), value, number in zip(asked, values, read, strict=True):
        if number is None and value is not None:
            raise RunError(
                f"{named} gave {_shown(value)} for a response to prompt {prompt.id}; let it return a finite number, or None "
                "where it has none"
            )
    return read


def _listed(found: Any) -> list[Any] | None:
    """None for what has no elements. A generator runs here, and raises what it raises."""
    try:
        values = iter(found)
    except TypeError:
        return None
    return list(values)


def _number(value: Any) -> float | None:
    """None for what is no finite number. Arrays and tensors of one element are numbers."""
    try:
        plain = value.item() if hasattr(value, "item") else value
        number = float(plain) if isinstance(plain, numbers.Real) else math.nan
    except (ValueError, RuntimeError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _shown(value: Any) -> str:
    return repr(value)[:LONGEST]


def _last_line(error: BaseException) -> str:
    return traceback.format_exception_only(error)[-1].strip()
