"""The feed: the steps of all orders, for programs that follow them."""

from __future__ import annotations

import re
from typing import Any

from marshmallow import fields

from gateway.api.fields import (
    MAX_PAGE,
    PAGE,
    AnswerSchema,
    RequestSchema,
    Text,
    WholeNumberInQuery,
    field_metadata,
    list_field,
    text_field,
    uuid_field,
)
from gateway.api.http import Call
from gateway.following import POSITION, feed
from gateway.orders import Step
from shared.auth import ADMIN, OPERATOR, SERVICE
from shared.edge.rpc_proxy import RpcProxy
from shared.feed import BEGINNING, NOW


class FeedStep(Step):
    """One step of any order."""

    order_id = uuid_field()
    position = text_field("41823-17", "the place of the step in the feed")


class FeedQuery(RequestSchema):
    """A part of the feed."""

    after = Text(
        BEGINNING,
        f"a position in the feed; `{BEGINNING}` is its beginning, `{NOW}` its end",
        pattern=re.compile(f"{POSITION.pattern}|{NOW}"),
        load_default=BEGINNING,
    )
    limit = WholeNumberInQuery(1, MAX_PAGE, 100, "the size of a JSON page", load_default=PAGE)


class FeedPage(AnswerSchema):
    """Steps of all orders, in the order of the feed."""

    items = list_field(FeedStep)
    after = text_field("41823-17", "the position to go on from")
    more = fields.Boolean(
        required=True, metadata=field_metadata(False, "whether more steps are there already; if not, ask again later")
    )


class Feed:
    """The route of the feed."""

    orders = RpcProxy("order_service")

    @feed(
        "GET",
        "/api/orders/events",
        roles=(OPERATOR, ADMIN, SERVICE),
        query=FeedQuery,
        answer=FeedPage,
        summary="Follow all orders",
    )
    def all_order_events(self, call: Call) -> dict[str, Any]:
        """The steps of all orders after a position, each of them once. Ask again with `after` of the answer.

        With `Accept: text/event-stream` the same as Server-Sent Events, then each new step within about a second. The
        `id` of an event is the position, `event` the type of the step and `data` a `FeedStep`. The stream does not end
        by itself: it is cut after 10 minutes or when the token expires. Reconnect with the `Last-Event-ID` of the last
        event.

        Steps are in the order of their transactions, and those of one order in their own order. A step appears when no
        older transaction is open, so no step ever appears before one that you have read.
        """
        return self.orders.all_steps(call.query["after"], call.query["limit"])
