"""New orders: what their users have open, how much is under way, and many orders saved in one statement."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from order_service import domain
from order_service.domain import Open, Status
from order_service.judging import PostedLine, Verdict
from order_service.models import UNPAID_SQL
from shared import idempotency
from shared.envelope import Envelope, envelope
from shared.errors import RoleMissing
from shared.events import Identity, OrderCreated, OrderedItem
from shared.idempotency import KeyedAnswer, KeyedRequest, KnownAnswer
from shared.ids import uuid7
from shared.schema import encode

ROUTE = "POST /api/orders"
SERVICE = "order_service"


@dataclass(frozen=True)
class PostedOrder:
    """An order as somebody posts it: not judged yet."""

    order: Mapping[str, Any]
    request: KeyedRequest
    identity: Identity
    trace_id: str

    @cached_property
    def lines(self) -> list[PostedLine]:
        """Its lines. A client need not name a price."""
        return [
            PostedLine(item["sku"], item["quantity"], item.get("unit_price"), item.get("note"))
            for item in self.order["items"]
        ]

    @property
    def currency(self) -> str:
        """In which it is paid."""
        return str(self.order["currency"])


@dataclass(frozen=True)
class NewOrder:
    """An order that was judged, with the answer that its post gets if it is made."""

    payload: OrderCreated
    offer_versions: tuple[int, ...]  # of each line
    request: KeyedRequest
    identity: Identity
    trace_id: str

    @cached_property
    def answer(self) -> KeyedAnswer:
        """What its post answers."""
        body = {
            "order_id": str(self.payload.order_id),
            "order_no": self.payload.order_no,
            "status": Status.PENDING,
            "items": encode(self.payload.items),
            "total": self.payload.total,
            "currency": self.payload.currency,
            "note": self.payload.note,
        }
        return KeyedAnswer(201, body, f"/api/orders/{self.payload.order_id}")

    @property
    def as_known(self) -> KnownAnswer:
        """Its answer for the other posts with its key."""
        return KnownAnswer(self.request.fingerprint, replace(self.answer, replayed=True))

    @property
    def units(self) -> int:
        """How many units it asks for."""
        return sum(item.quantity for item in self.payload.items)

    def event(self) -> Envelope:
        """That it was made, for the other services."""
        return envelope(SERVICE, self.payload, self.trace_id, self.identity)


def posted_order(order: Mapping[str, Any], key: str, identity: Identity, trace_id: str) -> PostedOrder:
    """An order as it is posted. Raises RoleMissing."""
    if not domain.may_create(identity):
        raise RoleMissing
    return PostedOrder(order, KeyedRequest(identity.user_id, ROUTE, key, order), identity, trace_id)


def new_order(posted: PostedOrder, verdicts: Sequence[Verdict]) -> NewOrder:
    """An order whose lines are all taken, with an id and a number. Raises ValidationFailed if it costs too much."""
    taken = [(verdict, verdict.offer, verdict.unit_price) for verdict in verdicts]
    items = tuple(
        OrderedItem(verdict.line.sku, verdict.line.quantity, unit_price, offer.name, verdict.line.note)
        for verdict, offer, unit_price in taken
        if offer is not None and unit_price is not None
    )
    payload = OrderCreated(
        uuid7(),
        posted.currency,
        domain.total_of(items),
        items,
        posted.order["payment_method"],
        customer_id=posted.identity.user_id,
        order_no=new_order_no(),
        note=posted.order.get("note"),
    )
    versions = tuple(offer.version for _, offer, _ in taken if offer is not None)
    return NewOrder(payload, versions, posted.request, posted.identity, posted.trace_id)


# Two orders must not have one number.
NUMBERS_INDEX = "uq_orders_order_no"

# Crockford's base32 has no letters that people take for another.
DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
LONG = 8


def new_order_no() -> str:
    """What people call an order: 40 random bits, shown as K7M2-9QTX. It names an order, and authorises nobody."""
    bits = secrets.randbits(5 * LONG)
    text = "".join(DIGITS[bits >> 5 * place & 31] for place in range(LONG))
    return f"{text[:4]}-{text[4:]}"


# An order keeps its key for ever: a key is used as long as its order is here, also when its answer was purged.
CLAIMING = idempotency.claiming(
    "EXISTS (SELECT FROM orders WHERE orders.user_id = given.user_id AND orders.idempotency_key = given.key)"
)

# The advisory locks of `open_of`, beside others in this database.
TURNS_OF_USERS = 1
# Two statements in one round trip: the second one reads what is committed when the locks have been got. The locks are
# taken in one order by all.
_TURNS_AND_OPEN = text(
    f"""
    SELECT pg_advisory_xact_lock({TURNS_OF_USERS}, turn) FROM (
        SELECT DISTINCT hashtext(user_id) AS turn FROM unnest(CAST(:user_ids AS text[])) AS given (user_id) ORDER BY 1
    ) AS turns;
    SELECT user_id, count(*) AS orders, CAST(
        coalesce(sum((SELECT sum(quantity) FROM order_items WHERE order_id = orders.order_id)), 0) AS bigint
    ) AS units
    FROM orders WHERE user_id = ANY(CAST(:user_ids AS text[])) AND {UNPAID_SQL} GROUP BY user_id
    """
)


def open_of(session: Session, user_ids: Collection[str]) -> dict[str, Open]:
    """What users have open, until this transaction ends: others that ask for one of them wait for it.

    The lock of a user is a hash of the name, so that it is shared with few other users, if with any.
    """
    rows = session.execute(_TURNS_AND_OPEN, {"user_ids": list(user_ids)})
    found = {row.user_id: Open(row.orders, row.units) for row in rows}
    return {user_id: found.get(user_id, Open(0, 0)) for user_id in user_ids}


_UNDER_WAY = text(f"SELECT count(*) FROM (SELECT FROM orders WHERE {UNPAID_SQL} LIMIT :most) AS under_way")


def under_way(session: Session, most: int) -> int:
    """How many orders are not paid yet, counted up to `most`."""
    return int(session.execute(_UNDER_WAY, {"most": most}).scalar_one())


# Three tables in one statement: PostgreSQL checks the references between them when it has ended.
_ADD = text(
    f"""
    WITH given AS (
        SELECT * FROM unnest(
            CAST(:order_ids AS uuid[]), CAST(:user_ids AS text[]), CAST(:currencies AS text[]),
            CAST(:totals AS bigint[]), CAST(:payment_methods AS text[]), CAST(:trace_ids AS text[]),
            CAST(:keys AS text[]), CAST(:fingerprints AS text[]), CAST(:order_nos AS text[]), CAST(:notes AS text[])
        ) AS given (
            order_id, user_id, currency, total, payment_method, trace_id, key, fingerprint, order_no, note
        )
    ), made AS (
        INSERT INTO orders (
            order_id, user_id, status, currency, total, payment_method, trace_id, idempotency_key, fingerprint,
            order_no, note
        )
        SELECT order_id, user_id, '{Status.PENDING}', currency, total, payment_method, trace_id, key, fingerprint,
               order_no, note
        FROM given
    ), lines AS (
        INSERT INTO order_items (order_id, line, sku, quantity, unit_price, name, note, offer_version)
        SELECT * FROM unnest(
            CAST(:line_order_ids AS uuid[]), CAST(:lines AS integer[]), CAST(:skus AS text[]),
            CAST(:quantities AS integer[]), CAST(:unit_prices AS bigint[]), CAST(:names AS text[]),
            CAST(:line_notes AS text[]), CAST(:offer_versions AS bigint[])
        )
    )
    INSERT INTO order_events (order_id, type, to_status, source, user_id, details)
    SELECT order_id, 'order.created', '{Status.PENDING}', '{SERVICE}', user_id,
           jsonb_build_object('total', total, 'currency', currency)
    FROM given
    """
).execution_options(prepared=True)


def add(session: Session, orders: Sequence[NewOrder]) -> None:
    """Save new orders, their lines and their first steps. Their keys must have been claimed."""
    if not orders:
        return
    lines = [
        (str(order.payload.order_id), place, item, version)
        for order in orders
        for place, (item, version) in enumerate(zip(order.payload.items, order.offer_versions, strict=True), start=1)
    ]
    session.execute(
        _ADD,
        {
            "order_ids": [str(order.payload.order_id) for order in orders],
            "user_ids": [order.request.user_id for order in orders],
            "currencies": [order.payload.currency for order in orders],
            "totals": [order.payload.total for order in orders],
            "payment_methods": [order.payload.payment_method for order in orders],
            "trace_ids": [order.trace_id for order in orders],
            "keys": [order.request.key for order in orders],
            "fingerprints": [order.request.fingerprint for order in orders],
            "order_nos": [order.payload.order_no for order in orders],
            "notes": [order.payload.note for order in orders],
            "line_order_ids": [order_id for order_id, *_ in lines],
            "lines": [place for _, place, *_ in lines],
            "skus": [item.sku for _, _, item, _ in lines],
            "quantities": [item.quantity for _, _, item, _ in lines],
            "unit_prices": [item.unit_price for _, _, item, _ in lines],
            "names": [item.name for _, _, item, _ in lines],
            "line_notes": [item.note for _, _, item, _ in lines],
            "offer_versions": [version for *_, version in lines],
        },
    )
