"""The figures of two versions from a Prometheus server, by its HTTP API."""

from __future__ import annotations

from collections.abc import Callable
from string import Template
from typing import Any

import requests

from ops.release.judge import Window
from ops.release.triggers import FIGURES, WINDOW_S
from shared.errors import CannotWork

TIMEOUT_S = 10.0

# The result of a query, as the server's API answers it.
Ask = Callable[[str], Any]


class Prometheus:
    """Asks one server. `old` and `new` are the labels of each version's pods: version="1.2.3"."""

    def __init__(self, url: str, old: str, new: str, old_window: str = "", ask: Ask | None = None) -> None:
        self._url = url.rstrip("/")
        self._sides = ((old, old_window or f"{WINDOW_S}s"), (new, f"{WINDOW_S}s"))
        self._ask = ask or self._over_http

    def look(self) -> Window:
        """The figures of both versions now. Raises CannotWork if the server does not answer."""
        old, new = (
            {name: self._number(Template(text).substitute(pods=pods, window=time)) for name, text in FIGURES.items()}
            for pods, time in self._sides
        )
        return Window(old, new)

    def _number(self, query: str) -> float:
        answer = self._ask(query)
        if answer.get("status") != "success":
            raise CannotWork(f"Prometheus refuses a query: {answer.get('error')}; it was {query}")
        ((_, value),) = [one["value"] for one in answer["data"]["result"]]
        return float(value)

    def _over_http(self, query: str) -> Any:
        try:
            return requests.get(f"{self._url}/api/v1/query", {"query": query}, timeout=TIMEOUT_S).json()
        except (requests.RequestException, ValueError) as error:
            raise CannotWork(f"Prometheus at {self._url} does not answer: {error}") from error
