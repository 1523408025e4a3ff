"""The catalogue: every event as a frozen dataclass, with its decoder, its schema and its envelope.

Standard library only. A payload is declared once; decoding, checking and the JSON Schema under docs/contracts are
derived from the same declaration, so they cannot disagree. Unknown fields are ignored: fields may be added.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints
from uuid import UUID

from shared.errors import InvalidSchema, Poison, UnknownType
from shared.ids import new_trace_id, uuid7

CONTRACT_VERSION = "v1"
VERSION = 1

# Totals stay exact in every JSON reader: 2^53 - 1 is the largest integer a double holds.
MAX_AMOUNT = 2**53 - 1


@dataclass(frozen=True)
class Limits:
    """What a value must keep to: a pattern for text, a range for a number."""

    pattern: str = ""
    at_least: int | None = None
    at_most: int | None = None
    words: tuple[str, ...] = ()


Sku = Annotated[str, Limits(pattern=r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")]
Currency = Annotated[str, Limits(pattern=r"[A-Z]{3}")]
Quantity = Annotated[int, Limits(at_least=1, at_most=1_000_000)]  # lines of one sku are summed
UnitPrice = Annotated[int, Limits(at_least=0, at_most=10**9)]
Amount = Annotated[int, Limits(at_least=0, at_most=MAX_AMOUNT)]
Count = Annotated[int, Limits(at_least=0, at_most=10**12)]
Word = Annotated[str, Limits(pattern=r"[a-z][a-z0-9_]{0,63}")]
ShortText = Annotated[str, Limits(pattern=r"[\s\S]{1,200}")]
TraceId = Annotated[str, Limits(pattern=r"[0-9a-f]{32}")]


@dataclass(frozen=True)
class Identity:
    """Whoever caused an event: a customer, an operator, or one of the system's own clocks."""

    user_id: ShortText
    roles: tuple[ShortText, ...] = ()


@dataclass(frozen=True)
class Item:
    """So many of one sku."""

    sku: Sku
    quantity: Quantity


@dataclass(frozen=True)
class PricedItem:
    """One line of an order; unit_price in minor units."""

    sku: Sku
    quantity: Quantity
    unit_price: UnitPrice


@dataclass(frozen=True)
class Shortage:
    """What an order asked for and what was there."""

    sku: Sku
    requested: Quantity
    available: Count


@dataclass(frozen=True)
class Payload:
    """What every event carries: the order it belongs to, which is also its aggregate."""

    order_id: UUID


CATALOGUE: dict[str, type[Payload]] = {}
UNHEARD: set[str] = set()
_TYPE_OF: dict[type[Payload], str] = {}
P = TypeVar("P", bound=type[Payload])


def _event(type_: str, *, heard: bool = True) -> Callable[[P], P]:
    def register(payload: P) -> P:
        CATALOGUE[type_] = payload
        _TYPE_OF[payload] = type_
        if not heard:
            UNHEARD.add(type_)
        return payload

    return register


@_event("order.created")
@dataclass(frozen=True)
class OrderCreated(Payload):
    """A customer posted an order; total in minor units."""

    currency: Currency
    total: Amount
    items: tuple[PricedItem, ...]
    payment_method: ShortText


@_event("order.cancelled")
@dataclass(frozen=True)
class OrderCancelled(Payload):
    """The order ended unpaid, or its money went back."""

    reason: Word


@_event("order.paid", heard=False)
@dataclass(frozen=True)
class OrderPaid(Payload):
    """The order is paid. Nobody here listens yet."""

    total: Amount
    currency: Currency


@_event("inventory.release.requested")
@dataclass(frozen=True)
class ReleaseRequested(Payload):
    """Give back what the order holds."""

    reason: Annotated[str, Limits(words=("payment_failed", "order_cancelled", "deadline"))]


@_event("inventory.commit.requested")
@dataclass(frozen=True)
class CommitRequested(Payload):
    """The order is paid: its hold becomes a sale."""


@_event("inventory.reserved")
@dataclass(frozen=True)
class Reserved(Payload):
    """All the order's items are held."""

    reservation_id: UUID
    items: tuple[PricedItem, ...]
    total: Amount
    currency: Currency
    payment_method: ShortText


@_event("inventory.failed")
@dataclass(frozen=True)
class ReservationFailed(Payload):
    """Nothing is held: something was short."""

    reason: Word
    shortages: tuple[Shortage, ...]


@_event("inventory.released")
@dataclass(frozen=True)
class Released(Payload):
    """What the order held is available again."""

    reservation_id: UUID
    items: tuple[Item, ...]
    reason: Word


@_event("inventory.committed")
@dataclass(frozen=True)
class Committed(Payload):
    """What the order held has left the stock."""

    reservation_id: UUID
    items: tuple[Item, ...]
    reason: Word


@_event("payment.succeeded")
@dataclass(frozen=True)
class PaymentSucceeded(Payload):
    """The provider took the money."""

    payment_id: UUID
    amount: Amount
    currency: Currency
    provider_reference: ShortText


@_event("payment.failed")
@dataclass(frozen=True)
class PaymentFailed(Payload):
    """The provider will not take the money."""

    payment_id: UUID
    reason: Word


@_event("payment.refund.requested")
@dataclass(frozen=True)
class RefundRequested(Payload):
    """Give the money back; refund_id is the provider's key."""

    payment_id: UUID
    refund_id: UUID
    amount: Amount
    currency: Currency
    reason: Word


@_event("payment.refunded")
@dataclass(frozen=True)
class Refunded(Payload):
    """The money is back with the customer."""

    payment_id: UUID
    refund_id: UUID
    amount: Amount
    currency: Currency


@_event("payment.refund_failed")
@dataclass(frozen=True)
class RefundFailed(Payload):
    """The provider would not give the money back."""

    payment_id: UUID
    refund_id: UUID
    reason: Word


def type_of(payload: Payload) -> str:
    """The event type, which is also the routing key."""
    return _TYPE_OF[type(payload)]


# --- the envelope ----------------------------------------------------------------------------------------------


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
        payload = encode(self.payload)
        _decoder(type(self.payload))(payload, "payload")
        return json.dumps(
            {
                "message_id": str(self.message_id),
                "type": self.type,
                "version": self.version,
                "occurred_at": timestamp(self.occurred_at),
                "source": self.source,
                "trace_id": self.trace_id,
                "causation_id": str(self.causation_id) if self.causation_id else None,
                "identity": {"user_id": self.identity.user_id, "roles": list(self.identity.roles)},
                "payload": payload,
            },
            separators=(",", ":"),
        )


def envelope(
    source: str, payload: Payload, trace_id: str, identity: Identity, causation_id: UUID | None = None
) -> Envelope:
    """A new event, told by `source`, with a new message_id."""
    return Envelope(uuid7(), type_of(payload), datetime.now(UTC), source, trace_id, causation_id, identity, payload)


def timestamp(moment: datetime) -> str:
    """RFC 3339, UTC, milliseconds: 2026-01-14T10:30:00.123Z."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


SHELL = "shell"


def decode(body: bytes | str, routing_key: str) -> Envelope:
    """The event in a message's body.

    A bare payload, as `n.dispatch_event("ecom", ...)` in a stock nameko shell sends it, is completed: the routing
    key is its type, source and user are `shell`.

    Raises Poison for what is no JSON object, UnknownType for a type or version outside the catalogue, InvalidSchema
    (naming the path of the fault) for what does not match the schema.
    """
    try:
        fields = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Poison(f"not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise Poison(f"a JSON object is expected, not {type(fields).__name__}")
    if "payload" not in fields and "message_id" not in fields:
        return _completed(fields, routing_key)
    type_, version = fields.get("type"), fields.get("version")
    if version != VERSION or not isinstance(type_, str) or type_ not in CATALOGUE:
        raise UnknownType(f"type {type_!r} version {version!r} is not in the catalogue")
    head = _decoder(_Head)(fields, "")
    return Envelope(**head.__dict__, payload=_decoder(CATALOGUE[type_])(fields.get("payload"), "payload"))


def _completed(payload: Mapping[str, Any], routing_key: str) -> Envelope:
    if routing_key not in CATALOGUE:
        raise UnknownType(f"a bare payload came by {routing_key!r}, which is not in the catalogue")
    decoded = _decoder(CATALOGUE[routing_key])(payload, "payload")
    return envelope(SHELL, decoded, new_trace_id(), Identity(SHELL))


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


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


# --- decoding, encoding and schema from one declaration --------------------------------------------------------

Decode = Callable[[Any, str], Any]


_DECODERS: dict[Any, Decode] = {}


def _decoder(annotation: Any) -> Decode:
    """A function (value, path) -> decoded value for a type; made once for each type."""
    if annotation not in _DECODERS:
        _DECODERS[annotation] = _make_decoder(annotation)
    return _DECODERS[annotation]


def _make_decoder(annotation: Any) -> Decode:
    origin = get_origin(annotation)
    if origin is Annotated:
        kind, limits = get_args(annotation)
        return _limited(_decoder(kind), limits)
    if origin in (Union, types.UnionType):
        inner = _decoder(next(kind for kind in get_args(annotation) if kind is not types.NoneType))
        return lambda value, path: None if value is None else inner(value, path)
    if origin is tuple:
        return _list_decoder(_decoder(get_args(annotation)[0]))
    if dataclasses.is_dataclass(annotation):
        return _object_decoder(annotation)
    return {str: _string, int: _integer, UUID: _uuid, datetime: _datetime}[annotation]


def _fault(path: str, expected: str, value: Any) -> InvalidSchema:
    return InvalidSchema(f"{path or 'body'}: {expected} is expected, not {json.dumps(value, default=str)[:100]}")


def _string(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise _fault(path, "a string", value)
    if "\0" in value or not (value.isascii() or _is_unicode(value)):
        raise _fault(path, "text without NUL or lone surrogates", value)
    return value


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # PostgreSQL would refuse it too
        return False
    return True


def _integer(value: Any, path: str) -> int:
    if type(value) is not int:
        raise _fault(path, "an integer", value)
    return value


_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def _uuid(value: Any, path: str) -> UUID:
    if not isinstance(value, str) or not _UUID.fullmatch(value):
        raise _fault(path, "a UUID", value)
    return UUID(value)


_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})")


def _datetime(value: Any, path: str) -> datetime:
    try:
        if _TIME.fullmatch(_string(value, path)):
            return datetime.fromisoformat(value)
    except ValueError:
        pass  # it looks like a time and is none, like the 30th of February
    raise _fault(path, "an RFC 3339 time with its zone", value)


def _limited(inner: Decode, limits: Limits) -> Decode:
    pattern = re.compile(limits.pattern) if limits.pattern else None
    low, high, words = limits.at_least, limits.at_most, limits.words

    def decode_limited(value: Any, path: str) -> Any:
        decoded = inner(value, path)
        if pattern is not None and not pattern.fullmatch(decoded):
            raise _fault(path, f"text like {limits.pattern}", value)
        if (low is not None and decoded < low) or (high is not None and decoded > high):
            raise _fault(path, f"a number from {low} to {high}", value)
        if words and decoded not in words:
            raise _fault(path, f"one of {', '.join(words)}", value)
        return decoded

    return decode_limited


def _list_decoder(inner: Decode) -> Decode:
    def decode_list(value: Any, path: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise _fault(path, "a list", value)
        return tuple(inner(element, f"{path}[{place}]") for place, element in enumerate(value))

    return decode_list


def _object_decoder(kind: Any) -> Decode:
    members = [(name, _decoder(hint), f".{name}") for name, hint in get_type_hints(kind, include_extras=True).items()]

    def decode_object(value: Any, path: str) -> Any:
        if not isinstance(value, dict):
            raise _fault(path, "an object", value)
        try:
            return kind(**{name: inner(value[name], path + suffix) for name, inner, suffix in members})
        except KeyError as missing:
            raise InvalidSchema(f"{path or 'body'}: the field {missing} is missing") from None

    return decode_object


def encode(value: Any) -> Any:
    """A payload, or a part of one, as plain JSON values."""
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, tuple | list):
        return [encode(element) for element in value]
    if dataclasses.is_dataclass(value):
        return {name: encode(element) for name, element in value.__dict__.items()}
    return value


def json_schema(type_: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of one event type, envelope and payload."""
    schema = _schema(_Head)
    payload = _schema(CATALOGUE[type_])
    payload["description"] = (CATALOGUE[type_].__doc__ or "").strip()
    schema["properties"] |= {"type": {"const": type_}, "version": {"const": VERSION}, "payload": payload}
    schema["required"] = [*schema["required"], "payload"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": type_,
        **schema,
    }


def _schema(annotation: Any) -> dict[str, Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        kind, limits = get_args(annotation)
        schema = _schema(kind)
        if limits.pattern:
            schema["pattern"] = f"^{limits.pattern}$"
        if limits.at_least is not None:
            schema["minimum"] = limits.at_least
        if limits.at_most is not None:
            schema["maximum"] = limits.at_most
        if limits.words:
            schema["enum"] = list(limits.words)
        return schema
    if origin in (Union, types.UnionType):
        kind = next(kind for kind in get_args(annotation) if kind is not types.NoneType)
        return {"anyOf": [_schema(kind), {"type": "null"}]}
    if origin is tuple:
        return {"type": "array", "items": _schema(get_args(annotation)[0])}
    if dataclasses.is_dataclass(annotation):
        hints = get_type_hints(annotation, include_extras=True)
        return {
            "type": "object",
            "properties": {name: _schema(hint) for name, hint in hints.items()},
            "required": list(hints),
        }
    return {
        str: {"type": "string"},
        int: {"type": "integer"},
        UUID: {"type": "string", "format": "uuid", "pattern": f"^{_UUID.pattern}$"},
        datetime: {"type": "string", "format": "date-time", "pattern": f"^{_TIME.pattern}$"},
    }[annotation].copy()
