"""Good messages of each type, as their publishers write them, to be spoilt by tests."""

import copy
from typing import Any
from uuid import uuid4

from shared.envelope import json_schema

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"

VALUES: dict[str, Any] = {
    "order_id": str(uuid4()),
    "reservation_id": str(uuid4()),
    "payment_id": str(uuid4()),
    "refund_id": str(uuid4()),
    "currency": "EUR",
    "total": 500,
    "amount": 500,
    "items": [{"sku": "lamp", "quantity": 5, "unit_price": 100}],
    "payment_method": "mock_ok",
    "reason": "payment_failed",
    "shortages": [{"sku": "lamp", "requested": 5, "available": 4}],
    "provider_reference": "ref-1",
    "customer_id": "ann",
}


def body(type_: str) -> dict[str, Any]:
    """A good message of a type."""
    schema = json_schema(type_)["properties"]["payload"]
    values = copy.deepcopy(VALUES)
    # A new id needs no line in VALUES.
    values |= {name: str(uuid4()) for name in schema["required"] if name.endswith("_id") and name not in values}
    if "items" in schema["required"]:
        values["items"] = [
            {name: VALUES["items"][0][name] for name in schema["properties"]["items"]["items"]["required"]}
        ]
    return {
        "message_id": str(uuid4()),
        "type": type_,
        "version": 1,
        "occurred_at": "2026-01-14T10:30:00.123Z",
        "source": "order_service",
        "trace_id": TRACE,
        "causation_id": None,
        "identity": {"user_id": "ann", "roles": ["customer"]},
        "payload": {name: values[name] for name in schema["properties"]},
    }


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every place of a message, at any depth, as (container, key)."""
    if isinstance(value, dict):
        return [(value, name) for name in value] + [place for inner in value.values() for place in places(inner)]
    if isinstance(value, list):
        return [place for inner in value for place in places(inner)]
    return []
