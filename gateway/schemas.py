"""What clients may send: the shapes of bodies and query parameters, and their limits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from marshmallow import RAISE, Schema, ValidationError, fields, validate, validates_schema

from shared.auth import MAX_NAME_LENGTH, ROLES
from shared.errors import BadRequest, EcomError, ValidationFailed
from shared.events import timestamp

SKU = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
IDEMPOTENCY_KEY = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
MAX_ITEMS = 100
MAX_QUANTITY = 10_000
MAX_UNIT_PRICE = 10**9
MAX_ON_HAND = 10**9
MAX_PAGE = 200
PAGE = 50
MAX_TEXT = 200
MAX_PASSWORD = 1024
MAX_CURSOR = 512
DEVELOPMENT_PAYMENT_METHOD = "mock_ok"

# ISO 4217, the codes in use for money; without metals, bond units, test and "no currency".
CURRENCIES = frozenset(
    re.findall(
        r"\w+",
        """
        AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BHD BIF BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF CHE CHF
        CHW CLF CLP CNY COP COU CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD
        HKD HNL HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD
        MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN
        PYG QAR RON RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD
        TWD TZS UAH UGX USD USN UYI UYU UYW UZS VED VES VND VUV WST XAF XCD XCG XOF XPF YER ZAR ZMW ZWG
        """,
    )
)


# --- fields ----------------------------------------------------------------------------------------------------


class Text(fields.String):
    """Text that every part of the system can store: no NUL, no lone surrogate, not empty, not long."""

    def __init__(self, at_most: int = MAX_TEXT, pattern: re.Pattern[str] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.at_most = at_most
        self.pattern = pattern

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        text: str = super()._deserialize(value, attr, data, **kwargs)
        if not 1 <= len(text) <= self.at_most:
            raise ValidationError(f"Must be 1 to {self.at_most} characters long.")
        if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
            raise ValidationError("Must not hold NUL or lone surrogates.")
        if self.pattern and not self.pattern.fullmatch(text):
            raise ValidationError(f"Must match {self.pattern.pattern}.")
        return text


class Whole(fields.Integer):
    """An integer in a range: no true, no 1.0, no "1"."""

    def __init__(self, at_least: int, at_most: int, **kwargs: Any) -> None:
        super().__init__(strict=True, validate=validate.Range(at_least, at_most), **kwargs)

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        if type(value) is not int:
            raise self.make_error("invalid")
        return value


class WholeInQuery(Whole):
    """An integer as a query parameter: decimal digits."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        if not (value.isascii() and value.isdecimal() and len(value) < 20):
            raise self.make_error("invalid")
        return int(value)


class Id(fields.UUID):
    """A UUID in its usual form with hyphens, as text."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        identifier = uuid_in(value)
        if identifier is None:
            raise self.make_error("invalid_uuid")
        return identifier


class Moment(fields.String):
    """An RFC 3339 time with its zone, as text in UTC."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise ValidationError("Must be an RFC 3339 time; a + in a URL is written %2B.") from None
        if moment.tzinfo is None:
            raise ValidationError("Must have its zone: Z, or +02:00 with the + written %2B.")
        try:
            return timestamp(moment.astimezone(UTC))
        except OverflowError:
            raise ValidationError("Is out of range.") from None


class TraceId(fields.String):
    """A trace id: 32 hex digits, or the UUID that errors show."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        try:
            return UUID(value).hex
        except ValueError:
            raise ValidationError("Must be 32 hex digits or a UUID.") from None


_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def uuid_in(value: Any) -> str | None:
    """A UUID in lower case, or None when the value is none."""
    return value.lower() if isinstance(value, str) and _UUID.fullmatch(value) else None


def sku_or(error: type[EcomError], sku: str) -> str:
    """The sku of a path. Raises `error` when there can be none by that name."""
    if not SKU.fullmatch(sku):
        raise error(details={"sku": [f"Must match {SKU.pattern}."]} if error is ValidationFailed else None)
    return sku


class Strict(Schema):
    """A field we do not know is a mistake of the client's, and is told."""

    class Meta:
        unknown = RAISE


# --- bodies ----------------------------------------------------------------------------------------------------


class TokenRequest(Strict):
    """A name and its password or, in mock mode, a user and roles to be."""

    username = Text(at_most=MAX_NAME_LENGTH)
    password = Text(at_most=MAX_PASSWORD, load_only=True)
    user_id = Text(at_most=MAX_NAME_LENGTH)
    roles = fields.List(Text(validate=validate.OneOf(ROLES)), validate=validate.Length(1, len(ROLES)))

    @validates_schema
    def one_of_two(self, data: Mapping[str, Any], **kwargs: Any) -> None:
        if set(data) not in ({"username", "password"}, {"user_id", "roles"}):
            raise ValidationError("Must hold username and password, or user_id and roles.")


class IntrospectionRequest(Strict):
    """A token to look into."""

    token = Text(at_most=2**16, required=True)


class OrderItem(Strict):
    """One line of an order; unit_price in minor units."""

    sku = Text(pattern=SKU, required=True)
    quantity = Whole(1, MAX_QUANTITY, required=True)
    unit_price = Whole(0, MAX_UNIT_PRICE, required=True)


class Order(Strict):
    """An order. The limits of its lines keep the total under 2^53, which every JSON reader holds exactly."""

    currency = Text(validate=validate.OneOf(CURRENCIES, error="Must be an ISO 4217 code."), required=True)
    payment_method = Text()
    items = fields.List(fields.Nested(OrderItem), validate=validate.Length(1, MAX_ITEMS), required=True)


class Stock(Strict):
    """What is on hand; `version` guards against a change made since it was read."""

    on_hand = Whole(0, MAX_ON_HAND, required=True)
    version = Whole(0, 2**63 - 1)


class ReserveItem(Strict):
    """So many of one sku."""

    sku = Text(pattern=SKU, required=True)
    quantity = Whole(1, MAX_QUANTITY, required=True)


class Reserve(Strict):
    """A reservation made by hand."""

    order_id = Id(required=True)
    items = fields.List(fields.Nested(ReserveItem), validate=validate.Length(1, MAX_ITEMS), required=True)


def with_payment_method(order: dict[str, Any], production: bool) -> dict[str, Any]:
    """The order with its payment method, which only development may leave out."""
    if "payment_method" in order:
        return order
    if production:
        raise ValidationFailed(details={"payment_method": ["Missing data for required field."]})
    return {**order, "payment_method": DEVELOPMENT_PAYMENT_METHOD}


# --- query parameters ------------------------------------------------------------------------------------------


class Page(Strict):
    """One page of a list, and where it begins."""

    limit = WholeInQuery(1, MAX_PAGE, load_default=PAGE)
    cursor = Text(at_most=MAX_CURSOR, load_default=None)


class Orders(Page):
    """Orders in a state, or the one made under a key."""

    status = Text(pattern=re.compile(r"[A-Z_]{1,32}"), load_default=None)
    idempotency_key = Text(pattern=IDEMPOTENCY_KEY, load_default=None)


class ReleaseEvents(Page):
    """Releases: what, whose, why, under which trace, and from when (included) to when (not)."""

    order_id = Id()
    sku = Text(pattern=SKU)
    reason = Text()
    user_id = Text(at_most=MAX_NAME_LENGTH)
    trace_id = TraceId()
    from_ = Moment(data_key="from", attribute="from")
    to = Moment()


class PaymentOf(Strict):
    """The order whose payment is asked for."""

    order_id = Text(required=True)


def release_filters(query: Mapping[str, Any]) -> dict[str, Any]:
    """The filters among a page's parameters. Raises BadRequest when no moment could match."""
    filters = {name: value for name, value in query.items() if name not in Page().fields}
    if "from" in filters and "to" in filters and filters["from"] > filters["to"]:
        raise BadRequest("A query parameter is not valid.", {"to": ["Must not be before from."]})
    return filters
