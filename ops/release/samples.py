"""A sample message of each event type, made of its schema. The same in every run, so that releases can be compared."""

from __future__ import annotations

import copy
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from shared.envelope import json_schema
from topology.services import BY_NAME, publisher_of

# One value for each name of a field. An id needs none.
VALUES: dict[str, Any] = {
    "currency": "EUR",
    "total": 500,
    "amount": 500,
    "items": [{"sku": "lamp", "quantity": 5, "unit_price": 100, "name": "A lamp", "note": "in red"}],
    "order_no": "K7M2-9QTX",
    "note": "Ring twice",
    "payment_method": "mock_ok",
    "reason": "payment_failed",
    "shortages": [{"sku": "lamp", "requested": 5, "available": 4}],
    "provider_reference": "ref-1",
    "customer_id": "ann",
    "sku": "lamp",
    "version": 1768386600123,
    "name": "A lamp",
    "category": "lamps",
    "sellable": True,
    "prices": [{"currency": "EUR", "min_quantity": 1, "unit_price": 1999, "valid_from": "2026-01-14T10:30:00.000Z"}],
    "changed": ["price"],
    "sold_out": False,
    "few": 3,
    "low": True,
    "available": 3,
    "low_at": 5,
    "unit": "piece",
    "movement_id": 7,
    "change": -2,
    "on_hand": 5,
    "cause": "stock_out",
    "roles": ["customer"],
    "via": "register",
    "kind": "register",
    "locale": "en",
}

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def sample(type_: str) -> dict[str, Any]:
    """A good message of a type, with every field. Raises KeyError for a field that has no value in VALUES."""
    schema = json_schema(type_)["properties"]["payload"]
    return {
        "message_id": _id("message_id"),
        "type": type_,
        "version": 1,
        "occurred_at": "2026-01-14T10:30:00.123Z",
        "source": f"{BY_NAME[publisher_of(type_) or ''].name}_service",
        "trace_id": TRACE,
        "causation_id": None,
        "identity": {"user_id": "ann", "roles": ["customer"]},
        "payload": {name: _value(name, about) for name, about in schema["properties"].items()},
    }


def _value(name: str, schema: dict[str, Any]) -> Any:
    if name not in VALUES and name.endswith("_id"):
        return _id(name)
    value = copy.deepcopy(VALUES[name])
    if name == "items":
        return [{part: item[part] for part in schema["items"]["properties"]} for item in value]
    return value


def _id(name: str) -> str:
    return str(uuid5(NAMESPACE_URL, name))
