"""Figures of a server for Prometheus: what came in, what is in hand, what the model did. No text of a request is in them."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from jobs.serve.desk import Desk

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
PREFIX = "endoreward_serve_"


class Metrics:
    """Counts requests, and reads the rest from the desk when it is asked."""

    def __init__(self, desk: Desk):
        self._desk = desk
        self._registry = CollectorRegistry()
        of = ["route", "status"]
        self._requests = Counter(f"{PREFIX}requests", "requests that were answered", of, registry=self._registry)
        self._seconds = Histogram(
            f"{PREFIX}request_seconds", "from a request's first byte to the end", ["route"], buckets=SECONDS,
            registry=self._registry,
        )  # fmt: skip
        self._registry.register(self)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request of a route that exists, or of `other`; 499 where the client had gone."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def collect(self) -> Iterator[Metric]:
        desk = self._desk
        yield GaugeMetricFamily(f"{PREFIX}ready", "1 once all models are loaded", int(desk.ready))
        yield GaugeMetricFamily(f"{PREFIX}in_hand", "requests from their arrival to their answer", desk.in_hand)
        waiting = GaugeMetricFamily(f"{PREFIX}waiting", "requests that wait for the model", labels=["model"])
        families = {
            name: CounterMetricFamily(PREFIX + name, text, labels=["model"])
            for name, text in (
                ("batches", "batches that the model answered"),
                ("responses", "responses that the model answered"),
                ("tokens", "tokens of batches, a shared prompt once"),
                ("busy_seconds", "from a batch's leaving the queue to its answer"),
                ("failures", "batches that the model raised an error on"),
                ("lost", "batches whose replica ended, which were asked again"),
            )
        }
        for model, batcher in desk.batchers.items():
            waiting.add_metric([model], batcher.waiting)
            counts = batcher.counts
            values = (counts.batches, counts.responses, counts.tokens, counts.busy_s, counts.failures, counts.lost)
            for family, value in zip(families.values(), values, strict=True):
                family.add_metric([model], value)
        yield waiting
        yield from families.values()
        yield from self._of_tokens()

    def _of_tokens(self) -> Iterator[Metric]:
        sampled = CounterMetricFamily(f"{PREFIX}sampled", "responses that came as tokens", labels=["model"])
        other = CounterMetricFamily(
            f"{PREFIX}other_tokens", "those of them that are not the tokens of their own text", labels=["model"]
        )
        for name, service in self._desk.services.items():
            sampled.add_metric([name], service.tokens.sampled)
            other.add_metric([name], service.tokens.other)
        yield sampled
        yield other

    def page(self) -> bytes:
        return generate_latest(self._registry)
