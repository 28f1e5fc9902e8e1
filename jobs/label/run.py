"""`endoreward label`: a corpus and a model in, a label store out. Whatever is wrong with the description or the input is
said before anything is written."""

import contextlib

from jobs import terminal
from jobs.cluster import joins_cluster, pick_device, warn_of_local_output
from jobs.label.label_run import LabelRun, LateCluster
from jobs.label.later import FIRST_BYTES
from jobs.label.places import require, with_absolute_places
from jobs.label.plan import check_sampled, find_inputs, plan_inputs
from jobs.label.preview import Preview, show_inputs
from jobs.label.sizing import Rate, costs
from pipeline.config import OF_A_TEMPLATE, LabelConfig, set_but_unread
from pipeline.report.toml import to_toml
from pipeline.rewards.labellers import Endogenous
from pipeline.rewards.labellers.beside import begun
from pipeline.store import LabelStore


def label(
    config: LabelConfig,
    *,
    dry_run: bool = False,
    retry_errors: bool = False,
    command: str = "",
    rate: Rate | None = None,
    price: float | None = None,
) -> int:
    """Run the job. Returns the exit code; raises EndorewardError.

    Args:
        dry_run: show what it would do, and what that would cost at a `rate` and a `price` of an actor's hour.
        command: what the manifest says was run.
    """
    require(model=config.model.name, input=config.input.paths, output=config.output.path)
    config = with_absolute_places(config)
    store = LabelStore(config.output.path)
    store.check_place()
    files = find_inputs(config.input, config.output.path)
    labeller = Endogenous(config, config.model)
    if dry_run:
        terminal.say(to_toml(config.model_dump()))
        inputs = plan_inputs(None, files, config.input)  # what it says of columns should not wait for a tokenizer
        config = config.model_copy(update={"tokens": config.tokens.dated(store.began_on())})
        labeller = Endogenous(config, config.model)
        check_sampled(inputs, labeller.renderer)
        show_inputs(inputs)
        with begun(labeller) as preparation:
            preview = Preview(labeller, preparation)
            preview.show_example(inputs)
            sample = preview.sample(inputs)
        terminal.print_table("Estimate, from a sample", sample.table())
        actors = config.scorer.max_actors or config.scorer.min_actors
        terminal.print_table("Cost, an estimate too", costs(sample, rate, actors, price))
        return 0
    with contextlib.ExitStack() as stack:
        preparation = stack.enter_context(begun(labeller))
        for warning in [*config.reward.warnings(), *_idle(labeller)]:
            terminal.warn(warning)
        ray = LateCluster(config, stack)
        if joins_cluster(config.run):  # only the cluster knows its devices
            ray.open()
            warn_of_local_output(config.output.path)
        run = LabelRun.open(labeller, config.output.path, pick_device(config), files, first_bytes=FIRST_BYTES)
        show_inputs(run.inputs, run.later)
        Preview(run.labeller, preparation).show_example(run.inputs)
        run.complete(ray, command, retry_errors=retry_errors, preparation=preparation)
        return 0


def _idle(labeller: Endogenous) -> list[str]:
    """What is set and moves no reward, which only the tokenizer tells, or moves other columns alone."""
    idle = []
    if labeller.renderer.template is not None:
        idle.append(("tokens.append_eos", "with the tokenizer's chat template, which ends each turn itself"))
    else:
        idle += [(f"tokens.{field}", "without a chat template, which the tokenizer has not") for field in OF_A_TEMPLATE]
    if not labeller.config.reward.depends_on_gamma:
        kind = labeller.config.reward.aggregation
        idle.append(("reward.gamma", f"on the rewards of reward.aggregation = {kind}; it moves token_rewards"))
    return set_but_unread(labeller.config, idle)
