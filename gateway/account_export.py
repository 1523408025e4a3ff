"""What is stored about a person, as one JSON document, streamed page by page in bounded memory.

A failure before the first byte is an error like any other. A later one breaks the connection off, so that the document
ends early and is no JSON.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, islice
from typing import Any, ClassVar

from marshmallow import fields
from werkzeug.wrappers import Request, Response

from gateway.api.answering import as_json, respond
from gateway.api.fields import (
    EXAMPLE_ID,
    AnswerSchema,
    datetime_field,
    field_metadata,
    list_field,
    text_field,
    uuid_field,
)
from gateway.api.http import Call, Holding
from gateway.export import STOP_S, BrokenOff
from gateway.orders import Order
from gateway.payments import Payment
from shared.edge.green import MINIMUM_WRITE_CHUNK_SIZE
from shared.edge.rpc_proxy import CALL_TIMEOUT_S, Replies
from shared.errors import NotFound

log = logging.getLogger(__name__)

# Rows of one call, which cost some 100 kB.
ROWS = 200
PARTS = ("sessions", "identities", "events")

_PREPARED = "ecom.prepared"

Ask = Callable[..., Any]


class ExportedSession(AnswerSchema):
    """A sign-in."""

    id = uuid_field()
    kind = text_field("api", "`api`, or `dashboard`")
    client = text_field("Mozilla/5.0", "what the client called itself")
    network = text_field("192.0.2.7", "an IPv4 address, or an IPv6 /64 network")
    created_at = datetime_field()
    used_at = datetime_field("when its token was renewed last")
    ended_at = fields.DateTime(required=True, allow_none=True, metadata=field_metadata(None, "null: it goes on"))
    ended_why = text_field(None, "why it ended", allow_none=True)


class ExportedIdentity(AnswerSchema):
    """Another provider by which somebody signs in."""

    provider = text_field("google")
    subject = text_field("110169484474386276334", "who they are there")
    linked_at = datetime_field()


class ExportedEvent(AnswerSchema):
    """Something that happened to the account."""

    at = datetime_field()
    event = text_field("signed_in", "what it was")
    by = text_field("you", "`you`, `staff`, or `nobody signed in`")
    session_id = text_field(EXAMPLE_ID, "the session in which it was done", allow_none=True)
    network = text_field("192.0.2.7", "from where; null for what others did", allow_none=True)
    details = fields.Dict(required=True, metadata=field_metadata({}, "more about it"))


class ExportedOrder(Order):
    """An order and its payment."""

    payment = fields.Nested(Payment, required=True, allow_none=True, metadata={"description": "null: there is none"})


class ExportedAccount(AnswerSchema):
    """The account itself."""

    id = text_field(EXAMPLE_ID)
    email = text_field("alice@example.org", allow_none=True)
    name = text_field("Alice", allow_none=True)
    roles = fields.List(fields.String(metadata=field_metadata("customer")), required=True)
    locale = text_field("en")
    has_password = fields.Boolean(required=True, metadata=field_metadata(True))
    created_at = datetime_field()


class OwnExport(AnswerSchema):
    """All that is stored about a person but secrets."""

    account = fields.Nested(ExportedAccount, required=True)
    sessions = list_field(ExportedSession)
    identities = list_field(ExportedIdentity)
    events = list_field(ExportedEvent)
    orders = list_field(ExportedOrder)


class AccountExport(Holding):
    """A route that streams what is stored about its caller. Its method returns the account."""

    answer_headers: ClassVar[dict[str, tuple[str, dict[str, Any]]]] = {
        "Content-Disposition": ("The name of the file.", {"type": "string"})
    }
    replies = Replies()
    stops_at = math.inf

    def stop(self) -> None:
        self.stops_at = time.monotonic() + STOP_S
        super().stop()

    def prepare(self, request: Request) -> tuple[tuple[Call], dict[str, Any]]:
        (call,), context = super().prepare(request)
        request.environ[_PREPARED] = call, context
        return (call,), context

    def answer(self, request: Request, result: Any) -> Response:
        call, context = request.environ[_PREPARED]

        def ask(method: str, *args: Any) -> Any:
            self._check(call)
            return self.replies.call(method, args, {}, context, CALL_TIMEOUT_S)

        named = [("Content-Disposition", 'attachment; filename="account.json"')]
        response = respond(request.environ, self.status, "", named, self.content_type)
        del response.headers["Content-Length"]
        response.headers["Cache-Control"] = self.cache_control
        response.response = _logged(begun(document(ask, result)), call.trace_id)
        request.environ[MINIMUM_WRITE_CHUNK_SIZE] = 0  # from here on an error breaks the connection
        return response

    def _check(self, call: Call) -> None:
        """Raises BrokenOff when the client has gone, its token was revoked or the time to stop is over."""
        if call.has_gone():
            raise BrokenOff("its client has gone")
        if self.is_shut_out(call):
            raise BrokenOff("its token was revoked")
        if time.monotonic() > self.stops_at:
            raise BrokenOff("the service stops")


export_account = AccountExport.decorator


def begun(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same pieces, of which those up to the first page are made: an error there still gets its status."""
    return chain(list(islice(pieces, 3)), pieces)


def document(ask: Ask, account: Mapping[str, Any]) -> Iterator[bytes]:
    """The document in pieces of one page. `ask(method, *args)` calls another service."""
    yield f'{{"account":{as_json(account)}'.encode()
    for part in PARTS:
        yield from _list(part, _pages(ask, "auth_service.export_me", part))
    yield from _list("orders", _orders(ask, account["id"]))
    yield b"}\n"


def _list(name: str, pages: Iterator[list[Any]]) -> Iterator[bytes]:
    yield f',"{name}":['.encode()
    before = ""
    for page in pages:
        if page:
            yield (before + ",".join(map(as_json, page))).encode()
            before = ","
    yield b"]"


def _pages(ask: Ask, method: str, *before: Any, filters: Mapping[str, Any] | None = None) -> Iterator[list[Any]]:
    cursor = None
    while True:
        page = ask(method, *before, ROWS, cursor, *([] if filters is None else [filters]))
        yield page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            return


def _orders(ask: Ask, user_id: str) -> Iterator[list[Any]]:
    """The orders of a user alone, also of one who may see all, each with its payment."""
    for page in _pages(ask, "order_service.list_orders", filters={"user": user_id}):
        yield [{**order, "payment": _payment(ask, order)} for order in page]


def _payment(ask: Ask, order: Mapping[str, Any]) -> Any:
    if order["payment_id"] is None:
        return None
    try:
        return ask("payment_service.get_payment", order["payment_id"])
    except NotFound:  # it is about to be paid
        return None


def _logged(pieces: Iterator[bytes], trace_id: str) -> Iterator[bytes]:
    """The pieces; whatever ends them early is logged and goes on, so that the connection is broken."""
    try:
        yield from pieces
    except (BrokenOff, GeneratorExit) as error:
        log.warning(
            "the export of an account under trace %s was broken off: %s", trace_id, error or "its client has gone"
        )
        raise
    except Exception:
        log.exception("the export of an account under trace %s failed", trace_id)
        raise
