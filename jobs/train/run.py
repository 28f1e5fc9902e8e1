"""`endoreward train`: label stores and a policy in, a trained policy out.

examples    which pairs or groups the stores hold               pipeline.training.examples
check       rows, policy, DeepSpeed's configuration, OUTPUT     nothing is written before
reference   log-probabilities that the labels do not hold       jobs.train.reference
learn       Ray Train runs the loop on the workers              jobs.train.recipe
finish      manifest, model card, report, table
"""

from dataclasses import dataclass
from typing import Any

from actors.scorer import ScorerSpec
from jobs.cluster import placed
from jobs.label.places import require
from jobs.learning import run as learning
from jobs.learning.trainer import pick_workers, position_notes, run_workers
from jobs.train.recipe import TrainRecipe
from jobs.train.reference import compute_references
from pipeline.config import set_but_unread
from pipeline.config.section import changed
from pipeline.errors import ConfigError
from pipeline.models.loading import load_settings, resolve_dtype
from pipeline.store import LabelStore
from pipeline.training.config import PAIR_OBJECTIVES, TrainConfig
from pipeline.training.deepspeed import deepspeed_config, read_deepspeed
from pipeline.training.documents import Run
from pipeline.training.examples import Examples, find_examples
from pipeline.training.objectives import objective_of
from pipeline.training.objectives.preference import beta_of
from pipeline.training.order import Order
from pipeline.training.rows import RowReader, check_rows, stored_reference
from pipeline.training.run import RunFolder, describe
from pipeline.training.schedule import base_rate
from pipeline.training.steps import check_step


def train(config: TrainConfig, *, dry_run: bool = False, command: str = "") -> int:
    """Run the job. Returns the exit code; raises EndorewardError."""
    require(labels=config.train.labels, policy=config.policy.name, output=config.output.path)
    config = learning.resolved(config, "train.labels")
    reads = [*config.train.labels, config.policy.name, config.reference.name]
    return learning.carry_out(config, lambda: _describe(config), reads, dry_run=dry_run, command=command)


@dataclass(frozen=True, kw_only=True)
class TrainRun(learning.TrainingRun):
    """A run of `train`.

    Attributes:
        labelled: all examples; `examples` of these to learn from, `held_out` to measure on.
        stored_reference: whether the labels hold the reference's log-probabilities.
        policy_labelled: whether the policy, as it was before training, made them.
    """

    TITLE = "Train"
    DONE = "Trained"
    SHOWN = ("loss", "rewards/accuracies", "rewards/margins", "reward", "kl", "eval_loss", "eval_rewards/accuracies")

    config: TrainConfig
    labelled: Examples
    examples: Examples
    held_out: Examples
    stored_reference: bool
    policy_labelled: bool
    steps_per_epoch: float

    def rows(self) -> list[tuple[str, str]]:
        config = self.config
        return [
            ("Objective", config.train.objective),
            *self.examples.counts.rows(),
            ("Examples to learn from", f"{len(self.examples):,}"),
            *([("Examples to measure on", f"{len(self.held_out):,}")] if len(self.held_out) else []),
            ("Steps", f"{self.steps:,} of {config.train.batch_size:,} examples"),
            ("Learning rate", f"{self.rate:.2g}, {config.train.schedule}"),
            ("Reference", self._reference()),
            ("Workers", f"{self.workers} ({self.device}, {self.dtype}, ZeRO-{config.learner.zero_stage})"),
        ]

    def _reference(self) -> str:
        if self.stored_reference:
            return "log-probabilities of the labels"
        return "computed before the first step" if objective_of(self.config).uses_reference else "none"

    def record(self) -> dict[str, Any]:
        return {
            "objective": self.config.train.objective,
            "labels": [
                {
                    "path": source.uri,
                    "fingerprint": source.fingerprint,
                    "reward": _reward_of(source.description),
                    "model": source.description.get("model.name"),
                }
                for source in self.examples.sources
            ],
            "examples": [list(row) for row in self.examples.counts.rows()]
            + [["Examples to learn from", f"{len(self.examples):,}"]],
        }

    def learn(self, folder: RunFolder, record: Run) -> None:
        import ray

        recipe = TrainRecipe(
            **self.shared(folder, record),
            stored_reference=self.stored_reference,
            policy_labelled=self.policy_labelled,
            pictures=self.examples.pictured,
            reference=_computed_reference(folder, self),
            steps_per_epoch=self.steps_per_epoch,
            examples=ray.put((self.examples, self.held_out)),
        )
        run_workers(recipe, folder, self.workers)


def _describe(config: TrainConfig) -> TrainRun:
    """Raises ConfigError and StoreError for all that can be known before a worker starts."""
    device, workers = pick_workers(config)
    dtype = resolve_dtype(config.learner.dtype, device)
    deepspeed = read_deepspeed(config)
    deepspeed_config(config, dtype, deepspeed)
    settings = load_settings(config.policy)
    examples = find_examples(config)
    reader = RowReader(examples.sources, examples.parts, config.policy, config.train.shuffle_parts)
    check_rows(reader, examples)
    config = _resolved(config, examples)
    check_step(config, examples, reader)
    learned, held_out = examples.split(config.train.eval_share)
    order = Order(learned.part, config.train.batch_size, config.train.seed, config.train.shuffle_parts)
    reference = config.reference if config.reference.name else config.policy
    stored, notes = stored_reference(examples.sources, reference, dtype)
    notes += position_notes(config, settings, int((examples.prompt_tokens + examples.tokens).max()))
    if config.reference.name and not stored and not objective_of(config).uses_reference:
        raise ConfigError(
            f"reference.name: has no effect under train.objective = {config.train.objective}, which compares with no "
            "reference, and the labels are of another model; leave it out"
        )
    if config.reference.name and not stored:
        check_rows(RowReader(examples.sources, examples.parts, config.reference, 1), examples)
    labelled, _ = stored_reference(examples.sources, config.policy, dtype)
    notes += [guess for source in examples.sources for guess in LabelStore(source.uri).guesses()]
    return TrainRun(
        config=config,
        device=device,
        workers=workers,
        dtype=dtype,
        deepspeed=deepspeed,
        labelled=examples,
        examples=learned,
        held_out=held_out,
        steps=config.train.max_steps or order.steps(config.train.epochs),
        rate=base_rate(config.train, settings.get_text_config().hidden_size, bool(config.lora.rank)),
        stored_reference=stored,
        policy_labelled=labelled,
        steps_per_epoch=order.steps_per_epoch,
        notes=notes + ([] if labelled else _behaviour_notes(config)) + _pair_notes(config, examples) + config.idle(),
        description=describe(config, examples.describe(), dtype, device, workers, deepspeed),
    )


def _resolved(config: TrainConfig, examples: Examples) -> TrainConfig:
    """With what was left open: where no preference is known pairs are by reward, and beta follows from that."""
    if not examples.counts.pairs.known:
        config = changed(config, {"pairs.preference": "reward"})
    return changed(config, {f"{name}.beta": beta_of(getattr(config, name).beta, config) for name in ("dpo", "ipo")})


def _behaviour_notes(config: TrainConfig) -> list[str]:
    if not objective_of(config).uses_behaviour:
        return []
    return [
        f"{config.train.objective} takes the model that labelled for the one that wrote the responses, and it is not the "
        "policy: where another wrote them, the importance ratios are wrong; awr needs none"
    ]


def _pair_notes(config: TrainConfig, examples: Examples) -> list[str]:
    """What is set of pairs by reward, where the input's own preferences make all pairs."""
    counts = examples.counts.pairs
    if config.train.objective not in PAIR_OBJECTIVES or not counts.known or counts.by_reward:
        return []
    why = "where the preferences of the input make all pairs; set pairs.preference = reward, or leave it out"
    return set_but_unread(config, [("pairs.select", why), ("pairs.min_margin", why)])


def _reward_of(description: dict[str, Any]) -> dict[str, Any]:
    """What the labels' rewards are: the endogenous one's settings, or the name of another kind."""
    if "labeller" in description:
        return {"kind": description["labeller"]}
    settings = {name: value for name, value in description.items() if name.startswith("reward.")}
    return {name.removeprefix("reward."): value for name, value in settings.items()}


def _computed_reference(folder: RunFolder, run: TrainRun) -> str | None:
    """Where the reference's log-probabilities are, once they are; None where the labels hold them or none are asked for."""
    config = run.config
    if run.stored_reference or not objective_of(config).uses_reference:
        return None
    reference = config.reference if config.reference.name else config.policy
    spec = ScorerSpec(
        model=reference.model_copy(update={"dtype": run.dtype}),
        device=run.device,
        gpus=int(run.device == "cuda"),
        threads=config.learner.cpus_per_worker,
        budget_tokens=config.learner.budget_tokens,
        check_responses=0,
        head_chunk_mb=config.learner.head_chunk_mb,
    )
    nodes = placed(config.run)
    return compute_references(
        folder, spec, config.policy, run.labelled, run.workers, config.learner.max_failures, nodes
    )
