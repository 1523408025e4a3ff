"""New orders: what their users have open, how much is under way, and many orders saved in one statement."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from order_service import domain
from order_service.domain import Open, Status
from order_service.models import UNPAID_SQL
from shared import idempotency
from shared.envelope import Envelope, envelope
from shared.errors import RoleMissing
from shared.events import Identity, OrderCreated, PricedItem
from shared.idempotency import KeyedAnswer, KeyedRequest, KnownAnswer
from shared.ids import uuid7
from shared.schema import encode

ROUTE = "POST /api/orders"
SERVICE = "order_service"


@dataclass(frozen=True)
class NewOrder:
    """An order that somebody posts, with the answer that they get if it is made."""

    payload: OrderCreated
    request: KeyedRequest
    identity: Identity
    trace_id: str

    @cached_property
    def answer(self) -> KeyedAnswer:
        """What its post answers."""
        body = {
            "order_id": str(self.payload.order_id),
            "status": Status.PENDING,
            "items": encode(self.payload.items),
            "total": self.payload.total,
            "currency": self.payload.currency,
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


def new_order(order: dict[str, Any], key: str, identity: Identity, trace_id: str) -> NewOrder:
    """An order as it is posted, with an id. Raises RoleMissing, and ValidationFailed if it costs too much."""
    if not domain.may_create(identity):
        raise RoleMissing
    items = tuple(PricedItem(**item) for item in order["items"])
    payload = OrderCreated(
        uuid7(),
        order["currency"],
        domain.total_of(items),
        items,
        order["payment_method"],
        customer_id=identity.user_id,
    )
    return NewOrder(payload, KeyedRequest(identity.user_id, ROUTE, key, order), identity, trace_id)


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
            CAST(:keys AS text[]), CAST(:fingerprints AS text[])
        ) AS given (order_id, user_id, currency, total, payment_method, trace_id, key, fingerprint)
    ), made AS (
        INSERT INTO orders
            (order_id, user_id, status, currency, total, payment_method, trace_id, idempotency_key, fingerprint)
        SELECT order_id, user_id, '{Status.PENDING}', currency, total, payment_method, trace_id, key, fingerprint
        FROM given
    ), lines AS (
        INSERT INTO order_items (order_id, line, sku, quantity, unit_price)
        SELECT * FROM unnest(
            CAST(:line_order_ids AS uuid[]), CAST(:lines AS integer[]), CAST(:skus AS text[]),
            CAST(:quantities AS integer[]), CAST(:unit_prices AS bigint[])
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
        (str(order.payload.order_id), place, item)
        for order in orders
        for place, item in enumerate(order.payload.items, start=1)
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
            "line_order_ids": [order_id for order_id, _, _ in lines],
            "lines": [place for _, place, _ in lines],
            "skus": [item.sku for _, _, item in lines],
            "quantities": [item.quantity for _, _, item in lines],
            "unit_prices": [item.unit_price for _, _, item in lines],
        },
    )
