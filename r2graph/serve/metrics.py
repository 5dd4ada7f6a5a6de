"""What Prometheus is told. Labels are names from the server's own set-up, never a client's text."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from r2graph.serve.gate import Gate
from r2graph.serve.served import Served
from r2graph.state import R2Output

BUCKETS_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)


class Metrics:
    """Counters of one app, in a registry of its own: two apps of a process do not mix."""

    def __init__(self, served: Served, gate: Gate) -> None:
        self._registry = CollectorRegistry()
        self._runs = self._counter("runs", "Runs that ended in a result.", "model", "stop_reason")
        self._errors = self._counter("errors", "Requests that got an error, by its code.", "code")
        self._cancelled = self._counter("cancelled", "Runs whose client had gone.", "model")
        self._usd = self._counter(
            "cost_usd",
            "Dollars; of cancelled runs the attempts that had ended, which is less than they cost; "
            "of cancelled calls with tools or a schema the most that they can have.",
            "model",
        )
        self._estimate = self._counter(
            "counterfactual_usd", "Dollars, had the strongest member done all steps.", "model"
        )
        names = "model", "member"
        self._calls = self._counter("calls", "Calls of runs that ended in a result.", *names)
        self._tokens = self._counter("tokens", "Tokens of these calls.", *names, "direction")
        self._seconds = Histogram(
            "r2graph_run_seconds",
            "Seconds from the start of a run, after any queue, to its result.",
            ["model"],
            buckets=BUCKETS_S,
            registry=self._registry,
        )
        self._gauge("runs_running", "Runs under way.", gate, "running")
        self._gauge("runs_waiting", "Runs in the queue.", gate, "waiting")
        self._registry.register(_Breakers(served))

    def ended(self, model: str, result: R2Output, seconds: float) -> None:
        """A run has its result."""
        self._runs.labels(model, result["stop_reason"]).inc()
        self._seconds.labels(model).observe(seconds)
        self.spent(model, result["cost_usd"])
        self._estimate.labels(model).inc(float(result["counterfactual_usd"]))
        for member, use in result["usage"].items():
            self._calls.labels(model, member).inc(use["calls"])
            self._tokens.labels(model, member, "input").inc(use["input_tokens"])
            self._tokens.labels(model, member, "output").inc(use["output_tokens"])

    def spent(self, model: str, dollars: str | Decimal) -> None:
        self._usd.labels(model).inc(float(dollars))

    def refused(self, code: str) -> None:
        self._errors.labels(code).inc()

    def cancelled(self, model: str) -> None:
        self._cancelled.labels(model).inc()

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(f"r2graph_{name}", about, labels, registry=self._registry)

    def _gauge(self, name: str, about: str, gate: Gate, field: str) -> None:
        gauge = Gauge(f"r2graph_{name}", about, registry=self._registry)
        gauge.set_function(lambda: getattr(gate, field))


class _Breakers(Collector):
    """Which members are being left alone, looked up when it is asked for."""

    def __init__(self, served: Served) -> None:
        self._served = served

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "r2graph_breaker_open",
            "1 while a member is left alone because it failed too often.",
            labels=["model", "member"],
        )
        for name, graph in self._served.graphs.items():
            pool = graph.defaults.pool
            health = graph.defaults.health.get(pool.name)
            for member in pool.names:
                family.add_metric(
                    [name, member], float(health is not None and health.is_open(member))
                )
        yield family
