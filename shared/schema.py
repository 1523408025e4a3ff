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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints
from uuid import UUID

from shared.errors import InvalidSchema
from shared.ids import UUID_TEXT
from shared.times import timestamp

# Totals stay exact in every JSON reader: 2^53 - 1 is the largest integer a double holds.
MAX_AMOUNT = 2**53 - 1

MAX_TEXT = 200

T = TypeVar("T")


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
# Of what is on a shelf: a million dishes that each take a million grams of one component.
Stocked = Annotated[int, Limits(at_least=1, at_most=10**12)]
Change = Annotated[int, Limits(at_least=-(10**12), at_most=10**12)]
Word = Annotated[str, Limits(pattern=r"[a-z][a-z0-9_]{0,63}")]
ShortText = Annotated[str, Limits(pattern=rf"[\s\S]{{1,{MAX_TEXT}}}")]
TraceId = Annotated[str, Limits(pattern=r"[0-9a-f]{32}")]


# (value, path of the value) -> converted value. Raises InvalidSchema, naming the path of the fault.
Convert = Callable[[Any, str], Any]


_DECODERS: dict[Any, Convert] = {}
_ENCODERS: dict[Any, Convert] = {}


def decoder(annotation: Any) -> Convert:
    """What makes a value of this type of a JSON value; made once for each type."""
    if annotation not in _DECODERS:
        _DECODERS[annotation] = _naming_the_place(_converter(annotation, _DECODING))
    return _DECODERS[annotation]


def encoder(annotation: Any) -> Convert:
    """What makes a JSON value of a value of this type, and refuses one that the decoder would refuse."""
    if annotation not in _ENCODERS:
        _ENCODERS[annotation] = _naming_the_place(_converter(annotation, _ENCODING))
    return _ENCODERS[annotation]


# A converter without a path: most values have no fault, so that the path is made when one is found.
_Convert = Callable[[Any], Any]


class _Way(NamedTuple):
    """Decoding, or encoding: how the parts are converted of which all types are made."""

    plain: Mapping[type, _Convert]
    list_of: Callable[[_Convert], _Convert]
    object_of: Callable[[Any], _Convert]


def _converter(annotation: Any, way: _Way) -> _Convert:
    origin = get_origin(annotation)
    if origin is Annotated:
        kind, limits = get_args(annotation)
        return _limited(_converter(kind, way), limits)
    if origin in (Union, types.UnionType):
        inner = _converter(next(kind for kind in get_args(annotation) if kind is not types.NoneType), way)
        return lambda value: None if value is None else inner(value)
    if origin is tuple:
        return way.list_of(_converter(get_args(annotation)[0], way))
    if dataclasses.is_dataclass(annotation):
        return way.object_of(annotation)
    return way.plain[annotation]


class _Misfit(Exception):
    """A value breaks its declaration. On its way out the exception collects the path to the value."""

    def __init__(self, reason: str, shown: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.shown = shown
        self.path = ""

    def inside(self, step: str) -> _Misfit:
        """The same, told of the value that contains this one."""
        self.path = step + self.path
        return self


def _unlike(expected: str, value: Any) -> _Misfit:
    return _Misfit(f"{expected} is expected", f", not {shown(value)}")


def _naming_the_place(convert: _Convert) -> Convert:
    def convert_at(value: Any, path: str) -> Any:
        try:
            return convert(value)
        except _Misfit as misfit:
            rule = f"{(path + misfit.path).removeprefix('.') or 'body'}: {misfit.reason}"
            raise InvalidSchema(rule + misfit.shown, {"rule": rule}) from None

    return convert_at


MAX_SHOWN = 100


def shown(value: Any) -> str:
    """A value for an error message, shortened. It never fails: not even for a JSON value nested too deeply."""
    match value:
        case dict():
            return "an object"
        case list() | tuple():
            return "a list"
        case str():
            return json.dumps(value[:MAX_SHOWN])[:MAX_SHOWN]
        case _:
            return json.dumps(value, default=str)[:MAX_SHOWN]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _unlike("a string", value)
    if "\0" in value or not (value.isascii() or _is_unicode(value)):
        raise _unlike("text without NUL or lone surrogates", value)
    return value


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # PostgreSQL would refuse it too
        return False
    return True


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise _unlike("an integer", value)
    return value


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise _unlike("true or false", value)
    return value


def _uuid(value: Any) -> UUID:
    if not isinstance(value, str) or not UUID_TEXT.fullmatch(value):
        raise _unlike("a UUID", value)
    return UUID(value)


def _uuid_text(value: Any) -> str:
    if not isinstance(value, UUID):
        raise _unlike("a UUID", value)
    return str(value)


_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})")


def _moment(value: Any) -> datetime:
    try:
        if _TIME.fullmatch(_text(value)):
            return datetime.fromisoformat(value).astimezone(UTC)
    except (ValueError, OverflowError):
        pass  # it looks like a time and is none: the 30th of February, or a moment before the year 1 of UTC
    raise _unlike("an RFC 3339 time with its zone, in the years 1 to 9999 of UTC", value)


def _moment_text(value: Any) -> str:
    if not isinstance(value, datetime):
        raise _unlike("a time", value)
    return timestamp(value)


def _limited(inner: _Convert, limits: Limits) -> _Convert:
    fits = re.compile(limits.pattern).fullmatch if limits.pattern else None
    low, high, words = limits.at_least, limits.at_most, limits.words

    def convert_limited(value: Any) -> Any:
        converted = inner(value)
        if fits is not None and not fits(converted):
            raise _unlike(f"text like {limits.pattern}", value)
        if (low is not None and converted < low) or (high is not None and converted > high):
            raise _unlike(f"a number from {low} to {high}", value)
        if words and converted not in words:
            raise _unlike(f"one of {', '.join(words)}", value)
        return converted

    return convert_limited


def _list_decoder(inner: _Convert) -> _Convert:
    convert = _elements(inner)

    def decode_list(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise _unlike("a list", value)
        return tuple(convert(value))

    return decode_list


def _list_encoder(inner: _Convert) -> _Convert:
    convert = _elements(inner)

    def encode_list(value: Any) -> list[Any]:
        if not isinstance(value, tuple):
            raise _unlike("a list", value)
        return convert(value)

    return encode_list


def _elements(inner: _Convert) -> Callable[[Iterable[Any]], list[Any]]:
    def convert_elements(elements: Iterable[Any]) -> list[Any]:
        converted: list[Any] = []
        try:
            for element in elements:
                converted.append(inner(element))
        except _Misfit as misfit:
            raise misfit.inside(f"[{len(converted)}]") from None
        return converted

    return convert_elements


def made(kind: type[T], fields: dict[str, Any]) -> T:
    """An instance of a frozen dataclass that has no __post_init__; `fields` are all its fields.

    The class's own __init__ calls a function for each field to get past the freezing, and takes twice as long.
    """
    instance = object.__new__(kind)
    instance.__dict__.update(fields)
    return instance


def _object_decoder(kind: Any) -> _Convert:
    convert = _members(kind, _DECODING)

    def decode_object(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _unlike("an object", value)
        return made(kind, convert(value))

    return decode_object


def _object_encoder(kind: Any) -> _Convert:
    convert = _members(kind, _ENCODING)

    def encode_object(value: Any) -> dict[str, Any]:
        if not isinstance(value, kind):
            raise _unlike("an object", value)
        return convert(value.__dict__)

    return encode_object


def _members(kind: Any, way: _Way) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """What converts the members of an object by their names; those that have a default may be absent."""
    converters = {name: _converter(hint, way) for name, hint in get_type_hints(kind, include_extras=True).items()}
    required = _required(kind)
    always = [(name, convert) for name, convert in converters.items() if name in required]
    if_there = [(name, convert, getattr(kind, name)) for name, convert in converters.items() if name not in required]

    def convert_members(members: Mapping[str, Any]) -> dict[str, Any]:
        converted: dict[str, Any] = {}
        try:
            for name, convert in always:
                converted[name] = convert(members[name])
            for name, convert, default in if_there:
                converted[name] = convert(members[name]) if name in members else default
        except _Misfit as misfit:
            raise misfit.inside(f".{name}") from None
        except KeyError:
            raise _Misfit(f"the field {name!r} is missing") from None
        return converted

    return convert_members


def _required(kind: Any) -> list[str]:
    """The fields that must be there: those without a default. A message of an older version lacks newer fields."""
    return [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]


_SAME_IN_JSON: dict[type, _Convert] = {str: _text, int: _integer, bool: _flag}
_DECODING = _Way({**_SAME_IN_JSON, UUID: _uuid, datetime: _moment}, _list_decoder, _object_decoder)
_ENCODING = _Way({**_SAME_IN_JSON, UUID: _uuid_text, datetime: _moment_text}, _list_encoder, _object_encoder)


def encode(value: Any) -> Any:
    """A payload, or a part of one, as plain JSON values."""
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, datetime):
        return timestamp(value)
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
        bool: {"type": "boolean"},
        UUID: {"type": "string", "format": "uuid", "pattern": f"^{UUID_TEXT.pattern}$"},
        datetime: {"type": "string", "format": "date-time", "pattern": f"^{_TIME.pattern}$"},
    }[annotation].copy()
