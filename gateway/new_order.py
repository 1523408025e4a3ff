"""An order as clients post it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from marshmallow import fields, validate

from gateway.api.currencies import currency_field
from gateway.api.fields import RequestSchema, Text, WholeNumber
from gateway.stock import MAX_ITEMS, MAX_QUANTITY, sku_field
from shared.errors import ValidationFailed
from shared.schema import MAX_AMOUNT

MAX_LINE_NOTE, MAX_NOTE = 200, 500
DEVELOPMENT_PAYMENT_METHOD = "mock_ok"
PAYMENT_METHODS_IN_WORDS = (
    "one of the payment methods that this server accepts; another one is 422. If the payment provider lacks it, the"
    " order becomes CANCELLED, payment_failed, and its payment says `method_unknown`. In development the methods are"
    " those of the mock provider: mock_ok (which may be omitted there), mock_declined, mock_timeout,"
    " mock_timeout_charged and mock_refund_declined"
)


class OrderItem(RequestSchema):
    """One line of an order, which is charged the price of the menu."""

    sku = sku_field(required=True)
    quantity = WholeNumber(1, MAX_QUANTITY, 2, required=True)
    unit_price = WholeNumber(
        0,
        MAX_AMOUNT,
        1999,
        "what the customer has seen, in minor units; 409 `price_changed` if another price holds now",
    )
    note = Text("No onions", "a wish", at_most=MAX_LINE_NOTE)


class OrderRequest(RequestSchema):
    """An order. A line (quantity x unit_price) and the total are at most 2^53 - 1, which JSON readers hold exactly."""

    currency = currency_field(required=True)
    payment_method = Text(DEVELOPMENT_PAYMENT_METHOD, PAYMENT_METHODS_IN_WORDS)
    items = fields.List(fields.Nested(OrderItem), validate=validate.Length(1, MAX_ITEMS), required=True)
    note = Text("Ring twice", "a wish for the whole order", at_most=MAX_NOTE)


def with_payment_method(order: dict[str, Any], methods: Sequence[str], production: bool) -> dict[str, Any]:
    """The order with one of the payment methods. Raises ValidationFailed for another, or for none in production."""
    method = order.get("payment_method", "" if production else DEVELOPMENT_PAYMENT_METHOD)
    if not method:
        raise ValidationFailed(details={"payment_method": ["Missing data for required field."]})
    if method not in methods:
        raise ValidationFailed(details={"payment_method": [f"Must be one of: {', '.join(methods)}."]})
    return {**order, "payment_method": method}
