"""What writes, before it does: whether the engine can run the model, whether the server answers, and what that will cost."""

from dataclasses import dataclass, replace

from jobs import terminal
from jobs.label.backlog import Backlog
from pipeline.config import EvaluateConfig, SampleConfig
from pipeline.corpus import read_shards
from pipeline.errors import ConfigError
from pipeline.models.engines.checks import check_vllm
from pipeline.rewards.labellers import Labeller, Sampling
from pipeline.rewards.labellers.beside import begun

LOOKED_AT = 16
"""Files whose first shard an estimate is made from; where there are more, fewer than twice as many."""


def checked_writer(labeller: Labeller, device: str) -> Labeller:
    """The labeller, with the name of the server's model where a server writes. Raises ConfigError where what is to write
    cannot."""
    config = labeller.config
    if labeller.writer == "vllm":
        check_vllm(labeller.model, device, "judge.engine" if isinstance(config, EvaluateConfig) else "sampler.engine")
    if labeller.writer != "endpoint":
        return labeller
    from pipeline.models.engines.endpoint import checked

    assert isinstance(config, SampleConfig | EvaluateConfig)
    name = checked(labeller.endpoint(), labeller.model).model
    return replace(
        labeller, config=config.model_copy(update={"endpoint": config.endpoint.model_copy(update={"model": name})})
    )


@dataclass(frozen=True)
class Estimate:
    """What is going to be asked: each file is taken to be as its first shard is."""

    requests: float
    prompt_tokens: float
    most_answer_tokens: float

    def cost(self, input_price: float, output_price: float) -> tuple[float, float]:
        """Least and most; prices are of a million tokens."""
        least = self.prompt_tokens * input_price / 1e6
        return least, least + self.most_answer_tokens * output_price / 1e6


def estimate(labeller: Labeller, backlog: Backlog) -> Estimate:
    """Prepares the first shard of some files, in a process beside this one."""
    rows, requests, tokens = 0, 0.0, 0.0
    files = list(backlog.first_left())
    with begun(labeller) as preparation:
        for stored, shard, left in files[:: max(1, len(files) // LOOKED_AT)]:
            [(_, content)] = read_shards(stored.file, stored.format, [shard])
            prepared = preparation.prepare(labeller, shard, 0, content, stored.shape)
            rows += left
            requests += left / shard.rows * sum(question.samples for question in prepared.requests)
            tokens += left / shard.rows * sum(each.samples * len(each.prompt_ids) for each in prepared.requests)
    scale = backlog.rows / max(1, rows)
    return Estimate(requests * scale, tokens * scale, requests * scale * _longest(labeller))


def announce(labeller: Labeller, backlog: Backlog) -> None:
    """Say what a server is going to be asked. Raises ConfigError where that is more than the run may cost."""
    config = labeller.config
    assert isinstance(config, SampleConfig | EvaluateConfig)
    section, due = config.endpoint, estimate(labeller, backlog)
    least, most = due.cost(section.input_price, section.output_price)
    price = f"; at these prices {least:,.2f} to {most:,.2f}" if section.input_price or section.output_price else ""
    terminal.say(
        f"{labeller.address}, model {section.model}: about {due.requests:,.0f} requests with {due.prompt_tokens:,.0f} tokens "
        f"of prompts, at most {due.most_answer_tokens:,.0f} tokens of answers{price}"
    )
    if section.max_tokens and due.prompt_tokens > section.max_tokens:
        raise ConfigError(
            f"the prompts alone are about {due.prompt_tokens:,.0f} tokens, more than endpoint.max_tokens = "
            f"{section.max_tokens:,}; raise it, or give fewer rows"
        )


def _longest(labeller: Labeller) -> int:
    if isinstance(labeller, Sampling):
        return labeller.drawn.max_new_tokens
    assert isinstance(labeller.config, EvaluateConfig)
    return labeller.config.judge.max_new_tokens
