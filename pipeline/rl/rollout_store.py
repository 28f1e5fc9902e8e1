"""Every batch of an online run as a label store: it can be learnt from like any other, and the run replayed from it.

    a step                     an input `step-000003` of one shard
    a prompt of its batch      a row of that input: prompt_id `step-000003:5`, whatever prompt it is
    a response                 a label: id `step-000003:5:response:0:0`

Responses to one prompt that different weights sampled in different steps are so never compared with each other. What the
columns hold that another store's hold otherwise:

- token_logprobs: log pi at temperature 1 of the weights that sampled the response, the behaviour of importance ratios. The
  reward model's are not kept, so neither `sweep` nor `aggregate` can make another reward of these tokens: the description
  has no reward.alpha, by which they tell. Nor has it the content or name of a model: the weights changed with every step,
  and `train` must not take their log-probabilities for those of a reference.
- token_values: empty where no source of rewards has values.
- truncated: the response was cut off by its longest length.
- prompt: with the policy's system prompt before it. prompt_token_ids are what the policy was asked with.
- extra_info: the prompt's columns, and as `rollout` what has no column: arrays as their type and the base64 of their bytes.

What is read back is what was kept, to the last bit. Left out: a lock. A run has one writer, which holds that of its folder.
"""

import base64
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import chain, count, groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import __version__, storage
from pipeline.corpus import FilePlan, InputFile, Shape, Shard, Shards
from pipeline.corpus.samples import turn_id
from pipeline.errors import StoreError
from pipeline.rewards.labellers.base import open_renderer
from pipeline.rewards.labellers.sampling import with_system
from pipeline.rewards.labelling import NO_TOKENS
from pipeline.rl.config import RlConfig
from pipeline.rl.rollouts import Group, Prompt, Rewarded, Rollout
from pipeline.store import (
    Label,
    LabelStore,
    StoredInput,
    commit,
    extra_json,
    find_record,
    fingerprint,
    part_uri,
    shard_name,
)
from pipeline.store.manifest import InputEntry, Manifest
from pipeline.tokens import tokenizer_digest

SYSTEM = "tokens.system_prompt"
OWN = "rollout"  # ours, in extra_info
SHAPE = Shape(responses=(("response", None),), prompt="prompt", note="sampled by the policy")


def describe_rollouts(config: RlConfig, run_description: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """What the fingerprint of a run's kept rollouts stands for, flat: what readers of a label store look for, and the run.

    Prompts are whole and responses end where they were sampled to end, so tokens.over_length is not the run's: nothing but
    a response was cut.

    Args:
        run_description: all that decides the bits of the run; here below `run.`.
        dtype: that the policy samples in.

    Raises:
        ConfigError: where the policy's tokenizer or configuration cannot be loaded.
    """
    renderer = open_renderer(config.policy, config.tokens)
    return {
        "format": fingerprint.FORMAT,
        "model.dtype": dtype,
        "model.max_length": renderer.max_length,
        "model.tokenizer": tokenizer_digest(renderer.tokenizer),
        **fingerprint.describe_tokens(config.tokens, renderer.template),
        "tokens.over_length": "cut_response",
        SYSTEM: config.tokens.system_prompt,
        "reward.gamma": config.reward.gamma,
        **{f"run.{name}": value for name, value in run_description.items()},
    }


class RolloutStore:
    """A run's batches at a location; nothing is read or written before it is asked for."""

    def __init__(self, uri: str):
        self.store = LabelStore(uri)
        self._fingerprint, self._system = "", None

    def open(self, description: Mapping[str, Any]) -> None:
        """Before `keep`: create the store, or clear what a killed writer of the same run left.

        Raises:
            StoreError: where the place holds something else, or the rollouts of a run of another description.
        """
        self.store.check_place()
        self.store.open_for_writing(dict(description))
        self._fingerprint, self._system = self.store.fingerprint(), description.get(SYSTEM)

    def keep(self, step: int, groups: Sequence[Group]) -> None:
        """Commit a step, counted from 0. One that is there with this content and undamaged is left as it is.

        The input is recorded after its shard: a run that is killed has a store that is complete, of the steps so far.

        Raises:
            RunError: when the disk is full or cannot be written.
            StoreError: where the step's record is damaged.
        """
        labels = list(chain.from_iterable(self._labels(step, row, group) for row, group in enumerate(groups)))
        shard = _shard(step, len(groups), _digest(labels))
        standing = find_record(self.store.uri, shard)
        if standing is None or standing.shard != shard or self._part(shard, standing.labels.sha256) is None:
            self.store.reopen()
            generation = 0 if standing is None else standing.generation + 1
            commit(self.store.uri, shard, self._fingerprint, generation, labels, [])
        file = InputFile(shard.file, self.store.at(shard.file), 0, 0)  # there is no such file to look for
        plan = FilePlan(shard.file, shard.rows, shard.digest, Shards.of(shard.file, [shard]))
        self.store.add_input(StoredInput(file, "auto", SHAPE, plan))

    def read(self, step: int) -> list[Group]:
        """The batch of a step. Raises StoreError where it is missing or damaged."""
        where = f"{self.store.uri}, step {step}"
        shard = _shard(step)
        try:
            record = find_record(self.store.uri, shard)
        except StoreError as error:
            raise StoreError(f"{where}: {error}") from None
        if record is None:
            self.store.require()
            raise StoreError(
                f"{where}: not kept, there are {self.steps()} steps from the first on; replay no more (rl.max_steps), or run "
                "the run that keeps them to its end"
            )
        data = self._part(shard, record.labels.sha256)
        if data is None:
            raise StoreError(
                f"{where}: {part_uri(self.store.uri, 'labels', shard)} is missing or damaged; keep the run's rollouts anew, "
                "or copy the store once more"
            )
        labels = pq.ParquetFile(io.BytesIO(data)).read(use_threads=False)
        rows = [(label["prompt_id"], *_read(labels, row, label)) for row, label in enumerate(_light(labels))]
        groups = [list(siblings) for _, siblings in groupby(rows, key=lambda each: each[0])]
        return [Group(of[0][1], [rollout for *_, rollout, _ in of], [worth for *_, worth in of]) for of in groups]

    def steps(self) -> int:
        """How many steps there are from the first on, none missing: one listing."""
        done = self.store.done()
        return next(step for step in count() if shard_name(_shard(step)) not in done)

    def finish(self, config: RlConfig | None = None) -> None:
        """Write the manifest, from which `endoreward report` draws the store's page.

        Args:
            config: of the run; without it the page shows tokens as their numbers.
        """
        shown = {"policy", "tokens", "reward", "rewards"}
        sections = {} if config is None else config.model_dump(mode="json", include=shown)
        manifest = Manifest.of(
            self.store,
            config={"model": sections.pop("policy", {}), **sections},
            inputs=[
                InputEntry(name=each.file.name, rows=each.plan.rows, sha256=each.plan.digest, shape=SHAPE.describe())
                for each in self.store.inputs()
            ],
            notes=["responses that an online run sampled, with the rewards that it learnt from"],
            timing=None,
            versions={"endoreward": __version__, **{name: version(name) for name in ("torch", "pyarrow")}},
        )
        manifest.write_plain(self.store.at("manifest.json"))

    def _labels(self, step: int, row: int, group: Group) -> list[Label]:
        prompt_id = f"{_name(step)}:{row}"
        prompt = with_system(group.prompt.messages, self._system)
        siblings = zip(group.rollouts, group.rewarded, strict=True)
        return [
            Label(
                id=turn_id(prompt_id, None, index, 0),
                prompt_id=prompt_id,
                preference=None,
                response_index=index,
                prompt=prompt,
                response=rollout.text,
                reward=rewarded.reward,
                num_tokens=len(rollout.ids),
                num_prompt_tokens=len(group.prompt.ids),
                truncated=not rollout.finished,
                token_ids=rollout.ids,
                turn=0,
                token_logprobs=rollout.logprobs,
                token_values=NO_TOKENS if rewarded.values is None else rewarded.values.astype(np.float32),
                token_rewards=rewarded.token_rewards.astype(np.float32),
                rubric=None,
                extra_info=_extra_info(group.prompt, rollout, rewarded),
                prompt_token_ids=group.prompt.ids,
            )
            for index, (rollout, rewarded) in enumerate(siblings)
        ]

    def _part(self, shard: Shard, sha256: str | None) -> bytes | None:
        """The bytes of a step's labels; None where they are not those that were recorded."""
        try:
            data = storage.read_bytes(part_uri(self.store.uri, "labels", shard))
        except FileNotFoundError:
            return None
        return data if hashlib.sha256(data).hexdigest() == sha256 else None


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _shard(step: int, rows: int = 0, digest: str = "") -> Shard:
    """A step's shard; its name, which finds record and part, follows from the step alone."""
    return Shard(_name(step), 0, 0, rows, rows, digest)


def _digest(labels: Sequence[Label]) -> str:
    """sha256 over all that the labels hold."""
    text = json.dumps([vars(label) for label in labels], default=lambda column: column.tobytes().hex())
    return hashlib.sha256(text.encode()).hexdigest()


# What has no column


def _extra_info(prompt: Prompt, rollout: Rollout, rewarded: Rewarded) -> str:
    own: dict[str, Any] = {
        "prompt": prompt.id,
        "messages": prompt.messages,
        "conversational": prompt.conversational,
        "version": rollout.version,
        "parts": rewarded.parts,
        "token_rewards": _packed(rewarded.token_rewards),
        "values": _packed(rewarded.values),
        "reference": _packed(rewarded.reference),
        **({} if prompt.tools is None else {"tools": prompt.tools}),
    }
    columns = prompt.columns
    if OWN in columns or json.loads(extra_json(columns)) != columns:  # nan, which JSON has no word for
        own["columns"] = json.dumps(columns)
    return extra_json({**columns, OWN: own})


def _light(labels: pa.Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = labels.drop_columns(
        ["prompt", "token_logprobs", "token_values", "token_rewards"]
    ).to_pylist()
    return rows


def _read(labels: pa.Table, row: int, label: Mapping[str, Any]) -> tuple[Prompt, Rollout, Rewarded]:
    """The inverse of `_labels`, of one row."""
    columns = json.loads(label["extra_info"])
    own = columns.pop(OWN)
    if "columns" in own:
        columns = json.loads(own["columns"])
    logprobs = labels["token_logprobs"][row].values.to_numpy(zero_copy_only=False).copy()
    token_rewards = _unpacked(own["token_rewards"])
    assert token_rewards is not None
    ids = _unpacked(own["prompt_ids"]).tolist() if "prompt_ids" in own else label["prompt_token_ids"]  # of format 1
    return (
        Prompt(own["prompt"], own["messages"], own["conversational"], ids, columns, own.get("tools")),
        Rollout(label["token_ids"], label["response"], not label["truncated"], logprobs, own["version"]),
        Rewarded(label["reward"], own["parts"], token_rewards, _unpacked(own["values"]), _unpacked(own["reference"])),
    )


def _packed(array: NDArray[Any] | None) -> list[str] | None:
    return None if array is None else [array.dtype.str, base64.b64encode(array.tobytes()).decode()]


def _unpacked(packed: list[str] | None) -> Any:
    return None if packed is None else np.frombuffer(base64.b64decode(packed[1]), packed[0]).copy()
