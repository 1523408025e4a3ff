"""What a line costs: the prices of a sku, and the one rule that picks among them. Standard library and schema only.

The catalog shows prices by this rule, and the order service charges by it, so that both always agree.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from shared.schema import Amount, Currency, Quantity


@dataclass(frozen=True)
class Price:
    """A price of a sku: for one unit, in minor units of its currency, tax included.

    It holds for `min_quantity` units and more, from `valid_from` until a later price of the same currency and
    min_quantity takes its place. `unit_price` None means: not sold so any more.
    """

    currency: Currency
    min_quantity: Quantity
    unit_price: Amount | None
    valid_from: datetime


# The prices of one sku. Of two with the same currency, min_quantity and valid_from, the later in the list holds: it was
# set later.
Prices = Iterable[Price]


def tiers(prices: Prices, currency: str, at: datetime) -> dict[int, int]:
    """The prices in one currency at a moment: {min_quantity: unit_price}, smallest min_quantity first."""
    newest: dict[int, Price] = {}
    for price in prices:
        if price.currency != currency or price.valid_from > at:
            continue
        known = newest.get(price.min_quantity)
        if known is None or known.valid_from <= price.valid_from:
            newest[price.min_quantity] = price
    return {
        min_quantity: price.unit_price for min_quantity, price in sorted(newest.items()) if price.unit_price is not None
    }


def unit_price(prices: Prices, currency: str, quantity: int, at: datetime) -> int | None:
    """What one unit costs, of so many of the sku in the whole order; None if the sku has no such price then."""
    reached = [price for least, price in tiers(prices, currency, at).items() if least <= quantity]
    return reached[-1] if reached else None


def currencies(prices: Prices, at: datetime) -> list[str]:
    """The currencies in which the sku has a price at a moment, for any quantity, sorted."""
    listed = list(prices)
    return sorted({price.currency for price in listed if tiers(listed, price.currency, at)})
