"""What clients may send: the shapes of bodies and query parameters, and their limits."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from uuid import UUID

from marshmallow import RAISE, Schema, ValidationError, fields, validate, validates_schema

from shared.auth import MAX_NAME_LENGTH, ROLES
from shared.errors import BadRequest, EcomError, NotFound, ValidationFailed
from shared.times import timestamp

SKU = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
IDEMPOTENCY_KEY = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
QUEUE = re.compile(r"[a-z][a-z0-9.-]{0,99}")
RATE = re.compile(r"max|(?!0+(?:\.0+)?/)[0-9]{1,6}(?:\.[0-9]{1,3})?/(?:s|m|min|h)")
RAMP = re.compile(r"[1-9][0-9]{0,5}(?:,[1-9][0-9]{0,5}){0,19}")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
WITHOUT_ZONE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d{1,6})?)?", re.ASCII)
MAX_SKU = 64
MAX_QUEUE = 100
MAX_ITEMS = 100
MAX_QUANTITY = 10_000
MAX_UNIT_PRICE = 10**9
MAX_ON_HAND = 10**9
MAX_MESSAGES = 10**9
MAX_IDS = 1000
MAX_WORDS = 50
MAX_PAGE = 200
MAX_OFFSET = 10_000
MAX_ROW_ID = 2**63 - 1
WAIT_S, MAX_WAIT_S = 20, 25
FIRST_LOOK_DAYS = 30
STATES = ("PENDING", "RESERVED", "PAID", "CANCELLED", "REFUND_PENDING", "REFUND_FAILED")
PAGE = 50
MAX_TEXT = 200
MAX_PASSWORD = 1024
MAX_CURSOR = 512
MAX_TOKEN = 8192
# Not faster unless somebody says so: whoever replays for the first time should not find out what too fast is.
DEFAULT_RATE = "100/s"
DEVELOPMENT_PAYMENT_METHOD = "mock_ok"

# In the document's examples. Nothing has this id.
EXAMPLE_ID = "01a1fcf8-0515-7912-9139-7154577473a5"
EXAMPLE_TIME = "2026-01-14T10:30:00.123Z"

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


# --- fields: their metadata is what the OpenAPI document says of them ------------------------------------------


def told(example: Any, description: str = "", **more: Any) -> dict[str, Any]:
    """Metadata of a field."""
    return more | ({"description": description} if description else {}) | {"examples": [example]}


class Text(fields.String):
    """Text that every part of the system can store: no NUL, no lone surrogate, not empty, not long."""

    def __init__(
        self,
        example: str,
        description: str = "",
        at_most: int = MAX_TEXT,
        pattern: re.Pattern[str] | None = None,
        **kwargs: Any,
    ) -> None:
        shape = f"^(?:{pattern.pattern})$" if pattern else r"^[^\x00]*$"
        super().__init__(metadata=told(example, description, minLength=1, maxLength=at_most, pattern=shape), **kwargs)
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

    def __init__(self, at_least: int, at_most: int, example: int, description: str = "", **kwargs: Any) -> None:
        metadata = told(example, description)
        super().__init__(strict=True, validate=validate.Range(at_least, at_most), metadata=metadata, **kwargs)

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


class Flag(fields.Boolean):
    """true or false: no 1, no "yes"."""

    def __init__(self, description: str, example: bool = True, **kwargs: Any) -> None:
        super().__init__(metadata=told(example, description), **kwargs)

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        if not isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return value


class FlagInQuery(Flag):
    """true or false as a query parameter."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        return super()._deserialize({"true": True, "false": False}.get(value), attr, data, **kwargs)


class Id(fields.UUID):
    """A UUID in its usual form with hyphens, as text."""

    def __init__(self, description: str = "", **kwargs: Any) -> None:
        super().__init__(metadata=told(EXAMPLE_ID, description), **kwargs)

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        identifier = uuid_in(value)
        if identifier is None:
            raise self.make_error("invalid_uuid")
        return identifier


class Moment(fields.String):
    """An RFC 3339 time with its zone, as text in UTC."""

    def __init__(self, description: str, **kwargs: Any) -> None:
        super().__init__(metadata=told(EXAMPLE_TIME, description, format="date-time"), **kwargs)

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        text = super()._deserialize(value, attr, data, **kwargs)
        try:
            moment = datetime.fromisoformat(text)
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

    def __init__(self, **kwargs: Any) -> None:
        shape = rf"^(?:[0-9a-fA-F]{{32}}|{_UUID.pattern})$"
        super().__init__(metadata=told(EXAMPLE_ID, (self.__doc__ or "").rstrip("."), pattern=shape), **kwargs)

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        text = super()._deserialize(value, attr, data, **kwargs)
        if not re.fullmatch(self.metadata["pattern"], text):
            raise ValidationError("Must be 32 hex digits or a UUID.")
        return UUID(text).hex


def sku_field(**kwargs: Any) -> Text:
    """A sku; each schema has one of its own."""
    return Text("lamp", at_most=MAX_SKU, pattern=SKU, **kwargs)


def queue_field() -> Text:
    """The name of a queue."""
    return Text("q.inventory.commit-requested", "a main queue or its .dlq", at_most=MAX_QUEUE, pattern=QUEUE)


def uuid_in(value: Any) -> str | None:
    """A UUID in lower case, or None when the value is none."""
    return value.lower() if isinstance(value, str) and _UUID.fullmatch(value) else None


def sku_or(error: type[EcomError], sku: str) -> str:
    """The sku of a path. Raises `error` when there can be none by that name."""
    if not SKU.fullmatch(sku):
        raise error(details={"sku": [f"Must match {SKU.pattern}."]} if error is ValidationFailed else None)
    return sku


def queue_in(name: str) -> str:
    """The queue of a path. Raises NotFound when there can be none by that name; which there are, ops_service knows."""
    if not QUEUE.fullmatch(name):
        raise NotFound
    return name


class Strict(Schema):
    """A field we do not know is a mistake of the client's, and is told."""

    # What JSON Schema can say of the whole beside its fields.
    openapi: ClassVar[dict[str, Any]] = {}

    class Meta:
        unknown = RAISE


# --- bodies ----------------------------------------------------------------------------------------------------


class TokenRequest(Strict):
    """A name and its password or, in mock mode, a user and roles to be."""

    openapi: ClassVar[dict[str, Any]] = {
        "anyOf": [{"required": ["username", "password"]}, {"required": ["user_id", "roles"]}],
        "maxProperties": 2,
        "examples": [{"username": "customer", "password": "demo-customer"}],
    }

    username = Text("customer", at_most=MAX_NAME_LENGTH)
    password = Text("demo-customer", at_most=MAX_PASSWORD, load_only=True)
    user_id = Text("alice", "mock mode: whom the token is to name", at_most=MAX_NAME_LENGTH)
    roles = fields.List(
        Text("customer", validate=validate.OneOf(ROLES)),
        validate=validate.Length(1, len(ROLES)),
        metadata={"description": "mock mode: what the token is to allow"},
    )

    @validates_schema
    def one_of_two(self, data: Mapping[str, Any], **kwargs: Any) -> None:
        if set(data) not in ({"username", "password"}, {"user_id", "roles"}):
            raise ValidationError("Must hold username and password, or user_id and roles.")


class SignIn(Strict):
    """The form by which people sign in, and where they wanted to go."""

    username = Text("auditor", at_most=MAX_NAME_LENGTH, required=True)
    password = Text("demo-auditor", at_most=MAX_PASSWORD, required=True, load_only=True)
    next = fields.String(load_default="")


class SignOut(Strict):
    """The form by which they sign out; its token proves that it is ours."""

    token = fields.String(load_default="")


class IntrospectionRequest(Strict):
    """A token to look into."""

    token = Text("eyJhbGciOiJIUzI1NiJ9.e30.c2lnbmF0dXJl", at_most=MAX_TOKEN, required=True)


class OrderItem(Strict):
    """One line of an order; unit_price in minor units."""

    sku = sku_field(required=True)
    quantity = Whole(1, MAX_QUANTITY, 2, required=True)
    unit_price = Whole(0, MAX_UNIT_PRICE, 1999, "in minor units: 1999 is 19.99 EUR", required=True)


class OrderRequest(Strict):
    """An order. The limits of its lines keep the total under 2^53, which every JSON reader holds exactly."""

    currency = Text(
        "EUR",
        "an ISO 4217 code",
        validate=validate.OneOf(sorted(CURRENCIES), error="Must be an ISO 4217 code."),
        required=True,
    )
    payment_method = Text(DEVELOPMENT_PAYMENT_METHOD, "only in development it may be left out")
    items = fields.List(fields.Nested(OrderItem), validate=validate.Length(1, MAX_ITEMS), required=True)


class StockRequest(Strict):
    """What is on hand; `version` guards against a change made since it was read."""

    on_hand = Whole(0, MAX_ON_HAND, 100, required=True)
    version = Whole(0, 2**63 - 1, 3, "refused with 409 when on_hand has changed since this one")


class ReserveItem(Strict):
    """So many of one sku."""

    sku = sku_field(required=True)
    quantity = Whole(1, MAX_QUANTITY, 2, required=True)


class ReserveRequest(Strict):
    """A reservation made by hand."""

    order_id = Id(required=True)
    items = fields.List(fields.Nested(ReserveItem), validate=validate.Length(1, MAX_ITEMS), required=True)


class ReplayRequest(Strict):
    """Which dead messages go back to work, and how fast: `ids`, `max` or `all`, and filters that must all hold."""

    openapi: ClassVar[dict[str, Any]] = {
        "anyOf": [
            {"required": ["ids"]},
            {"required": ["max"]},
            {"required": ["all"], "properties": {"all": {"const": True}}},
        ],
        "not": {"required": ["max", "all"], "properties": {"all": {"const": True}}},
        "examples": [
            {
                "reasons": ["unknown_order"],
                "all": True,
                "rate": "10/s",
                "ramp": "1,2,5,20",
                "stop_on_redeath": True,
                "why": "the orders are there now",
            },
            {
                "ids": [EXAMPLE_ID],
                "error": "no reservation",
                "types": ["inventory.commit.requested"],
                "order_id": EXAMPLE_ID,
                "trace_id": EXAMPLE_ID,
                "since": EXAMPLE_TIME,
                "until": "2026-01-15T00:00:00Z",
                "max": 100,
                "force": False,
            },
        ],
    }

    ids = fields.List(Id(), validate=validate.Length(1, MAX_IDS), metadata={"description": "these messages"})
    reasons = fields.List(
        Text("unknown_order"),
        validate=validate.Length(1, MAX_WORDS),
        metadata={"description": "that died for one of these"},
    )
    error = Text("no reservation", "found in the class or the words of its error")
    types = fields.List(
        Text("inventory.commit.requested"),
        validate=validate.Length(1, MAX_WORDS),
        metadata={"description": "of one of these event types"},
    )
    order_id = Id("about this order")
    trace_id = TraceId()
    since = Moment("first failed at this time or later; with its zone")
    until = Moment("first failed before this time; with its zone")
    max = Whole(1, MAX_MESSAGES, 100, "at most so many, the oldest")
    all = Flag("all that the filters choose")
    rate = Text(DEFAULT_RATE, "10/s, 30/m, 100/h, or max for no limit", pattern=RATE, load_default=DEFAULT_RATE)
    ramp = Text("1,2,5,20", "in waves of these sizes, each seen to its end before the next", pattern=RAMP)
    stop_on_redeath = Flag("no further when one has died again")
    force = Flag("also what is too old, or was replayed too often", example=False)
    why = Text("the orders are there now", "for the ledger")

    @validates_schema
    def says_which(self, data: Mapping[str, Any], **kwargs: Any) -> None:
        if "max" in data and data.get("all"):
            raise ValidationError("Must hold max or all, not both.")
        if not ("ids" in data or "max" in data or data.get("all")):
            raise ValidationError("Must say which: ids, max, or all with true.")
        if "since" in data and "until" in data and data["since"] > data["until"]:
            raise ValidationError("Must not be before since.", "until")


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

    limit = WholeInQuery(1, MAX_PAGE, 20, "how many at most", load_default=PAGE)
    cursor = Text("WzddLg", "next_cursor of the page before", at_most=MAX_CURSOR, load_default=None)


class Orders(Page):
    """Orders in a state, of a user, made from (included) to when (not), or the one made under a key."""

    status = Text("PAID", "a state of an order", pattern=re.compile(r"[A-Z_]{1,32}"))
    user = Text("alice", "whose orders; a customer sees his own", at_most=MAX_NAME_LENGTH)
    from_ = Moment("made at this time or later; with its zone", data_key="from", attribute="from")
    to = Moment("made before this time; with its zone")
    idempotency_key = Text(
        "first-order",
        "the caller's own order by its key, for who crashed before the answer came; with user, the user's",
        pattern=IDEMPOTENCY_KEY,
    )


class States(fields.String):
    """States of an order, separated by commas."""

    def __init__(self, **kwargs: Any) -> None:
        shape = f"^(?:{'|'.join(STATES)})(?:,(?:{'|'.join(STATES)}))*$"
        super().__init__(
            metadata=told("PAID,CANCELLED", "answer as soon as it is in one of these", pattern=shape), **kwargs
        )

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        states = value.split(",")
        if not set(states) <= set(STATES):
            raise ValidationError(f"Must be some of: {', '.join(STATES)}.")
        return states


class Wait(Strict):
    """What to wait for, and for how long."""

    wait = States(load_default=None)
    timeout = WholeInQuery(1, MAX_WAIT_S, 20, "in seconds", load_default=WAIT_S)


class Releases(Strict):
    """Releases: what, whose, why, under which trace, and from when (included) to when (not)."""

    order_id = Id()
    sku = sku_field()
    reason = Text("payment_failed", "why it was released")
    user_id = Text("alice", "who asked for the release", at_most=MAX_NAME_LENGTH)
    trace_id = TraceId()
    from_ = Moment("released at this time or later; with its zone", data_key="from", attribute="from")
    to = Moment("released before this time; with its zone")


class ReleaseEvents(Releases, Page):
    """A page of releases, and where it begins: after a cursor, or after so many."""

    offset = WholeInQuery(0, MAX_OFFSET, 100, "skip so many, which costs as many reads; not with cursor")
    include_total = FlagInQuery("count all that pass the filters, which reads them all", load_default=False)

    @validates_schema
    def begins_once(self, data: Mapping[str, Any], **kwargs: Any) -> None:
        if "offset" in data and data["cursor"] is not None:
            raise ValidationError("Must not be given together with cursor.", "offset")


class Day(Moment):
    """A date in UTC or, as everywhere, a time; one without its zone is UTC. A date as an end is itself included."""

    def __init__(self, description: str, is_end: bool = False, **kwargs: Any) -> None:
        super().__init__(description, **kwargs)
        self.is_end = is_end

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        is_date = bool(DATE.fullmatch(value))
        full = f"{value}T00:00:00Z" if is_date else f"{value}Z" if WITHOUT_ZONE.fullmatch(value) else value
        try:
            moment: str = super()._deserialize(full, attr, data, **kwargs)
            included = timedelta(days=1 if is_date and self.is_end else 0)
            return timestamp(datetime.fromisoformat(moment) + included)
        except (ValidationError, OverflowError):
            raise ValidationError("Must be a date such as 2026-01-14, or an RFC 3339 time.") from None


class Days(Releases):
    """The filters of the API, with dates as people type them."""

    from_ = Day("released on this day or later", data_key="from", attribute="from")
    to = Day("released on this day or earlier", is_end=True)


class Dashboard(Days, Page):
    """What the dashboard shows."""


def first_look(given: Collection[str]) -> dict[str, str]:
    """The filter of who has chosen none: the last days. A field that was sent empty was chosen so."""
    if set(given) - Page().fields.keys():
        return {}
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return {"from": timestamp(today - timedelta(days=FIRST_LOOK_DAYS - 1))}


class DeadLetters(Page):
    """Dead messages by why they died and what they are about."""

    reason = Text("unknown_order", "why it died")
    event_type = Text("inventory.commit.requested", "its event type", data_key="type")
    order_id = Id()
    trace_id = TraceId()


class PaymentOf(Strict):
    """The order whose payment is asked for."""

    order_id = fields.String(required=True, metadata=told(EXAMPLE_ID, format="uuid"))


# Which page, and what of it: the rest of a list's parameters are filters.
PAGING = frozenset({"limit", "cursor", "offset", "include_total"})


def filters_in(query: Mapping[str, Any]) -> dict[str, Any]:
    """The filters among a list's parameters. Raises BadRequest when no moment could match."""
    filters = {name: value for name, value in query.items() if name not in PAGING}
    if "from" in filters and "to" in filters and filters["from"] > filters["to"]:
        raise BadRequest("A query parameter is not valid.", {"to": ["Must not be before from."]})
    return filters
