"""Purchase orders: what is proposed, ordered and received."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from marshmallow import fields, validate

from gateway.api.answering import Answer, keyed
from gateway.api.currencies import currency_field
from gateway.api.enumerations import PURCHASE_STATUS
from gateway.api.fields import (
    AnswerSchema,
    Id,
    PageQuery,
    RequestSchema,
    Text,
    WholeNumber,
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
from gateway.api.http import OPERATORS, Call, api
from gateway.stock import sku_field
from gateway.suppliers import optional_integer, version_field
from shared.auth import ADMIN
from shared.edge.rpc_proxy import RpcProxy
from shared.errors import Conflict, OverReceived, VersionMoved
from shared.schema import MAX_AMOUNT

MAX_NOTE = 500
# A line can hold what several runs of the timer have added.
MAX_LINE = 10**12
MAX_LINES = 100


class LineInDocument(RequestSchema):
    """So much of one sku."""

    sku = sku_field(required=True)
    quantity = WholeNumber(1, MAX_LINE, 48, required=True)
    unit_cost = WholeNumber(
        0, MAX_AMOUNT, 1250, "in minor units of currency; both or neither", load_default=None, allow_none=True
    )
    currency = currency_field(load_default=None, allow_none=True)


class ProposalRequest(RequestSchema):
    """What to buy from a supplier."""

    supplier_id = Id(required=True)
    note = Text("for the week of the fair", at_most=MAX_NOTE, load_default=None, allow_none=True)
    lines = fields.List(fields.Nested(LineInDocument), validate=validate.Length(1, MAX_LINES), required=True)


class RewriteRequest(RequestSchema):
    """The whole of a proposal, but for its supplier. A line that is left out is not bought."""

    note = Text("for the week of the fair", at_most=MAX_NOTE, load_default=None, allow_none=True)
    lines = fields.List(fields.Nested(LineInDocument), validate=validate.Length(1, MAX_LINES), required=True)
    version = version_field(required=True)


class ArrivalInRequest(RequestSchema):
    """So much of one sku has come."""

    sku = sku_field(required=True)
    quantity = WholeNumber(1, MAX_LINE, 24, required=True)
    unit_cost = WholeNumber(
        0, MAX_AMOUNT, 1250, "if it is another than the line has; in its currency", load_default=None, allow_none=True
    )


class ReceiveRequest(RequestSchema):
    """What has come. All of it is booked, or nothing."""

    lines = fields.List(fields.Nested(ArrivalInRequest), validate=validate.Length(1, MAX_LINES), required=True)


class OrderQuery(RequestSchema):
    """What was read before."""

    version = WholeNumberInQuery(
        1, 2**63 - 1, 3, "the version that was read; 409 if it has changed since", load_default=None
    )


class PurchaseQuery(PageQuery):
    """Purchase orders that fulfil every condition."""

    status = Word(PURCHASE_STATUS, validate=validate.OneOf(PURCHASE_STATUS.words), metadata=field_metadata("PROPOSED"))
    supplier = Id("the id of a supplier")


class PurchaseLine(AnswerSchema):
    """So much of one sku, and what of it has come."""

    sku = text_field("lamp")
    quantity = integer_field(48)
    received = integer_field(24)
    open = integer_field(24, "what is still to come; 0 once the purchase order is closed or cancelled")
    unit_cost = optional_integer(1250, "in minor units of currency")
    currency = text_field("EUR", allow_none=True)


class PurchaseHead(AnswerSchema):
    """A purchase order without its lines."""

    purchase_order_id = uuid_field()
    supplier_id = uuid_field()
    status = word_field(PURCHASE_STATUS, "ORDERED")
    version = integer_field(3, "send it with the next change")
    note = text_field("for the week of the fair", allow_none=True)
    made_by = text_field("operator", "system:reorder if the timer proposed it")
    made_at = datetime_field()
    ordered_at = datetime_field(allow_none=True)
    expected_at = datetime_field("ordered_at and the supplier's days", allow_none=True)
    closed_at = datetime_field("when it became RECEIVED or CANCELLED", allow_none=True)


class PurchaseOrder(PurchaseHead):
    """A purchase order."""

    lines = list_field(PurchaseLine)


class PurchasePage(AnswerSchema):
    """Purchase orders without their lines, newest first."""

    items = list_field(PurchaseHead)
    next_cursor = cursor_field()


class Purchasing:
    """Routes under /api/inventory/purchase-orders."""

    inventory = RpcProxy("inventory_service")

    @api(
        "GET",
        "/api/inventory/purchase-orders",
        roles=OPERATORS,
        query=PurchaseQuery,
        answer=PurchasePage,
        summary="List purchase orders",
    )
    def list_purchase_orders(self, call: Call) -> dict[str, Any]:
        """A page of the purchase orders, newest first."""
        return self.inventory.list_purchase_orders(call.query["limit"], call.query["cursor"], filters_in(call.query))

    @api(
        "GET",
        "/api/inventory/purchase-orders/<uuid:purchase_order_id>",
        roles=OPERATORS,
        answer=PurchaseOrder,
        summary="Read a purchase order",
    )
    def get_purchase_order(self, call: Call, purchase_order_id: UUID) -> dict[str, Any]:
        """The purchase order with its lines."""
        return self.inventory.get_purchase_order(str(purchase_order_id))

    @api(
        "POST",
        "/api/inventory/purchase-orders",
        roles=OPERATORS,
        body=ProposalRequest,
        idempotent=True,
        located=True,
        answer=PurchaseOrder,
        status=201,
        fails=(Conflict,),
        summary="Propose to buy from a supplier",
        example={"status": "PROPOSED", "ordered_at": None, "expected_at": None, "closed_at": None},
    )
    def create_purchase_order(self, call: Call) -> Answer:
        """A proposal, made once for each key. 409 names the one there is: a supplier has one at most."""
        return keyed(self.inventory.create_purchase_order(call.body, call.key))

    @api(
        "PUT",
        "/api/inventory/purchase-orders/<uuid:purchase_order_id>",
        roles=OPERATORS,
        body=RewriteRequest,
        answer=PurchaseOrder,
        fails=(Conflict, VersionMoved),
        summary="Rewrite a proposal",
    )
    def put_purchase_order(self, call: Call, purchase_order_id: UUID) -> dict[str, Any]:
        """The proposal with these lines and no others. 409 once it is ordered."""
        return self.inventory.put_purchase_order(str(purchase_order_id), **call.body)

    @api(
        "POST",
        "/api/inventory/purchase-orders/<uuid:purchase_order_id>/order",
        roles=(ADMIN,),
        query=OrderQuery,
        idempotent=True,
        answer=PurchaseOrder,
        fails=(Conflict, VersionMoved),
        summary="Order what is proposed",
    )
    def order_purchase(self, call: Call, purchase_order_id: UUID) -> Answer:
        """A person commits the money. With the version that was read nothing is ordered that they have not seen."""
        return keyed(self.inventory.order_purchase(str(purchase_order_id), call.key, call.query["version"]))

    @api(
        "POST",
        "/api/inventory/purchase-orders/<uuid:purchase_order_id>/receive",
        roles=OPERATORS,
        body=ReceiveRequest,
        idempotent=True,
        answer=PurchaseOrder,
        fails=(Conflict, OverReceived),
        summary="Receive what was ordered",
    )
    def receive_purchase(self, call: Call, purchase_order_id: UUID) -> Answer:
        """What has come is on hand at once. RECEIVED when nothing is open any more.

        409 `over_received` names what is open: what is more than that is a stock-in of its own.
        """
        return keyed(self.inventory.receive_purchase(str(purchase_order_id), call.body["lines"], call.key))

    @api(
        "POST",
        "/api/inventory/purchase-orders/<uuid:purchase_order_id>/close",
        roles=OPERATORS,
        idempotent=True,
        answer=PurchaseOrder,
        fails=(Conflict,),
        summary="Close a purchase order short",
        example={"status": "RECEIVED"},
    )
    def close_purchase(self, call: Call, purchase_order_id: UUID) -> Answer:
        """What is open is not waited for any more."""
        return keyed(self.inventory.close_purchase(str(purchase_order_id), call.key))

    @api(
        "POST",
        "/api/inventory/purchase-orders/<uuid:purchase_order_id>/cancel",
        roles=OPERATORS,
        idempotent=True,
        answer=PurchaseOrder,
        fails=(Conflict,),
        summary="Cancel a purchase order",
        example={"status": "CANCELLED"},
    )
    def cancel_purchase(self, call: Call, purchase_order_id: UUID) -> Answer:
        """409 once some of it has come. What was proposed is not proposed again for 24 hours."""
        return keyed(self.inventory.cancel_purchase(str(purchase_order_id), call.key))
