"""Orders: place, read, follow and cancel them."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

from marshmallow import ValidationError, fields, validate

from gateway.api.answering import Answer, keyed
from gateway.api.enumerations import AWAITED_FROM, ORDER_EVENT, ORDER_REASON, ORDER_STATUS, QUEUE_NAME
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
    WholeNumberInQuery,
    Word,
    cursor_field,
    datetime_field,
    field_metadata,
    filters_in,
    integer_field,
    list_field,
    text_field,
    uuid_field,
    word_field,
)
from gateway.api.http import READERS, Call, api
from gateway.combined import Combined
from gateway.following import stream, waiting
from gateway.new_order import OrderRequest, with_payment_method
from gateway.stock import sku_field
from shared.auth import ADMIN, CUSTOMER, MAX_NAME_LENGTH, OPERATOR
from shared.edge.gathered_calls import GatheredCalls
from shared.errors import (
    Conflict,
    NoPrice,
    NotForSale,
    PriceChanged,
    TooManyOrders,
    UnknownSku,
)
from shared.order_states import AT_REST, Reason, Status

WAIT_S, MAX_WAIT_S = 20, 25
ORDER_NO = re.compile(r"[0-9A-Za-z]{4}-?[0-9A-Za-z]{4}")
STATES = tuple(status.value for status in Status)
SORTS = ("created_at", "updated_at")
# From the tables, so that no list of them is out of date.
STATES_IN_WORDS = "{} are in progress; {} are at rest: the order waits for nothing but a person".format(
    *(", ".join(status for status in Status if (status in AT_REST) is rests) for rests in (False, True))
)
REASONS_IN_WORDS = f"why the order was cancelled: {', '.join(Reason)}; null if it was not"


class StatesInQuery(fields.String):
    """States of an order, separated by commas; loaded as such a text."""

    def __init__(self, description: str, **kwargs: Any) -> None:
        shape = f"^(?:{'|'.join(STATES)})(?:,(?:{'|'.join(STATES)}))*$"
        super().__init__(metadata=field_metadata("PAID,CANCELLED", description, pattern=shape), **kwargs)

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        if not set(value.split(",")) <= set(STATES):
            raise ValidationError(f"Must be some of: {', '.join(STATES)}.")
        return value


class OrderQuery(PageQuery):
    """Orders by state, user and time (`from` is included, `to` is not), or the one made under a key."""

    status = StatesInQuery("in one of these states")
    user = Text("alice", "the owner of the orders; customers see only their own", at_most=MAX_NAME_LENGTH)
    from_ = Timestamp("made at this time or later; with a zone", data_key="from", attribute="from")
    to = Timestamp("made before this time; with a zone")
    updated_from = Timestamp("last changed at this time or later; with a zone")
    updated_to = Timestamp("last changed before this time; with a zone")
    sort = fields.String(
        validate=validate.OneOf(SORTS),
        metadata=field_metadata(
            "updated_at",
            "`created_at`: newest first; `updated_at`: oldest change first, the default with `updated_from` or"
            " `updated_to`. Filters by the other time are refused",
        ),
    )
    order_no = Text("K7M2-9QTX", "in any case, with or without its hyphen", pattern=ORDER_NO)
    sku = sku_field()
    idempotency_key = Text(
        "first-order",
        "the caller's order made under this key, for clients that lost the answer; with `user`, that user's",
        pattern=IDEMPOTENCY_KEY,
    )


class WaitQuery(RequestSchema):
    """The states to wait for, and how long."""

    wait = StatesInQuery("answer as soon as the order is in one of these", load_default=None)
    timeout = WholeNumberInQuery(1, MAX_WAIT_S, 20, "the longest wait, in seconds", load_default=WAIT_S)


class Line(AnswerSchema):
    """One line of an order."""

    sku = text_field("lamp")
    quantity = integer_field(2)
    unit_price = integer_field(1999, "in minor units")
    name = text_field("A red lamp", "as the menu called it; null for orders from before the menu", allow_none=True)
    note = text_field("No onions", allow_none=True)


class PostedOrder(AnswerSchema):
    """An order right after it was made."""

    order_id = uuid_field()
    order_no = text_field("K7M2-9QTX", "what people call the order; null for old ones", allow_none=True)
    status = word_field(ORDER_STATUS, "PENDING")
    items = list_field(Line)
    total = integer_field(3998, "in minor units")
    currency = text_field("EUR", "ISO 4217")
    note = text_field("Ring twice", allow_none=True)


class Order(PostedOrder):
    """An order as it is now."""

    status = word_field(ORDER_STATUS, "PAID", STATES_IN_WORDS)
    payment_method = text_field("mock_ok")
    reason = word_field(ORDER_REASON, None, REASONS_IN_WORDS, allow_none=True)
    payment_id = uuid_field(example=OTHER_ID, allow_none=True)
    created_at = datetime_field()
    updated_at = datetime_field()
    version = integer_field(3, "the number of changes")


class OrderPage(AnswerSchema):
    """Orders, sorted as asked for."""

    items = list_field(Order)
    next_cursor = cursor_field()


class Step(AnswerSchema):
    """One step of an order: the event, its source, and the states before and after."""

    id = integer_field(17, "increases from step to step")
    at = datetime_field()
    event = word_field(ORDER_EVENT, "order.created")
    from_ = word_field(ORDER_STATUS, None, "null at the first step", data_key="from", allow_none=True)
    to = word_field(ORDER_STATUS, "PENDING")
    source = text_field("order_service", "who published the event: a service, or another program by its own name")
    by = text_field("customer", "the user who caused it")
    details = fields.Dict(required=True, metadata=field_metadata({"total": 3998, "currency": "EUR"}))


class Awaited(AnswerSchema):
    """What an order waits for; null for an order in a final state."""

    from_ = word_field(AWAITED_FROM, "inventory_service", data_key="from")
    events = fields.List(Word(ORDER_EVENT, metadata=field_metadata("inventory.reserved")), required=True)
    since = datetime_field()
    for_s = integer_field(2, "how long it has waited, in seconds")


class DeadStep(AnswerSchema):
    """A dead message of an order: every attempt to handle it failed, and an operator has to look at it."""

    message_id = uuid_field(example=OTHER_ID)
    queue = word_field(QUEUE_NAME, "q.inventory.order-created")
    event_type = text_field("order.created", allow_none=True)
    reason = text_field("exhausted", "why the message died")
    died_at = datetime_field()


class Timeline(AnswerSchema):
    """Every step of an order so far, what it waits for, and its dead messages."""

    order_id = uuid_field()
    status = word_field(ORDER_STATUS, "PENDING")
    reason = word_field(ORDER_REASON, None, REASONS_IN_WORDS, allow_none=True)
    trace_id = text_field(TRACE_ID, "one trace for the whole life of the order")
    steps = list_field(Step)
    awaits = fields.Nested(
        Awaited,
        required=True,
        allow_none=True,
        metadata=field_metadata(
            {
                "from": "inventory_service",
                "events": ["inventory.reserved", "inventory.failed"],
                "since": EXAMPLE_TIME,
                "for_s": 2,
            },
            "null in a final state",
        ),
    )
    dead_messages = fields.List(
        fields.Nested(DeadStep),
        required=True,
        allow_none=True,
        metadata={"description": "null while ops_service is unavailable"},
    )


class Orders(Combined):
    """Routes under /api/orders."""

    new_orders = GatheredCalls("order_service", "place_order", "place_orders")

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
        fails=(NotForSale, PriceChanged, UnknownSku, NoPrice, TooManyOrders),
        summary="Post an order",
    )
    def create_order(self, call: Call) -> Answer:
        """The order as it was made, now or when this key was first used.

        A repeated key gets the status, the body and the Location of the first answer, marked
        `Idempotent-Replayed: true`. After 24 hours it may get 200 with the order as it is now. The same key with
        another body is 422.

        Each line costs what the menu says (GET /api/menu/offers), of the tier that the sku's quantity reaches in the
        whole order. A line may name the `unit_price` that the customer has seen. If another one holds now, lower or
        higher, nothing is ordered: 409 `price_changed`, whose details have the prices now. A refusal uses up no key.

        A user may have so many orders open that are not paid yet, with so many units in them
        (`MAX_OPEN_ORDERS_PER_USER`, `MAX_HELD_UNITS_PER_USER`). One more is 429 `too_many_orders`; its details have the
        numbers. Pay or cancel an order and send the same request again. A repeated key is answered in any case.

        While more than `MAX_ORDERS_UNDER_WAY` orders of all users are not paid yet, a new one is 503 `unavailable`.
        Send the same request again after `Retry-After`.
        """
        order = with_payment_method(call.body, self.settings.payment_methods, self.settings.production)
        return keyed(self.new_orders.place_order(order=order, key=call.key))

    @api(
        "GET",
        "/api/orders",
        roles=READERS,
        query=OrderQuery,
        answer=OrderPage,
        summary="List orders",
    )
    def list_orders(self, call: Call) -> dict[str, Any]:
        """A page of orders. Customers see their own, the other roles see all.

        No page skips or repeats an order that does not change. To follow changes, sort by `updated_at`: an order that
        changes while you read moves to the end, so you read its new state later and may have read its old one before.
        Begin the next time a minute before the latest `updated_at` that you have read, because an order is shown some
        moments after that time, and skip what has the `version` that you know.
        """
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
        """One order. A customer gets 404 for the order of somebody else.

        With `wait` the answer comes as soon as the order is in one of these states. When the timeout ends first, or the
        gateway stops, the answer is the order as it is: check its status, and ask again. An order without a payment is
        cancelled after 15 minutes (`ORDER_DEADLINE_S`), with the reason `deadline`, so `wait=PAID,CANCELLED` of a new
        order succeeds within that time.
        """
        return self.orders.get_order(str(order_id))

    @stream(
        "GET",
        "/api/orders/<uuid:order_id>/events",
        roles=READERS,
        answer=None,
        also={204: "No step is due and none came after `Last-Event-ID`: do not reconnect."},
        summary="Stream the steps of an order",
    )
    def order_events(self, call: Call, order_id: UUID) -> dict[str, Any]:
        """Server-Sent Events: the steps of the timeline so far, then each new step, then `end`.

        The `id` of an event is the `id` of the step, which is unique among all orders. `event` is its type, such as
        `order.created`, so `onmessage` of an EventSource hears none. `data` is a `Step`. A comment comes every 15
        seconds. The event `end` says that the order is at rest and no step is due; its `data` is `{"status": "PAID"}`.
        The stream is closed then, and a client that connects again with its `Last-Event-ID` gets 204. Steps can still
        follow, mostly what was under way when the order was cancelled: docs/streams.md lists them.

        Without `end` the stream is cut after 10 minutes or when the token expires. Reconnect with the `Last-Event-ID`
        of the last event to miss none. The EventSource of a browser sends no token: read the stream with `fetch`.
        docs/streams.md has examples.
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
        """Every step so far, what the order waits for, and its dead messages.

        A customer gets 404 for the order of somebody else. `dead_messages` is null while ops_service is unavailable.
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
        example={"status": Status.CANCELLED, "reason": Reason.ORDER_CANCELLED},
    )
    def cancel_order(self, call: Call, order_id: UUID) -> Answer:
        """The order after the request: CANCELLED, or REFUND_PENDING until the refund is done.

        An order that is already cancelled stays cancelled. A customer gets 404 for the order of somebody else. A
        repeated key gets the answer of its first use, marked `Idempotent-Replayed: true`.
        """
        return keyed(self.orders.cancel_order(str(order_id), call.key))

    @api(
        "POST",
        "/api/orders/<uuid:order_id>/refund/retry",
        roles=(OPERATOR, ADMIN),
        answer=Order,
        status=202,
        fails=(Conflict,),
        summary="Retry a refund",
        example={"status": Status.REFUND_PENDING, "reason": Reason.ORDER_CANCELLED, "version": 6},
    )
    def retry_refund(self, call: Call, order_id: UUID) -> Answer:
        """Request again a refund that failed or was not answered. 409 if the order has no such refund."""
        return keyed(self.orders.retry_refund(str(order_id)))
