"""What a server counts, for Prometheus; names and units are those of docs/serving.md."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from spark.serve.backend import Fork

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
NATS = (0.01, 0.03, 0.1, 0.3, 0.5, 1, 1.5, 2, 3, 5, 8)


class Metrics:
    """Counters of one server."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """`registry` is the one that the server's /metrics shows."""

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"spark:{name}", text, labels, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            # one number where an engine's server collects over processes
            return Gauge(f"spark:{name}", text, registry=registry, multiprocess_mode="livesum")

        self.trees_running = gauge("trees_running", "Requests with a tree in progress")
        self.trees_kept = gauge("trees_kept", "Trees in memory: kept, or in progress")
        self.leaves_reserved = gauge("leaves_reserved", "Leaf budgets of requests in progress")
        self._forks = counter("forks_total", "Leaves that share a prefix, by how", "path")
        self._generated = counter("generated_tokens_total", "Tokens sampled, each once")
        self._reused = counter("reused_tokens_total", "Output tokens forked leaves did not sample")
        self._recomputed = counter("recomputed_tokens_total", "Tokens computed again for forks")
        self._rejected = counter("branch_rejected_total", "Wishes of a rule not granted", "reason")
        self._refused = counter("requests_refused_total", "Requests answered 429", "reason")
        self._latency = Histogram(
            "spark:fork_latency_seconds",
            "From a fork's decision to the child's first token",
            buckets=SECONDS,
            registry=registry,
        )
        self._entropy = Histogram(
            "spark:token_entropy_nats",
            "Entropy of the whole vocabulary, per sampled token",
            buckets=NATS,
            registry=registry,
        )
        for path in ("exact", "cache", "recompute"):
            self._forks.labels(path)
        for reason in ("budget", "depth"):
            self._rejected.labels(reason)

    def generated(self, tokens: int) -> None:
        """Count sampled tokens."""
        self._generated.inc(tokens)

    def reused(self, tokens: int) -> None:
        """Count the tokens that a forked leaf inherits."""
        self._reused.inc(tokens)

    def entropy(self, nats: float) -> None:
        """Note the entropy of a sampled token."""
        self._entropy.observe(nats)

    def forked(self, fork: Fork, seconds: float | None) -> None:
        """Count a shared prefix; `seconds` for a fork that a rule decided on."""
        self._forks.labels(fork.path).inc()
        self._recomputed.inc(fork.recomputed)
        if seconds is not None:
            self._latency.observe(seconds)

    def rejected(self, reason: str) -> None:
        """Count a state that would have branched but for "budget" or "depth"."""
        self._rejected.labels(reason).inc()

    def refused(self, reason: str) -> None:
        """Count a request that came while the server was full."""
        self._refused.labels(reason).inc()
