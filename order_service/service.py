"""The order service: owns the orders and decides their life; inventory and payment answer."""

from __future__ import annotations

from typing import Any

from order_service import domain, models
from shared import outbox
from shared.edge.consumer import handles
from shared.edge.context import Context
from shared.edge.database import Database
from shared.edge.http import Probes
from shared.edge.rpc import rpc
from shared.edge.timer import every
from shared.edge.tx import Events, Tx
from shared.errors import UnexpectedEvent, UnknownOrder
from shared.events import OrderCreated, PricedItem, encode, envelope
from shared.ids import uuid7
from shared.relay import Relay


class OrderService(Probes):
    """Takes orders, follows what the others say of them, and tells what comes next."""

    name = "order_service"

    db = Database()
    relay = Relay()
    context = Context()

    @rpc
    def create_order(self, order: dict[str, Any], key: str) -> dict[str, Any]:
        """Make an order: idempotency key, order and event in one transaction.

        `order` is {currency, payment_method, items: [{sku, quantity, unit_price}]}, already validated. Returns
        {status, body, location, replayed}. Raises IdempotencyKeyReused, IdempotencyInProgress, ValidationFailed.
        """
        identity, trace_id = self.context.identity, self.context.trace_id
        items = tuple(PricedItem(**item) for item in order["items"])
        payload = OrderCreated(uuid7(), order["currency"], domain.total_of(items), items, order["payment_method"])
        location = f"/api/orders/{payload.order_id}"
        body = {
            "order_id": str(payload.order_id),
            "status": domain.Status.PENDING,
            "items": encode(items),
            "total": payload.total,
            "currency": payload.currency,
        }
        try:
            with self.db.begin() as session:
                stored = models.claim_key(session, identity.user_id, key, order, body, location)
                if stored:
                    return stored
                if not models.add_order(session, payload, identity, trace_id, key, order):
                    raise _KeyIsOld
                outbox.tell(session, [envelope(self.name, payload, trace_id, identity)])
        except _KeyIsOld:
            return self._answer_of_old_key(key, order)
        return {"status": 201, "body": body, "location": location, "replayed": False}

    def _answer_of_old_key(self, key: str, order: dict[str, Any]) -> dict[str, Any]:
        with self.db.read() as session:
            row = models.order_of_key(session, self.context.identity.user_id, key, order)
            (body,) = models.order_bodies(session, [row])
        return {"status": 200, "body": body, "location": f"/api/orders/{row.order_id}", "replayed": True}

    @rpc
    def get_order(self, order_id: str) -> dict[str, Any]:
        """One order as it is now. Raises NotFound, also for somebody else's."""
        with self.db.read() as session:
            row = models.visible_order(session, order_id, self.context.identity)
            (body,) = models.order_bodies(session, [row])
        return body

    @rpc
    def list_orders(
        self, limit: int, cursor: str | None = None, idempotency_key: str | None = None, status: str | None = None
    ) -> dict[str, Any]:
        """A page of orders, newest first: {items, next_cursor}. Raises InvalidCursor, BadRequest."""
        filters = {"idempotency_key": idempotency_key, "status": status}
        with self.db.read() as session:
            items, next_cursor = models.orders_page(session, self.context.identity, limit, cursor, filters)
        return {"items": items, "next_cursor": next_cursor}

    @rpc
    def timeline(self, order_id: str) -> dict[str, Any]:
        """Every step of an order so far. Raises NotFound, also for somebody else's."""
        with self.db.read() as session:
            return models.timeline(session, models.visible_order(session, order_id, self.context.identity))

    @handles("q.order.inventory-result")
    def follow_inventory(self, events: Events, tx: Tx) -> None:
        """What inventory says of an order."""
        self._follow(events, tx)

    @handles("q.order.payment-result")
    def follow_payment(self, events: Events, tx: Tx) -> None:
        """What payment says of an order."""
        self._follow(events, tx)

    def _follow(self, events: Events, tx: Tx) -> None:
        orders = models.orders_of(tx.session, [event.payload.order_id for event in events], lock=True)
        steps = []
        for event in events:
            before = orders.get(event.payload.order_id)
            if before is None:
                tx.set_apart(event, UnknownOrder(f"there is no order {event.payload.order_id}"))
                continue
            try:
                step = domain.follow(before, event.payload, uuid7())
            except UnexpectedEvent as error:
                tx.set_apart(event, error)
                continue
            if not step.repeated:
                orders[before.order_id] = step.order
                steps.append((event, before, step))
                tx.tell(event, *step.tells)
        models.keep_steps(tx.session, steps)

    @every(3600)
    def forget_keys(self) -> None:
        """Purge the stored answers of idempotency keys that are past their promise."""
        with self.db.begin() as session:
            models.purge_keys(session)


class _KeyIsOld(Exception):
    """The key's stored answer was purged, but the order it made is here: roll back and answer with that."""
