"""Orders: placing, reading, following and cancelling them."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

from marshmallow import ValidationError, fields, validate

from gateway.api.answering import Answer
from gateway.api.fields import (
    EXAMPLE_TIME,
    IDEMPOTENCY_KEY,
    OTHER_ID,
    TRACE_ID,
    AnswerSchema,
    PageQuery,
    RequestSchema,
    Text,
    Timestamp,
    WholeNumber,
    WholeNumberInQuery,
    cursor_field,
    datetime_field,
    field_metadata,
    filters_in,
    integer_field,
    list_field,
    text_field,
    uuid_field,
)
from gateway.api.http import READERS, Call, api
from gateway.combined import Combined
from gateway.following import stream, waiting
from gateway.stock import MAX_ITEMS, MAX_QUANTITY, sku_field
from shared.auth import ADMIN, CUSTOMER, MAX_NAME_LENGTH, OPERATOR
from shared.errors import Conflict, ValidationFailed

MAX_UNIT_PRICE = 10**9
WAIT_S, MAX_WAIT_S = 20, 25
STATES = ("PENDING", "RESERVED", "PAID", "CANCELLED", "REFUND_PENDING", "REFUND_FAILED")
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


class OrderItem(RequestSchema):
    """One line of an order; unit_price in minor units."""

    sku = sku_field(required=True)
    quantity = WholeNumber(1, MAX_QUANTITY, 2, required=True)
    unit_price = WholeNumber(0, MAX_UNIT_PRICE, 1999, "in minor units: 1999 is 19.99 EUR", required=True)


class OrderRequest(RequestSchema):
    """An order. The limits of its lines keep the total under 2^53, which every JSON reader holds exactly."""

    currency = Text(
        "EUR",
        "an ISO 4217 code",
        validate=validate.OneOf(sorted(CURRENCIES), error="Must be an ISO 4217 code."),
        required=True,
    )
    payment_method = Text(DEVELOPMENT_PAYMENT_METHOD, "only in development it may be left out")
    items = fields.List(fields.Nested(OrderItem), validate=validate.Length(1, MAX_ITEMS), required=True)


def with_payment_method(order: dict[str, Any], production: bool) -> dict[str, Any]:
    """The order with its payment method, which only development may leave out."""
    if "payment_method" in order:
        return order
    if production:
        raise ValidationFailed(details={"payment_method": ["Missing data for required field."]})
    return {**order, "payment_method": DEVELOPMENT_PAYMENT_METHOD}


class OrderQuery(PageQuery):
    """Orders in a state, of a user, made from (included) to when (not), or the one made under a key."""

    status = Text("PAID", "a state of an order", pattern=re.compile(r"[A-Z_]{1,32}"))
    user = Text("alice", "whose orders; a customer sees his own", at_most=MAX_NAME_LENGTH)
    from_ = Timestamp("made at this time or later; with its zone", data_key="from", attribute="from")
    to = Timestamp("made before this time; with its zone")
    idempotency_key = Text(
        "first-order",
        "the caller's own order by its key, for who crashed before the answer came; with user, the user's",
        pattern=IDEMPOTENCY_KEY,
    )


class StatesInQuery(fields.String):
    """States of an order, separated by commas."""

    def __init__(self, **kwargs: Any) -> None:
        shape = f"^(?:{'|'.join(STATES)})(?:,(?:{'|'.join(STATES)}))*$"
        super().__init__(
            metadata=field_metadata("PAID,CANCELLED", "answer as soon as it is in one of these", pattern=shape),
            **kwargs,
        )

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        states = value.split(",")
        if not set(states) <= set(STATES):
            raise ValidationError(f"Must be some of: {', '.join(STATES)}.")
        return states


class WaitQuery(RequestSchema):
    """What to wait for, and for how long."""

    wait = StatesInQuery(load_default=None)
    timeout = WholeNumberInQuery(1, MAX_WAIT_S, 20, "in seconds", load_default=WAIT_S)


class Line(AnswerSchema):
    """One line of an order."""

    sku = text_field("lamp")
    quantity = integer_field(2)
    unit_price = integer_field(1999, "in minor units")


class PostedOrder(AnswerSchema):
    """An order as it was made."""

    order_id = uuid_field()
    status = text_field("PENDING")
    items = list_field(Line)
    total = integer_field(3998, "in minor units")
    currency = text_field("EUR", "ISO 4217")


class Order(PostedOrder):
    """An order as it is now."""

    status = text_field("PAID", "PENDING and RESERVED are under way; PAID, CANCELLED and REFUND_FAILED are at rest")
    payment_method = text_field("mock_ok")
    reason = text_field(None, "why it was cancelled", allow_none=True)
    payment_id = uuid_field(example=OTHER_ID, allow_none=True)
    created_at = datetime_field()
    updated_at = datetime_field()
    version = integer_field(3, "counts the changes")


class OrderPage(AnswerSchema):
    """Orders, newest first."""

    items = list_field(Order)
    next_cursor = cursor_field()


class Step(AnswerSchema):
    """One step of an order: what was heard, from whom, and what the order became."""

    id = integer_field(17, "grows from step to step")
    at = datetime_field()
    event = text_field("order.created")
    from_ = text_field(None, "null at the first step", data_key="from", allow_none=True)
    to = text_field("PENDING")
    source = text_field("order_service", "which service said so")
    by = text_field("customer", "who caused it")
    details = fields.Dict(required=True, metadata=field_metadata({"total": 3998, "currency": "EUR"}))


class Awaited(AnswerSchema):
    """What an order waits for; null for one that is at rest."""

    from_ = text_field("payment_service", "from whom", data_key="from")
    events = fields.List(fields.String(metadata=field_metadata("payment.succeeded")), required=True)
    since = datetime_field()
    for_s = integer_field(2, "in seconds")


class DeadStep(AnswerSchema):
    """A message of an order that no try could help: an operator has to look at it."""

    message_id = uuid_field(example=OTHER_ID)
    queue = text_field("q.payment.inventory-reserved")
    event_type = text_field("inventory.reserved", allow_none=True)
    reason = text_field("exhausted", "why it died")
    died_at = datetime_field()


class Timeline(AnswerSchema):
    """Every step of an order so far, what it waits for, and what of it has died."""

    order_id = uuid_field()
    status = text_field("PENDING")
    reason = text_field(None, "why it was cancelled", allow_none=True)
    trace_id = text_field(TRACE_ID, "the order's for life")
    steps = list_field(Step)
    awaits = fields.Nested(
        Awaited,
        required=True,
        allow_none=True,
        metadata=field_metadata(
            {"from": "payment_service", "events": ["payment.succeeded"], "since": EXAMPLE_TIME, "for_s": 2},
            "null when it is at rest",
        ),
    )
    dead_messages = fields.List(
        fields.Nested(DeadStep),
        required=True,
        allow_none=True,
        metadata={"description": "null while nobody can say whether there are any"},
    )


class Orders(Combined):
    """Routes under /api/orders."""

    @api(
        "POST",
        "/api/orders",
        roles=(CUSTOMER,),
        body=OrderRequest,
        idempotent=True,
        located=True,
        answer=PostedOrder,
        status=201,
        also={200: Order},
        summary="Post an order",
    )
    def create_order(self, call: Call) -> Answer:
        """The order as it was made, now or when this key was first used.

        A repeat of a key is marked `Idempotent-Replayed: true` and has the status, the body and the Location of its
        first answer; past 24 hours it may be 200 with the order as it is now. Another body under the same key is 422.
        """
        order = with_payment_method(call.body, self.settings.production)
        return _keyed(self.orders.create_order(order, call.key))

    @api(
        "GET",
        "/api/orders",
        roles=READERS,
        query=OrderQuery,
        answer=OrderPage,
        summary="List orders",
    )
    def list_orders(self, call: Call) -> dict[str, Any]:
        """A page of the orders that the caller may see: a customer's own, all for the others."""
        return self.orders.list_orders(call.query["limit"], call.query["cursor"], filters_in(call.query))

    @waiting(
        "GET",
        "/api/orders/<uuid:order_id>",
        roles=READERS,
        query=WaitQuery,
        answer=Order,
        summary="Read an order",
    )
    def get_order(self, call: Call, order_id: UUID) -> dict[str, Any]:
        """One order; somebody else's is 404. With `wait` it is answered as soon as it is in one of those states.

        When the time is over first, or we must stop, it is answered as it is: look at its status.
        """
        return self.orders.get_order(str(order_id))

    @stream(
        "GET",
        "/api/orders/<uuid:order_id>/events",
        roles=READERS,
        answer=None,
        summary="Hear of an order's steps",
    )
    def order_events(self, call: Call, order_id: UUID) -> dict[str, Any]:
        """Server-Sent Events: the steps of the timeline, those so far and each new one.

        Come again with the `Last-Event-ID` that was heard last, and nothing is missed. After 10 minutes the stream
        ends.
        """
        return self.orders.steps(str(order_id), call.query["after"])

    @api(
        "GET",
        "/api/orders/<uuid:order_id>/timeline",
        roles=READERS,
        answer=Timeline,
        summary="Follow an order",
    )
    def timeline(self, call: Call, order_id: UUID) -> dict[str, Any]:
        """Every step so far, what the order waits for, and its messages that died; somebody else's order is 404.

        `dead_messages` is null while nobody can say whether there are any.
        """
        return self._timeline(str(order_id))

    @api(
        "POST",
        "/api/orders/<uuid:order_id>/cancel",
        roles=(CUSTOMER, ADMIN),
        idempotent=True,
        answer=Order,
        status=202,
        summary="Cancel an order",
    )
    def cancel_order(self, call: Call, order_id: UUID) -> Answer:
        """The order as it is after that: CANCELLED, or REFUND_PENDING while its money is on the way back.

        What is cancelled already stays so. Somebody else's order is 404. A repeat of a key has the answer of its
        first use, marked `Idempotent-Replayed: true`.
        """
        return _keyed(self.orders.cancel_order(str(order_id), call.key))

    @api(
        "POST",
        "/api/orders/<uuid:order_id>/refund/retry",
        roles=(OPERATOR, ADMIN),
        answer=Order,
        status=202,
        fails=(Conflict,),
        summary="Retry a refund",
    )
    def retry_refund(self, call: Call, order_id: UUID) -> Answer:
        """Ask once more for a refund that failed, or whose answer does not come; 409 where there is none."""
        return _keyed(self.orders.retry_refund(str(order_id)))


def _keyed(made: dict[str, Any]) -> Answer:
    """What a command has made, now or when its key was first used."""
    replayed = [("Idempotent-Replayed", "true")] if made["replayed"] else []
    return Answer(made["body"], made["status"], (("Location", made["location"]), *replayed))
