"""Whether an order is taken at the prices that are known. No clock, no I/O, no SQL.

The copy of the offers may accept, and only the catalog refuses: what the copy leaves in doubt is asked there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from shared import prices
from shared.errors import Conflict, EcomError, NoPrice, NotForSale, PriceChanged, UnknownSku, ValidationFailed
from shared.prices import Price


@dataclass(frozen=True)
class Offer:
    """What is sold under a sku, and at which prices, as the catalog said in this version."""

    sku: str
    version: int
    item_id: UUID
    name: str
    sellable: bool
    prices: tuple[Price, ...]


@dataclass(frozen=True)
class PostedLine:
    """A line as a client posts it. `seen` is the unit price that the client names, if it does."""

    sku: str
    quantity: int
    seen: int | None = None
    note: str | None = None


class Problem(StrEnum):
    """Why a line cannot be taken; of several lines the first problem of this list names the refusal."""

    UNKNOWN_SKU = UnknownSku.code
    NOT_FOR_SALE = NotForSale.code
    NO_PRICE = NoPrice.code
    PRICE_CHANGED = PriceChanged.code


REFUSALS: dict[Problem, type[EcomError]] = {
    Problem.UNKNOWN_SKU: UnknownSku,
    Problem.NOT_FOR_SALE: NotForSale,
    Problem.NO_PRICE: NoPrice,
    Problem.PRICE_CHANGED: PriceChanged,
}


@dataclass(frozen=True)
class Verdict:
    """What is said of a line: its offer and what one unit costs, and why it cannot be taken, if it cannot."""

    line: PostedLine
    offer: Offer | None
    unit_price: int | None
    problem: Problem | None


def judge(lines: Sequence[PostedLine], currency: str, offers: Mapping[str, Offer], at: datetime) -> list[Verdict]:
    """The verdict on each line of an order, at the prices of a moment."""
    ordered: dict[str, int] = {}
    for line in lines:
        ordered[line.sku] = ordered.get(line.sku, 0) + line.quantity
    return [_verdict(line, offers.get(line.sku), currency, ordered[line.sku], at) for line in lines]


def _verdict(line: PostedLine, offer: Offer | None, currency: str, quantity: int, at: datetime) -> Verdict:
    if offer is None:
        return Verdict(line, None, None, Problem.UNKNOWN_SKU)
    price = prices.unit_price(offer.prices, currency, quantity, at)
    if not offer.sellable:
        return Verdict(line, offer, price, Problem.NOT_FOR_SALE)
    if price is None:
        return Verdict(line, offer, None, Problem.NO_PRICE)
    is_other = line.seen is not None and line.seen != price
    return Verdict(line, offer, price, Problem.PRICE_CHANGED if is_other else None)


def is_taken(verdicts: Sequence[Verdict]) -> bool:
    """Whether an order is taken, so that nobody need be asked."""
    return all(verdict.problem is None for verdict in verdicts)


def refusal(verdicts: Sequence[Verdict], currency: str, at: datetime) -> EcomError:
    """Why an order is refused, with all its lines that are in the way. At least one must be."""
    wrong = [verdict for verdict in verdicts if verdict.problem]
    first = next(problem for problem in Problem if any(verdict.problem is problem for verdict in wrong))
    costs = [verdict.line.quantity * verdict.unit_price for verdict in verdicts if verdict.unit_price is not None]
    details: dict[str, Any] = {
        "currency": currency,
        "total": sum(costs) if len(costs) == len(verdicts) else None,
        "lines": [_in_detail(verdict, at) for verdict in wrong],
    }
    message = ""
    if first is Problem.UNKNOWN_SKU:
        names = ", ".join(verdict.line.sku for verdict in wrong if verdict.problem is first)
        message = f"Not on the menu: {names}. An admin lists a sku by PUT /api/menu/offers/{{sku}}."
    return REFUSALS[first](message, details)


def _in_detail(verdict: Verdict, at: datetime) -> dict[str, Any]:
    found: dict[str, Any] = {
        "sku": verdict.line.sku,
        "problem": verdict.problem,
        "unit_price": verdict.unit_price,
        "seen": verdict.line.seen,
    }
    if verdict.problem is Problem.NO_PRICE and verdict.offer:
        found["currencies"] = prices.currencies(verdict.offer.prices, at)
    return found


# As callers of the version before know these errors: their kind, without a code of its own.
KINDS: dict[type[EcomError], type[EcomError]] = {
    NotForSale: Conflict,
    PriceChanged: Conflict,
    UnknownSku: ValidationFailed,
    NoPrice: ValidationFailed,
}


def as_of_old(error: EcomError) -> EcomError:
    """An error as callers of the version before know it."""
    kind = KINDS.get(type(error))
    return kind(error.message, error.details) if kind else error
