"""The inventory service: owns stock, reservations and the release audit."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from inventory_service import domain, queries, signals
from inventory_service.audit.entrypoints import ReleaseAudit
from inventory_service.books.domain import has_recipe
from inventory_service.books.entrypoints import Books
from inventory_service.books.queries import lock_or_make, save_bookings
from inventory_service.domain import COMMIT, RELEASE, Kind, Outcome, State
from inventory_service.purchasing.entrypoints import Purchasing
from inventory_service.recipes import queries as recipe_queries
from inventory_service.recipes.entrypoints import Recipes
from shared import idempotency
from shared.edge.consumer import handles
from shared.edge.context import Context
from shared.edge.database import Database
from shared.edge.http import Probes
from shared.edge.rpc import rpc
from shared.edge.settings import Setting
from shared.edge.timer import each_alone, every
from shared.edge.tx import Events, Tx
from shared.enumerations import ReleaseReason
from shared.errors import Conflict, DeadMessage
from shared.events import Identity, Item, OrderCreated
from shared.ids import new_trace_id, uuid7
from shared.relay import Relay
from shared.times import timestamp

# A manual reservation expires after this time, so that a forgotten one does not hold stock forever.
MANUAL_HOLD_S = 900
EXPIRED = Identity("system:expiry", ("system",))
EXPIRE_BATCH = 100

WATCH = Identity("system:watch", ("system",))
WATCH_EVERY_S, WATCH_ALL_EVERY_S = 1, 60


class InventoryService(ReleaseAudit, Books, Recipes, Purchasing, Probes):
    """Reserves stock for orders, commits or releases reservations, and audits every release.

    Every call is made by a user whom a rule of domain.py allows it; to anybody else it raises RoleMissing.
    """

    name = "inventory_service"

    settings = Setting()
    db = Database()
    relay = Relay()
    context = Context()

    @handles("q.inventory.order-created")
    def reserve(self, events: Events, tx: Tx) -> None:
        """Reserve stock for each order, or emit which skus are short."""
        orders: dict[UUID, OrderCreated] = {}
        for event in events:
            orders.setdefault(event.payload.order_id, event.payload)  # a later one that differs contradicts the first
        made = {order_id: uuid7() for order_id in orders}
        asked = {order_id: domain.fingerprint(domain.summed(order.items)) for order_id, order in orders.items()}
        claimed = queries.claim_reservations(tx.session, made, State.RESERVED, asked=asked)
        # Without a lock: what a repeat is compared with never changes.
        held = queries.reservations_of(tx.session, orders.keys() - claimed)
        skus = {item.sku for order_id in claimed for item in orders[order_id].items}
        recipes, stock = recipe_queries.lock_for(tx.session, skus)
        outcomes = []
        for event in events:
            order_id = event.payload.order_id
            if order_id in claimed:
                outcome = domain.reserve(stock, recipes, event.payload, made[order_id])
                claimed.discard(order_id)
                held[order_id] = outcome.reservation
                stock |= {item.sku: item for item in outcome.stock}
                outcomes.append(outcome)
            else:
                try:
                    outcome = domain.repeat_reserve(held[order_id], event.payload)
                except DeadMessage as error:
                    tx.fail(event, error)
                    continue
            tx.emit(event, *outcome.emits)
        queries.save_made(tx.session, outcomes)

    @handles("q.inventory.commit-requested")
    def commit(self, events: Events, tx: Tx) -> None:
        """Turn the reservations of paid orders into sales."""
        held = queries.reservations_of(tx.session, [event.payload.order_id for event in events], lock=True)
        self._close(events, tx, COMMIT, held)

    @handles("q.inventory.release-requested")
    def release(self, events: Events, tx: Tx) -> None:
        """Release the reservations of orders. A release that overtakes its order leaves a tombstone."""
        orders = [event.payload.order_id for event in events]
        queries.claim_reservations(tx.session, {order_id: uuid7() for order_id in orders}, State.RELEASED)
        self._close(events, tx, RELEASE, queries.reservations_of(tx.session, orders, lock=True))

    def _close(self, events: Events, tx: Tx, verb: str, held: dict[UUID, domain.Reservation]) -> None:
        stock = queries.stock_of(tx.session, {sku for item in held.values() for sku in item.quantities}, lock=True)
        outcomes = []
        for event in events:
            order_id = event.payload.order_id
            reason = getattr(event.payload, "reason", "paid")
            try:
                outcome = domain.close_reservation(stock, held.get(order_id), verb, order_id, reason)
            except DeadMessage as error:
                tx.fail(event, error)
                continue
            held[order_id] = outcome.reservation
            stock |= {item.sku: item for item in outcome.stock}
            outcomes.append((outcome, event.identity, event.trace_id, reason))
            tx.emit(event, *outcome.emits)
        queries.save_closed(tx.session, outcomes)

    @rpc
    def put_stock(self, sku: str, on_hand: int, version: int | None = None) -> dict[str, Any]:
        """Set the quantity on hand of a sku. Raises VersionMoved, BelowReserved, Conflict.

        The Conflict of a sku with a recipe names its `problem`: gateways of the last release cannot read a HasRecipe.
        """
        self.context.require(domain.may_set_stock)
        with self.naming_holders(), self.db.begin() as session:
            stock = lock_or_make(session, [sku])
            if not stock:
                raise Conflict(has_recipe(sku), {"problem": "has_recipe"})
            after, movement = domain.put(stock[sku], sku, on_hand, version)
            save_bookings(session, [after], [movement] if movement else [], *self._caller())
        return queries.stock_body(after)

    @rpc
    def get_stock(self, sku: str) -> dict[str, Any]:
        """Return the stock of one sku. Raises NotFound."""
        self.context.require(domain.may_read_stock)
        with self.db.read() as session:
            return queries.stock_body(queries.find_stock(session, sku))

    @rpc
    def list_stocks(self, limit: int, cursor: str | None = None) -> dict[str, Any]:
        """Return one page of stock, ordered by sku: {items, next_cursor}. Raises InvalidCursor."""
        self.context.require(domain.may_read_stock)
        with self.db.read() as session:
            items, next_cursor = queries.stock_page(session, limit, cursor)
        return {"items": items, "next_cursor": next_cursor}

    @rpc
    def reserve_manually(self, order_id: str, items: list[dict[str, Any]]) -> dict[str, Any]:
        """Reserve stock for an order made elsewhere. Raises Conflict if stock is short or order_id is taken."""
        self.context.require(domain.may_reserve)
        order, quantities = UUID(order_id), domain.summed(tuple(Item(**item) for item in items))
        with self.db.begin() as session:
            made_by = self.context.identity.user_id
            made = {order: uuid7()}
            if not queries.claim_reservations(session, made, State.RESERVED, Kind.MANUAL, made_by):
                raise Conflict(f"There is a reservation for order {order_id} already.")
            recipes, stock = recipe_queries.lock_for(session, quantities)
            outcome = domain.hold_manually(stock, recipes, order, made[order], quantities)
            if not isinstance(outcome, Outcome):
                shortages = [item.__dict__ for item in outcome]
                raise Conflict("There is not enough stock.", {"shortages": shortages})
            queries.save_made(session, [outcome])
            expires_at = queries.set_expiry(session, order, MANUAL_HOLD_S)
        return {
            "order_id": order_id,
            "reservation_id": str(made[order]),
            "state": State.RESERVED,
            "items": [{"sku": sku, "quantity": quantity} for sku, quantity in quantities.items()],
            "expires_at": expires_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        }

    @rpc
    def release_reservation(self, reservation_id: str) -> dict[str, Any]:
        """Release a manual reservation; the release is audited. Raises NotFound, Conflict."""
        self.context.require(domain.may_close_reservation)
        return self._close_manually(reservation_id, RELEASE, ReleaseReason.MANUAL)

    @rpc
    def commit_reservation(self, reservation_id: str) -> dict[str, Any]:
        """Turn a manual reservation into a sale. Raises NotFound, Conflict."""
        self.context.require(domain.may_close_reservation)
        return self._close_manually(reservation_id, COMMIT, ReleaseReason.MANUAL)

    def _close_manually(self, reservation_id: str, verb: str, reason: str) -> dict[str, Any]:
        with self.db.begin() as session:
            order_id = queries.order_of_reservation(session, reservation_id)
            outcome = self._close_one(session, order_id, verb, reason, *self._caller())
        state = outcome.reservation.state
        return {"order_id": str(order_id), "reservation_id": reservation_id, "state": state}

    def _close_one(
        self, session: Any, order_id: UUID, verb: str, reason: str, identity: Identity, trace_id: str
    ) -> Outcome:
        held = queries.reservations_of(session, [order_id], lock=True)[order_id]
        if verb == COMMIT and held.state == State.RELEASED:
            raise Conflict("The reservation has been released.")
        stock = queries.stock_of(session, held.quantities, lock=True)
        outcome = domain.close_reservation(stock, held, verb, order_id, reason)
        queries.save_closed(session, [(outcome, identity, trace_id, reason)])
        return outcome

    def _caller(self) -> tuple[Identity, str]:
        return self.context.identity, self.context.trace_id

    @every(5)
    def release_expired(self) -> None:
        """Release manual reservations that nobody committed or released in time."""
        with self.db.read() as session:
            overdue = queries.expired(session, EXPIRE_BATCH)
        if held_up := each_alone(overdue, self._expire):
            raise held_up

    @every(WATCH_EVERY_S)
    def watch(self) -> None:
        """Tell which skus are sold out, or are not any more, and how many are left of those that are few."""
        self._tell_changes(of_all=False)

    @every(WATCH_ALL_EVERY_S)
    def watch_all(self) -> None:
        """Do what `watch` does for all skus, whenever they were written: right after a start, and each minute."""
        self._tell_changes(of_all=True)

    def _tell_changes(self, of_all: bool) -> None:
        told = signals.BATCH
        while told == signals.BATCH:
            with self.db.begin() as session:
                told = signals.tell_changes(session, of_all, WATCH, new_trace_id())

    @rpc
    def tell_availability(self, skus: list[str] | None = None, before: str | None = None) -> dict[str, Any]:
        """Tell the availability of these skus, or of all, once more with a new version: {told, left, before}.

        It mends the copies of those who have missed something. One call tells at most the 10,000 skus that were told
        longest ago. `left` is how many are left; to tell them, repeat the call with the `before` of the first answer
        (RFC 3339), which leaves out what was told since then, until none is left.
        """
        self.context.require(domain.may_tell_availability)
        with self.db.read() as session:
            due = signals.due(session, skus, datetime.fromisoformat(before) if before else None)
        told = 0
        for start in range(0, len(due.skus), signals.BATCH):
            with self.db.begin() as session:
                some = due.skus[start : start + signals.BATCH]
                told += signals.tell_again(session, some, *self._caller())
        return {"told": told, "left": due.left, "before": timestamp(due.before)}

    @every(3600)
    def forget_keys(self) -> None:
        """Delete the stored answers of idempotency keys that are older than promised."""
        with self.db.begin() as session:
            idempotency.purge(session)

    def _expire(self, order_id: UUID) -> None:
        with self.db.begin() as session:
            self._close_one(session, order_id, RELEASE, ReleaseReason.EXPIRED, EXPIRED, new_trace_id())
