"""What a run will cost, from a sample of its corpus: tokens, then hours and a price where a rate and a price are given.

Everything here is an estimate. Files are taken to be like their first shard, and actors to compute without a pause.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from pipeline.errors import ConfigError
from pipeline.store import LabelStore
from pipeline.store.manifest import Manifest

NOT_COUNTED = "starting nodes, loading the model, waiting for the last shards, work done twice, CPU nodes, storage"


@dataclass
class Sample:
    """What the first shards of some files hold, of a corpus whose rows and files are known."""

    rows: int  # of the whole corpus
    files: int
    shards: int
    sampled_rows: int = 0
    responses: int = 0
    prompt_tokens: int = 0  # a prompt that responses share counts once
    response_tokens: int = 0
    truncated: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    tokens_a_row: list[float] = field(default_factory=list)  # of each sampled file

    @property
    def scale(self) -> float:
        """By which what was counted becomes the whole corpus."""
        return self.rows / max(1, self.sampled_rows)

    @property
    def tokens(self) -> float:
        """That the model computes for the whole corpus."""
        return (self.prompt_tokens + self.response_tokens) * self.scale

    def table(self) -> Iterator[tuple[str, str]]:
        yield "Rows", f"{self.rows:,} in {self.files:,} files, {self.shards:,} shards"
        yield "Sampled rows", f"{self.sampled_rows:,}"
        yield "Responses", f"{self.responses * self.scale:,.0f}"
        yield "Response tokens", f"{self.response_tokens * self.scale:,.0f}"
        yield "Tokens to forward", f"{self.tokens:,.0f} (a shared prompt once)"
        if len(self.tokens_a_row) > 1:
            least, most = min(self.tokens_a_row), max(self.tokens_a_row)
            mean = self.tokens / max(1, self.rows)
            yield "Tokens a row", f"{mean:,.0f}; from {least:,.0f} to {most:,.0f} in {len(self.tokens_a_row)} files"
        yield "Truncated", f"{self.truncated * self.scale:,.0f}"
        for reason, count in self.errors.most_common():
            yield f"Error {reason}", f"{count * self.scale:,.0f}"


@dataclass(frozen=True)
class Rate:
    """How many tokens one actor computes in a second, prompts included; and who says so."""

    tokens_per_second: float
    source: str


def measured_rate(place: str) -> Rate:
    """The rate of the run that finished a label store.

    Raises:
        ConfigError: where none did that computed anything.
    """
    manifest = Manifest.find(LabelStore(place))
    timing = manifest.timing if manifest else None
    if manifest is None or timing is None or not timing.score_seconds or not timing.forwarded_tokens:
        raise ConfigError(
            f"--measured {place}: no finished run left its rate there; name a store whose run has computed labels, or give "
            "--tokens-per-second"
        )
    model = manifest.config.get("model", {}).get("name", "another model")
    return Rate(timing.forwarded_tokens / timing.score_seconds, f"measured in {place}, with {model}")


def costs(sample: Sample, rate: Rate | None, actors: int, price: float | None) -> Iterator[tuple[str, str]]:
    """Rows of the table of hours and prices.

    Args:
        actors: that compute side by side.
        price: of an actor's hour, in whatever currency.
    """
    if rate is None:
        yield "Hours and price", "give --tokens-per-second or --measured STORE, and --price of an actor's hour"
        return
    hours = sample.tokens / rate.tokens_per_second / 3600
    yield "Rate", f"{rate.tokens_per_second:,.0f} tokens/s an actor, {rate.source}"
    yield "Computing", f"{_time(hours)} of one actor, {_time(hours / actors)} of {actors:,} (scorer.max_actors)"
    if price is not None:
        million = hours * price / max(1, sample.rows) * 1e6
        yield "Price", f"{hours * price:,.2f} at {price:g} an actor's hour; a million rows {million:,.2f}"
    yield "Not counted", NOT_COUNTED


def _time(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} hours"
    return f"{hours * 60:,.1f} minutes" if hours * 60 >= 1 else f"{hours * 3600:,.1f} seconds"
