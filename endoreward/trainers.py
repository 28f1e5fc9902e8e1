"""The reward as a function of TRL's: `GRPOTrainer(reward_funcs=endoreward.reward("M"))`, or `endoreward.remote("http://host:8000")`
where a server has the model (`endoreward serve`, docs/serving.md).

    f(prompts, completions, completion_ids, **columns) -> [float or None, ...], one a completion

A completion is scored by the very tokens that the policy wrote, behind its prompt: so the rewarding model needs the policy's
tokenizer and template. Another one scores the texts anew: tokens = {"sampled": "render"}, here or of the server. As in TRL a
prompt that is text is final, and one of messages goes through the template.
"""

import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from endoreward.scorer import Scorer
from pipeline.errors import RowError, RunError
from pipeline.models.scores import Scores
from pipeline.rewards.labelling import label
from pipeline.rewards.requests import Asked, RequestReader

log = logging.getLogger(__name__)

Input = dict[str, Any]  # a prompt and completions of it, as `pipeline.rewards.requests` takes them
RewardFunction = Callable[..., list[float | None]]
DESCRIPTION = ("other_tokens", "other_rendering")  # reasons that are of every completion, not of one
TOKEN_VARIABLE = "ENDOREWARD_TOKEN"
BUSY = (429, 503)
LONGEST_PAUSE_S = 30.0


def reward(model: str | os.PathLike[str] | Scorer, **options: Any) -> RewardFunction:
    """A reward function of a model in this process.

    Args:
        model: a local folder, a model hub's name, or a Scorer.
        options: of `Scorer.from_pretrained`, as reward = {"aggregation": "mean"}.

    Raises:
        ConfigError: as `Scorer.from_pretrained`.
        RowError: from the function, where completions are not what their tokens say.
    """
    if isinstance(model, Scorer) and options:
        raise TypeError("a Scorer has its options already; give them where it is made")
    scorer = model if isinstance(model, Scorer) else Scorer.from_pretrained(model, **options)
    reader = RequestReader(scorer.renderer)

    def answers(inputs: Sequence[Input]) -> list[float | RowError]:
        asked = [each for given in inputs for each in _read(reader, given)]
        scores = iter(scorer.engine.score([each.tokens for each in asked if isinstance(each, Asked)]))
        return [each if isinstance(each, RowError) else total(each, next(scores)) for each in asked]

    def total(asked: Asked, scores: Scores | RowError) -> float | RowError:
        if isinstance(scores, RowError):
            return scores
        return label(asked.turn, asked.tokens, scores, scorer.config.reward).reward

    return _function(answers)


def remote(
    url: str,
    *,
    model: str | None = None,
    reward: Mapping[str, Any] | None = None,
    token: str | None = None,
    timeout_s: float = 120.0,
    retries: int = 10,
) -> RewardFunction:
    """A reward function of a server's model.

    Args:
        url: of `endoreward serve`, as http://host:8000.
        model: its name there; default: the one that is served.
        reward: fields of the section `reward` that shall differ from the server's.
        token: that the server wants; default: the environment's ENDOREWARD_TOKEN.
        timeout_s: of one try.
        retries: further tries where the server is busy, starting or out of reach.

    Raises:
        RunError: from the function, where the server gives no answer, or refuses.
        RowError: as `reward`.
    """
    bearer = os.environ.get(TOKEN_VARIABLE, "") if token is None else token
    headers = {"content-type": "application/json", **({"authorization": f"Bearer {bearer}"} if bearer else {})}
    place = f"{url.rstrip('/')}/v1/rewards"
    more = {name: value for name, value in (("model", model), ("reward", reward)) if value is not None}

    def answers(inputs: Sequence[Input]) -> list[float | RowError]:
        body = json.dumps({"inputs": inputs, **more}).encode()
        rows = _posted(urllib.request.Request(place, body, headers), timeout_s, retries)["data"]
        return [
            RowError(row["error"]["reason"], row["error"]["detail"]) if "error" in row else row["reward"]
            for row in rows
        ]

    return _function(answers)


def _function(answers: Callable[[Sequence[Input]], list[float | RowError]]) -> RewardFunction:
    seen: set[str] = set()

    def endogenous_reward(
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """The endogenous reward of each completion; None, with a warning, of one that cannot be scored."""
        results = answers(_inputs(prompts, completions, completion_ids))
        for each in results:
            if isinstance(each, RowError):
                if each.reason in DESCRIPTION:
                    raise each
                if each.reason not in seen:
                    seen.add(each.reason)
                    log.warning("a completion has no reward, and so will others: %s", each)
        return [None if isinstance(each, RowError) else each for each in results]

    return endogenous_reward


def _inputs(prompts: Sequence[Any], completions: Sequence[Any], ids: Sequence[Sequence[int]] | None) -> list[Input]:
    """Completions that stand behind one another with the same prompt in one."""
    inputs = []
    for _, members in groupby(range(len(prompts)), lambda position: json.dumps(prompts[position])):
        group = list(members)
        prompt = prompts[group[0]]
        each: Input = {"prompt": prompt, "responses": [completions[position] for position in group]}
        if ids is not None:
            each["response_token_ids"] = [list(map(int, ids[position])) for position in group]
        inputs.append({**each, "as_written": True} if isinstance(prompt, str) else each)
    return inputs


def _read(reader: RequestReader, given: Input) -> list[Asked | RowError]:
    try:
        return reader.read(given)
    except RowError as error:
        return [error] * len(given["responses"])


def _posted(request: urllib.request.Request, timeout_s: float, retries: int) -> Any:
    """The answer's JSON, also of 422, which has an error for each response. Raises RunError."""
    for left in range(retries, -1, -1):
        pause = min(LONGEST_PAUSE_S, 0.5 * 2 ** (retries - left))
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            content = error.read()
            if error.code == 422:
                return json.loads(content)
            if error.code not in BUSY or not left:
                raise RunError(f"{request.full_url} answers {error.code}: {_sentence(content)}") from None
            pause = float(error.headers.get("retry-after") or pause)
        except OSError as error:
            if not left:
                reason = getattr(error, "reason", error)
                raise RunError(f"{request.full_url} gives no answer: {reason}; is `endoreward serve` up?") from None
        time.sleep(pause)
    raise AssertionError


def _sentence(content: bytes) -> str:
    try:
        return str(json.loads(content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return content[:200].decode(errors="replace")
