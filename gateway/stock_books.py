"""The books of stock: what people take in, take out and count, what is on hand, and what has moved it."""

from __future__ import annotations

from typing import Any

from marshmallow import fields, validate

from gateway.api.answering import Answer, keyed
from gateway.api.enumerations import (
    COUNT_REASON,
    MOVEMENT_CAUSE,
    MOVEMENT_REASON,
    STOCK_IN_REASON,
    STOCK_OUT_REASON,
    UNIT,
)
from gateway.api.fields import (
    OTHER_ID,
    TRACE_ID,
    AnswerSchema,
    Enumeration,
    FlagInQuery,
    PageQuery,
    RequestSchema,
    Text,
    Timestamp,
    WholeNumber,
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
from gateway.api.http import OPERATORS, SIGNED_IN, Call, api
from gateway.stock import MAX_ITEMS, MAX_ON_HAND, Stock, sku_field
from shared.auth import ADMIN, AUDITOR, OPERATOR
from shared.edge.rpc_proxy import RpcProxy
from shared.errors import BelowReserved, HasRecipe, ValidationFailed, VersionMoved

MAX_NOTE = 500
MAX_BATCH = 200
STAFF = (OPERATOR, AUDITOR, ADMIN)


def reason_field(enumeration: Enumeration) -> Word:
    """A new field for the reason of a movement."""
    words = enumeration.words
    return Word(enumeration, validate=validate.OneOf(words), required=True, metadata=field_metadata(words[0]))


def note_field() -> Text:
    """A new field for what people note about a movement."""
    return Text("two boxes were wet", at_most=MAX_NOTE, load_default=None, allow_none=True)


class MovedLine(RequestSchema):
    """A quantity of one sku."""

    sku = sku_field(required=True)
    quantity = WholeNumber(1, MAX_ON_HAND, 12, "in the unit of the sku", required=True)


class CountedLine(RequestSchema):
    """What was counted of one sku. `version` guards against changes made since it was read."""

    sku = sku_field(required=True)
    counted = WholeNumber(0, MAX_ON_HAND, 97, "in the unit of the sku", required=True)
    version = WholeNumber(0, 2**63 - 1, 3, "the version that was read; 409 if on_hand has changed since")


class StockInRequest(RequestSchema):
    """What has come, at most one line of a sku."""

    lines = fields.List(fields.Nested(MovedLine), validate=validate.Length(1, MAX_ITEMS), required=True)
    reason = reason_field(STOCK_IN_REASON)
    note = note_field()


class StockOutRequest(RequestSchema):
    """What has gone and was not sold, at most one line of a sku."""

    lines = fields.List(fields.Nested(MovedLine), validate=validate.Length(1, MAX_ITEMS), required=True)
    reason = reason_field(STOCK_OUT_REASON)
    note = note_field()


class AdjustRequest(RequestSchema):
    """What was counted, at most one line of a sku."""

    lines = fields.List(fields.Nested(CountedLine), validate=validate.Length(1, MAX_ITEMS), required=True)
    reason = reason_field(COUNT_REASON)
    note = note_field()


class BookedMovement(AnswerSchema):
    """A change of what is on hand, and what was on hand then."""

    id = integer_field(1204)
    sku = text_field("lamp")
    change = integer_field(12)
    on_hand_after = integer_field(112)
    cause = word_field(MOVEMENT_CAUSE, "stock_in")
    reason = word_field(MOVEMENT_REASON, "delivery")


class Bookings(AnswerSchema):
    """What has moved, and the stock of every line afterwards. A count that finds no difference moves nothing."""

    movements = list_field(BookedMovement)
    stock = list_field(Stock)


class LevelQuery(PageQuery):
    """Levels that fulfil every condition."""

    sku = sku_field()
    low = FlagInQuery("whether it is low")
    sold_out = FlagInQuery("whether nothing is available", example=False)


class Level(AnswerSchema):
    """What there is of a sku: on hand, or what could be made by its recipe."""

    sku = text_field("lamp")
    made = fields.Boolean(required=True, metadata=field_metadata(False, "made by a recipe: it has no stock of its own"))
    on_hand = integer_field(100, "null for a sku that is made", allow_none=True)
    reserved = integer_field(2, "held for orders in progress; null for a sku that is made", allow_none=True)
    available = integer_field(
        98, "on_hand minus reserved, or what could be made; null for what is made of nothing", allow_none=True
    )
    version = integer_field(3, "counts the changes of on_hand, or of the recipe")
    unit = word_field(UNIT, "piece")
    low_at = integer_field(20, "so many are low; null if nobody wants to hear of it", allow_none=True)
    low = fields.Boolean(required=True, metadata=field_metadata(False))
    sold_out = fields.Boolean(required=True, metadata=field_metadata(False))
    on_order = integer_field(50, "ordered from suppliers, and not received yet")


class LevelPage(AnswerSchema):
    """Levels, sorted by sku."""

    items = list_field(Level)
    next_cursor = cursor_field()


class MovementQuery(PageQuery):
    """Movements that fulfil every condition. `from` is included, `to` is not."""

    sku = sku_field()
    cause = Word(MOVEMENT_CAUSE, validate=validate.OneOf(MOVEMENT_CAUSE.words), metadata=field_metadata("stock_out"))
    from_ = Timestamp("moved at this time or later; with a zone", data_key="from", attribute="from")
    to = Timestamp("moved before this time; with a zone")


class StockMovement(AnswerSchema):
    """A change of what is on hand."""

    id = integer_field(1204)
    sku = text_field("lamp")
    change = integer_field(-2)
    on_hand_after = integer_field(98, "null for those made before it was kept", allow_none=True)
    cause = word_field(MOVEMENT_CAUSE, "stock_out")
    reason = word_field(MOVEMENT_REASON, "spoiled", "of what people took in, took out or counted", allow_none=True)
    note = text_field("two boxes were wet", allow_none=True)
    moved_by = text_field("operator")
    trace_id = text_field(TRACE_ID)
    moved_at = datetime_field()
    order_id = uuid_field("of sales and returns", None, allow_none=True)
    purchase_order_id = uuid_field("of what was received", OTHER_ID, allow_none=True)


class MovementPage(AnswerSchema):
    """Movements, newest first."""

    items = list_field(StockMovement)
    next_cursor = cursor_field()


class AvailabilityRequest(RequestSchema):
    """The skus of which to tell."""

    skus = fields.List(sku_field(), validate=validate.Length(1, MAX_BATCH), required=True)


class Availability(AnswerSchema):
    """How much of a sku can be sold now."""

    sku = text_field("lamp")
    available = integer_field(98, "null for what is made of nothing", allow_none=True)
    sold_out = fields.Boolean(required=True, metadata=field_metadata(False))


class AvailabilityList(AnswerSchema):
    """The skus in the order of the request, each once."""

    items = list_field(Availability)
    unknown_skus = fields.List(fields.String(metadata=field_metadata("lomp")), required=True, data_key="unknown")


class StockBooks:
    """Routes under /api/inventory for those who keep the stock."""

    inventory = RpcProxy("inventory_service")

    @api(
        "POST",
        "/api/inventory/stock-in",
        roles=OPERATORS,
        body=StockInRequest,
        idempotent=True,
        answer=Bookings,
        fails=(HasRecipe,),
        summary="Take stock in",
    )
    def stock_in(self, call: Call) -> Answer:
        """All lines or none, once for each key. A sku that is new gets its first stock."""
        return keyed(self.inventory.stock_in(**call.body, key=call.key))

    @api(
        "POST",
        "/api/inventory/stock-out",
        roles=OPERATORS,
        body=StockOutRequest,
        idempotent=True,
        answer=Bookings,
        fails=(BelowReserved, HasRecipe),
        summary="Take stock out",
    )
    def stock_out(self, call: Call) -> Answer:
        """All lines or none, once for each key.

        What is reserved cannot be taken: 409 `below_reserved` names the newest 20 orders that hold the sku, to cancel
        some of them and to repeat.
        """
        return keyed(self.inventory.stock_out(**call.body, key=call.key))

    @api(
        "POST",
        "/api/inventory/adjust",
        roles=OPERATORS,
        body=AdjustRequest,
        idempotent=True,
        answer=Bookings,
        fails=(BelowReserved, HasRecipe, VersionMoved),
        summary="Set stock to what was counted",
        example={
            "movements": [
                {"id": 1204, "sku": "lamp", "change": -3, "on_hand_after": 97, "cause": "counted", "reason": "count"}
            ]
        },
    )
    def adjust_stock(self, call: Call) -> Answer:
        """All lines or none, once for each key. With `version`, only if nothing has moved since it was read."""
        return keyed(self.inventory.adjust_stock(**call.body, key=call.key))

    @api(
        "GET",
        "/api/inventory/levels",
        roles=STAFF,
        query=LevelQuery,
        answer=LevelPage,
        summary="List what is on hand and what is low",
    )
    def stock_levels(self, call: Call) -> dict[str, Any]:
        """A page of every sku that is in stock or made by a recipe."""
        return self._levels(call)

    @api(
        "GET",
        "/api/inventory/items",
        roles=STAFF,
        query=LevelQuery,
        answer=LevelPage,
        summary="The same as /api/inventory/levels",
    )
    def inventory_items(self, call: Call) -> dict[str, Any]:
        """A page of every sku that is in stock or made by a recipe."""
        return self._levels(call)

    def _levels(self, call: Call) -> dict[str, Any]:
        return self.inventory.stock_levels(call.query["limit"], call.query["cursor"], filters_in(call.query))

    @api(
        "GET",
        "/api/inventory/movements",
        roles=STAFF,
        query=MovementQuery,
        answer=MovementPage,
        fails=(ValidationFailed,),
        summary="List what has moved stock",
    )
    def stock_movements(self, call: Call) -> dict[str, Any]:
        """A page of the movements that match every filter.

        Without `sku` they are those that people made: sales and returns are listed of one sku.
        """
        return self.inventory.stock_movements(call.query["limit"], call.query["cursor"], filters_in(call.query))

    @api(
        "POST",
        "/api/inventory/batch",
        roles=SIGNED_IN,
        body=AvailabilityRequest,
        answer=AvailabilityList,
        summary="See how much of many skus is available",
    )
    def availability(self, call: Call) -> dict[str, Any]:
        """It changes nothing, and needs no key."""
        return self.inventory.availability(call.body["skus"])
