"""The entrypoints of buying: rules, suppliers and purchase orders by RPC, and the timer that proposes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from inventory_service.books.queries import save_bookings
from inventory_service.domain import check_version
from inventory_service.purchasing import domain, queries, reorder, rules
from inventory_service.purchasing.domain import Arrival, PurchaseOrder, Verb
from inventory_service.queries import stock_of
from shared import idempotency
from shared.edge.context import Context
from shared.edge.database import Database
from shared.edge.rpc import rpc
from shared.edge.timer import every
from shared.enumerations import PurchaseStatus as Status
from shared.errors import IdempotencyInProgress
from shared.events import Identity
from shared.idempotency import KeyedAnswer, KeyedRequest
from shared.ids import uuid7

SUPPLIERS = "/api/inventory/suppliers"
ORDERS = "/api/inventory/purchase-orders"

REORDER = Identity("system:reorder", ("system",))
REORDER_EVERY_S = 60


class Purchasing:
    """Base of the inventory service: what is bought, from whom and when. The service provides its dependencies."""

    db: Database
    context: Context

    @rpc
    def get_rule(self, sku: str) -> dict[str, Any]:
        """The rule of a stocked sku: when it is low, and when and how much is ordered again. Raises NotFound."""
        self.context.require(domain.may_read_rules)
        with self.db.read() as session:
            return rules.find_rule(session, sku)

    @rpc
    def put_rule(self, sku: str, rule: dict[str, Any], version: int | None = None) -> dict[str, Any]:
        """Set the whole rule of a stocked sku. Raises NotFound, VersionMoved, ValidationFailed.

        `rule`: {unit, low_at, reorder_at, reorder_to, supplier_id, pack_size}.
        """
        self.context.require(domain.may_set_rules)
        domain.check_rule(rule)
        with self.db.begin() as session:
            return rules.put_rule(session, sku, rule, version)

    @rpc
    def list_suppliers(self, limit: int, cursor: str | None = None) -> dict[str, Any]:
        """A page of suppliers by name: {items, next_cursor}. Raises InvalidCursor."""
        self.context.require(domain.may_read_suppliers)
        with self.db.read() as session:
            return rules.suppliers_page(session, limit, cursor)

    @rpc
    def get_supplier(self, supplier_id: str) -> dict[str, Any]:
        """One supplier. Raises NotFound."""
        self.context.require(domain.may_read_suppliers)
        with self.db.read() as session:
            return rules.find_supplier(session, supplier_id)

    @rpc
    def create_supplier(self, supplier: dict[str, Any], key: str) -> dict[str, Any]:
        """Add a supplier, once for each key: {status, body, location, replayed}.

        `supplier`: {name, email, phone, lead_days, active}. Raises Conflict if another has the name,
        IdempotencyKeyReused, IdempotencyInProgress.
        """
        self.context.require(domain.may_set_suppliers)
        supplier_id = uuid7()
        body = rules.supplier_body({**supplier, "supplier_id": supplier_id, "version": 1})
        answer = KeyedAnswer(201, body, f"{SUPPLIERS}/{supplier_id}")
        with self.db.begin() as session:
            if known := idempotency.claim_key(session, self._keyed(f"POST {SUPPLIERS}", key, supplier), answer):
                return known.as_dict()
            rules.add_supplier(session, supplier_id, supplier)
        return answer.as_dict()

    @rpc
    def put_supplier(self, supplier_id: str, supplier: dict[str, Any], version: int) -> dict[str, Any]:
        """Change a supplier. Raises NotFound, VersionMoved, Conflict if another has the name."""
        self.context.require(domain.may_set_suppliers)
        with self.db.begin() as session:
            return rules.put_supplier(session, supplier_id, supplier, version)

    @rpc
    def list_purchase_orders(
        self, limit: int, cursor: str | None = None, filters: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """A page of purchase orders without their lines, newest first: {items, next_cursor}. Raises InvalidCursor.

        `filters`: status, supplier.
        """
        self.context.require(domain.may_buy)
        with self.db.read() as session:
            return queries.orders_page(session, limit, cursor, filters or {})

    @rpc
    def get_purchase_order(self, purchase_order_id: str) -> dict[str, Any]:
        """One purchase order with its lines. Raises NotFound."""
        self.context.require(domain.may_buy)
        with self.db.read() as session:
            return queries.find_order(session, purchase_order_id)

    @rpc
    def create_purchase_order(self, proposal: dict[str, Any], key: str) -> dict[str, Any]:
        """Propose to buy from a supplier, once for each key: {status, body, location, replayed}.

        `proposal`: {supplier_id, note, lines: [{sku, quantity, unit_cost, currency}]}. Raises ValidationFailed,
        Conflict if the supplier has a proposal already, IdempotencyKeyReused, IdempotencyInProgress.
        """
        self.context.require(domain.may_buy)
        lines = domain.lines_of(proposal["lines"])
        supplier_id, made_by = UUID(proposal["supplier_id"]), self.context.identity.user_id
        order = PurchaseOrder(uuid7(), supplier_id, Status.PROPOSED, 1, lines)
        with self.db.begin() as session:
            at, is_active, stocked = queries.before_order(session, proposal["supplier_id"], list(lines))
            head = _NewHead(order.po_id, supplier_id, made_by, at, proposal["note"])
            answer = KeyedAnswer(201, queries.order_body(head, lines.values()), f"{ORDERS}/{order.po_id}")
            # Before anything is refused: a repeat of what was taken is not judged by how things are now.
            if known := idempotency.claim_key(session, self._keyed(f"POST {ORDERS}", key, proposal), answer):
                return known.as_dict()
            domain.check_active(is_active)
            domain.check_stocked(proposal["lines"], stocked)
            queries.add_order(session, order, proposal["note"], made_by)
        return answer.as_dict()

    @rpc
    def put_purchase_order(
        self, purchase_order_id: str, lines: list[dict[str, Any]], version: int, note: str | None = None
    ) -> dict[str, Any]:
        """Rewrite what is PROPOSED: all its lines, and its note.

        Raises NotFound, VersionMoved, Conflict if it is ordered already, ValidationFailed.
        """
        self.context.require(domain.may_buy)
        written = domain.lines_of(lines)
        with self.db.begin() as session:
            order = queries.lock_order(session, purchase_order_id)
            domain.check_proposed(order)
            check_version(order.version, version)
            domain.check_stocked(lines, queries.stocked(session, list(written)))
            return queries.order_body(queries.rewrite(session, order, written, note), written.values())

    @rpc
    def order_purchase(self, purchase_order_id: str, key: str, version: int | None = None) -> dict[str, Any]:
        """Commit the money of a proposal, once for each key: {status, body, location, replayed}.

        Raises NotFound, Conflict, VersionMoved if it has changed since `version`, and the errors of keys.
        """
        self.context.require(domain.may_order)
        return self._act(Verb.ORDER, purchase_order_id, key, {"version": version}, _ordering(version))

    @rpc
    def receive_purchase(self, purchase_order_id: str, lines: list[dict[str, Any]], key: str) -> dict[str, Any]:
        """Book what has come into stock, once for each key: {status, body, location, replayed}.

        `lines`: [{sku, quantity, unit_cost}], all booked or none. Raises NotFound, Conflict, OverReceived,
        ValidationFailed, and the errors of keys.
        """
        self.context.require(domain.may_buy)
        domain.check_each_once([line["sku"] for line in lines])
        arrivals = [Arrival(line["sku"], line["quantity"], line.get("unit_cost")) for line in lines]

        def receive(session: Session, order: PurchaseOrder) -> PurchaseOrder:
            after = domain.received(order, arrivals)
            skus = [arrival.sku for arrival in arrivals]
            stock, movements = domain.booked(stock_of(session, skus, lock=True), order.po_id, arrivals)
            save_bookings(session, stock, movements, self.context.identity, self.context.trace_id)
            queries.save_received(session, order.po_id, [after.lines[sku] for sku in skus])
            return after

        return self._act(Verb.RECEIVE, purchase_order_id, key, {"lines": lines}, receive)

    @rpc
    def close_purchase(self, purchase_order_id: str, key: str) -> dict[str, Any]:
        """Wait no longer for what is open, once for each key: {status, body, location, replayed}.

        Raises NotFound, Conflict, and the errors of keys.
        """
        self.context.require(domain.may_buy)
        return self._act(Verb.CLOSE, purchase_order_id, key, {})

    @rpc
    def cancel_purchase(self, purchase_order_id: str, key: str) -> dict[str, Any]:
        """Buy nothing of it, once for each key: {status, body, location, replayed}.

        The skus of a proposal are not proposed again for SNOOZE_HOURS. Raises NotFound, Conflict if some of it has
        come, and the errors of keys.
        """
        self.context.require(domain.may_buy)
        return self._act(Verb.CANCEL, purchase_order_id, key, {})

    def _act(
        self,
        verb: Verb,
        purchase_order_id: str,
        key: str,
        content: Mapping[str, Any],
        change: Callable[[Session, PurchaseOrder], PurchaseOrder] = lambda session, order: order,
    ) -> dict[str, Any]:
        """Do one step of the table, once for each key.

        The answer is known at the end only, so the key is claimed then. Until then the lock of the purchase order
        keeps its other requests waiting, equal ones too; nothing is locked after a key, so nobody waits in a circle.
        """
        request = self._keyed(f"POST {ORDERS}/{{id}}/{verb}", key, {"id": purchase_order_id.lower(), **content})
        with self.db.begin() as session:
            order = queries.lock_order(session, purchase_order_id)
            if known := idempotency.known_answers(session, [request]).get(request.claim):
                return known.to(request).as_dict()
            row = domain.step(order, verb)
            order = change(session, order)
            head = queries.save_step(session, order, row)
            answer = KeyedAnswer(200, queries.order_body(head, order.lines.values()), "")
            if idempotency.claim_key(session, request, answer):
                raise IdempotencyInProgress
        return answer.as_dict()

    def _keyed(self, route: str, key: str, content: Mapping[str, Any]) -> KeyedRequest:
        return KeyedRequest(self.context.identity.user_id, route, key, content)

    @every(REORDER_EVERY_S)
    def reorder(self) -> None:
        """Propose to order again what is used up, of each sku once, to its supplier."""
        after, more = "", True
        while more:
            with self.db.read() as session:
                due = reorder.look(session, after)
            if due.skus:
                with self.db.begin() as session:
                    reorder.propose(session, due.skus, due.suppliers, REORDER.user_id)
            after, more = due.last, bool(due.last)


@dataclass(frozen=True)
class _NewHead:
    """A proposal that is not saved yet, as its row will be."""

    po_id: UUID
    supplier_id: UUID
    made_by: str
    made_at: datetime
    note: str | None
    status: str = Status.PROPOSED.value
    version: int = 1
    ordered_at: None = None
    expected_at: None = None
    closed_at: None = None


def _ordering(version: int | None) -> Callable[[Session, PurchaseOrder], PurchaseOrder]:
    def check(session: Session, order: PurchaseOrder) -> PurchaseOrder:
        check_version(order.version, version)
        return order

    return check
