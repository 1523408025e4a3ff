"""The envelope: an event as it travels, how it is written into a message and how it is read from one.

Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from shared.errors import Poison, UnknownType
from shared.events import CATALOGUE, Identity, Payload, type_of
from shared.ids import new_trace_id, uuid7
from shared.schema import ShortText, TraceId, decoder, encoder, made, schema_of, shown
from shared.times import timestamp

CONTRACT_VERSION = "v1"
VERSION = 1

_as_json = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True)
class Envelope:
    """An event as it travels. `trace_id` is the order's for life."""

    message_id: UUID
    type: str
    occurred_at: datetime
    source: str
    trace_id: str
    causation_id: UUID | None
    identity: Identity
    payload: Any
    version: int = VERSION

    def caused(self, source: str, payload: Payload) -> Envelope:
        """The next event of the same saga: trace and identity carried over, this one named as its cause."""
        return envelope(source, payload, self.trace_id, self.identity, self.message_id)

    def to_json(self) -> str:
        """The body that is published. Raises InvalidSchema when the payload breaks its own schema."""
        return _as_json(
            {
                "message_id": str(self.message_id),
                "type": self.type,
                "version": self.version,
                "occurred_at": timestamp(self.occurred_at),
                "source": self.source,
                "trace_id": self.trace_id,
                "causation_id": str(self.causation_id) if self.causation_id else None,
                "identity": {"user_id": self.identity.user_id, "roles": list(self.identity.roles)},
                "payload": encoder(type(self.payload))(self.payload, "payload"),
            }
        )


def envelope(
    source: str, payload: Payload, trace_id: str, identity: Identity, causation_id: UUID | None = None
) -> Envelope:
    """Make an event that `source` publishes, with a new message_id."""
    return Envelope(uuid7(), type_of(payload), datetime.now(UTC), source, trace_id, causation_id, identity, payload)


SHELL = "shell"


def decode(body: bytes | str, routing_key: str) -> Envelope:
    """The event in a message's body.

    A bare payload, as `n.dispatch_event("ecom", ...)` in a stock nameko shell sends it, is completed: the routing
    key is its type, source and user are `shell`.

    Raises Poison for what is no JSON object, UnknownType for a type or version outside the catalogue, InvalidSchema
    (naming the path of the fault) for what does not match the schema.
    """
    try:
        fields = _from_json(body if isinstance(body, str) else body.decode(json.detect_encoding(body), "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise Poison(f"not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise Poison(f"a JSON object is expected, not {type(fields).__name__}")
    if "payload" not in fields and "message_id" not in fields:
        return _completed(fields, routing_key)
    type_, version = fields.get("type"), fields.get("version")
    if version != VERSION or not isinstance(type_, str) or type_ not in CATALOGUE:
        raise UnknownType(f"type {shown(type_)} version {shown(version)} is not in the catalogue")
    head = decoder(_Head)(fields, "")
    return made(Envelope, head.__dict__ | {"payload": decoder(CATALOGUE[type_])(fields.get("payload"), "payload")})


def _completed(payload: Mapping[str, Any], routing_key: str) -> Envelope:
    if routing_key not in CATALOGUE:
        raise UnknownType(f"a bare payload came by {shown(routing_key)}, which is not in the catalogue")
    decoded = decoder(CATALOGUE[routing_key])(payload, "payload")
    return envelope(SHELL, decoded, new_trace_id(), Identity(SHELL, ()))


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_from_json = json.JSONDecoder(parse_constant=_no_constant).decode


@dataclass(frozen=True)
class _Head:
    message_id: UUID
    type: ShortText
    version: int
    occurred_at: datetime
    source: ShortText
    trace_id: TraceId
    causation_id: UUID | None
    identity: Identity


def json_schema(type_: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of one event type, envelope and payload."""
    schema = schema_of(_Head)
    payload = schema_of(CATALOGUE[type_])
    payload["description"] = (CATALOGUE[type_].__doc__ or "").strip()
    schema["properties"] |= {"type": {"const": type_}, "version": {"const": VERSION}, "payload": payload}
    schema["required"] = [*schema["required"], "payload"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": type_,
        **schema,
    }
