"""The rules of buying: what may happen to a purchase order, as a table, and how much is ordered again.

A purchase order is PROPOSED until a person orders it; RECEIVED and CANCELLED are final. The functions take and return
plain values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any
from uuid import UUID

from inventory_service.domain import MAX_ON_HAND, Movement, Stock
from shared.enumerations import MovementCause
from shared.enumerations import PurchaseStatus as Status
from shared.errors import Conflict, OverReceived, ValidationFailed
from shared.events import Identity
from shared.roles import ADMIN, AUDITOR, OPERATOR, has_role

# More lines than a person reads before they order. What a proposal has no room for waits until it is ordered.
MAX_LINES = 100

# A No is not asked again each minute.
SNOOZE_HOURS = 24


class Verb(StrEnum):
    """What a person does with a purchase order."""

    ORDER = "order"
    RECEIVE = "receive"
    CLOSE = "close"
    CANCEL = "cancel"


@dataclass(frozen=True)
class Row:
    """The next status, and what is done on the way to it."""

    becomes: Status
    when_complete: Status | None = None  # the next status if nothing is open any more
    dates: bool = False  # when it was ordered and when it is expected
    snoozes: bool = False  # its skus are not proposed again for SNOOZE_HOURS
    only_if_nothing_came: bool = False


TABLE: dict[tuple[Status, Verb], Row] = {
    (Status.PROPOSED, Verb.ORDER): Row(Status.ORDERED, dates=True),
    (Status.PROPOSED, Verb.CANCEL): Row(Status.CANCELLED, snoozes=True),
    (Status.ORDERED, Verb.RECEIVE): Row(Status.ORDERED, when_complete=Status.RECEIVED),
    (Status.ORDERED, Verb.CLOSE): Row(Status.RECEIVED),
    (Status.ORDERED, Verb.CANCEL): Row(Status.CANCELLED, only_if_nothing_came=True),
    # Everything else is refused.
}

FINAL = (Status.RECEIVED, Status.CANCELLED)
# What is open in these is still to come.
OPEN = (Status.PROPOSED, Status.ORDERED)


@dataclass(frozen=True)
class Line:
    """So much of one sku in a purchase order; unit_cost in minor units of currency, or neither."""

    sku: str
    quantity: int
    received: int = 0
    unit_cost: int | None = None
    currency: str | None = None

    @property
    def open(self) -> int:
        """What has not come yet."""
        return self.quantity - self.received


@dataclass(frozen=True)
class PurchaseOrder:
    """A purchase order with its lines by sku."""

    po_id: UUID
    supplier_id: UUID
    status: Status
    version: int
    lines: Mapping[str, Line]


@dataclass(frozen=True)
class Arrival:
    """So much of one sku has come, and at which cost if that is another than was thought."""

    sku: str
    quantity: int
    unit_cost: int | None = None


def step(order: PurchaseOrder, verb: Verb) -> Row:
    """The row of the table for what somebody does with a purchase order. Raises Conflict where there is none."""
    row = TABLE.get((order.status, verb))
    details = {"status": order.status.value}
    if row is None:
        raise Conflict(f"What is {order.status} allows no {verb}.", details)
    if row.only_if_nothing_came and any(line.received for line in order.lines.values()):
        raise Conflict("Some of it has come. Close it: what is open is not waited for any more.", details)
    return row


def after(order: PurchaseOrder, row: Row) -> Status:
    """The status after a step; of a `receive` once its lines are as they have become."""
    is_complete = not any(line.open for line in order.lines.values())
    return row.when_complete if row.when_complete is not None and is_complete else row.becomes


def received(order: PurchaseOrder, arrivals: Sequence[Arrival]) -> PurchaseOrder:
    """The purchase order after some of it has come.

    Raises OverReceived, naming each line of which more has come than is open: more is a stock-in of its own. Raises
    ValidationFailed for a cost of a line that has no currency.
    """
    over = [
        {
            "sku": item.sku,
            "quantity": item.quantity,
            "open": order.lines[item.sku].open if item.sku in order.lines else 0,
        }
        for item in arrivals
        if item.sku not in order.lines or item.quantity > order.lines[item.sku].open
    ]
    if over:
        raise OverReceived(details={"lines": over})
    lines = dict(order.lines)
    for place, item in enumerate(arrivals):
        line = lines[item.sku]
        if item.unit_cost is not None and line.currency is None:
            raise ValidationFailed(details=_in_line(place, "unit_cost", "The purchase order names no currency for it."))
        cost = line.unit_cost if item.unit_cost is None else item.unit_cost
        lines[item.sku] = replace(line, received=line.received + item.quantity, unit_cost=cost)
    return replace(order, lines=lines)


def booked(stock: Mapping[str, Stock], po_id: UUID, arrivals: Sequence[Arrival]) -> tuple[list[Stock], list[Movement]]:
    """The stock after what has come, and its movements, by sku. `stock` has every sku.

    Raises Conflict if more would be on hand than can be told.
    """
    items, movements = [], []
    for arrival in sorted(arrivals, key=lambda item: item.sku):
        before = stock[arrival.sku]
        on_hand = before.on_hand + arrival.quantity
        if on_hand > MAX_ON_HAND:
            raise Conflict(f"So much of {arrival.sku} cannot be on hand.", {"on_hand": before.on_hand})
        items.append(replace(before, on_hand=on_hand, version=before.version + 1))
        movements.append(
            Movement(arrival.sku, arrival.quantity, MovementCause.RECEIVED, on_hand, purchase_order_id=po_id)
        )
    return items, movements


def check_proposed(order: PurchaseOrder) -> None:
    """Raises Conflict unless the purchase order may still be rewritten."""
    if order.status != Status.PROPOSED:
        raise Conflict(f"It is {order.status}: only what is PROPOSED can be changed.", {"status": order.status.value})


def lines_of(given: Sequence[Mapping[str, Any]]) -> dict[str, Line]:
    """The lines of a purchase order as a person wrote them, by sku.

    Raises ValidationFailed for a sku that stands there twice, and for a cost without its currency.
    """
    check_each_once([line["sku"] for line in given])
    lines: dict[str, Line] = {}
    for place, line in enumerate(given):
        cost, currency = line.get("unit_cost"), line.get("currency")
        if (cost is None) != (currency is None):
            raise ValidationFailed(details=_in_line(place, "unit_cost", "Goes together with currency."))
        lines[line["sku"]] = Line(line["sku"], line["quantity"], 0, cost, currency)
    return dict(sorted(lines.items()))


def check_stocked(given: Sequence[Mapping[str, Any]], stocked: Iterable[str]) -> None:
    """Raises ValidationFailed, naming the first line whose sku is not among those that have stock."""
    known = set(stocked)
    for place, line in enumerate(given):
        if line["sku"] not in known:
            raise ValidationFailed(details=_in_line(place, "sku", "There is no stock of it."))


def check_each_once(skus: Sequence[str]) -> None:
    """Raises ValidationFailed, naming the second line of a sku."""
    for place, sku in enumerate(skus):
        if sku in skus[:place]:
            raise ValidationFailed(details=_in_line(place, "sku", "Each sku stands here once."))


def _in_line(place: int, field: str, problem: str) -> dict[str, Any]:
    return {"lines": {str(place): {field: [problem]}}}


def check_active(is_active: bool | None) -> None:
    """Raises ValidationFailed for a supplier that is not active, or is not there: None."""
    if not is_active:
        raise ValidationFailed(details={"supplier_id": ["There is no active supplier of that id."]})


def check_rule(rule: Mapping[str, Any]) -> None:
    """Raises ValidationFailed unless a rule of stock says all that reordering needs, or none of it."""
    reorder_at, reorder_to = rule["reorder_at"], rule["reorder_to"]
    problems = {}
    if (reorder_at is None) != (reorder_to is None):
        problems["reorder_to"] = ["Goes together with reorder_at."]
    elif reorder_at is not None and reorder_at >= reorder_to:
        problems["reorder_to"] = ["Must be more than reorder_at."]
    if reorder_at is not None and rule["supplier_id"] is None:
        problems["supplier_id"] = ["To reorder needs a supplier."]
    if problems:
        raise ValidationFailed(details=problems)


@dataclass(frozen=True)
class Need:
    """A sku of which too little is there or to come: projected = available + what is open."""

    sku: str
    supplier_id: UUID
    projected: int
    reorder_to: int
    pack_size: int

    @property
    def quantity(self) -> int:
        """What brings it to reorder_to, in whole packs."""
        packs = -(-(self.reorder_to - self.projected) // self.pack_size)
        return packs * self.pack_size


@dataclass(frozen=True)
class Proposal:
    """A supplier's PROPOSED purchase order: how many lines it has, and which of the skus in question are among them."""

    po_id: UUID
    lines: int
    skus: frozenset[str]


def proposed(needs: Iterable[Need], proposals: Mapping[UUID, Proposal]) -> list[tuple[UUID, str, int]]:
    """What is added to which proposal: (po_id, sku, quantity). `proposals`: supplier_id -> their proposal.

    A sku of a supplier without one is left to the next run, as is one that a full proposal has no line for.
    """
    added: list[tuple[UUID, str, int]] = []
    room = {supplier_id: MAX_LINES - proposal.lines for supplier_id, proposal in proposals.items()}
    for need in needs:
        proposal = proposals.get(need.supplier_id)
        if proposal is None:
            continue
        if need.sku not in proposal.skus:
            if room[need.supplier_id] <= 0:
                continue
            room[need.supplier_id] -= 1
        added.append((proposal.po_id, need.sku, need.quantity))
    return added


def may_set_rules(caller: Identity) -> bool:
    """Whether someone may say when a sku is low and ordered again."""
    return has_role(caller, ADMIN)


def may_read_rules(caller: Identity) -> bool:
    """Whether someone may read the rules of a sku."""
    return has_role(caller, OPERATOR, AUDITOR, ADMIN)


def may_set_suppliers(caller: Identity) -> bool:
    """Whether someone may add and change suppliers."""
    return has_role(caller, ADMIN)


def may_read_suppliers(caller: Identity) -> bool:
    """Whether someone may read whom stock is bought from."""
    return has_role(caller, OPERATOR, ADMIN)


def may_buy(caller: Identity) -> bool:
    """Whether someone may read, propose, receive, close and cancel purchase orders."""
    return has_role(caller, OPERATOR, ADMIN)


def may_order(caller: Identity) -> bool:
    """Whether someone may commit the money of a purchase order."""
    return has_role(caller, ADMIN)
