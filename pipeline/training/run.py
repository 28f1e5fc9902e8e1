"""A training run's directory: what the run is, how far it is, and whether another may go on in it.

OUTPUT/run.json          all that changes a number, and what a person asked for
OUTPUT/metrics.jsonl     a row for each optimiser step
OUTPUT/checkpoints/      Ray Train's, the last few
OUTPUT/checkpoints.json  its list of them, once more
OUTPUT/reference/        log-probabilities of the reference, where the labels do not hold them
OUTPUT/best/             the policy of the lowest eval_loss, where prompts were kept from training
OUTPUT/hf/               the trained policy, a Hugging Face model
OUTPUT/stopped.json      why a run cannot go on, until it is started again
OUTPUT/manifest.json     what a finished run says of itself
OUTPUT/report.html       what a person looks at
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pyarrow import fs

from pipeline import storage
from pipeline.errors import StoreError
from pipeline.models import identify_model
from pipeline.objectives import objective_of
from pipeline.store import documents, fingerprint
from pipeline.training.config import PAIR_OBJECTIVES, LearningConfig, TrainConfig
from pipeline.training.deepspeed import deepspeed_config

FORMAT = 1
CHECKPOINTS = "checkpoints"
SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's list of its checkpoints
STOPPED = "stopped.json"
KEPT = "checkpoints.json"  # the same, as it was before the last checkpoint
SETTINGS = {"awr": "awr", "rwr": "awr"}  # objectives whose section has another name
WITHOUT_EFFECT = {"max_failures"} | {"deepspeed", "device", "dtype", "workers"}  # the latter are said in another way
MUST_AGREE = {
    "learner.workers": "a checkpoint fits only as many workers as wrote it",
    "labels.records": "the labels changed since the run began",
    "prompts.digest": "the prompts changed since the run began",
    "learner.grad_accum_dtype": "a run without it was begun by a version that added up gradients in bfloat16",
}


def describe(
    config: TrainConfig, labels: Mapping[str, Any], dtype: str, device: str, workers: int, deepspeed: str | None
) -> dict[str, Any]:
    """All that decides the bits of a run of `train`, flat: dotted name to value. Raises ConfigError where a model cannot be
    read.

    Args:
        labels: what `Examples.describe` says.
        deepspeed: the content of `learner.deepspeed`.
    """
    objective = config.train.objective
    sections = ["train", SETTINGS.get(objective, objective)]
    sections += ["pairs"] if objective in PAIR_OBJECTIVES else []
    sections += ["advantage"] if objective_of(config).uses_advantages else []
    found = described(config, sections, dtype, device, workers, deepspeed)
    del found["train.labels"]
    return found | {
        "labels.fingerprints": [store["fingerprint"] for store in labels["stores"]],
        "labels.records": [store["records"] for store in labels["stores"]],
        "labels.examples": labels["examples"],
        **({"checkpoint.every_steps": config.checkpoint.every_steps} if config.train.eval_share else {}),
    }


def described(
    config: LearningConfig, sections: Sequence[str], dtype: str, device: str, workers: int, deepspeed: str | None
) -> dict[str, Any]:
    """What any training run is described by: these sections of its configuration, the learner, policy and reference."""
    told = config.model_dump(include={*sections, "lora", "learner"})
    told["learner"] = {name: value for name, value in told["learner"].items() if name not in WITHOUT_EFFECT}
    reference = identify_model(config.reference, dtype) if config.reference.name else {}
    adding = deepspeed_config(config, dtype, deepspeed)["data_types"]["grad_accum_dtype"]
    return {
        "format": FORMAT,
        **{f"{section}.{name}": value for section, fields in told.items() for name, value in fields.items()},
        **{f"policy.{name}": value for name, value in identify_model(config.policy, dtype).items()},
        **{f"reference.{name}": value for name, value in reference.items()},
        "learner.device": device,
        "learner.workers": workers,
        "learner.deepspeed": deepspeed and hashlib.sha256(deepspeed.encode()).hexdigest(),
        **({"learner.grad_accum_dtype": adding} if dtype == "bfloat16" else {}),
    }


class RunFolder:
    """OUTPUT of a training run, which may not be there yet."""

    def __init__(self, uri: str):
        self.uri = uri

    def at(self, *names: str) -> str:
        return storage.join(self.uri, *names)

    def read(self, name: str) -> dict[str, Any] | None:
        """A document of the run, None where it is not there."""
        try:
            return documents.read(self.at(name))
        except FileNotFoundError:
            return None

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint to go on from; without one, another run may take this one's place."""
        return storage.exists(self.at(CHECKPOINTS, SNAPSHOT))

    def check(self, description: Mapping[str, Any]) -> None:
        """Raises StoreError where the directory holds another run that has a checkpoint, or something else."""
        found = self.read("run.json")
        if found is None:
            if any(not name.startswith(".") for name in storage.list_names(self.uri)):
                raise StoreError(f"{self.uri} holds files, and no training run; give another --output")
            return
        differ = fingerprint.differences(found["description"], dict(description), "the run there")
        if differ and self.begun:
            known = [f"{why}. " for name, why in MUST_AGREE.items() if any(line.startswith(name) for line in differ)]
            raise StoreError(
                f"{self.uri} holds another run: {''.join(known)}Give another --output, or go on as it was begun:\n  "
                + "\n  ".join(differ)
            )

    def forget(self, *names: str) -> None:
        """Delete files and folders of a run whose place another one takes."""
        for name in names:
            filesystem, path = storage.locate(self.at(name))
            kind = filesystem.get_file_info(path).type
            if kind == fs.FileType.Directory:
                filesystem.delete_dir(path)
            elif kind == fs.FileType.File:
                filesystem.delete_file(path)

    def mend(self) -> None:
        """Make the checkpoints whole after a kill: Ray Train writes its list in place, and forgets what is not in it.

        A list that cannot be read gives way to the one before, whose checkpoints are still there; without one the run
        begins at its first step. Checkpoints that no list names are deleted.
        """
        documents.remove_temporaries(self.uri)
        found = _listed(self.at(CHECKPOINTS, SNAPSHOT)) or _listed(self.at(KEPT))
        if found is None:
            documents.remove(self.at(CHECKPOINTS, SNAPSHOT))
        else:
            documents.write_bytes(self.at(CHECKPOINTS, SNAPSHOT), json.dumps(found).encode())
        named = {each["checkpoint_dir_name"] for each in (found or {}).get("checkpoint_results", [])}
        filesystem, path = storage.locate(self.at(CHECKPOINTS))
        for info in filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True)):
            if info.type == fs.FileType.Directory and info.base_name not in named:
                filesystem.delete_dir(info.path)


def keep_snapshot(output: str) -> None:
    """Before a checkpoint is handed to Ray Train: keep the list of those there are."""
    found = _listed(storage.join(output, CHECKPOINTS, SNAPSHOT))
    if found is not None:
        documents.write_bytes(storage.join(output, KEPT), json.dumps(found).encode())


def _listed(uri: str) -> dict[str, Any] | None:
    try:
        found = json.loads(storage.read_bytes(uri))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) and "checkpoint_results" in found else None
