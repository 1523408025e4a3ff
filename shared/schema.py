"""Plain values and their limits: decode them, encode them, and describe them as JSON Schema, from one declaration.

A frozen dataclass declares the fields. Its decoder and its JSON Schema are derived from the same type hints, so they
cannot disagree. Unknown fields are ignored, and a field with a default may be absent: fields may be added.

A value that is accepted here must fit into every later layer, so the narrowest layer sets the limit:

    value   narrowest layer                         limit
    text    PostgreSQL text, UTF-8 of AMQP          no NUL, no lone surrogates
    number  integers of JSON readers, bigint        at most 2^53 - 1; each type narrows it
    time    datetime in UTC, timestamptz            a moment in the years 1 to 9999 of UTC
    UUID    PostgreSQL uuid                         36 characters with hyphens
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints
from uuid import UUID

from shared.errors import InvalidSchema
from shared.ids import UUID_TEXT

# Totals stay exact in every JSON reader: 2^53 - 1 is the largest integer a double holds.
MAX_AMOUNT = 2**53 - 1

MAX_TEXT = 200


@dataclass(frozen=True)
class Limits:
    """The limits of a value: a pattern for text, a range for a number."""

    pattern: str = ""
    at_least: int | None = None
    at_most: int | None = None
    words: tuple[str, ...] = ()


Sku = Annotated[str, Limits(pattern=r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")]
Currency = Annotated[str, Limits(pattern=r"[A-Z]{3}")]
Quantity = Annotated[int, Limits(at_least=1, at_most=1_000_000)]  # lines of one sku are summed
Amount = Annotated[int, Limits(at_least=0, at_most=MAX_AMOUNT)]
Count = Annotated[int, Limits(at_least=0, at_most=10**12)]
Word = Annotated[str, Limits(pattern=r"[a-z][a-z0-9_]{0,63}")]
ShortText = Annotated[str, Limits(pattern=rf"[\s\S]{{1,{MAX_TEXT}}}")]
TraceId = Annotated[str, Limits(pattern=r"[0-9a-f]{32}")]


Decode = Callable[[Any, str], Any]


_DECODERS: dict[Any, Decode] = {}


def decoder(annotation: Any) -> Decode:
    """A function (value, path) -> decoded value for a type; made once for each type."""
    if annotation not in _DECODERS:
        _DECODERS[annotation] = _make_decoder(annotation)
    return _DECODERS[annotation]


def _make_decoder(annotation: Any) -> Decode:
    origin = get_origin(annotation)
    if origin is Annotated:
        kind, limits = get_args(annotation)
        return _limited(decoder(kind), limits)
    if origin in (Union, types.UnionType):
        inner = decoder(next(kind for kind in get_args(annotation) if kind is not types.NoneType))
        return lambda value, path: None if value is None else inner(value, path)
    if origin is tuple:
        return _list_decoder(decoder(get_args(annotation)[0]))
    if dataclasses.is_dataclass(annotation):
        return _object_decoder(annotation)
    return {str: _string, int: _integer, UUID: _uuid, datetime: _datetime}[annotation]


MAX_SHOWN = 100


def shown(value: Any) -> str:
    """A decoded JSON value for an error message, shortened. It never fails: not even for a value nested too deeply."""
    match value:
        case dict():
            return "an object"
        case list():
            return "a list"
        case str():
            return json.dumps(value[:MAX_SHOWN])[:MAX_SHOWN]
        case _:
            return json.dumps(value)[:MAX_SHOWN]


def _fault(path: str, expected: str, value: Any) -> InvalidSchema:
    rule = f"{path.removeprefix('.') or 'body'}: {expected} is expected"
    return InvalidSchema(f"{rule}, not {shown(value)}", {"rule": rule})


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


def _uuid(value: Any, path: str) -> UUID:
    if not isinstance(value, str) or not UUID_TEXT.fullmatch(value):
        raise _fault(path, "a UUID", value)
    return UUID(value)


_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})")


def _datetime(value: Any, path: str) -> datetime:
    try:
        if _TIME.fullmatch(_string(value, path)):
            return datetime.fromisoformat(value).astimezone(UTC)
    except (ValueError, OverflowError):
        pass  # it looks like a time and is none: the 30th of February, or a moment before the year 1 of UTC
    raise _fault(path, "an RFC 3339 time with its zone, in the years 1 to 9999 of UTC", value)


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
    hints = get_type_hints(kind, include_extras=True)
    required = _required(kind)
    members = [(name, decoder(hint), f".{name}", name in required) for name, hint in hints.items()]

    def decode_object(value: Any, path: str) -> Any:
        if not isinstance(value, dict):
            raise _fault(path, "an object", value)
        try:
            return kind(
                **{
                    name: inner(value[name], path + suffix)
                    for name, inner, suffix, is_required in members
                    if is_required or name in value
                }
            )
        except KeyError as missing:
            raise InvalidSchema(f"{path or 'body'}: the field {missing} is missing") from None

    return decode_object


def _required(kind: Any) -> list[str]:
    """The fields that must be there: those without a default. A message of an older version lacks newer fields."""
    return [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]


def encode(value: Any) -> Any:
    """A payload, or a part of one, as plain JSON values."""
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, tuple | list):
        return [encode(element) for element in value]
    if dataclasses.is_dataclass(value):
        return {name: encode(element) for name, element in value.__dict__.items()}
    return value


def schema_of(annotation: Any) -> dict[str, Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        kind, limits = get_args(annotation)
        schema = schema_of(kind)
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
        return {"anyOf": [schema_of(kind), {"type": "null"}]}
    if origin is tuple:
        return {"type": "array", "items": schema_of(get_args(annotation)[0])}
    if dataclasses.is_dataclass(annotation):
        hints = get_type_hints(annotation, include_extras=True)
        return {
            "type": "object",
            "properties": {name: schema_of(hint) for name, hint in hints.items()},
            "required": _required(annotation),
        }
    return {
        str: {"type": "string"},
        int: {"type": "integer"},
        UUID: {"type": "string", "format": "uuid", "pattern": f"^{UUID_TEXT.pattern}$"},
        datetime: {"type": "string", "format": "date-time", "pattern": f"^{_TIME.pattern}$"},
    }[annotation].copy()
