"""The rules of what people do to stock, as a table: they take in, take out, and count.

The functions take and return plain values.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from inventory_service.domain import MAX_ON_HAND, Movement, Stock
from shared.enumerations import CountReason, MovementCause, StockInReason, StockOutReason
from shared.errors import BelowReserved, EcomError, HasRecipe, UnknownSku, ValidationFailed, VersionMoved
from shared.events import Identity
from shared.roles import ADMIN, AUDITOR, OPERATOR, has_role

# So many lines have room in one transaction that nobody waits for.
MAX_LINES = 100


class Effect(StrEnum):
    """What the quantity of a line does to on_hand."""

    ADDED = "added"
    TAKEN = "taken"
    COUNTED = "counted"


@dataclass(frozen=True)
class Row:
    """What people do to stock for one cause, and the reasons they may give."""

    effect: Effect
    reasons: tuple[str, ...]
    makes_sku: bool = False  # a sku that is new gets its first stock


# Sales and returns are moved by reservations, `put` by PUT /api/stocks, `received` by purchase orders. No row lets
# on_hand fall below what is reserved.
TABLE: dict[MovementCause, Row] = {
    MovementCause.STOCK_IN: Row(Effect.ADDED, tuple(StockInReason), makes_sku=True),
    MovementCause.STOCK_OUT: Row(Effect.TAKEN, tuple(StockOutReason)),
    MovementCause.COUNTED: Row(Effect.COUNTED, tuple(CountReason)),
}

# Those of other causes are made by orders: they are many, and are found by their sku.
BY_ORDERS = (MovementCause.SALE, MovementCause.RETURN)
BY_PEOPLE = tuple(cause for cause in MovementCause if cause not in BY_ORDERS)


@dataclass(frozen=True)
class Line:
    """What is done to one sku: so much is taken in or out, or was counted. `version` is the one that was read."""

    sku: str
    quantity: int
    version: int | None = None


@dataclass(frozen=True)
class Booked:
    """The stock of every line afterwards, and what has moved. A count that finds no difference moves nothing."""

    stock: tuple[Stock, ...]
    movements: tuple[Movement, ...]


def check(cause: MovementCause, lines: Sequence[Line], reason: str) -> None:
    """Raises ValidationFailed for a reason that the cause does not know, and for lines that make no sense together."""
    row = TABLE[cause]
    if reason not in row.reasons:
        raise ValidationFailed(details={"reason": [f"Must be one of: {', '.join(row.reasons)}."]})
    least = 0 if row.effect == Effect.COUNTED else 1
    if few := [line.sku for line in lines if line.quantity < least]:
        raise ValidationFailed(details={"lines": [f"{sku}: the quantity must be {least} or more" for sku in few]})
    if not 1 <= len(lines) <= MAX_LINES:
        raise ValidationFailed(details={"lines": [f"Must be 1 to {MAX_LINES}."]})
    skus = [line.sku for line in lines]
    if twice := sorted({sku for sku in skus if skus.count(sku) > 1}):
        raise ValidationFailed("A sku has two lines: write one.", {"lines": [f"{sku} has two lines" for sku in twice]})


def book(
    cause: MovementCause,
    lines: Sequence[Line],
    stock: Mapping[str, Stock],
    made: Collection[str],
    reason: str,
    note: str | None = None,
) -> Booked:
    """Do what every line says, or raise why a line cannot be done.

    `stock` has the locked stock of the lines' skus, `made` those that have none since they are made by a recipe. A sku
    that is new may have stock of version 0. The error is that of the first line that cannot be done: HasRecipe,
    UnknownSku, VersionMoved, BelowReserved or ValidationFailed. Its details have `sku` and all such lines:
    {lines: [{sku, problem, message}]}.
    """
    booked, refused = [], []
    for line in lines:
        try:
            if line.sku in made:
                raise HasRecipe(has_recipe(line.sku), {"sku": line.sku})
            booked.append(_after(TABLE[cause], line, stock.get(line.sku)))
        except EcomError as error:
            refused.append((line.sku, error))
    if refused:
        first = refused[0][1]
        problems = [{"sku": sku, "problem": error.code, "message": error.message} for sku, error in refused]
        raise type(first)(first.message, first.details | {"lines": problems})
    movements = tuple(
        Movement(after.sku, after.on_hand - before.on_hand, cause, after.on_hand, reason, note)
        for before, after in booked
        if after.on_hand != before.on_hand
    )
    return Booked(tuple(after for _, after in booked), movements)


def has_recipe(sku: str) -> str:
    """Why a sku cannot have stock."""
    return f"{sku} is made by a recipe: what is in stock are its components."


def _after(row: Row, line: Line, stock: Stock | None) -> tuple[Stock, Stock]:
    """The stock of a line's sku before and after it."""
    if stock is None and not row.makes_sku:
        raise UnknownSku(f"There is no stock of {line.sku}.", {"sku": line.sku})
    before = stock or Stock(line.sku, 0, 0, 0)
    details: dict[str, Any] = {"sku": line.sku}
    if line.version is not None and line.version != before.version:
        raise VersionMoved(f"{line.sku} has moved since it was read.", details | {"version": before.version})
    on_hand = {
        Effect.ADDED: before.on_hand + line.quantity,
        Effect.TAKEN: before.on_hand - line.quantity,
        Effect.COUNTED: line.quantity,
    }[row.effect]
    if on_hand > MAX_ON_HAND:
        raise ValidationFailed(f"{line.sku}: more than {MAX_ON_HAND} cannot be on hand.", details)
    if on_hand < before.reserved:
        raise BelowReserved(
            f"{line.sku}: {before.on_hand} are on hand, {before.reserved} of them reserved."
            f" At most {before.available} can go.",
            details | {"reserved": before.reserved},
        )
    if on_hand == before.on_hand:
        return before, before
    return before, replace(before, on_hand=on_hand, version=before.version + 1)


def may_move_stock(caller: Identity) -> bool:
    """Whether someone may take stock in and out, and set it to what they have counted."""
    return has_role(caller, OPERATOR, ADMIN)


def may_read_books(caller: Identity) -> bool:
    """Whether someone may read levels of stock, and who has moved how much and why."""
    return has_role(caller, OPERATOR, AUDITOR, ADMIN)
