"""Releases: the audit of stock that became available again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marshmallow import ValidationError, fields, validate, validates_schema

from gateway.api.enumerations import DLQ_NAME, OPERATION_KIND, RELEASE_REASON
from gateway.api.fields import (
    EXAMPLE_TIME,
    MAX_ROW_ID,
    OTHER_ID,
    TRACE_ID,
    AnswerSchema,
    FlagInQuery,
    Id,
    PageQuery,
    RequestSchema,
    Text,
    Timestamp,
    TraceId,
    WholeNumberInQuery,
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
from gateway.api.http import AUDITORS, Call, api
from gateway.combined import Combined
from gateway.export import export
from gateway.orders import Timeline
from gateway.stock import sku_field
from shared.auth import MAX_NAME_LENGTH
from shared.edge.rpc_proxy import RpcProxy
from shared.errors import NotFound
from shared.exports import Reader

MAX_OFFSET = 10_000


class ReleaseQuery(RequestSchema):
    """Filters of releases. `from` is included, `to` is not."""

    order_id = Id()
    sku = sku_field()
    reason = Text("payment_failed", "the reason of the release")
    user_id = Text("alice", "the user who requested the release", at_most=MAX_NAME_LENGTH)
    trace_id = TraceId()
    from_ = Timestamp("released at this time or later; with a zone", data_key="from", attribute="from")
    to = Timestamp("released before this time; with a zone")


class ReleasePageQuery(ReleaseQuery, PageQuery):
    """A page of releases. It begins at a cursor or at an offset."""

    offset = WholeNumberInQuery(0, MAX_OFFSET, 100, "skip this many releases, each of which is read; not with cursor")
    include_total = FlagInQuery("count all releases that match, each of which is read", load_default=False)

    @validates_schema
    def begins_at_cursor_or_offset(self, data: Mapping[str, Any], **kwargs: Any) -> None:
        if "offset" in data and data["cursor"] is not None:
            raise ValidationError("Must not be given together with cursor.", "offset")


class ReleaseExportQuery(ReleaseQuery):
    """Filters of an export, and who reads it."""

    for_ = Text(
        Reader.SPREADSHEETS,
        "`programs` (the default) or `spreadsheets`, which see a byte order mark and keep every text as text",
        validate=validate.OneOf(list(Reader)),
        data_key="for",
        attribute="for",
    )


class LinkedOperation(AnswerSchema):
    """An action of an operator on a message of the order."""

    operation_id = uuid_field(example=OTHER_ID)
    kind = word_field(OPERATION_KIND, "replay")
    queue = word_field(DLQ_NAME, "q.inventory.release-requested.dlq")
    actor = text_field("operator", "the operator")
    why = text_field("the orders are there now", "the reason given")
    message_id = uuid_field("the message that was replayed or imported")
    event_type = text_field("inventory.release.requested", allow_none=True)
    at = datetime_field()


class ReleaseEvent(AnswerSchema):
    """A release: stock of an order that became available again."""

    id = integer_field(7)
    order_id = uuid_field()
    reservation_id = uuid_field(example=OTHER_ID)
    sku = text_field("lamp")
    quantity = integer_field(2)
    reason = word_field(RELEASE_REASON, "payment_failed")
    requested_by = text_field("customer")
    roles = fields.List(fields.String(metadata=field_metadata("customer")), required=True)
    trace_id = text_field(TRACE_ID)
    released_at = datetime_field()
    operations = fields.List(
        fields.Nested(LinkedOperation),
        required=True,
        allow_none=True,
        metadata={"description": "operations on its order before it; null while ops_service is unavailable"},
    )


class ReleaseEventPage(AnswerSchema):
    """Release events, newest first."""

    items = list_field(ReleaseEvent)
    next_cursor = cursor_field()
    total = integer_field(1234, "all releases that match; null without include_total", allow_none=True)


class CoveringSeal(AnswerSchema):
    """The seal that covers a release: one link of the chain of seals."""

    seq = integer_field(12, "its number in the chain")
    sealed_at = datetime_field()


class ReleaseEventDetail(ReleaseEvent):
    """A release event with its seal, and the timeline of its order."""

    seal = fields.Nested(
        CoveringSeal,
        required=True,
        allow_none=True,
        metadata=field_metadata(
            {"seq": 12, "sealed_at": EXAMPLE_TIME}, "null until it is sealed, about a second after the release"
        ),
    )
    timeline = fields.Nested(
        Timeline, required=True, allow_none=True, metadata={"description": "null for a manual reservation"}
    )


class Releases(Combined):
    """Routes under /api/stocks/release-events."""

    inventory = RpcProxy("inventory_service")

    @api(
        "GET",
        "/api/stocks/release-events",
        roles=AUDITORS,
        query=ReleasePageQuery,
        answer=ReleaseEventPage,
        summary="List releases",
    )
    def release_events(self, call: Call) -> dict[str, Any]:
        """A page of the releases that match every filter."""
        query = call.query
        page = self.inventory.release_events(
            filters_in(query), query["limit"], query["cursor"], query.get("offset", 0), query["include_total"]
        )
        return {**page, "items": self._linked(page["items"])}

    @export(
        "GET",
        "/api/stocks/release-events/export",
        roles=AUDITORS,
        query=ReleaseExportQuery,
        answer=None,
        summary="Export releases",
    )
    def export_release_events(self, call: Call) -> dict[str, Any]:
        """A CSV of all releases so far that match every filter; later releases are not in it.

        It is UTF-8 and has a header; every cell stands in quotes. Its last line begins with `manifest` and holds the
        signed manifest, with which `ecom audit verify-export` proves that the file is complete and unaltered. A text
        that a spreadsheet would take for a formula, or that begins with an apostrophe, has an apostrophe before it, and
        so has a formula within a text behind a separator. With `for=spreadsheets` the file
        begins with a byte order mark, and every text that a spreadsheet would change has the apostrophe: `'00042`.
        Every export is recorded with the name of the user.
        """
        return self.inventory.open_release_export(filters_in(call.query))

    @api(
        "GET",
        "/api/stocks/release-events/<int:event_id>",
        roles=AUDITORS,
        answer=ReleaseEventDetail,
        summary="Read a release",
    )
    def release_event(self, call: Call, event_id: int) -> dict[str, Any]:
        """One release, the seal that covers it, and the timeline of its order."""
        if event_id > MAX_ROW_ID:
            raise NotFound
        found = self.inventory.release_event(event_id)
        try:
            timeline = self._timeline(found["order_id"])
        except NotFound:
            timeline = None  # a manual reservation, for an order of another system
        (release,) = self._linked([found])
        return {**release, "timeline": timeline}
