"""What clients get: the shapes of answers. The OpenAPI document shows them, tests hold real answers against them."""

from __future__ import annotations

from typing import Any

from marshmallow import EXCLUDE, Schema, fields, validate

from gateway.schemas import EXAMPLE_ID, EXAMPLE_TIME, told

OTHER_ID = "01a1fcf8-0a3c-7d01-8f2e-3b1c9d5e7f60"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


class Told(Schema):
    """Fields may be added: clients ignore those they do not know."""

    class Meta:
        unknown = EXCLUDE


# --- fields ----------------------------------------------------------------------------------------------------


def text(example: str | None, description: str = "", **more: Any) -> fields.String:
    """A text that is always there."""
    return fields.String(**_always(example, description, **more))


def whole(example: int, description: str = "", **more: Any) -> fields.Integer:
    """An integer that is always there."""
    return fields.Integer(**_always(example, description, **more))


def one_id(description: str = "", example: str | None = EXAMPLE_ID, **more: Any) -> fields.UUID:
    """A UUID that is always there."""
    return fields.UUID(**_always(example, description, **more))


def moment(description: str = "", example: str = EXAMPLE_TIME, **more: Any) -> fields.DateTime:
    """A time that is always there."""
    return fields.DateTime(**_always(example, description, **more))


def things(schema: type[Schema], description: str = "") -> fields.List:
    """A list that is always there."""
    return fields.List(
        fields.Nested(schema), required=True, metadata={"description": description} if description else {}
    )


def _always(example: Any, description: str, **more: Any) -> dict[str, Any]:
    return {"required": True, "metadata": told(example, description), **more}


def _cursor() -> fields.String:
    return text("WzddLg", "where the next page begins; null on the last one", allow_none=True)


# --- tokens ----------------------------------------------------------------------------------------------------


class Token(Told):
    """A bearer token."""

    access_token = text("eyJhbGciOiJIUzI1NiJ9.e30.c2lnbmF0dXJl")
    token_type = text("Bearer", validate=validate.Equal("Bearer"))
    expires_in = whole(900, "in seconds")


class Introspection(Told):
    """What RFC 7662 answers; of a bad token only that it is not active."""

    active = fields.Boolean(required=True, metadata=told(True))
    token_type = fields.String(metadata=told("Bearer"))
    sub = fields.String(metadata=told("alice", "the user's name"))
    username = fields.String(metadata=told("alice"))
    roles = fields.List(fields.String(metadata=told("customer")))
    scope = fields.String(metadata=told("customer", "the roles, separated by spaces"))
    iss = fields.String(metadata=told("ecom"))
    aud = fields.String(metadata=told("ecom-api"))
    iat = fields.Integer(metadata=told(1768386600))
    exp = fields.Integer(metadata=told(1768387500))
    jti = fields.String(metadata=told(OTHER_ID))


# --- orders ----------------------------------------------------------------------------------------------------


class Line(Told):
    """One line of an order."""

    sku = text("lamp")
    quantity = whole(2)
    unit_price = whole(1999, "in minor units")


class PostedOrder(Told):
    """An order as it was made."""

    order_id = one_id()
    status = text("PENDING")
    items = things(Line)
    total = whole(3998, "in minor units")
    currency = text("EUR", "ISO 4217")


class Order(PostedOrder):
    """An order as it is now."""

    status = text("PAID", "PENDING and RESERVED are under way; PAID, CANCELLED and REFUND_FAILED are at rest")
    payment_method = text("mock_ok")
    reason = text(None, "why it was cancelled", allow_none=True)
    payment_id = one_id(example=OTHER_ID, allow_none=True)
    created_at = moment()
    updated_at = moment()
    version = whole(3, "counts the changes")


class OrderPage(Told):
    """Orders, newest first."""

    items = things(Order)
    next_cursor = _cursor()


class Step(Told):
    """One step of an order: what was heard, from whom, and what the order became."""

    id = whole(17, "grows from step to step")
    at = moment()
    event = text("order.created")
    from_ = text(None, "null at the first step", data_key="from", allow_none=True)
    to = text("PENDING")
    source = text("order_service", "which service said so")
    by = text("customer", "who caused it")
    details = fields.Dict(required=True, metadata=told({"total": 3998, "currency": "EUR"}))


class Awaited(Told):
    """What an order waits for; null for one that is at rest."""

    from_ = text("payment_service", "from whom", data_key="from")
    events = fields.List(fields.String(metadata=told("payment.succeeded")), required=True)
    since = moment()
    for_s = whole(2, "in seconds")


class DeadStep(Told):
    """A message of an order that no try could help: an operator has to look at it."""

    message_id = one_id(example=OTHER_ID)
    queue = text("q.payment.inventory-reserved")
    event_type = text("inventory.reserved", allow_none=True)
    reason = text("exhausted", "why it died")
    died_at = moment()


class Timeline(Told):
    """Every step of an order so far, what it waits for, and what of it has died."""

    order_id = one_id()
    status = text("PENDING")
    reason = text(None, "why it was cancelled", allow_none=True)
    trace_id = text(TRACE_ID, "the order's for life")
    steps = things(Step)
    awaits = fields.Nested(
        Awaited,
        required=True,
        allow_none=True,
        metadata=told(
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


# --- stock -----------------------------------------------------------------------------------------------------


class Stock(Told):
    """The stock of one sku."""

    sku = text("lamp")
    on_hand = whole(100)
    reserved = whole(2, "held for orders under way")
    available = whole(98, "on_hand less reserved")
    version = whole(3, "counts the changes of on_hand")


class StockPage(Told):
    """Stock in order of sku."""

    items = things(Stock)
    next_cursor = _cursor()


class HeldItem(Told):
    """So many of one sku."""

    sku = text("lamp")
    quantity = whole(2)


class SettledReservation(Told):
    """A reservation made by hand, after it was settled."""

    order_id = one_id()
    reservation_id = one_id(example=OTHER_ID)
    state = text("RELEASED", "RESERVED, COMMITTED or RELEASED")


class Reservation(SettledReservation):
    """A reservation made by hand, until it expires."""

    state = text("RESERVED")
    items = things(HeldItem)
    expires_at = moment("released by then, if nobody has settled it", "2026-01-14T10:45:00.123Z")


class LinkedOperation(Told):
    """An operator's action on a message of an order."""

    operation_id = one_id(example=OTHER_ID)
    kind = text("replay")
    queue = text("q.inventory.release-requested.dlq")
    actor = text("operator", "who did it")
    why = text("the orders are there now", "as was said")
    message_id = one_id("of the message that went back to work")
    event_type = text("inventory.release.requested", allow_none=True)
    at = moment()


class ReleaseEvent(Told):
    """Stock that became available again: what, why, for whom and under which trace."""

    id = whole(7)
    order_id = one_id()
    reservation_id = one_id(example=OTHER_ID)
    sku = text("lamp")
    quantity = whole(2)
    reason = text("payment_failed")
    requested_by = text("customer")
    roles = fields.List(fields.String(metadata=told("customer")), required=True)
    trace_id = text(TRACE_ID)
    released_at = moment()
    operations = fields.List(
        fields.Nested(LinkedOperation),
        required=True,
        allow_none=True,
        metadata={"description": "what operators had brought back of its order until then; null while nobody can say"},
    )


class ReleaseEventPage(Told):
    """Release events, newest first."""

    items = things(ReleaseEvent)
    next_cursor = _cursor()
    total = whole(1234, "all that pass the filters; null unless asked for by include_total", allow_none=True)


class CoveringSeal(Told):
    """The link of the chain that covers a release."""

    seq = whole(12, "its number in the chain")
    sealed_at = moment()


class ReleaseEventDetail(ReleaseEvent):
    """A release event with its seal, and the timeline of its order."""

    seal = fields.Nested(
        CoveringSeal,
        required=True,
        allow_none=True,
        metadata=told({"seq": 12, "sealed_at": EXAMPLE_TIME}, "null until it is sealed, a moment after it was written"),
    )
    timeline = fields.Nested(
        Timeline, required=True, allow_none=True, metadata={"description": "null for a reservation made by hand"}
    )


# --- payments --------------------------------------------------------------------------------------------------


class Payment(Told):
    """The payment of an order."""

    payment_id = one_id(example=OTHER_ID)
    order_id = one_id()
    status = text("COMPLETED")
    amount = whole(3998, "in minor units")
    currency = text("EUR", "ISO 4217")
    payment_method = text("mock_ok")
    provider_reference = text("mock-5f0c", allow_none=True)
    reason = text(None, "why it failed", allow_none=True)
    created_at = moment()
    updated_at = moment()


# --- dead messages ----------------------------------------------------------------------------------------------


class ReasonCount(Told):
    """So many died for one reason."""

    reason = text("unknown_order")
    count = whole(3)


class DeadLetterQueue(Told):
    """What lies in one DLQ: as the broker counts it, and as the services wrote it down."""

    queue = text("q.inventory.commit-requested")
    dlq = text("q.inventory.commit-requested.dlq")
    service = text("inventory", "whose queue it is")
    messages = whole(3, "by the broker, which does not count what somebody has in hand")
    recorded = whole(3, "by the services' books")
    oldest = moment("when the first of them failed", allow_none=True)
    newest = moment("when the last of them died", allow_none=True)
    reasons = things(ReasonCount)
    busy = text(None, "who works on it now", allow_none=True)


class QueueList(Told):
    """Every DLQ."""

    items = things(DeadLetterQueue)


class DeadLetter(Told):
    """One dead message as it was written down."""

    message_id = one_id()
    queue = text("q.inventory.commit-requested")
    event_type = text("inventory.commit.requested", allow_none=True)
    order_id = one_id(example=OTHER_ID, allow_none=True)
    trace_id = text(TRACE_ID, allow_none=True)
    reason = text("unknown_order", "why it died")
    error_class = text("UnknownOrder")
    error_message = text("order 01a1fcf8-0a3c-7d01-8f2e-3b1c9d5e7f60 has no reservation to commit")
    attempts = whole(1, "how often it was tried")
    replays = whole(0, "how often it was put back to work")
    first_failed_at = moment()
    died_at = moment()


class DeadLetterPage(Told):
    """Dead messages, last dead first."""

    items = things(DeadLetter)
    next_cursor = _cursor()


class Replay(Told):
    """A replay as the ledger knows it."""

    replay_id = one_id()
    queue = text("q.inventory.commit-requested.dlq")
    status = text("done", "started, and then done, stopped, failed or interrupted (its process died)")
    outcome = text("3 applied", "in words; empty while it is under way")
    counts = fields.Dict(
        required=True,
        metadata=told(
            {"chosen": 3, "applied": 3}, "chosen, and by what became of them; reasons of the dead and refused"
        ),
    )
    actor = text("operator", "who asked for it")
    why = text("the orders are there now", "as was said")
    filter = fields.Dict(required=True, metadata=told({"reasons": ["unknown_order"]}, "which messages were meant"))
    options = fields.Dict(required=True, metadata=told({"rate": 10.0, "ramp": [1, 2, 5, 20]}, "and how"))
    started_at = moment()
    finished_at = moment("null while it is under way", allow_none=True)


# --- errors ----------------------------------------------------------------------------------------------------


class Fault(Told):
    """What is wrong."""

    code = text("not_found", "for programs")
    message = text("There is nothing here by that name.", "for people")
    details = fields.Dict(required=True, metadata=told({}, "what exactly; of a bad field its name and its problems"))
    traceId = one_id("to ask about", "0af76519-16cd-43dd-8448-eb211c80319c")


class Error(Told):
    """The one shape of all errors."""

    error = fields.Nested(Fault, required=True)
