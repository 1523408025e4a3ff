"""Stock: what is on hand, and reservations made by hand."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

from marshmallow import fields, validate

from gateway.api.fields import (
    OTHER_ID,
    AnswerSchema,
    Id,
    PageQuery,
    RequestSchema,
    Text,
    WholeNumber,
    cursor_field,
    datetime_field,
    integer_field,
    list_field,
    text_field,
    uuid_field,
)
from gateway.api.http import SIGNED_IN, Call, api
from shared.auth import ADMIN, SERVICE
from shared.edge.rpc_proxy import RpcProxy
from shared.errors import BelowReserved, Conflict, EcomError, NotFound, ValidationFailed, VersionMoved

SKU = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAX_SKU = 64
MAX_ITEMS = 100
MAX_QUANTITY = 10_000
MAX_ON_HAND = 10**9


def sku_field(**kwargs: Any) -> Text:
    """A sku; each schema has one of its own."""
    return Text("lamp", at_most=MAX_SKU, pattern=SKU, **kwargs)


def sku_or(error: type[EcomError], sku: str) -> str:
    """The sku of a path. Raises `error` when there can be none by that name."""
    if not SKU.fullmatch(sku):
        raise error(details={"sku": [f"Must match {SKU.pattern}."]} if error is ValidationFailed else None)
    return sku


class StockRequest(RequestSchema):
    """What is on hand; `version` guards against a change made since it was read."""

    on_hand = WholeNumber(0, MAX_ON_HAND, 100, required=True)
    version = WholeNumber(0, 2**63 - 1, 3, "refused with 409 when on_hand has changed since this one")


class ReserveItem(RequestSchema):
    """So many of one sku."""

    sku = sku_field(required=True)
    quantity = WholeNumber(1, MAX_QUANTITY, 2, required=True)


class ReserveRequest(RequestSchema):
    """A reservation made by hand."""

    order_id = Id(required=True)
    items = fields.List(fields.Nested(ReserveItem), validate=validate.Length(1, MAX_ITEMS), required=True)


class Stock(AnswerSchema):
    """The stock of one sku."""

    sku = text_field("lamp")
    on_hand = integer_field(100)
    reserved = integer_field(2, "held for orders under way")
    available = integer_field(98, "on_hand less reserved")
    version = integer_field(3, "counts the changes of on_hand")


class StockPage(AnswerSchema):
    """Stock in order of sku."""

    items = list_field(Stock)
    next_cursor = cursor_field()


class HeldItem(AnswerSchema):
    """So many of one sku."""

    sku = text_field("lamp")
    quantity = integer_field(2)


class SettledReservation(AnswerSchema):
    """A reservation made by hand, after it was settled."""

    order_id = uuid_field()
    reservation_id = uuid_field(example=OTHER_ID)
    state = text_field("RELEASED", "RESERVED, COMMITTED or RELEASED")


class Reservation(SettledReservation):
    """A reservation made by hand, until it expires."""

    state = text_field("RESERVED")
    items = list_field(HeldItem)
    expires_at = datetime_field("released by then, if nobody has settled it", "2026-01-14T10:45:00.123Z")


class Stocks:
    """Routes under /api/stocks, but for release events."""

    inventory = RpcProxy("inventory_service")

    @api(
        "PUT",
        "/api/stocks/<sku>",
        in_path={"sku": sku_field()},
        roles=(ADMIN,),
        body=StockRequest,
        answer=Stock,
        fails=(BelowReserved, VersionMoved),
        summary="Set what is on hand",
    )
    def put_stock(self, call: Call, sku: str) -> dict[str, Any]:
        """The stock as it is now; the difference is a movement. `reserve` and `release-events` cannot be skus."""
        sku = sku_or(ValidationFailed, sku)
        return self.inventory.put_stock(sku, call.body["on_hand"], call.body.get("version"))

    @api("GET", "/api/stocks", roles=SIGNED_IN, query=PageQuery, answer=StockPage, summary="List stock")
    def list_stocks(self, call: Call) -> dict[str, Any]:
        """A page of the stock."""
        return self.inventory.list_stocks(**call.query)

    @api(
        "GET",
        "/api/stocks/<sku>",
        in_path={"sku": sku_field()},
        roles=SIGNED_IN,
        answer=Stock,
        summary="Read the stock of a sku",
    )
    def get_stock(self, call: Call, sku: str) -> dict[str, Any]:
        """The stock of one sku."""
        return self.inventory.get_stock(sku_or(NotFound, sku))

    @api(
        "POST",
        "/api/stocks/reserve",
        roles=(ADMIN, SERVICE),
        body=ReserveRequest,
        answer=Reservation,
        fails=(Conflict,),
        summary="Reserve by hand",
    )
    def reserve(self, call: Call) -> dict[str, Any]:
        """A reservation that no order of ours made; after 15 minutes it expires. Short of stock is 409."""
        return self.inventory.reserve_manually(call.body["order_id"], call.body["items"])

    @api(
        "POST",
        "/api/stocks/reservations/<uuid:reservation_id>/release",
        roles=(ADMIN, SERVICE),
        answer=SettledReservation,
        fails=(Conflict,),
        summary="Release a reservation made by hand",
    )
    def release_reservation(self, call: Call, reservation_id: UUID) -> dict[str, Any]:
        """What it held is available again."""
        return self.inventory.release_reservation(str(reservation_id))

    @api(
        "POST",
        "/api/stocks/reservations/<uuid:reservation_id>/commit",
        roles=(ADMIN, SERVICE),
        answer=SettledReservation,
        fails=(Conflict,),
        summary="Commit a reservation made by hand",
    )
    def commit_reservation(self, call: Call, reservation_id: UUID) -> dict[str, Any]:
        """What it held has left the stock."""
        return self.inventory.commit_reservation(str(reservation_id))
