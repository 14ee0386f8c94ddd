"""Requests and the job table in; figures for Prometheus out. Counts only: no name of anybody's."""

from collections.abc import Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from launch.service.states import State
from launch.service.store import Jobs

TYPE = "text/plain; version=0.0.4; charset=utf-8"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120)
"""Seconds."""


class Metrics:
    """Of one service; a registry of its own, so that two in one process do not mix."""

    def __init__(self, jobs: Jobs, slots: int):
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "diffdoctor_requests",
            "Requests that were answered.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "diffdoctor_request_seconds",
            "Until an answer begins.",
            ["method", "route"],
            registry=self.registry,
            buckets=BUCKETS,
        )
        ProcessCollector(registry=self.registry)
        self.registry.register(_Table(jobs, slots))

    def heard(self, method: str, route: str, status: int, seconds: float) -> None:
        """One answer; `route` is the pattern, so that no id becomes a series of its own."""
        method = method if method in METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Table(Collector):
    """Asked at every scrape: the table is the truth, also of what happened before a restart."""

    def __init__(self, jobs: Jobs, slots: int):
        self.jobs, self.slots = jobs, slots

    def describe(self) -> list[Metric]:
        return []  # else the table would be asked already when this is registered

    def collect(self) -> Iterator[Metric]:
        states = GaugeMetricFamily("diffdoctor_jobs", "Jobs by their state.", labels=["status"])
        found = self.jobs.counts()
        for state in State:
            states.add_metric([state], found.get(state, 0))
        yield states
        yield GaugeMetricFamily("diffdoctor_slots", "Jobs that may run at once.", self.slots)
        used = len(self.jobs.live())
        yield GaugeMetricFamily("diffdoctor_slots_used", "Slots with a trainer.", used)
