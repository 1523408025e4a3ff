"""Good messages of each type, as their publishers write them, to be spoilt by tests."""

from typing import Any
from uuid import uuid4

from ops.release.samples import sample
from shared.schema import UUID_TEXT

# Each run has ids of its own: tests of one run may share a database.
IDS: dict[str, str] = {}


def body(type_: str) -> dict[str, Any]:
    """A good message of a type."""
    message = sample(type_)
    payload = message["payload"]
    for name, value in payload.items():
        if isinstance(value, str) and UUID_TEXT.fullmatch(value):
            payload[name] = IDS.setdefault(name, str(uuid4()))
    return {**message, "message_id": str(uuid4())}


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every place of a message, at any depth, as (container, key)."""
    if isinstance(value, dict):
        return [(value, name) for name in value] + [place for inner in value.values() for place in places(inner)]
    if isinstance(value, list):
        return [place for inner in value for place in places(inner)]
    return []
