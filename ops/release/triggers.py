"""When a new version is rolled back: the figures that are watched, and the five triggers as a table. Pure.

Each trigger has one formula. With numbers it says how much worse the new version is; with queries in their place it
makes the same question for Prometheus, which the AnalysisTemplates of deploy/k8s/prod ask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from string import Template
from typing import Any

from shared.errors import UNREADABLE

# Figures are of the last 5 minutes. They are read every 30 s, and a trigger must be met twice in a row.
WINDOW_S = 300
EVERY_S = 30
IN_A_ROW = 2

# With fewer requests or events than this a share or a percentile says nothing.
ENOUGH = 50

# So long a verdict may stay unknown. Then a person decides.
WAIT_S = 1800

# A service starts in some seconds. A process that was never ready after this time will not be.
READY_WITHIN_S = 120

# No answer of a new version counts as slow below this.
FAST_S = 0.25

_PROBES = '"/healthz|/readyz|/metrics"'
_REQUESTS = f"$pods,route!~{_PROBES}"
_UNREADABLE = f'reason=~"{"|".join(UNREADABLE)}"'


def _count(metric: str, labels: str) -> str:
    return f"(sum(increase({metric}{{{labels}}}[$window])) or vector(0))"


def _p99(metric: str, labels: str) -> str:
    # Without a request the quantile is NaN, which no comparison lets through.
    buckets = f"sum by (le) (rate({metric}_bucket{{{labels}}}[$window]))"
    return f"((histogram_quantile(0.99, {buckets}) >= 0) or vector(0))"


# The figures of one version: by name the query, with the labels of its pods as $pods and the time as $window.
FIGURES = {
    "requests": _count("ecom_http_requests_total", _REQUESTS),
    "failed_requests": _count("ecom_http_requests_total", f'{_REQUESTS},status=~"5.."'),
    "p99_of_requests": _p99("ecom_http_request_seconds", _REQUESTS),
    "calls": _count("ecom_rpc_calls_total", "$pods"),
    "failed_calls": _count("ecom_rpc_calls_total", '$pods,outcome="failed"'),
    "p99_of_calls": _p99("ecom_rpc_seconds", "$pods"),
    "events": _count("ecom_events_total", "$pods"),
    "failed_events": _count("ecom_events_total", '$pods,outcome=~"retry|dead"'),
    "p99_of_batches": _p99("ecom_batch_seconds", "$pods"),
    "ready": "(sum(ecom_ready{$pods}) or vector(0))",
    "failed_probes": "(max(increase(ecom_unready_total{$pods}[$window])) or vector(0))",
    "fewest_failed_probes": "(min(increase(ecom_unready_total{$pods}[$window])) or vector(0))",
    "restarts": "(max(changes(process_start_time_seconds{$pods}[$window])) or vector(0))",
    "never_ready_s": (
        "(max((time() - process_start_time_seconds{$pods}) unless on (instance) (ecom_was_ready{$pods} == 1))"
        " or vector(0))"
    ),
    "unreadable": _count("ecom_dead_messages_total", f"$pods,{_UNREADABLE}"),
}


class Query(str):
    """A query in the place of a number: arithmetic makes a longer query."""

    def __sub__(self, other: object) -> Query:
        return Query(f"({self} - {other})")

    def __rsub__(self, other: object) -> Query:
        return Query(f"({other} - {self})")

    def __mul__(self, other: object) -> Query:
        return Query(f"({self} * {other})")

    def __rmul__(self, other: object) -> Query:
        return Query(f"({other} * {self})")

    def __truediv__(self, other: object) -> Query:
        return Query(f"({self} / {other})")


def at_least(value: Any, least: float) -> Any:
    """A number or query, and `least` where it is less."""
    return Query(f"clamp_min({value}, {least})") if isinstance(value, Query) else max(value, least)


def at_most(value: Any, most: float) -> Any:
    """A number or query, and `most` where it is more."""
    return Query(f"clamp_max({value}, {most})") if isinstance(value, Query) else min(value, most)


Figures = Mapping[str, Any]
Formula = Callable[[Figures, Figures], Any]


@dataclass(frozen=True)
class Trigger:
    """One row: it is met where `worse(old, new)` is above `above`.

    `enough` names a figure: below ENOUGH of it, in either version, the trigger says nothing.
    """

    name: str
    when: str
    worse: Formula
    above: float
    enough: str = ""

    @property
    def bad(self) -> str:
        """The failureCondition of an AnalysisTemplate. Where neither condition holds, as without an answer, the
        analysis is inconclusive: unknown."""
        return f"len(result) > 0 && result[0] > {self.above:g}"

    @property
    def good(self) -> str:
        """The successCondition of an AnalysisTemplate."""
        return f"len(result) > 0 && result[0] <= {self.above:g}"

    def query(self, old: str, new: str, window: str = "5m", old_window: str = "") -> str:
        """The question for Prometheus: how much worse. No answer where there is too little to tell.

        `old` and `new` are the labels of each version's pods, as in `version="1.2.3"`. After a switch no request
        reaches the old version any more: `old_window` is then the time before it, such as 1h.
        """
        figures = [
            {name: Query(Template(text).substitute(pods=pods, window=time)) for name, text in FIGURES.items()}
            for pods, time in ((old, old_window or window), (new, window))
        ]
        asked = str(self.worse(*figures))
        return " and ".join([asked, *(f"({of[self.enough]} >= {ENOUGH})" for of in figures if self.enough)])


def _error_rate(total: str) -> Formula:
    failed = f"failed_{total}"
    return lambda old, new: new[failed] / at_least(new[total], 1) - old[failed] / at_least(old[total], 1)


def _latency(figure: str) -> Formula:
    return lambda old, new: new[figure] - at_least(2 * old[figure], FAST_S)


TRIGGERS = (
    Trigger("error-rate-requests", "5xx answers: new > old + 5 points", _error_rate("requests"), 0.05, "requests"),
    Trigger("error-rate-calls", "failed RPC calls: new > old + 5 points", _error_rate("calls"), 0.05, "calls"),
    Trigger("error-rate-events", "events retried or dead: new > old + 5 points", _error_rate("events"), 0.05, "events"),
    Trigger("latency-requests", "p99: new > 2 x old and > 250 ms", _latency("p99_of_requests"), 0, "requests"),
    Trigger("latency-calls", "p99: new > 2 x old and > 250 ms", _latency("p99_of_calls"), 0, "calls"),
    Trigger("latency-batches", "p99: new > 2 x old and > 250 ms", _latency("p99_of_batches"), 0, "events"),
    Trigger(
        "health",
        "a new pod that was ready fails more than 3 probes while an old one is ready",
        lambda old, new: (new["failed_probes"] - old["fewest_failed_probes"]) * at_most(old["ready"], 1),
        3,
    ),
    Trigger("crash-loop", "2 restarts of a new pod", lambda old, new: new["restarts"], 1),
    Trigger(
        "never-ready",
        f"a new pod that was not ready within {READY_WITHIN_S} s",
        lambda old, new: new["never_ready_s"],
        READY_WITHIN_S,
    ),
    Trigger(
        "dead-letters",
        "a poison, invalid_schema or unknown_type message from new pods and none from old ones",
        lambda old, new: new["unreadable"] * (1 - at_most(old["unreadable"], 1)),
        0.5,
    ),
)
