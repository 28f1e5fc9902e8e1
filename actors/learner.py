"""The learner: a policy, its optimizer and their part of a step, on one of several workers under DeepSpeed's ZeRO.

    learner = Learner(spec)                     # on every worker, in an initialised torch.distributed
    row = learner.step(micro_batches, totals, learning_rate)
    values = learner.values(micro_batches)      # a critic's
    weights = learner.weights()                 # for samplers
    learner.save(folder); learner.restore(folder); learner.export(folder)

One step, on every worker at once:

    for each of its micro-batches, as many on every worker
        log pi of the responses; where asked for, entropies and a critic's values  pipeline.training.policy
        the objective's terms                   pipeline.training.objectives
        their sum / how many the step has       whatever workers and micro-batches it was cut into
        backward
    clip, AdamW

Knows no Ray: anything that initialises torch.distributed can drive it.
"""

import contextlib
import importlib
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from actors.elastic import read_whole, write_whole
from pipeline.errors import ConfigError, RunError
from pipeline.models.engines.probe import probe_text
from pipeline.models.loading import load_model, load_tokenizer, resolve_dtype
from pipeline.models.memory import training_budget
from pipeline.models.pictures import FAMILIES
from pipeline.models.pictures.files import copy_processor
from pipeline.tokens import TokenizedTurn
from pipeline.training.adapters import merged, with_adapters
from pipeline.training.batch import Response, collate
from pipeline.training.config import LearningConfig
from pipeline.training.deepspeed import deepspeed_config
from pipeline.training.objectives.base import Objective, Unit

if TYPE_CHECKING:
    from pipeline.training.pictures import PictureInputs
    from pipeline.training.policy import Outputs

NOTHING = TokenizedTurn(np.zeros(1, np.int32), np.zeros(1, np.int32), [])
"""What a worker without responses forwards, so that all do the same."""
MAX = "/max"  # ends the name of a metric whose largest value is reported rather than the mean


@dataclass(frozen=True)
class LearnerSpec:
    """What a worker needs to build its learner; it pickles."""

    config: LearningConfig
    objective: Objective
    device: str  # "cpu" or "cuda"
    deepspeed: str | None = None  # the content of `learner.deepspeed`
    critic: bool = False  # a critic is trained with the policy; the objective must use its values
    entropies: bool = False  # the objective sees entropies
    pictures: bool = False  # prompts have pictures


class Diverged(RunError):
    """An unrecoverable error that every worker meets at the same time."""


@dataclass
class Sums:
    """Metrics of a step so far: sum and count under each name; the largest for the sum where it ends in MAX.

    They stay on the device until `means`, so that no micro-batch waits for the one before it.
    """

    totals: dict[str, torch.Tensor] = field(default_factory=dict)  # float64
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, values: torch.Tensor) -> None:
        if not values.numel():
            return
        values = values.detach().double()
        further = values.max() if name.endswith(MAX) else values.sum()
        if name in self.totals:
            join = torch.maximum if name.endswith(MAX) else torch.add
            further = join(self.totals[name], further)
        self.totals[name], self.counts[name] = further, self.counts.get(name, 0) + values.numel()

    def means(self) -> dict[str, float]:
        """Over all workers, who call it together; the largest where the name ends in MAX."""
        numbers = torch.stack(list(self.totals.values())).tolist() if self.totals else []  # one transfer for all
        own = {name: (total, self.counts[name]) for name, total in zip(self.totals, numbers, strict=True)}
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, own)
        row = {}
        for name in sorted({name for part in parts for name in part}):
            totals, counts = zip(*(part[name] for part in parts if name in part), strict=True)
            row[name] = max(totals) if name.endswith(MAX) else sum(totals) / sum(counts)
        return row


class Learner:
    """Raises ConfigError where the policy or its DeepSpeed configuration cannot be used."""

    def __init__(self, spec: LearnerSpec):
        from pipeline.training.policy import Policy, choose_layout  # late: who starts workers loads no model

        config = spec.config
        self.config = config
        self.objective = spec.objective
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        deepspeed = _deepspeed(spec.device)
        settings = deepspeed_config(config, resolve_dtype(config.learner.dtype, spec.device), spec.deepspeed)
        self.adapted: Any = None  # the policy as peft's, where it has adapters
        model = self._load(spec, settings)
        self.policy = Policy(
            model,
            config.learner.head_chunk_mb,
            entropies=spec.entropies,
            critic_seed=config.optimizer.seed if spec.critic else None,
            pictures=_picture_inputs(model, config) if spec.pictures else None,
        )
        trained = [p for p in self.policy.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            trained,
            lr=0.0,
            betas=(config.optimizer.beta1, config.optimizer.beta2),
            weight_decay=config.optimizer.weight_decay,
        )
        with _quiet():
            self.engine, *_ = deepspeed.initialize(model=self.policy, optimizer=optimizer, config=settings)
        self.engine.train()
        self.policy.device = torch.device(self.engine.device)
        self.gathered = deepspeed.zero.GatheredParameters
        self.notes = choose_layout(self.policy, self.engine, config.learner.layout)
        self._agree_on_budget()
        self.host: dict[str, torch.Tensor] = {}  # weights on the CPU, of what is not there already

    def _agree_on_budget(self) -> None:
        """Where none is configured, that of the worker with the least memory, from here on in `config`."""
        learner = self.config.learner
        if learner.budget_tokens is None:
            budgets: list[Any] = [None] * self.world
            dist.all_gather_object(budgets, training_budget(self.policy.model, learner.gradient_checkpointing))
            agreed = learner.model_copy(update={"budget_tokens": min(budgets)})
            self.config = self.config.model_copy(update={"learner": agreed})

    def _load(self, spec: LearnerSpec, settings: dict[str, Any]) -> Any:
        """The policy's model, its adapters included. With ZeRO-3 each worker holds its part from the first."""
        config = spec.config
        with _partitioned(settings):
            dtype = resolve_dtype(config.learner.dtype, spec.device)
            self.named = config.policy.model_copy(update={"dtype": dtype})
            model = load_model(self.named, spec.device)  # a worker sees its own GPU
        if config.learner.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if config.lora.rank:
            self.adapted = with_adapters(model, config.lora, config.optimizer.seed)
            model = self.adapted.get_base_model()
        return model

    # A step

    def step(
        self, micro_batches: Sequence[Sequence[Response]], totals: Mapping[Unit, int], learning_rate: float
    ) -> dict[str, float]:
        """One step of the optimizer on this worker's part of a batch. All workers call it, with as many micro-batches.

        Args:
            totals: how many pairs, responses and tokens the step has on all workers.

        Returns:
            Metrics of the whole step, the same on every worker.

        Raises:
            Diverged: on every worker, where the loss or the gradient is not a number.
        """
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        sums = Sums()
        for number, responses in enumerate(micro_batches, 1):
            last = number == len(micro_batches)
            self.engine.set_gradient_accumulation_boundary(last)
            loss = self._losses(responses, sums).sum() / totals[self.objective.unit]
            self.engine.backward(loss * self.world)  # DeepSpeed takes the mean over workers, we want the sum
            if last:
                row = {"loss": 0.0, **sums.means()}  # without a response on any worker the loss is 0
                self._require_number(row["loss"], "loss", learning_rate)
            self.engine.step()
        norm = float(self.engine.get_global_grad_norm())
        norm = norm if norm >= 0 else math.nan  # for which DeepSpeed has -1
        self._require_number(norm, "gradient's norm", learning_rate)
        return {**row, "grad_norm": norm, "learning_rate": learning_rate}

    @torch.no_grad()
    def measure(self, micro_batches: Iterable[Sequence[Response]]) -> dict[str, float]:
        """The metrics of a step over any number of micro-batches, as many on every worker, without a step."""
        sums = Sums()
        for responses in micro_batches:
            self._losses(responses, sums)
        return sums.means()

    @torch.no_grad()
    def values(self, micro_batches: Iterable[Sequence[Response]]) -> list[np.ndarray]:
        """The critic's values of this worker's responses, in order, [H] float32 each. All workers call it, with as many
        micro-batches."""
        return self._of_each(micro_batches, "values")

    @torch.no_grad()
    def logprobs(self, micro_batches: Iterable[Sequence[Response]]) -> list[np.ndarray]:
        """log pi of this worker's responses as it is now, as `values` has it of those."""
        return self._of_each(micro_batches, "logprobs")

    def _of_each(self, micro_batches: Iterable[Sequence[Response]], output: str) -> list[np.ndarray]:
        arrays = []
        for responses in micro_batches:
            of_all = getattr(self._outputs(responses), output)
            assert of_all is not None, f"a learner without {output}"
            if responses:
                lengths = [len(response.response_ids) for response in responses]
                arrays += [part.numpy() for part in of_all.float().cpu().split(lengths)]
        return arrays

    @torch.no_grad()
    def probe(self) -> np.ndarray:
        """log pi of every token of the probe's text but the first, [L - 1] float32, for an engine that takes these weights to
        be held against. All workers call it."""
        ids = np.array(probe_text(self.policy.model.config.get_text_config().vocab_size), np.int32)
        outputs: Outputs = self.engine([TokenizedTurn(ids[:1], ids[1:], [])])
        return outputs.logprobs.float().cpu().numpy()

    def _losses(self, responses: Sequence[Response], sums: Sums) -> torch.Tensor:
        """The losses of a micro-batch, one for each pair, response or token; their metrics go to `sums`."""
        outputs = self._outputs(responses)
        if not responses:  # of everything, so that all parameters have gradients on every worker
            return torch.stack([each.sum() for each in outputs if each is not None]) * 0.0
        batch = collate(responses, *outputs)
        terms = self.objective.terms(batch)
        sums.add("loss", terms.losses)
        if batch.reference is not None:
            sums.add("reference_drift", (batch.logprobs.detach() - batch.reference).abs())
        for name, values in terms.metrics.items():
            sums.add(name, values)
        return terms.losses

    def _outputs(self, responses: Sequence[Response]) -> "Outputs":
        outputs: Outputs = self.engine(responses if responses else [NOTHING])
        return outputs

    def _require_number(self, value: float, name: str, learning_rate: float) -> None:
        if not math.isfinite(value):
            raise Diverged(
                f"the {name} is {value}; lower {self.config.section}.learning_rate (this step's is {learning_rate:.2g}), "
                "or look for rewards that are far out; with bfloat16, try learner.dtype = float32"
            )

    # What is kept

    def save(self, folder: str, step: int) -> None:
        """Write this worker's part of a checkpoint. All workers call it; their folders may be one or merged later."""
        with _quiet():
            if self.config.learner.min_workers:
                write_whole(self.engine, folder, step)
                return
            self.engine.save_checkpoint(
                folder, tag=TAG, client_state={"step": step}, exclude_frozen_parameters=bool(self.config.lora.rank)
            )

    def restore(self, folder: str) -> int:
        """Take up a checkpoint, merged of all workers' parts. Returns the number of steps that were done by it.

        Raises ConfigError where there is none in the folder.
        """
        with _quiet():
            if self.config.learner.min_workers:
                return read_whole(self.engine, folder)
            path, state = self.engine.load_checkpoint(folder, tag=TAG, load_module_strict=not self.config.lora.rank)
        if path is None:
            raise ConfigError(f"{folder} holds no checkpoint")
        return int(state["step"])

    def export(self, folder: str) -> None:
        """Write the policy as a Hugging Face model with its tokenizer, whole from whatever it was split into. All workers
        call it; the first writes. Adapters are merged, and kept in `adapter/` besides."""
        state = self._whole(self.policy.model if self.adapted is None else self.adapted)
        if self.rank == 0:
            load_tokenizer(self.config.policy).save_pretrained(folder)
            if self.policy.model.config.model_type in FAMILIES:
                copy_processor(self.config.policy, folder)
            if self.adapted is None:
                self.policy.model.save_pretrained(folder, state_dict=state)
            else:
                adapter = os.path.join(folder, "adapter")
                if os.path.isdir(self.named.name):  # no place of this machine
                    self.adapted.peft_config["default"].base_model_name_or_path = os.path.basename(self.named.name)
                self.adapted.save_pretrained(adapter, state_dict=state)
                os.remove(os.path.join(adapter, "README.md"))  # peft's, with nothing filled in
                merged(self.named, adapter).save_pretrained(folder)
        dist.barrier()

    def weights(self) -> dict[str, torch.Tensor] | None:
        """The policy's weights as a sampler's model takes them by `load_state_dict(strict=False)`, on the CPU of the first
        worker, None on the others. All workers call it. They are to be used before the next step: it changes what is on the
        CPU anyway, and the next call writes the rest anew.

        Tied weights are there once. With adapters only these are there, for a model that `with_adapters` has given the
        same ones: its other weights are as they were read.
        """
        state = self._whole(self.policy.model)
        if self.policy.device.type == "cuda":
            torch.cuda.empty_cache()  # for the processes that share this GPU
        return state if self.rank == 0 else None

    def _whole(self, module: Any) -> dict[str, torch.Tensor]:
        """Weights of the policy's model by their names in `module`, on the first worker's CPU, gathered one at a time; of one
        with adapters only theirs."""
        state = {}
        for name, parameter in module.named_parameters():
            if self.adapted is None or parameter.requires_grad:
                with self.gathered([parameter]):
                    if self.rank == 0:
                        state[name] = self._on_host(name, parameter)
        if self.rank == 0 and self.adapted is None:
            saved = module.state_dict(keep_vars=True)  # of the buffers those that are saved with a model
            state |= {name: self._on_host(name, buffer) for name, buffer in module.named_buffers() if name in saved}
        return state

    def _on_host(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor on the CPU: itself where it is and stays there, else a copy in memory that is kept for it, pinned where
        it comes from a GPU."""
        if tensor.device.type == "cpu" and not hasattr(tensor, "ds_id"):  # which one that is partitioned has
            return tensor.detach()
        if name not in self.host:
            pinned = tensor.device.type == "cuda"
            self.host[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
        return self.host[name].copy_(tensor.detach())


TAG = "state"


def _picture_inputs(model: Any, config: LearningConfig) -> "PictureInputs":
    """Raises ConfigError where the policy sees no pictures."""
    from pipeline.models.pictures import picture_processor, require_pictures
    from pipeline.training.pictures import PictureInputs

    tokenizer = load_tokenizer(config.policy)
    require_pictures(config.policy, model.config, tokenizer)
    processor = picture_processor(config.policy, model.config, tokenizer)
    assert processor is not None
    return PictureInputs(model, processor)


def _deepspeed(device: str) -> Any:
    """DeepSpeed, imported for this device, with torch.distributed as it is.

    It takes its device at import, once and for all, from the environment.
    """
    os.environ["DS_ACCELERATOR"] = device
    import deepspeed

    taken = deepspeed.accelerator.get_accelerator().device_name()
    if taken != device:
        raise RunError(f"DeepSpeed was imported for {taken} before; make a learner on {device} in a process of its own")

    deepspeed.logger.setLevel(logging.ERROR)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a CPU's would be compiled on the spot
    with _quiet():
        deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False)
    _import_muon()
    return deepspeed


def _import_muon() -> None:
    """DeepSpeed compares every optimizer with Muon, whose import would load torch's compiler for a second; ours is AdamW."""
    own = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        with contextlib.suppress(ImportError):
            importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        if own is None:
            del os.environ["TORCHDYNAMO_DISABLE"]
        else:
            os.environ["TORCHDYNAMO_DISABLE"] = own


@contextlib.contextmanager
def _partitioned(settings: dict[str, Any]) -> Iterator[None]:
    """With ZeRO-3, models loaded in here are split over the workers as they are read."""
    if settings["zero_optimization"]["stage"] != 3:
        yield
        return
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    registered = HfDeepSpeedConfig(settings)  # transformers asks for it as long as it lives
    yield
    del registered


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """DeepSpeed prints as well as logs."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
