"""What a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from persona_tui.monitors.second_opinion import Opinion

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Measures:
    """One server's figures.

    Attributes:
        requests: finished requests, by path and status.
        tokens: tokens, by kind: prompt or completion.
        left: requests whose client went away.
        seconds: from a request's arrival to its end, by path.
        first_token: from a request's arrival to its first token.
        batch: rows of a batch when it begins.
        opinions: what validators and the model itself have said of replies, by whom and what.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "persona_tui_requests", "Requests that were answered.", ["path", "status"], registry=registry
        )
        self.tokens = Counter("persona_tui_tokens", "Tokens read and written.", ["kind"], registry=registry)
        self.left = Counter(
            "persona_tui_left", "Requests whose client went away.", ["path"], registry=registry
        )
        self.seconds = Histogram(
            "persona_tui_request_seconds",
            "From a request's arrival to its end.",
            ["path"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.first_token = Histogram(
            "persona_tui_first_token_seconds",
            "From a request's arrival to its first token.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch = Histogram("persona_tui_batch_rows", "Rows of a batch.", buckets=_ROWS, registry=registry)
        self.opinions = Counter(
            "persona_tui_opinions",
            "What was said of replies: safe, unsafe or failed.",
            ["by", "said"],
            registry=registry,
        )
        self._rows = Gauge("persona_tui_rows", "Replies that are being written.", registry=registry)
        self._waiting = Gauge("persona_tui_waiting", "Replies that wait.", registry=registry)

    def reviewed(self, opinions: Iterable[Opinion]) -> None:
        """Count what was said of a reply."""
        said = {True: "safe", False: "unsafe", None: "failed"}
        for each in opinions:
            self.opinions.labels(each.by, said[each.safe]).inc()

    def page(self, rows: int, waiting: int) -> bytes:
        """Return everything as Prometheus reads it.

        Args:
            rows: replies that are being written now.
            waiting: replies that wait now.
        """
        self._rows.set(rows)
        self._waiting.set(waiting)
        return generate_latest(self._registry)
