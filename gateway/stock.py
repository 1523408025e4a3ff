"""Stock: what is on hand, and manual reservations."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

from marshmallow import fields, validate

from gateway.api.enumerations import RESERVATION_STATE
from gateway.api.fields import (
    OTHER_ID,
    AnswerSchema,
    Id,
    PageQuery,
    RequestSchema,
    Text,
    Timestamp,
    WholeNumber,
    cursor_field,
    datetime_field,
    integer_field,
    list_field,
    text_field,
    uuid_field,
    word_field,
)
from gateway.api.http import SIGNED_IN, Call, api
from shared.auth import ADMIN, SERVICE
from shared.edge.rpc_proxy import RpcProxy
from shared.enumerations import ReservationState
from shared.errors import BelowReserved, Conflict, EcomError, HasRecipe, NotFound, ValidationFailed, VersionMoved

SKU = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAX_SKU = 64
MAX_ITEMS = 100
MAX_QUANTITY = 10_000
MAX_ON_HAND = 10**9
MAX_RECONCILED = 200


def sku_field(**kwargs: Any) -> Text:
    """A new field for a sku: marshmallow fields cannot be shared by schemas."""
    return Text("lamp", at_most=MAX_SKU, pattern=SKU, **kwargs)


def sku_or(error: type[EcomError], sku: str) -> str:
    """The sku of a path. Raises `error` when it is not a valid sku."""
    if not SKU.fullmatch(sku):
        raise error(details={"sku": [f"Must match {SKU.pattern}."]} if error is ValidationFailed else None)
    return sku


class StockRequest(RequestSchema):
    """The stock on hand. `version` guards against changes made since it was read."""

    on_hand = WholeNumber(0, MAX_ON_HAND, 100, required=True)
    version = WholeNumber(0, 2**63 - 1, 3, "the version that was read; 409 if on_hand has changed since")


class ReserveItem(RequestSchema):
    """A quantity of one sku."""

    sku = sku_field(required=True)
    quantity = WholeNumber(1, MAX_QUANTITY, 2, required=True)


class ReserveRequest(RequestSchema):
    """A manual reservation."""

    order_id = Id(required=True)
    items = fields.List(fields.Nested(ReserveItem), validate=validate.Length(1, MAX_ITEMS), required=True)


class ReconcileRequest(RequestSchema):
    """The skus of which to tell; without them, all. A list of all is told in several calls."""

    skus = fields.List(sku_field(), validate=validate.Length(1, MAX_RECONCILED))
    before = Timestamp("that of the first answer, to go on: what was told since then is left out", load_default=None)


class Reconciled(AnswerSchema):
    """What was done."""

    told = integer_field(2, "of so many skus the availability was published")
    left = integer_field(0, "so many are left: repeat the request with this `before`")
    before = datetime_field("the moment of the request, or its own `before`")


class Stock(AnswerSchema):
    """The stock of one sku."""

    sku = text_field("lamp")
    on_hand = integer_field(100)
    reserved = integer_field(2, "held for orders in progress")
    available = integer_field(98, "on_hand minus reserved")
    version = integer_field(3, "counts the changes of on_hand")


class StockPage(AnswerSchema):
    """Stock, sorted by sku."""

    items = list_field(Stock)
    next_cursor = cursor_field()


class HeldItem(AnswerSchema):
    """A quantity of one sku."""

    sku = text_field("lamp")
    quantity = integer_field(2)


class SettledReservation(AnswerSchema):
    """A manual reservation after it was released or committed."""

    order_id = uuid_field()
    reservation_id = uuid_field(example=OTHER_ID)
    state = word_field(RESERVATION_STATE, "RELEASED")


class Reservation(SettledReservation):
    """A manual reservation."""

    state = word_field(RESERVATION_STATE, "RESERVED")
    items = list_field(HeldItem)
    expires_at = datetime_field("released at this time unless closed before", "2026-01-14T10:45:00.123Z")


class Stocks:
    """Routes under /api/stocks, except release events."""

    inventory = RpcProxy("inventory_service")

    @api(
        "PUT",
        "/api/stocks/<sku>",
        in_path={"sku": sku_field()},
        roles=(ADMIN,),
        body=StockRequest,
        answer=Stock,
        fails=(BelowReserved, HasRecipe, VersionMoved),
        summary="Set the stock on hand",
    )
    def put_stock(self, call: Call, sku: str) -> dict[str, Any]:
        """The stock after the change; the change is a movement. `reserve` and `release-events` cannot be skus.

        409 `below_reserved` names the newest 20 orders that hold the sku.
        """
        sku = sku_or(ValidationFailed, sku)
        try:
            return self.inventory.put_stock(sku, call.body["on_hand"], call.body.get("version"))
        except Conflict as error:
            if error.details.get("problem") == HasRecipe.code:
                raise HasRecipe(error.message, {"sku": sku}) from error
            raise

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
        summary="Reserve manually",
    )
    def reserve(self, call: Call) -> dict[str, Any]:
        """A reservation outside the order flow. It expires after 15 minutes. 409 if there is not enough stock."""
        return self.inventory.reserve_manually(call.body["order_id"], call.body["items"])

    @api(
        "POST",
        "/api/stocks/reservations/<uuid:reservation_id>/release",
        roles=(ADMIN, SERVICE),
        answer=SettledReservation,
        fails=(Conflict,),
        summary="Release a manual reservation",
    )
    def release_reservation(self, call: Call, reservation_id: UUID) -> dict[str, Any]:
        """The reserved stock becomes available again."""
        return self.inventory.release_reservation(str(reservation_id))

    @api(
        "POST",
        "/api/stocks/reservations/<uuid:reservation_id>/commit",
        roles=(ADMIN, SERVICE),
        answer=SettledReservation,
        fails=(Conflict,),
        summary="Commit a manual reservation",
        example={"state": ReservationState.COMMITTED},
    )
    def commit_reservation(self, call: Call, reservation_id: UUID) -> dict[str, Any]:
        """The reserved stock leaves the stock on hand."""
        return self.inventory.commit_reservation(str(reservation_id))

    @api(
        "POST",
        "/api/inventory/reconcile",
        roles=(ADMIN, SERVICE),
        body=ReconcileRequest,
        answer=Reconciled,
        status=202,
        summary="Tell the availability of skus again",
    )
    def reconcile_availability(self, call: Call) -> dict[str, Any]:
        """The menu shows within seconds what is in stock now, whatever it has missed.

        One request tells at most the 10,000 skus that were told longest ago. To tell all, repeat it with the `before`
        of the first answer until `left` is 0.
        """
        return self.inventory.tell_availability(call.body.get("skus"), call.body["before"])
