"""A payment provider that is called over HTTP.

    POST /charges, POST /refunds     Idempotency-Key: <uuid>
                                     {"order_id", "amount", "currency", "method", "customer"}
        200 {"done": true, "reference": "..."} or {"done": false, "reason": "..."}
    GET /operations/<uuid>
        200 with the same answer, or 404 if the provider does not know the key

A reference has 1 to 200 characters. A reason is a word such as `card_declined`.
"""

from __future__ import annotations

import json
import ssl
import time
from contextlib import suppress
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit
from uuid import UUID

from payment_service.domain import Answer
from payment_service.provider import Charge, Provider
from shared.edge import green
from shared.errors import InvalidSchema, ProviderTimeout
from shared.schema import ShortText, Word, decoder

# A connection that has rested for longer is not used again: what lies between may have forgotten it, and would let the
# next request vanish.
REST_S = 30.0

# Connections that are kept while nothing is asked. FairCalls limits how many calls are made at once.
MOST_RESTING = 40

MAX_ANSWER_BYTES = 16 * 1024

_reference, _reason = decoder(ShortText), decoder(Word)


class Refused(Exception):
    """The provider answered something that its contract does not have."""


class HttpProvider(Provider):
    """The provider at a URL.

    Every method raises ProviderTimeout if no good answer comes within `timeout_s`, whatever the reason: a refused or
    broken connection, another status, a body that breaks the contract. Whether money has moved is then unknown, and
    the key is asked for later.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._connections = Connections(url)

    def charge(self, charge: Charge) -> Answer:
        """Take the money, once for each key."""
        return self._move("/charges", charge)

    def refund(self, refund: Charge) -> Answer:
        """Return the money, once for each key."""
        return self._move("/refunds", refund)

    def find(self, key: UUID) -> Answer | None:
        """Return the answer for a key, or None if the provider does not know the key."""
        return self._ask("GET", f"/operations/{key}")

    def _move(self, path: str, charge: Charge) -> Answer:
        wanted = {
            "order_id": str(charge.order_id),
            "amount": charge.amount,
            "currency": charge.currency,
            "method": charge.method,
            "customer": charge.customer,
        }
        headers = {"Content-Type": "application/json", "Idempotency-Key": str(charge.key)}
        answer = self._ask("POST", path, json.dumps(wanted).encode(), headers)
        if answer is None:
            raise ProviderTimeout(f"the payment provider does not know {path}")
        return answer

    def _ask(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Answer | None:
        try:
            with green.Timeout(self.timeout_s, False):  # of all steps together; it raises nothing
                status, answer = self._connections.exchange(method, path, body, headers or {})
                return _read(status, answer)
        except (OSError, HTTPException, Refused) as error:
            raise ProviderTimeout(f"no answer from the payment provider: {type(error).__name__}: {error}") from error
        raise ProviderTimeout(f"no answer from the payment provider within {self.timeout_s} s")


def _read(status: int, body: bytes) -> Answer | None:
    if status == HTTPStatus.NOT_FOUND:
        return None
    if status != HTTPStatus.OK:
        raise Refused(f"it answered with status {status}")
    try:
        match json.loads(body):
            case {"done": True, "reference": reference}:
                return Answer(True, reference=_reference(reference, "reference"))
            case {"done": False, "reason": reason}:
                return Answer(False, reason=_reason(reason, "reason"))
    except (ValueError, RecursionError, InvalidSchema) as error:
        raise Refused(f"its answer cannot be read: {error}") from error
    raise Refused("its answer does not say what was done")


class Connections:
    """Connections to one server, which are used again. The caller limits the time of an exchange."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port, self._path = parts.hostname or "", parts.port, parts.path.rstrip("/")
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._resting: list[tuple[HTTPConnection, float]] = []  # with the time since when, the last one at the end

    def exchange(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        """Send a request that may be sent twice; the status and the body of the answer.

        Raises OSError or HTTPException.
        """
        if rested := self._take_rested():
            # The server may have closed it meanwhile. Sending again does no harm: the key is the same.
            with suppress(ConnectionError, ssl.SSLError):
                return self._exchange(rested, method, path, body, headers)
        return self._exchange(self._new(), method, path, body, headers)

    def _exchange(
        self, connection: HTTPConnection, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        try:
            connection.request(method, self._path + path, body or None, headers)
            answer = connection.getresponse()
            content = answer.read(MAX_ANSWER_BYTES)
            if answer.length:
                raise HTTPException(f"the answer is cut off, or longer than {MAX_ANSWER_BYTES} bytes")
            keep = answer.isclosed() and not answer.will_close and len(self._resting) < MOST_RESTING
        except BaseException:  # also the end of the caller's time
            connection.close()
            raise
        if keep:
            self._resting.append((connection, time.monotonic()))
        else:
            connection.close()
        return answer.status, content

    def _take_rested(self) -> HTTPConnection | None:
        """The connection that has rested for the shortest time; those that have rested for too long are closed."""
        if not self._resting:
            return None
        connection, since = self._resting.pop()
        if time.monotonic() - since <= REST_S:
            return connection
        for old in [connection, *(old for old, _ in self._resting)]:
            old.close()
        self._resting.clear()
        return None

    def _new(self) -> HTTPConnection:
        if self._tls:
            return HTTPSConnection(self._host, self._port, context=self._tls)
        return HTTPConnection(self._host, self._port)
