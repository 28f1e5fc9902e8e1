"""A training run's directory: what the run is, how far it is, and whether another may go on in it.

OUTPUT/run.json          all that changes a number, and what a person asked for
OUTPUT/metrics.jsonl     a row for each optimiser step
OUTPUT/checkpoints/      Ray Train's, the last few
OUTPUT/checkpoints.json  its list of them, once more
OUTPUT/reference/        log-probabilities of the reference, where the labels do not hold them
OUTPUT/best/             the policy of the lowest eval_loss, where prompts were kept from training
OUTPUT/hf/               the trained policy, a Hugging Face model
OUTPUT/policies.json     which files these two are of
OUTPUT/stopped.json      why a run cannot go on, until it is started again
OUTPUT/manifest.json     what a finished run says of itself
OUTPUT/report.html       what a person looks at
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pyarrow import fs

from pipeline import storage
from pipeline.errors import StoreError
from pipeline.models.loading import identify_model
from pipeline.store import documents, fingerprint, places
from pipeline.store.typed import Document
from pipeline.training.config import PAIR_OBJECTIVES, SECTION_OF, LearningConfig, TrainConfig
from pipeline.training.deepspeed import deepspeed_config
from pipeline.training.documents import Policies, Run, RunManifest, Stopped

Kind = TypeVar("Kind", bound=Document)
FORMAT = 1
CHECKPOINTS = "checkpoints"
SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's list of its checkpoints
STOPPED = "stopped.json"
POLICIES = "policies.json"
KEPT = "checkpoints.json"  # the same, as it was before the last checkpoint
CHECKPOINT = re.compile(r"checkpoint_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d\.\d+")  # Ray Train's name of one
WITHOUT_EFFECT = {"max_failures", "max_preemption_failures"} | {"deepspeed", "device", "dtype", "workers"}
"""Of the learner's settings; the latter four are said in another way."""
ADDED: dict[str, Any] = {"min_workers": None}
"""Those that earlier versions lacked, and the value under which a run is what it was there: these are not described."""
MUST_AGREE = {
    "learner.workers": "a checkpoint fits only as many workers as wrote it",
    "labels.records": "the labels changed since the run began",
    "prompts.digest": "the prompts changed since the run began",
    "prompts.shapes": "the columns of the prompts are read otherwise than when the run began",
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
    from pipeline.training.objectives import objective_of  # brings torch, which those who read a run need not wait for

    objective = config.train.objective
    sections = ["train", SECTION_OF.get(objective, objective)]
    sections += ["pairs"] if objective in PAIR_OBJECTIVES else []
    sections += ["advantage"] if objective_of(config).uses_advantages else []
    description = described(config, sections, dtype, device, workers, deepspeed)
    del description["train.labels"]
    return description | {
        "labels.fingerprints": [store["fingerprint"] for store in labels["stores"]],
        "labels.records": [store["records"] for store in labels["stores"]],
        "labels.examples": labels["examples"],
        **({"checkpoint.every_steps": config.checkpoint.every_steps} if config.train.eval_share else {}),
    }


def described(
    config: LearningConfig, sections: Sequence[str], dtype: str, device: str, workers: int, deepspeed: str | None
) -> dict[str, Any]:
    """What any training run is described by: these sections of its configuration, the learner, policy and reference."""
    content = config.model_dump(include={*sections, "lora", "learner"})
    content["learner"]["budget_tokens"] = config.learner.micro_tokens  # on a GPU more or less of them: rounding
    content["learner"] = {
        name: value
        for name, value in content["learner"].items()
        if name not in WITHOUT_EFFECT and not (name in ADDED and value == ADDED[name])
    }
    reference = identify_model(config.reference, dtype) if config.reference.name else {}
    adding = deepspeed_config(config, dtype, deepspeed)["data_types"]["grad_accum_dtype"]
    return {
        "format": FORMAT,
        **{f"{section}.{name}": value for section, fields in content.items() for name, value in fields.items()},
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

    def run(self) -> Run | None:
        """What the run is, None where there is none. Raises StoreError where run.json is damaged, or of a newer version."""
        return self.find(Run, "run.json")

    def manifest(self) -> RunManifest | None:
        """What a finished run says, None where it is not finished. Raises StoreError as `run` does."""
        return self.find(RunManifest, "manifest.json")

    def stopped(self) -> Stopped | None:
        """Why the run cannot go on, None where it can. Raises StoreError as `run` does."""
        return self.find(Stopped, STOPPED)

    def find(self, kind: type[Kind], name: str) -> Kind | None:
        """A document of the run, None where it is not there. Raises StoreError as `run` does."""
        try:
            return kind.read(self.at(name))
        except FileNotFoundError:
            return None

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint to go on from; without one, another run may take this one's place."""
        return storage.exists(self.at(CHECKPOINTS, SNAPSHOT))

    @property
    def is_run(self) -> bool:
        """Whether a training run is there. Raises StoreError where its run.json is not ours, or damaged."""
        return places.is_ours(self.uri, places.RUN)

    def check_place(self) -> None:
        """Raises StoreError where the directory holds something that is not a training run."""
        places.check(self.uri, places.RUN)

    def check(self, description: Mapping[str, Any]) -> None:
        """Raises StoreError where the directory holds another run that has a checkpoint or is finished, or something else."""
        self.check_place()
        run = self.run()
        if run is None:
            return
        differ = fingerprint.differences(run.description, dict(description), "the run there")
        if differ and (self.begun or storage.exists(self.at("manifest.json"))):
            known = [f"{why}. " for name, why in MUST_AGREE.items() if any(line.startswith(name) for line in differ)]
            raise StoreError(
                f"{self.uri} holds another run: {''.join(known)}Give another --output, or go on as it was begun:\n  "
                + "\n  ".join(differ)
            )

    def forget(self, *names: str) -> None:
        """Delete files of a run whose place another one takes."""
        for name in names:
            documents.remove(self.at(name))

    def record_policy(self, name: str, folder: str) -> None:
        """Note, before they are there, which files a policy in the folder `name` is of: those of the local `folder`."""
        files = sorted(
            os.path.relpath(os.path.join(root, each), folder) for root, _, names in os.walk(folder) for each in names
        )
        known = self._policies().files()
        Policies.model_validate(known | {name: sorted({*known.get(name, []), *files})}).write(self.at(POLICIES))

    def forget_policies(self) -> None:
        """Delete the policies of a run whose place another one takes; what else was put beside them stays."""
        for name, files in self._policies().files().items():
            for each in files:
                documents.remove(self.at(name, *each.split(os.sep)))
            storage.remove_if_empty(self.at(name))
        documents.remove(self.at(POLICIES))

    def _policies(self) -> Policies:
        return self.find(Policies, POLICIES) or Policies()

    def mend(self) -> None:
        """Make the checkpoints whole after a kill: Ray Train writes its list in place, and forgets what is not in it.

        A list that ends within a line gives way to the one before, whose checkpoints are still there. Checkpoints that the
        list does not name, which killed workers left, are deleted; without a list nothing is.

        Raises:
            StoreError: where there are checkpoints and no list of them can be read.
        """
        if self.is_run:
            for folder in (self.uri, *(self.at(name) for name in (CHECKPOINTS, "hf", "best"))):
                documents.remove_temporaries(folder)
        filesystem, path = storage.locate(self.at(CHECKPOINTS))
        there = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        unlisted = [i for i in there if i.type == fs.FileType.Directory and CHECKPOINT.fullmatch(i.base_name)]
        listed = self._listed([info.base_name for info in unlisted])
        if listed is None:
            return
        named = _names(listed)
        if named:
            documents.write_bytes(self.at(CHECKPOINTS, SNAPSHOT), json.dumps(listed).encode())
        else:  # the first one was not finished: Ray begins where it finds no list
            documents.remove(self.at(CHECKPOINTS, SNAPSHOT))
        for info in unlisted:
            if info.base_name not in named:
                filesystem.delete_dir(info.path)

    def _listed(self, there: Sequence[str]) -> dict[str, Any] | None:
        """The list that the run goes on from; None where there is none and no checkpoint either. Raises StoreError."""
        snapshot, whole = _read_list(self.at(CHECKPOINTS, SNAPSHOT))
        if snapshot is None and not whole:  # not there, or cut off as it was written
            snapshot, _ = _read_list(self.at(KEPT))
            if snapshot is not None and not _names(snapshot) <= set(there):  # somebody took them away
                documents.remove(self.at(KEPT))
                snapshot = None
        if snapshot is None and there:
            why = (
                f"{self.at(CHECKPOINTS, SNAPSHOT)} has a form that this version does not know: go on with the version of Ray "
                "that the run was begun with"
                if whole
                else f"no list says which of them are whole: put {self.at(CHECKPOINTS, SNAPSHOT)} back from a copy"
            )
            raise StoreError(
                f"{self.at(CHECKPOINTS)} holds checkpoints ({', '.join(there[:3])}) and {why}; or move {self.at(CHECKPOINTS)} "
                "away and run the same again, which begins at the first step, or give another --output"
            )
        if snapshot is None:
            documents.remove(self.at(CHECKPOINTS, SNAPSHOT))
        return snapshot


def keep_snapshot(output: str) -> None:
    """Before a checkpoint is handed to Ray Train: keep the list of those there are, an empty one before the first."""
    snapshot, whole = _read_list(storage.join(output, CHECKPOINTS, SNAPSHOT))
    if snapshot is None and not whole and not storage.exists(storage.join(output, KEPT)):
        snapshot = {"checkpoint_results": []}
    if snapshot is not None:
        documents.write_bytes(storage.join(output, KEPT), json.dumps(snapshot).encode())


def _names(listed: Mapping[str, Any]) -> set[str]:
    return {each["checkpoint_dir_name"] for each in listed["checkpoint_results"]}


def _read_list(uri: str) -> tuple[dict[str, Any] | None, bool]:
    """Ray Train's list of checkpoints, None where there is none of a form that we know; and whether a whole one is there,
    of whatever form. Ray writes it in place, and the beginning of JSON is no JSON."""
    try:
        content = json.loads(storage.read_bytes(uri))
    except (FileNotFoundError, ValueError):
        return None, False
    results = content.get("checkpoint_results") if isinstance(content, dict) else None
    known = isinstance(results, list) and all(isinstance(r, dict) and "checkpoint_dir_name" in r for r in results)
    return (content if known else None), True
