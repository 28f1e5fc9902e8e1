"""Figures of a server for Prometheus: what came in, what is in hand, what the model did. No text of a request is in them."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from jobs.serve.batching import Batcher

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
PREFIX = "endoreward_serve_"


class Metrics:
    """Counts requests, and reads the rest from the batcher when it is asked."""

    def __init__(self, batcher: Batcher):
        self._batcher = batcher
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
        batcher, counts = self._batcher, self._batcher.counts
        yield GaugeMetricFamily(f"{PREFIX}ready", "1 once the model is loaded", int(batcher.ready))
        yield GaugeMetricFamily(f"{PREFIX}in_hand", "requests from their arrival to their answer", batcher.in_hand)
        yield GaugeMetricFamily(f"{PREFIX}waiting", "requests that wait for the model", batcher.waiting)
        yield CounterMetricFamily(f"{PREFIX}batches", "batches that the model answered", counts.batches)
        yield CounterMetricFamily(f"{PREFIX}responses", "responses that the model answered", counts.responses)
        yield CounterMetricFamily(f"{PREFIX}tokens", "tokens of batches, a shared prompt once", counts.tokens)
        yield CounterMetricFamily(f"{PREFIX}busy_seconds", "that the model computed", counts.busy_s)
        yield CounterMetricFamily(f"{PREFIX}failures", "batches that the model raised an error on", counts.failures)

    def page(self) -> bytes:
        return generate_latest(self._registry)
