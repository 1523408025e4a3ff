"""Fields and schemas that every subject uses. The OpenAPI document is made from their metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar
from uuid import UUID

from marshmallow import EXCLUDE, RAISE, Schema, ValidationError, fields, validate

from shared.errors import BadRequest
from shared.ids import TRACE_ID_TEXT, UUID_TEXT
from shared.schema import MAX_TEXT
from shared.times import timestamp

IDEMPOTENCY_KEY = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
MAX_PAGE = 200
MAX_ROW_ID = 2**63 - 1
MAX_INT32 = 2**31 - 1
PAGE = 50
MAX_CURSOR = 512
MAX_EMAIL = 254  # RFC 5321 has no room for a longer address

# Values in the examples of the document. Nothing real has these ids.
EXAMPLE_ID = "01a1fcf8-0515-7912-9139-7154577473a5"
EXAMPLE_TIME = "2026-01-14T10:30:00.123Z"
OTHER_ID = "01a1fcf8-0a3c-7d01-8f2e-3b1c9d5e7f60"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"

# Parameters of a list that choose the page, or how an export is written. All others are filters.
NO_FILTERS = frozenset({"limit", "cursor", "offset", "include_total", "for"})

# The filters that are a beginning and an end.
PERIODS = (("from", "to"), ("updated_from", "updated_to"))


def field_metadata(example: Any, description: str = "", **more: Any) -> dict[str, Any]:
    """The metadata of a field: what the OpenAPI document says about it."""
    return more | ({"description": description} if description else {}) | {"examples": [example]}


# Control characters and the white space of Unicode, each by its number, for the classes of patterns: \s is not the same
# in every language.
SPACES = r"\x00-\x20\x7f-\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"


class Text(fields.String):
    """Text that every part of the system can store: mostly not empty, limited in length, no NUL, no lone surrogate."""

    def __init__(
        self,
        example: str,
        description: str = "",
        at_most: int = MAX_TEXT,
        pattern: re.Pattern[str] | None = None,
        at_least: int = 1,
        **kwargs: Any,
    ) -> None:
        shape = f"^(?:{pattern.pattern})$" if pattern else r"^[^\x00]*$"
        super().__init__(
            metadata=field_metadata(example, description, minLength=at_least, maxLength=at_most, pattern=shape),
            **kwargs,
        )
        self.at_least, self.at_most = at_least, at_most
        self.pattern = pattern

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        text: str = super()._deserialize(value, attr, data, **kwargs)
        if not self.at_least <= len(text) <= self.at_most:
            raise ValidationError(f"Must be {self.at_least} to {self.at_most} characters long.")
        if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
            raise ValidationError("Has a character that cannot be stored: NUL, or half of a surrogate pair.")
        if self.pattern and not self.pattern.fullmatch(text):
            raise ValidationError(f"Must match {self.pattern.pattern}.")
        return text


class WholeNumber(fields.Integer):
    """An integer in a range. `true`, 1.0 and "1" are refused."""

    def __init__(self, at_least: int, at_most: int, example: int, description: str = "", **kwargs: Any) -> None:
        wide = {"format": "int64"} if at_most > MAX_INT32 else {}
        metadata = field_metadata(example, description, **wide)
        super().__init__(strict=True, validate=validate.Range(at_least, at_most), metadata=metadata, **kwargs)

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        if type(value) is not int:
            raise self.make_error("invalid")
        return value


class WholeNumberInQuery(WholeNumber):
    """An integer as a query parameter: decimal digits only."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        if not (value.isascii() and value.isdecimal() and len(value) < 20):
            raise self.make_error("invalid")
        return int(value)


class Flag(fields.Boolean):
    """true or false. 1 and "yes" are refused."""

    def __init__(self, description: str, example: bool = True, **kwargs: Any) -> None:
        super().__init__(metadata=field_metadata(example, description), **kwargs)

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        if not isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return value


class FlagInQuery(Flag):
    """true or false as a query parameter."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        return super()._deserialize({"true": True, "false": False}.get(value), attr, data, **kwargs)


class Id(fields.UUID):
    """A UUID with hyphens, as text."""

    def __init__(self, description: str = "", **kwargs: Any) -> None:
        super().__init__(metadata=field_metadata(EXAMPLE_ID, description), **kwargs)

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        identifier = uuid_in(value)
        if identifier is None:
            raise self.make_error("invalid_uuid")
        return identifier


class Timestamp(fields.String):
    """An RFC 3339 time with a zone, loaded as text in UTC."""

    def __init__(self, description: str, **kwargs: Any) -> None:
        super().__init__(metadata=field_metadata(EXAMPLE_TIME, description, format="date-time"), **kwargs)

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        text = super()._deserialize(value, attr, data, **kwargs)
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise ValidationError("Must be an RFC 3339 time; a + in a URL is written %2B.") from None
        if moment.tzinfo is None:
            raise ValidationError("Must have a zone: Z, or +02:00 with the + written %2B.")
        try:
            return timestamp(moment.astimezone(UTC))
        except OverflowError:
            raise ValidationError("Is out of range.") from None


class TraceId(fields.String):
    """A trace id: 32 hex digits, or the UUID that errors show."""

    def __init__(self, **kwargs: Any) -> None:
        shape = f"^(?:{TRACE_ID_TEXT.pattern})$"
        super().__init__(metadata=field_metadata(EXAMPLE_ID, (self.__doc__ or "").rstrip("."), pattern=shape), **kwargs)

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        text = super()._deserialize(value, attr, data, **kwargs)
        if not TRACE_ID_TEXT.fullmatch(text):
            raise ValidationError("Must be 32 hex digits or a UUID.")
        return UUID(text).hex


def uuid_in(value: Any) -> str | None:
    """The value in lower case if it is a UUID, else None."""
    return value.lower() if isinstance(value, str) and UUID_TEXT.fullmatch(value) else None


class RequestSchema(Schema):
    """Base of bodies and queries. An unknown field is reported as an error: it is probably a typing mistake."""

    # JSON Schema of the whole, beside that of the fields.
    openapi: ClassVar[dict[str, Any]] = {}

    class Meta:
        unknown = RAISE


class OneOf(RequestSchema):
    """A body of one of several shapes, as the document shows it.

    The shapes may share fields. So the gateway loads none of them: it passes the body on to the service that chooses.
    """

    shapes: ClassVar[tuple[type[RequestSchema], ...]] = ()

    def load(self, data: Any, **kwargs: Any) -> Any:
        raise TypeError(f"{type(self).__name__} only documents a body, which must be passed on")


class OneOfApart(OneOf):
    """A body of one of several shapes that share no field. With fields of one shape only it is loaded as that shape."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        names = [name for shape in cls.shapes for name in shape().fields]
        if len(set(names)) < len(names):
            raise TypeError(f"the shapes of {cls.__name__} share a field")

    def load(self, data: Any, **kwargs: Any) -> Any:
        if not isinstance(data, Mapping):
            return RequestSchema.load(self, data, **kwargs)
        shapes = [shape(**kwargs) for shape in self.shapes]
        meant = [shape for shape in shapes if not shape.fields.keys().isdisjoint(data)]
        if len(meant) != 1:
            choices = (" and ".join(shape.fields) for shape in shapes)
            raise ValidationError(f"Must hold {', or '.join(choices)}.")
        return meant[0].load(data)


class PageQuery(RequestSchema):
    """One page of a list."""

    limit = WholeNumberInQuery(1, MAX_PAGE, 20, "the size of the page", load_default=PAGE)
    cursor = Text("WzddLg", "next_cursor of the previous page", at_most=MAX_CURSOR, load_default=None)


def filters_in(query: Mapping[str, Any]) -> dict[str, Any]:
    """The filters among the parameters of a list. Raises BadRequest when a period ends before it begins."""
    filters = {name: value for name, value in query.items() if name not in NO_FILTERS}
    for beginning, end in PERIODS:
        if beginning in filters and end in filters and filters[beginning] > filters[end]:
            raise BadRequest("A query parameter is not valid.", {end: [f"Must not be before {beginning}."]})
    return filters


class AnswerSchema(Schema):
    """Base of answers. Answers may gain fields: clients ignore those they do not know."""

    class Meta:
        unknown = EXCLUDE


@dataclass(frozen=True)
class Enumeration:
    """A closed list of words: the name of its schema in the document, the words, and what they mean."""

    name: str
    words: tuple[str, ...]
    description: str


class Word(fields.String):
    """A word of an enumeration, or of one of several."""

    def __init__(self, *enumerations: Enumeration, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.enumerations = enumerations


def word_field(enumeration: Enumeration, example: str | None, description: str = "", **more: Any) -> Word:
    """A field that every answer has, with a word of an enumeration."""
    return Word(enumeration, **_always(example, description, **more))


def text_field(example: str | None, description: str = "", **more: Any) -> fields.String:
    """A text field that every answer has."""
    return fields.String(**_always(example, description, **more))


def integer_field(example: int, description: str = "", **more: Any) -> fields.Integer:
    """An integer field that every answer has. `int64` keeps typed clients from reading amounts and ids as 32 bits."""
    return fields.Integer(required=True, metadata=field_metadata(example, description, format="int64"), **more)


def uuid_field(description: str = "", example: str | None = EXAMPLE_ID, **more: Any) -> fields.UUID:
    """A UUID field that every answer has."""
    return fields.UUID(**_always(example, description, **more))


def datetime_field(description: str = "", example: str = EXAMPLE_TIME, **more: Any) -> fields.DateTime:
    """A time field that every answer has."""
    return fields.DateTime(**_always(example, description, **more))


def list_field(schema: type[Schema], description: str = "") -> fields.List:
    """A list field that every answer has."""
    return fields.List(
        fields.Nested(schema), required=True, metadata={"description": description} if description else {}
    )


def _always(example: Any, description: str, **more: Any) -> dict[str, Any]:
    return {"required": True, "metadata": field_metadata(example, description), **more}


def cursor_field() -> fields.String:
    """The cursor of the next page."""
    return text_field("WzddLg", "pass it as `cursor` to get the next page; null on the last one", allow_none=True)
