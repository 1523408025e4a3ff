"""A dead message in its DLQ: reading it, writing it as a line of a file, and preparing it to be sent back."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from math import isfinite
from typing import Any
from uuid import UUID, uuid5

from ops.domain import CRASH, NEVER, UNKNOWN, DeadLetter
from shared.decoding import read_event
from shared.edge.broker import Message
from shared.edge.publisher import Outgoing, unfit, with_publishers
from shared.envelope import CONTRACT_VERSION, Envelope
from shared.errors import DeadMessage, InvalidSchema, ValidationFailed
from shared.events import CATALOGUE
from shared.failures import MAX_COUNT, is_brokers, publishers_headers, publishers_properties
from shared.senders import PUBLISHER, UNSIGNED, sender_of
from shared.tracing import traceparent
from topology.table import BY_NAME, failed_exchange, main_queue

# For messages that have no id of their own, and for corrected copies: the same input always gets the same id.
NAMESPACE = UUID("0c2f2a0e-7a5e-5c0f-8a8c-6a0f6f1f4d11")

# What a replay keeps of our own headers, beside all of the publisher's.
KEPT = ("x-first-failed-at", "x-original-routing-key", "event-contract-version", "traceparent")

# They say how the body is written, so they do not fit a body that is written anew.
OF_THE_BODY = ("content_type", "content_encoding")

CRASHED = "its consumer ended or hung each time it was delivered"


@dataclass(frozen=True)
class Content:
    """A message as the broker hands it over."""

    queue: str  # the DLQ it was read from
    exchange: str
    routing_key: str
    properties: Mapping[str, Any]  # without the headers
    headers: Mapping[str, Any]
    body: bytes


def content_of(dlq: str, message: Message) -> Content:
    """The content of a delivered message."""
    properties = {name: value for name, value in message.properties.items() if name != "application_headers"}
    body = message.body
    return Content(
        dlq,
        message.delivery_info["exchange"],
        message.delivery_info["routing_key"],
        properties,
        message.headers or {},
        body.encode("utf-8", "surrogatepass") if isinstance(body, str) else bytes(body),
    )


def dead_letter_of(content: Content) -> DeadLetter:
    """The facts that the rules need. Any field may be missing or invalid: nothing in the message is trusted."""
    headers, properties = content.headers, content.properties
    event = _fields(content.body)
    payload = event.get("payload", event)
    reason = headers.get("x-reason")
    crashes = [] if reason else [death for death in _deaths(headers) if death.get("reason") == "delivery_limit"]
    times = [moment.replace(tzinfo=UTC) for death in crashes if isinstance(moment := death.get("time"), datetime)]
    crashed, died = bool(crashes), max(times, default=None)
    first = _moment(headers.get("x-first-failed-at")) or died
    return DeadLetter(
        message_id=id_of(content),
        reason=(_text(reason) or _text(str(reason))) if reason else CRASH if crashed else UNKNOWN,
        # What an earlier try failed with is not what it crashed of.
        error_class="" if crashed else _text(headers.get("x-error-class")),
        error_message=CRASHED if crashed else _text(headers.get("x-error-message")),
        event_type=_text(properties.get("type")) or _text(event.get("type")),
        order_id=_uuid(payload.get("order_id")) if isinstance(payload, dict) else None,
        trace_id=_text(event.get("trace_id")),
        attempts=_whole(headers.get("x-attempt")),
        replays=_whole(headers.get("x-replays")),
        first_failed_at=first or NEVER,
        last_failed_at=died or _moment(headers.get("x-last-failed-at")) or first or NEVER,
        born_at=_moment(event.get("occurred_at")) or _stamp(properties.get("timestamp")) or NEVER,
    )


def id_of(content: Content) -> UUID:
    """Its message_id; of one that has none, a name made of its content, so that it is the same at each reading."""
    named = _uuid(content.properties.get("message_id"))
    written = _uuid(_fields(content.body).get("message_id"))
    if named and written and named != written and "x-reason" in content.headers:
        # Its consumer used the id in the body if it could read the body; in any other body an id is only text.
        try:
            _read(content)
        except DeadMessage:
            return named
        return written
    return written or named or uuid5(NAMESPACE, content.body.hex())


def event_of(content: Content) -> Envelope:
    """The event in it, a bare payload completed under its id. Raises DeadMessage, as its consumer would."""
    event = _read(content)
    return event if "message_id" in _fields(content.body) else replace(event, message_id=id_of(content))


def publishing_user(content: Content) -> str:
    """The user who published it, by which its consumer judges a replay; UNSIGNED if it does not say."""
    consumer = BY_NAME[main_queue(content.queue)].service
    return sender_of(content.properties.get("user_id"), content.headers, consumer) or UNSIGNED


def _read(content: Content) -> Envelope:
    return read_event(main_queue(content.queue), content.body, _key(content))


def _key(content: Content) -> str:
    """The routing key it was first published with; of a crash only the broker knows that."""
    headers = content.headers
    told = [key for death in _deaths(headers) if isinstance(keys := death.get("routing-keys"), list) for key in keys]
    return str(
        headers.get("x-original-routing-key")
        or content.properties.get("type")
        or next((key for key in told if key in CATALOGUE), content.routing_key)
    )


def outgoing(content: Content) -> Outgoing:
    """The message as it goes back: to its main queue alone, by the exchange of its service, with clean headers."""
    queue = main_queue(content.queue)
    properties = publishers_properties(content.properties)
    headers = {name: content.headers[name] for name in KEPT if name in content.headers}
    headers |= {"x-replays": _whole(content.headers.get("x-replays")) + 1, PUBLISHER: publishing_user(content)}
    body, type_ = content.body, _text(content.properties.get("type"))
    try:
        event = event_of(content)
    except DeadMessage:
        pass  # it is sent back as it is: its consumer will report why it cannot be read
    else:
        type_ = event.type
        headers |= {"event-contract-version": CONTRACT_VERSION, "traceparent": traceparent(event.trace_id)}
        if "message_id" not in _fields(content.body):
            body = event.to_json().encode()
            properties = _of_another_body(properties)
    exchange = failed_exchange(BY_NAME[queue].service)
    message = Outgoing(exchange, queue, body, str(id_of(content)), type_, headers)
    return with_publishers(message, publishers_headers(content.headers), properties)


def _of_another_body(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in properties.items() if name not in OF_THE_BODY}


def returning(content: Content) -> Outgoing:
    """The message as it goes back into the DLQ it was exported from: all of it but what only a broker may say."""
    dead_letter = dead_letter_of(content)
    headers = {name: value for name, value in content.headers.items() if not is_brokers(name)}
    headers[PUBLISHER] = publishing_user(content)
    if dead_letter.reason == CRASH:
        # The broker's own headers are left out, so ours say it.
        headers |= {"x-reason": CRASH, "x-error-class": "", "x-error-message": CRASHED}
        headers.setdefault("x-original-routing-key", _key(content))
        if dead_letter.last_failed_at != NEVER:
            headers.setdefault("x-first-failed-at", dead_letter.first_failed_at.isoformat())
            headers["x-last-failed-at"] = dead_letter.last_failed_at.isoformat()
    exchange = failed_exchange(BY_NAME[main_queue(content.queue)].service)
    properties = publishers_properties(content.properties)
    return Outgoing(
        exchange,
        content.queue,
        content.body,
        str(dead_letter.message_id),
        _text(content.properties.get("type")),
        headers,
        properties=properties,
    )


def check(message: Outgoing) -> None:
    """Raise ValidationFailed for what no broker could be sent: a person may have written its line."""
    if fault := unfit(message):
        raise ValidationFailed(f"AMQP cannot carry its properties or headers: {fault}")


def edited(content: Content) -> Content:
    """A corrected message under an id of its own, caused by the one it corrects. Raises DeadMessage.

    The id is made of the old one and the new body: the same correction twice is one message.
    """
    old = id_of(content)
    event = event_of(content)
    new = uuid5(NAMESPACE, old.hex + content.body.hex())
    event = replace(event, message_id=new, causation_id=old)
    headers = {name: value for name, value in content.headers.items() if name != "x-replays"}
    properties = {**_of_another_body(content.properties), "message_id": str(new), "type": event.type}
    return replace(content, properties=properties, headers=headers, body=event.to_json().encode())


def to_line(content: Content) -> bytes:
    """One line of JSON that holds all of it; the body as text where it is UTF-8, so that it can be edited."""
    try:
        body = {"body": content.body.decode("utf-8")}
    except UnicodeDecodeError:
        body = {"body_base64": base64.b64encode(content.body).decode()}
    line = {
        "message_id": str(id_of(content)),
        "queue": content.queue,
        "exchange": content.exchange,
        "routing_key": content.routing_key,
        "properties": _plain(content.properties),
        "headers": _plain(content.headers),
        **body,
    }
    return json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def from_line(line: bytes) -> Content:
    """The message in a line. Raises ValidationFailed for what `to_line` has not written."""
    try:
        fields = json.loads(line)
        text = fields.get("body")
        body = base64.b64decode(fields["body_base64"], validate=True) if text is None else text.encode()
        content = Content(
            str(fields["queue"]),
            str(fields["exchange"]),
            str(fields["routing_key"]),
            _unplain(fields["properties"]),
            _unplain(fields["headers"]),
            body,
        )
        known = main_queue(content.queue) in BY_NAME and content.queue != main_queue(content.queue)
        if not (known and isinstance(content.properties, dict) and isinstance(content.headers, dict)):
            raise ValueError("no message of a DLQ of ours")
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValidationFailed(f"not a line of an export: {type(error).__name__} {error}") from error
    return content


# Header values that JSON does not know, each as an object of one key.
_TIME, _BYTES, _DECIMAL, _FLOAT, _TABLE = "$time", "$bytes", "$decimal", "$float", "$table"

_UNPLAIN: dict[str, Callable[[Any], Any]] = {
    _TIME: datetime.fromisoformat,
    _BYTES: lambda text: base64.b64decode(text, validate=True),
    _DECIMAL: Decimal,
    _FLOAT: float,
    _TABLE: lambda pairs: {_unplain(name): _unplain(value) for name, value in pairs},
}


def _plain(value: Any) -> Any:
    """Any value of a header as JSON can hold it."""
    match value:
        case str() | bool() | int() | None:
            return value
        case float():
            return value if isfinite(value) else {_FLOAT: str(value)}
        case datetime():
            return {_TIME: value.isoformat()}
        case Decimal():
            return {_DECIMAL: str(value)}
        case bytes() | bytearray() | memoryview():
            return {_BYTES: base64.b64encode(value).decode()}
        case dict():
            if any(not isinstance(name, str) for name in value) or value.keys() & _UNPLAIN.keys():
                return {_TABLE: [[_plain(name), _plain(item)] for name, item in value.items()]}
            return {name: _plain(item) for name, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
    raise InvalidSchema(f"a header holds a {type(value).__name__}, which no export can hold")


def _unplain(value: Any) -> Any:
    if isinstance(value, list):
        return [_unplain(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((name, item),) = value.items()
        if name in _UNPLAIN:
            return _UNPLAIN[name](item)
    return {name: _unplain(item) for name, item in value.items()}


def _fields(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _text(value: object) -> str:
    """Text that PostgreSQL can store: neither NUL nor half of a surrogate pair."""
    text = value[:1024] if isinstance(value, str) else ""
    return text.encode("utf-8", "replace").decode().replace("\0", "?")


def _whole(value: object) -> int:
    return min(value, MAX_COUNT) if type(value) is int and value > 0 else 0


def _uuid(value: object) -> UUID | None:
    try:
        return UUID(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _moment(value: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
        return moment.astimezone(UTC) if moment and moment.tzinfo else None
    except (ValueError, OverflowError):
        return None


def _stamp(value: object) -> datetime | None:
    try:
        return datetime.fromtimestamp(value, UTC) if isinstance(value, int) else None
    except (ValueError, OverflowError, OSError):
        return None


def _deaths(headers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The broker's record of its own dead-lettering: at the delivery limit, and at the end of each retry's wait."""
    deaths = headers.get("x-death")
    return [death for death in deaths if isinstance(death, dict)] if isinstance(deaths, list) else []
