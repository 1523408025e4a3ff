"""Drives orders through the gateway as a client would: for the demo, for developers and for tests."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any, NamedTuple

import pika
import requests

from ops.domain import dlq_of
from shared.order_states import AT_REST
from topology.declare import parameters
from topology.table import BY_NAME, failed_exchange

TIMEOUT_S = 30.0
POLL_S = 0.05

# Of one request to the menu.
MAX_OFFERS = 200


class Token(NamedTuple):
    """A bearer token, and when to ask for another by time.monotonic()."""

    text: str
    fresh_until: float


class Flow:
    """One gateway, and the development users with their tokens. `amqp_uri` is where `dead` makes its messages."""

    def __init__(self, url: str, timeout_s: float = 15.0, amqp_uri: str = "") -> None:
        self.url = url.rstrip("/")
        self.amqp_uri = amqp_uri
        self.timeout_s = timeout_s
        self.http = requests.Session()
        self._tokens: dict[str, Token] = {}
        self._prices: dict[str, int] = {}  # at which this flow has put skus on the menu

    def token(self, user: str) -> str:
        """A development user's bearer token, asked for once and again when half of its life is over."""
        known = self._tokens.get(user)
        if known is None or known.fresh_until < time.monotonic():
            answer = self.send("POST", "/api/auth/token", {"username": user, "password": f"demo-{user}"}, user=None)
            answer.raise_for_status()
            body = answer.json()
            known = self._tokens[user] = Token(body["access_token"], time.monotonic() + body["expires_in"] / 2)
        return known.text

    def send(
        self, method: str, path: str, body: Any = None, user: str | None = "customer", **headers: str
    ) -> requests.Response:
        """One request; underscores in header names stand for hyphens. Returns the answer, whatever its status."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if user is not None:
            named.setdefault("Authorization", f"Bearer {self.token(user)}")
        return self.http.request(method, self.url + path, json=body, headers=named, timeout=self.timeout_s)

    def get(self, path: str, user: str = "customer") -> Any:
        """The JSON of a path. Raises requests.HTTPError for any error."""
        answer = self.send("GET", path, user=user)
        answer.raise_for_status()
        return answer.json()

    def sell(self, prices: Mapping[str, int]) -> None:
        """Put skus on the menu, each at its price in minor units of EUR; not those that this flow has put there so.

        Raises requests.HTTPError.
        """
        new = {sku: price for sku, price in prices.items() if self._prices.get(sku) != price}
        for start in range(0, len(new), MAX_OFFERS):
            some = dict(list(new.items())[start : start + MAX_OFFERS])
            offers = [{"sku": sku, "currency": "EUR", "unit_price": price} for sku, price in some.items()]
            self.send("PUT", "/api/menu/offers", {"offers": offers}, user="admin").raise_for_status()
            self._prices |= some

    def stock(self, sku: str, on_hand: int, price: int = 1000) -> dict[str, Any]:
        """Put a sku on the menu and set what is on hand; the stock as answered. Raises requests.HTTPError."""
        self.sell({sku: price})
        answer = self.send("PUT", f"/api/stocks/{sku}", {"on_hand": on_hand}, user="admin")
        answer.raise_for_status()
        return dict(answer.json())

    def order(
        self,
        sku: str,
        quantity: int = 1,
        payment: str = "mock_ok",
        *,
        unit_price: int = 1000,
        key: str | None = None,
        user: str = "customer",
    ) -> dict[str, Any]:
        """Put the sku on the menu at this price, and post an order that names it; its body as answered.

        Raises requests.HTTPError.
        """
        self.sell({sku: unit_price})
        answer = self.post_order(sku, quantity, payment, unit_price=unit_price, key=key, user=user)
        answer.raise_for_status()
        return dict(answer.json())

    def post_order(
        self,
        sku: str,
        quantity: int = 1,
        payment: str = "mock_ok",
        *,
        unit_price: int,
        key: str | None = None,
        user: str = "customer",
    ) -> requests.Response:
        """Post an order that names this price, whatever the menu says. Returns the answer, whatever its status."""
        body = {
            "currency": "EUR",
            "payment_method": payment,
            "items": [{"sku": sku, "quantity": quantity, "unit_price": unit_price}],
        }
        return self.send("POST", "/api/orders", body, user, Idempotency_Key=key or str(uuid.uuid4()))

    def cancel(self, order_id: str, user: str = "customer", key: str | None = None) -> dict[str, Any]:
        """Cancel an order; the order as answered. Raises requests.HTTPError."""
        path = f"/api/orders/{order_id}/cancel"
        answer = self.send("POST", path, user=user, Idempotency_Key=key or str(uuid.uuid4()))
        answer.raise_for_status()
        return dict(answer.json())

    def dead(self, queue: str = "q.order.payment-result", body: str = '{"made": "to die"}') -> str:
        """Send a message that can never succeed to one queue and no other; its message_id, by which its DLQ shows it.

        Raises pika's AMQPError when the broker is away or does not take it.
        """
        main, _ = dlq_of(queue)
        message_id = str(uuid.uuid4())
        with closing(pika.BlockingConnection(parameters(self.amqp_uri))) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            properties = pika.BasicProperties("application/json", message_id=message_id, delivery_mode=2)
            channel.basic_publish(
                failed_exchange(BY_NAME[main].service), main, body.encode(), properties, mandatory=True
            )
        return message_id

    def at_rest(self, order_id: str, patience_s: float = TIMEOUT_S) -> dict[str, Any]:
        """The order once it has come to rest. Raises TimeoutError."""
        return dict(
            self.until(lambda: self.get(f"/api/orders/{order_id}"), lambda it: it["status"] in AT_REST, patience_s)
        )

    def timeline(self, order_id: str, last: str | None = None, patience_s: float = TIMEOUT_S) -> dict[str, Any]:
        """The order's steps; with `last`, once a step of that event is among them. Raises TimeoutError."""

        def has_last(timeline: Any) -> bool:
            return last is None or any(step["event"] == last for step in timeline["steps"])

        return dict(self.until(lambda: self.get(f"/api/orders/{order_id}/timeline"), has_last, patience_s))

    @staticmethod
    def until(read: Callable[[], Any], good: Callable[[Any], bool], patience_s: float = TIMEOUT_S) -> Any:
        """Read again and again until it is good. Raises TimeoutError with what was read last."""
        deadline = time.monotonic() + patience_s
        while not good(seen := read()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {patience_s:.0f} s it is still {seen}")
            time.sleep(POLL_S)
        return seen
