"""The figures of two versions from their own /metrics pages, where no Prometheus runs.

The names and meanings of the figures are those of triggers.py. A page shows counters since the process began, so a
figure is the difference between two readings of one process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import requests
from prometheus_client.parser import text_string_to_metric_families

from ops.release.judge import Window
from ops.release.triggers import WINDOW_S, Figures
from shared.errors import UNREADABLE

TIMEOUT_S = 5.0

PROBES = frozenset({"/healthz", "/readyz", "/metrics"})

Labels = Mapping[str, str]
# The text of a page; None if nobody answers.
Get = Callable[[str], str | None]


@dataclass(frozen=True)
class Page:
    """One reading of a process: its samples by name, each as (labels, value). `samples` is None if it gave none."""

    at: float
    samples: Mapping[str, Sequence[tuple[Labels, float]]] | None

    def value(self, name: str) -> float:
        """The sum of a metric; 0 if the page has none."""
        return sum(value for _, value in (self.samples or {}).get(name, ()))

    @property
    def started(self) -> float:
        """When the process began, in Unix seconds: two pages with different starts are of different processes."""
        return self.value("process_start_time_seconds")


@dataclass
class Pod:
    """One address and what it has shown, the newest last."""

    url: str
    pages: list[Page] = field(default_factory=list)

    def read(self, get: Get, now: float) -> None:
        """Ask whether it is ready, which it counts, and read its page. Forget what is older than the window."""
        get(f"{self.url}/readyz")
        text = get(f"{self.url}/metrics")
        self.pages = [page for page in self.pages if page.at >= now - WINDOW_S]
        self.pages.append(Page(now, None if text is None else _samples(text)))

    @property
    def answered(self) -> list[Page]:
        """The pages that it gave."""
        return [page for page in self.pages if page.samples is not None]

    def grown(self, name: str, wanted: Callable[[Labels], bool]) -> float:
        """How much a counter grew in the window. That of a new process began at 0."""
        grown = 0.0
        for before, after in pairwise(self.answered):
            known = {} if before.started != after.started else {_key(of): value for of, value in _of(before, name)}
            grown += sum(value - known.get(_key(of), 0) for of, value in _of(after, name) if wanted(of))
        return grown

    def restarts(self) -> int:
        """How often another process answered than before."""
        return sum(before.started != after.started for before, after in pairwise(self.answered))

    def never_ready_s(self) -> float:
        """How long the process that is there has not been ready once; also the time in which nobody answers."""
        last = self.pages[-1]
        if last.samples is not None:
            return 0.0 if last.value("ecom_was_ready") else last.at - last.started
        since = self.answered[-1].at if self.answered else self.pages[0].at
        return last.at - since


class Pages:
    """Reads the pods of both versions, given by their addresses, such as http://127.0.0.1:8001."""

    def __init__(
        self,
        old: Iterable[str],
        new: Iterable[str],
        get: Get | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._old, self._new = ([Pod(url.rstrip("/")) for url in urls] for urls in (old, new))
        self._get, self._clock = get or _over_http, clock

    def look(self) -> Window:
        """The figures of both versions now, over at most the last five minutes."""
        now = self._clock()
        for pod in (*self._old, *self._new):
            pod.read(self._get, now)
        return Window(figures(self._old), figures(self._new))


def figures(pods: Sequence[Pod]) -> Figures:
    """The figures of one version."""

    def grown(name: str, wanted: Callable[[Labels], bool] = lambda labels: True) -> float:
        return sum(pod.grown(name, wanted) for pod in pods)

    unready = [pod.grown("ecom_unready_total", lambda of: True) for pod in pods]
    return {
        "requests": grown("ecom_http_requests_total", _is_request),
        "failed_requests": grown("ecom_http_requests_total", lambda of: _is_request(of) and of["status"][0] == "5"),
        "p99_of_requests": _p99(pods, "ecom_http_request_seconds", _is_request),
        "calls": grown("ecom_rpc_calls_total"),
        "failed_calls": grown("ecom_rpc_calls_total", lambda of: of["outcome"] == "failed"),
        "p99_of_calls": _p99(pods, "ecom_rpc_seconds"),
        "events": grown("ecom_events_total"),
        "failed_events": grown("ecom_events_total", lambda of: of["outcome"] in ("retry", "dead")),
        "p99_of_batches": _p99(pods, "ecom_batch_seconds"),
        "ready": sum(pod.pages[-1].value("ecom_ready") for pod in pods),
        "failed_probes": max(unready),
        "fewest_failed_probes": min(unready),
        "restarts": max(pod.restarts() for pod in pods),
        "never_ready_s": max(pod.never_ready_s() for pod in pods),
        "unreadable": grown("ecom_dead_messages_total", lambda of: of["reason"] in UNREADABLE),
    }


def _p99(pods: Sequence[Pod], name: str, wanted: Callable[[Labels], bool] = lambda labels: True) -> float:
    """The 99th percentile as Prometheus estimates it: within a bucket, evenly. 0 if nothing was observed."""
    bounds = sorted(
        {of["le"] for pod in pods for page in pod.answered[-1:] for of, _ in _of(page, f"{name}_bucket")}, key=float
    )
    below = [
        sum(pod.grown(f"{name}_bucket", lambda of, le=bound: of["le"] == le and wanted(of)) for pod in pods)  # type: ignore[misc]
        for bound in bounds
    ]
    if not below or not below[-1]:
        return 0.0
    rank, lower, counted = 0.99 * below[-1], 0.0, 0.0
    for bound, count in zip(map(float, bounds), below, strict=True):
        if count >= rank:
            return lower if bound == float("inf") else lower + (bound - lower) * (rank - counted) / (count - counted)
        lower, counted = bound, count
    return lower


def _is_request(labels: Labels) -> bool:
    return labels["route"] not in PROBES


def _of(page: Page, name: str) -> Sequence[tuple[Labels, float]]:
    return (page.samples or {}).get(name, ())


def _key(labels: Labels) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(labels.items()))


def _samples(text: str) -> dict[str, list[tuple[Labels, float]]]:
    found: dict[str, list[tuple[Labels, float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def _over_http(url: str) -> str | None:
    try:
        return requests.get(url, timeout=TIMEOUT_S).text
    except requests.RequestException:
        return None
