"""Payments: read them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from marshmallow import fields

from gateway.api.enumerations import PAYMENT_STATUS
from gateway.api.fields import (
    EXAMPLE_ID,
    OTHER_ID,
    AnswerSchema,
    RequestSchema,
    datetime_field,
    field_metadata,
    integer_field,
    text_field,
    uuid_field,
    uuid_in,
    word_field,
)
from gateway.api.http import READERS, Call, api
from shared.edge.rpc_proxy import RpcProxy
from shared.errors import NotFound


class PaymentQuery(RequestSchema):
    """The order whose payment to read."""

    order_id = fields.String(required=True, metadata=field_metadata(EXAMPLE_ID, format="uuid"))


class Payment(AnswerSchema):
    """The payment of an order."""

    payment_id = uuid_field(example=OTHER_ID)
    order_id = uuid_field()
    status = word_field(PAYMENT_STATUS, "COMPLETED")
    amount = integer_field(3998, "in minor units")
    currency = text_field("EUR", "ISO 4217")
    payment_method = text_field("mock_ok")
    provider_reference = text_field("mock-5f0c", "`nothing_to_pay` for an amount of 0", allow_none=True)
    reason = text_field(
        None,
        "why it failed, in the provider's words, such as `card_declined`; `method_unknown`: it has no such method",
        allow_none=True,
    )
    created_at = datetime_field()
    updated_at = datetime_field()


class Payments:
    """Routes under /api/payments."""

    payments = RpcProxy("payment_service")

    @api("GET", "/api/payments/<uuid:payment_id>", roles=READERS, answer=Payment, summary="Read a payment")
    def get_payment(self, call: Call, payment_id: UUID) -> dict[str, Any]:
        """One payment. A customer gets 404 for the payment of somebody else."""
        return self.payments.get_payment(str(payment_id))

    @api(
        "GET",
        "/api/payments",
        roles=READERS,
        query=PaymentQuery,
        answer=Payment,
        fails=(NotFound,),
        summary="Read the payment of an order",
    )
    def payment_of_order(self, call: Call) -> dict[str, Any]:
        """The payment of an order. An order has at most one."""
        order_id = uuid_in(call.query["order_id"])
        if order_id is None:
            raise NotFound
        return self.payments.payment_of_order(order_id)
