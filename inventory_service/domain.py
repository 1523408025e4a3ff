"""The rules of stock and reservations, as a table.

A reservation belongs to one order. RELEASED and REFUSED are final. Commit and release requests arrive in two queues, so
one may overtake the other. The functions take and return plain values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from uuid import UUID

from shared.enumerations import MovementCause, ReservationState
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

# More of one sku than this is a typing mistake. It is far below what the events can say.
MAX_ON_HAND = 10**9

# What one piece of a made sku takes of each component, by made sku. With no component it is made of nothing.
Recipes = Mapping[str, Mapping[str, int]]


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
    """The reservation of one order: what it holds, as quantities by stocked sku.

    `asked` is the fingerprint of what the order asks for; None where an older version reserved.
    """

    order_id: UUID
    reservation_id: UUID
    state: State
    quantities: Mapping[str, int] = field(default_factory=dict)
    kind: Kind = Kind.ORDER
    asked: UUID | None = None


@dataclass(frozen=True)
class Movement:
    """A change of on_hand and its cause, and what was on hand then. Of people's movements also why they made them."""

    sku: str
    change: int
    cause: MovementCause
    on_hand_after: int
    reason: str | None = None
    note: str | None = None
    purchase_order_id: UUID | None = None


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
    cause: MovementCause | None = None  # of the movement, where on_hand changes
    audited: bool = False


UNCHANGED = None

TABLE: dict[tuple[State, str], Row | None] = {
    (State.RESERVED, RESERVE): UNCHANGED,
    (State.REFUSED, RESERVE): UNCHANGED,
    (State.COMMITTED, RESERVE): UNCHANGED,
    (State.RELEASED, RESERVE): UNCHANGED,  # also for an order.created after a tombstone
    (State.RESERVED, COMMIT): Row(State.COMMITTED, on_hand=-1, reserved=-1, cause=MovementCause.SALE),
    (State.COMMITTED, COMMIT): UNCHANGED,
    (State.RELEASED, COMMIT): UNCHANGED,
    (State.RESERVED, RELEASE): Row(State.RELEASED, reserved=-1, audited=True),
    (State.COMMITTED, RELEASE): Row(State.RELEASED, on_hand=+1, cause=MovementCause.RETURN, audited=True),
    (State.RELEASED, RELEASE): UNCHANGED,
    (State.REFUSED, RELEASE): UNCHANGED,
    # (REFUSED, COMMIT) has no row, and neither has a commit without reservation: both messages go to the DLQ.
}


def reserve(stock: Mapping[str, Stock], recipes: Recipes, order: OrderCreated, reservation_id: UUID) -> Outcome:
    """Reserve stock for a new order, or refuse it and emit the shortages. Lines of the same sku are summed first.

    `recipes` has those of all ordered skus that are made, and `stock` all that `needs` says. Of made skus their
    components are held: the reservation says what is held, and no recipe is read for it again.
    """
    quantities = summed(order.items)
    asked = fingerprint(quantities)
    short = shortages(stock, recipes, quantities)
    if short:
        unknown = any(item.sku not in stock and item.sku not in recipes for item in short)
        reason = UNKNOWN_SKU if unknown else OUT_OF_STOCK
        return Outcome(
            Reservation(order.order_id, reservation_id, State.REFUSED, asked=asked),
            emits=(ReservationFailed(order.order_id, reason, short),),
        )
    held = needs(quantities, recipes)
    return Outcome(
        Reservation(order.order_id, reservation_id, State.RESERVED, held, asked=asked),
        stock=_held(stock, held),
        emits=(
            Reserved(order.order_id, reservation_id, order.items, order.total, order.currency, order.payment_method),
        ),
    )


def repeat_reserve(existing: Reservation, order: OrderCreated) -> Outcome:
    """Handle an order.created whose order has a reservation: a manual one refuses it, any other changes nothing.

    Raises Contradiction if the order asks for other quantities than the first time. What is held does not say what was
    asked: it is in components, by the recipes of then. So the fingerprints are compared; those reservations that have
    none were made before there were recipes, and hold what was asked.
    """
    refused = existing.kind == Kind.MANUAL
    if not refused:
        asked = summed(order.items)
        known: object = existing.quantities or None  # none are known of a tombstone
        if existing.asked is not None:
            known = asked if existing.asked == fingerprint(asked) else "other quantities"
        compare(type_of(order), ("quantities", asked, known))
    emits = (ReservationFailed(order.order_id, HELD_MANUALLY, ()),) if refused else ()
    return Outcome(existing, changed=False, emits=emits)


def hold_manually(
    stock: Mapping[str, Stock],
    recipes: Recipes,
    order_id: UUID,
    reservation_id: UUID,
    quantities: Mapping[str, int],
) -> Outcome | tuple[Shortage, ...]:
    """Reserve stock for a person, as `reserve` does, or return which skus are short. Emits nothing."""
    short = shortages(stock, recipes, quantities)
    if short:
        return short
    held = needs(quantities, recipes)
    reservation = Reservation(order_id, reservation_id, State.RESERVED, held, Kind.MANUAL)
    return Outcome(reservation, stock=_held(stock, held))


def recipe_of(sku: str, recipes: Recipes) -> Mapping[str, int]:
    """What one piece of a sku takes. A sku without a recipe is a recipe of itself."""
    return recipes.get(sku, {sku: 1})


def needs(quantities: Mapping[str, int], recipes: Recipes) -> dict[str, int]:
    """What these quantities take together of each stocked sku, sorted by sku."""
    needed: dict[str, int] = {}
    for sku, quantity in quantities.items():
        for component, each in recipe_of(sku, recipes).items():
            needed[component] = needed.get(component, 0) + quantity * each
    return dict(sorted(needed.items()))


def shortages(stock: Mapping[str, Stock], recipes: Recipes, quantities: Mapping[str, int]) -> tuple[Shortage, ...]:
    """Return the ordered skus that take something of which all of them together need more than there is.

    `available` is what there would be of each of them alone.
    """
    needed = needs(quantities, recipes)
    available = {sku: stock[sku].available if sku in stock else 0 for sku in needed}
    short = {sku for sku in needed if needed[sku] > available[sku]}
    return tuple(
        Shortage(sku, quantity, min(available[component] // each for component, each in recipe.items()))
        for sku, quantity in quantities.items()
        if not short.isdisjoint(recipe := recipe_of(sku, recipes))
    )


def fingerprint(quantities: Mapping[str, int]) -> UUID:
    """What is asked for, short enough to be kept beside each reservation: the same for the same quantities for ever."""
    text = " ".join(f"{sku} {quantity}" for sku, quantity in sorted(quantities.items()))
    return UUID(bytes=hashlib.sha256(text.encode()).digest()[:16])


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
        Movement(item.sku, row.on_hand * existing.quantities[item.sku], row.cause, item.on_hand)
        for item in changed
        if row.cause
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
    """Set the quantity on hand. Raises VersionMoved if it changed since `version`, BelowReserved if it is too low.

    A sku that is new has no stock, or one of version 0.
    """
    current = stock or Stock(sku, 0, 0, 0)
    check_version(current.version, version)
    if on_hand < current.reserved:
        raise BelowReserved(details={"sku": sku, "reserved": current.reserved})
    change = on_hand - current.on_hand
    if change == 0 and current.version > 0:
        return current, None
    after = replace(current, on_hand=on_hand, version=current.version + 1)
    return after, Movement(sku, change, MovementCause.PUT, on_hand) if change else None


def check_version(current: int, seen: int | None) -> None:
    """Raises VersionMoved if something has changed since `seen` was read; None asks for no check."""
    if seen is not None and seen != current:
        raise VersionMoved(details={"version": current})


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
