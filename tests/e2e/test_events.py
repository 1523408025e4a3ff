"""The events on the broker during a saga: their cause, their trace and their shape."""

from __future__ import annotations

import uuid

import jsonschema
import pytest

from shared.envelope import json_schema
from tests.e2e.broker import Heard, Tap
from tests.e2e.system import System, eventually

PARENT_SPAN = "b7ad6b7169203331"
SAGAS = {
    "PAID": ("mock_ok", 1),
    "payment_failed": ("mock_declined", 1),
    "out_of_stock": ("mock_ok", 99),
}
TOLD = {
    "PAID": {
        "order.created": None,
        "inventory.reserved": "order.created",
        "payment.succeeded": "inventory.reserved",
        "order.paid": "payment.succeeded",
        "inventory.commit.requested": "payment.succeeded",
        "inventory.committed": "inventory.commit.requested",
    },
    "payment_failed": {
        "order.created": None,
        "inventory.reserved": "order.created",
        "payment.failed": "inventory.reserved",
        "order.cancelled": "payment.failed",
        "inventory.release.requested": "payment.failed",
        "inventory.released": "inventory.release.requested",
    },
    "out_of_stock": {
        "order.created": None,
        "inventory.failed": "order.created",
        "order.cancelled": "inventory.failed",
    },
}


@pytest.mark.parametrize("end", SAGAS)
def test_trace_identity_and_cause_are_in_every_event_of_a_saga(system: System, tap: Tap, end: str) -> None:
    flow = system.flow()
    flow.stock("traced", 10, price=5)
    user = system.become("tracy", "customer", "operator")
    method, quantity = SAGAS[end]
    body = {
        "currency": "EUR",
        "payment_method": method,
        "items": [{"sku": "traced", "quantity": quantity, "unit_price": 5}],
    }
    trace_id = uuid.uuid4().hex
    answer = flow.send(
        "POST",
        "/api/orders",
        body,
        user=user,
        Idempotency_Key=trace_id,
        traceparent=f"00-{trace_id}-{PARENT_SPAN}-01",
    )
    assert answer.headers["traceparent"].split("-")[1] == trace_id
    order_id = answer.json()["order_id"]
    expected = TOLD[end]

    def complete(heard: list[Heard]) -> bool:
        return len(heard) >= len(expected)

    eventually(lambda: tap.of(order_id), complete)
    system.wait_quiet()  # nothing more may come
    heard = {item.event["type"]: item for item in tap.of(order_id)}
    assert len(tap.of(order_id)) == len(heard)
    by_id = {item.event["message_id"]: type_ for type_, item in heard.items()}
    assert {type_: by_id.get(item.event["causation_id"]) for type_, item in heard.items()} == expected
    for type_, item in heard.items():
        event, properties = item.event, item.properties
        assert event["trace_id"] == trace_id
        assert event["identity"] == {"user_id": "tracy", "roles": ["customer", "operator"]}
        jsonschema.validate(event, json_schema(type_), format_checker=jsonschema.FormatChecker())
        assert (item.routing_key, properties.type, properties.message_id) == (type_, type_, event["message_id"])
        assert (properties.content_type, properties.delivery_mode) == ("application/json", 2)
        assert properties.headers["event-contract-version"] == "v1"
        assert properties.headers["traceparent"].split("-")[1] == trace_id

    order = flow.get(f"/api/orders/{order_id}", user=user)
    assert (order["reason"] or order["status"]) == end
    assert flow.get(f"/api/orders/{order_id}/timeline", user=user)["trace_id"] == trace_id
    releases = flow.get(f"/api/stocks/release-events?trace_id={trace_id}", user="auditor")["items"]
    assert [(item["requested_by"], item["roles"]) for item in releases] == (
        [("tracy", ["customer", "operator"])] if end == "payment_failed" else []
    )


def test_a_correlation_id_that_is_a_uuid_becomes_the_trace(system: System, tap: Tap) -> None:
    flow = system.flow()
    flow.sell({"no-such-sku": 1})
    given = uuid.uuid4()
    body = {"currency": "EUR", "items": [{"sku": "no-such-sku", "quantity": 1, "unit_price": 1}]}
    answer = flow.send("POST", "/api/orders", body, Idempotency_Key=given.hex, X_Correlation_ID=str(given))
    assert answer.headers["X-Correlation-ID"] == str(given)
    order_id = answer.json()["order_id"]
    heard = eventually(lambda: tap.of(order_id), lambda heard: len(heard) == 3)
    assert {item.event["trace_id"] for item in heard} == {given.hex}
