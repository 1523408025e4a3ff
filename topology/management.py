"""The broker's management API, as far as `ecom topology` needs it."""

from __future__ import annotations

import base64
import json
import urllib.request
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from shared.errors import CannotWork, ConfigurationFault
from topology.broker_uri import TlsFiles
from topology.tls import client_context

TIMEOUT_S = 5.0
PORT = 15672


class Management:
    """The API at a URL (http://host:15672). Its user is that of the URL or, where that names none, the given one.

    Raises ConfigurationFault for an unusable URL. Every method raises CannotWork when the API is away or refuses.
    """

    def __init__(self, url: str, user: str, password: str, tls: TlsFiles | None = None) -> None:
        try:
            parts = urlsplit(url)
            host = parts.netloc.rpartition("@")[2].removesuffix(f":{parts.port}")  # with the brackets of IPv6
            self._where = f"{host}:{parts.port or PORT}"
        except ValueError as error:
            raise ConfigurationFault(f"management URL: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationFault("the management URL must read http://host:15672")
        if parts.username:
            user, password = unquote(parts.username), unquote(parts.password or "")
        # The private CA of the broker, if it has one, is that of its management API too.
        self._tls = tls if parts.scheme == "https" else None
        self._api = f"{parts.scheme}://{self._where}{parts.path.rstrip('/')}/api"
        self._authorization = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    def bindings(self, vhost: str) -> set[tuple[str, str, str]]:
        """Every binding of a queue in a vhost, as (exchange, queue, routing key)."""
        rows = self._ask("GET", "bindings", vhost)
        try:
            return {
                (row["source"], row["destination"], row["routing_key"])
                for row in rows
                if row["destination_type"] == "queue"
            }
        except (KeyError, TypeError) as error:
            raise self._fault(error) from error

    def definitions(self) -> dict[str, Any]:
        """What the broker holds, users and permissions of every vhost among it."""
        found = self._ask("GET", "definitions")
        if not isinstance(found, dict):
            raise self._fault(f"its definitions are {type(found).__name__}")
        return found

    def load(self, definitions: dict[str, Any]) -> None:
        """Create and change what the definitions hold. What they do not hold stays as it is."""
        self._ask("POST", "definitions", body=definitions)

    def delete_user(self, name: str) -> None:
        """Delete a user with all its permissions."""
        self._ask("DELETE", "users", name)

    def _ask(self, method: str, *path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            "/".join([self._api, *(quote(step, safe="") for step in path)]),
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": self._authorization, "Content-Type": "application/json"},
        )
        try:
            context = client_context(self._tls) if self._tls else None
            with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=context) as answer:
                text = answer.read()
            return json.loads(text) if text else None
        except (OSError, ValueError) as error:
            raise self._fault(error) from error

    def _fault(self, error: object) -> CannotWork:
        return CannotWork(f"the management API at {self._where} cannot be used: {error}")
