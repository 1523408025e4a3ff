"""Notes on orders: what staff write about one, and what its owner may read of it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from marshmallow import fields

from gateway.api.answering import Answer, keyed
from gateway.api.fields import (
    AnswerSchema,
    Flag,
    RequestSchema,
    Text,
    datetime_field,
    field_metadata,
    integer_field,
    list_field,
    text_field,
)
from gateway.api.http import OPERATORS, READERS, Call, api
from shared.edge.rpc_proxy import RpcProxy

MAX_NOTE = 500


class NoteRequest(RequestSchema):
    """A note on an order."""

    text = Text("The customer called.", at_most=MAX_NOTE, required=True)
    shown = Flag("whether the owner of the order sees it", load_default=False)


class OrderNote(AnswerSchema):
    """A note on an order."""

    id = integer_field(17)
    text = text_field("The customer called.")
    shown = fields.Boolean(required=True, metadata=field_metadata(False))
    author = text_field("operator", "null for the owner of the order, who reads no names", allow_none=True)
    at = datetime_field()


class NoteList(AnswerSchema):
    """The notes on an order, oldest first; at most 200."""

    items = list_field(OrderNote)


class OrderNotes:
    """Routes under /api/orders/{order_id}/notes."""

    orders = RpcProxy("order_service")

    @api(
        "GET",
        "/api/orders/<uuid:order_id>/notes",
        roles=READERS,
        answer=NoteList,
        summary="Read the notes on an order",
    )
    def order_notes(self, call: Call, order_id: UUID) -> dict[str, Any]:
        """All notes for staff. The owner sees those that are shown, without the names of who wrote them."""
        return self.orders.notes(str(order_id))

    @api(
        "POST",
        "/api/orders/<uuid:order_id>/notes",
        roles=OPERATORS,
        body=NoteRequest,
        idempotent=True,
        located=True,
        answer=OrderNote,
        status=201,
        summary="Write a note on an order",
    )
    def add_order_note(self, call: Call, order_id: UUID) -> Answer:
        """The note, written once for each key. It can be neither changed nor deleted."""
        return keyed(self.orders.add_note(str(order_id), call.body["text"], call.body["shown"], call.key))
