"""The rules of stock and reservations, as a table.

A reservation belongs to one order. RELEASED and REFUSED are final. Commit and release requests arrive in two queues, so
one may overtake the other. The functions take and return plain values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from uuid import UUID

from shared.enumerations import ReservationState
from shared.errors import BelowReserved, UnexpectedEvent, UnknownOrder, VersionMoved
from shared.events import (
    Committed,
    Identity,
    Item,
    OrderCreated,
    Payload,
    Released,
    ReservationFailed,
    Reserved,
    Shortage,
    type_of,
)
from shared.facts import compare
from shared.roles import ADMIN, AUDITOR, ROLES, SERVICE, has_role

State = ReservationState


class Kind(StrEnum):
    """The origin of a reservation: an order's event, or a person who used the API."""

    ORDER = "order"
    MANUAL = "manual"


RESERVE, COMMIT, RELEASE = "reserve", "commit", "release"

OUT_OF_STOCK = "out_of_stock"
UNKNOWN_SKU = "unknown_sku"
HELD_MANUALLY = "held_manually"

SALE, RETURN, PUT = "sale", "return", "put"


@dataclass(frozen=True)
class Stock:
    """One sku. `version` counts the changes of on_hand."""

    sku: str
    on_hand: int
    reserved: int
    version: int = 1

    @property
    def available(self) -> int:
        """The quantity that can still be reserved."""
        return self.on_hand - self.reserved


@dataclass(frozen=True)
class Reservation:
    """The reservation of one order: quantities by sku."""

    order_id: UUID
    reservation_id: UUID
    state: State
    quantities: Mapping[str, int] = field(default_factory=dict)
    kind: Kind = Kind.ORDER


@dataclass(frozen=True)
class Movement:
    """A change of on_hand and its cause."""

    sku: str
    change: int
    cause: str


@dataclass(frozen=True)
class Outcome:
    """The result of an event: the reservation afterwards, the changed stock, and what to save and emit."""

    reservation: Reservation
    changed: bool = True
    stock: tuple[Stock, ...] = ()
    movements: tuple[Movement, ...] = ()
    audited: bool = False  # save a release event for each sku
    emits: tuple[Payload, ...] = ()


@dataclass(frozen=True)
class Row:
    """The next state, and the change of stock for each unit of a sku."""

    becomes: State
    on_hand: int = 0
    reserved: int = 0
    cause: str = ""
    audited: bool = False


UNCHANGED = None

TABLE: dict[tuple[State, str], Row | None] = {
    (State.RESERVED, RESERVE): UNCHANGED,
    (State.REFUSED, RESERVE): UNCHANGED,
    (State.COMMITTED, RESERVE): UNCHANGED,
    (State.RELEASED, RESERVE): UNCHANGED,  # also for an order.created after a tombstone
    (State.RESERVED, COMMIT): Row(State.COMMITTED, on_hand=-1, reserved=-1, cause=SALE),
    (State.COMMITTED, COMMIT): UNCHANGED,
    (State.RELEASED, COMMIT): UNCHANGED,
    (State.RESERVED, RELEASE): Row(State.RELEASED, reserved=-1, audited=True),
    (State.COMMITTED, RELEASE): Row(State.RELEASED, on_hand=+1, cause=RETURN, audited=True),
    (State.RELEASED, RELEASE): UNCHANGED,
    (State.REFUSED, RELEASE): UNCHANGED,
    # (REFUSED, COMMIT) has no row, and neither has a commit without reservation: both messages go to the DLQ.
}


def reserve(stock: Mapping[str, Stock], order: OrderCreated, reservation_id: UUID) -> Outcome:
    """Reserve stock for a new order, or refuse it and emit the shortages. Lines of the same sku are summed first."""
    quantities = summed(order.items)
    short = shortages(stock, quantities)
    if short:
        reason = UNKNOWN_SKU if any(item.sku not in stock for item in short) else OUT_OF_STOCK
        return Outcome(
            Reservation(order.order_id, reservation_id, State.REFUSED),
            emits=(ReservationFailed(order.order_id, reason, short),),
        )
    return Outcome(
        Reservation(order.order_id, reservation_id, State.RESERVED, quantities),
        stock=_held(stock, quantities),
        emits=(
            Reserved(order.order_id, reservation_id, order.items, order.total, order.currency, order.payment_method),
        ),
    )


def repeat_reserve(existing: Reservation, order: OrderCreated) -> Outcome:
    """Handle an order.created whose order has a reservation: a manual one refuses it, any other changes nothing.

    Raises Contradiction if the order asks for other quantities than are reserved for it.
    """
    refused = existing.kind == Kind.MANUAL
    if not refused and existing.quantities:  # none are known of a refused one, and of a tombstone
        compare(type_of(order), ("quantities", summed(order.items), existing.quantities))
    emits = (ReservationFailed(order.order_id, HELD_MANUALLY, ()),) if refused else ()
    return Outcome(existing, changed=False, emits=emits)


def hold_manually(
    stock: Mapping[str, Stock], order_id: UUID, reservation_id: UUID, quantities: Mapping[str, int]
) -> Outcome | tuple[Shortage, ...]:
    """Reserve stock for a person, or return which skus are short. Emits nothing."""
    short = shortages(stock, quantities)
    if short:
        return short
    held = Reservation(order_id, reservation_id, State.RESERVED, quantities, Kind.MANUAL)
    return Outcome(held, stock=_held(stock, quantities))


def shortages(stock: Mapping[str, Stock], quantities: Mapping[str, int]) -> tuple[Shortage, ...]:
    """Return the skus with too little stock."""
    available = {sku: stock[sku].available if sku in stock else 0 for sku in quantities}
    return tuple(
        Shortage(sku, quantity, available[sku]) for sku, quantity in quantities.items() if quantity > available[sku]
    )


def _held(stock: Mapping[str, Stock], quantities: Mapping[str, int]) -> tuple[Stock, ...]:
    return tuple(replace(stock[sku], reserved=stock[sku].reserved + quantity) for sku, quantity in quantities.items())


def close_reservation(
    stock: Mapping[str, Stock], existing: Reservation | None, verb: str, order_id: UUID, reason: str
) -> Outcome:
    """Commit or release a reservation, as the table says. `stock` must contain every sku of the reservation.

    Raises UnknownOrder if the order has no reservation, and UnexpectedEvent for a commit of a refused one. Before a
    release without reservation the caller inserts a tombstone, so `existing` is None only for a commit.
    """
    if existing is None:
        raise UnknownOrder(f"order {order_id} has no reservation to {verb}")
    key = (existing.state, verb)
    if key not in TABLE:
        raise UnexpectedEvent(f"a reservation that is {existing.state} does not expect {verb}")
    row = TABLE[key]
    if row is UNCHANGED:
        return Outcome(existing, changed=False)
    changed = tuple(
        replace(
            stock[sku],
            on_hand=stock[sku].on_hand + row.on_hand * quantity,
            reserved=stock[sku].reserved + row.reserved * quantity,
            version=stock[sku].version + (row.on_hand != 0),
        )
        for sku, quantity in existing.quantities.items()
    )
    movements = tuple(
        Movement(sku, row.on_hand * quantity, row.cause) for sku, quantity in existing.quantities.items() if row.on_hand
    )
    event_type = Committed if row.becomes == State.COMMITTED else Released
    items = tuple(Item(sku, quantity) for sku, quantity in existing.quantities.items())
    emits = (event_type(order_id, existing.reservation_id, items, reason),) if existing.kind == Kind.ORDER else ()
    return Outcome(
        replace(existing, state=row.becomes),
        stock=changed,
        movements=movements,
        audited=row.audited,
        emits=emits,
    )


def put(stock: Stock | None, sku: str, on_hand: int, version: int | None) -> tuple[Stock, Movement | None]:
    """Set the quantity on hand. Raises VersionMoved if it changed since `version`, BelowReserved if it is too low."""
    current = stock or Stock(sku, 0, 0, 0)
    if version is not None and version != current.version:
        raise VersionMoved(details={"version": current.version})
    if on_hand < current.reserved:
        raise BelowReserved(details={"reserved": current.reserved})
    change = on_hand - current.on_hand
    if change == 0 and stock is not None:
        return current, None
    after = replace(current, on_hand=on_hand, version=current.version + 1)
    return after, Movement(sku, change, PUT) if change else None


def summed(items: tuple[Item, ...] | tuple[object, ...]) -> dict[str, int]:
    """Sum quantities by sku, sorted by sku: every transaction locks stock in that order."""
    quantities: dict[str, int] = {}
    for item in items:
        quantities[item.sku] = quantities.get(item.sku, 0) + item.quantity  # type: ignore[attr-defined]
    return dict(sorted(quantities.items()))


def may_read_stock(caller: Identity) -> bool:
    """Whether someone may read what is in stock."""
    return has_role(caller, *ROLES)


# So much of a sku is few: the menu says how many are left.
FEW = 10


def may_tell_availability(caller: Identity) -> bool:
    """Whether someone may have the availability of skus told again."""
    return has_role(caller, ADMIN, SERVICE)


def may_set_stock(caller: Identity) -> bool:
    """Whether someone may set what is on hand."""
    return has_role(caller, ADMIN)


def may_reserve(caller: Identity) -> bool:
    """Whether someone may reserve stock by hand."""
    return has_role(caller, ADMIN, SERVICE)


def may_close_reservation(caller: Identity) -> bool:
    """Whether someone may commit or release a manual reservation, whoever made it."""
    return has_role(caller, ADMIN, SERVICE)


def may_read_audit(caller: Identity) -> bool:
    """Whether someone may read the release audit and the list of its exports."""
    return has_role(caller, AUDITOR, ADMIN)


def may_export_audit(caller: Identity) -> bool:
    """Whether someone may export the release audit."""
    return has_role(caller, AUDITOR, ADMIN)
