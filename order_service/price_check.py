"""Whether each line was charged the price that held when its order was made (P3 of the reconciliation)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared import prices
from shared.prices import Price

# So long an event may take, or the comparison with the catalog: a line may have the price that held before.
TRAVEL_S = 90


@dataclass(frozen=True)
class ChargedLine:
    """A line as it was charged. `ordered` counts the units of its sku in the whole order."""

    order_id: UUID
    line: int
    sku: str
    currency: str
    ordered: int
    unit_price: int
    offer_version: int
    created_at: datetime


@dataclass(frozen=True)
class SetPrice:
    """A price as an editor set it, with the version that its offer had then."""

    price: Price
    offer_version: int
    set_at: datetime


@dataclass(frozen=True)
class PriceFault:
    """A line that was charged another price than any that held when its order was made."""

    line: ChargedLine
    expected: int | None

    def __str__(self) -> str:
        one = self.line
        return (
            f"order {one.order_id}, line {one.line}: {one.sku} was charged {one.unit_price} {one.currency}, and"
            f" {self.expected} held at version {one.offer_version}"
        )


_LINES = text(
    """
    SELECT order_id, line, sku, currency, unit_price, offer_version, created_at,
           CAST(sum(quantity) OVER (PARTITION BY order_id, sku) AS bigint) AS ordered
    FROM order_items JOIN orders USING (order_id)
    WHERE offer_version IS NOT NULL AND order_id > :after
      AND order_id IN (SELECT order_id FROM orders WHERE order_id > :after ORDER BY order_id LIMIT :orders)
    ORDER BY order_id, line
    """
)


def charged_lines(session: Session, after: UUID, orders: int) -> list[ChargedLine]:
    """The lines of so many orders after this one, by order_id, without those from before the catalog. One statement.

    Ids grow with time, so the last one is where the next call begins.
    """
    rows: Sequence[Any] = session.execute(_LINES, {"after": after, "orders": orders}).all()
    return [
        ChargedLine(
            row.order_id,
            row.line,
            row.sku,
            row.currency,
            row.ordered,
            row.unit_price,
            row.offer_version,
            row.created_at,
        )
        for row in rows
    ]


def price_faults(lines: Iterable[ChargedLine], set_prices: Mapping[str, Sequence[SetPrice]]) -> Iterator[PriceFault]:
    """The lines that were charged a price that did not hold.

    `set_prices` are all rows of the catalog's `prices` of each sku, in the order in which they were set. A line must
    have the price at its order's created_at by the rows up to the version that it names; and no row that was set longer
    ago than TRAVEL_S may say otherwise.
    """
    for line in lines:
        rows = set_prices.get(line.sku, ())
        by_version = [row.price for row in rows if row.offer_version <= line.offer_version]
        long_known = line.created_at - timedelta(seconds=TRAVEL_S)
        newer = any(row.offer_version > line.offer_version and row.set_at < long_known for row in rows)
        expected = prices.unit_price(by_version, line.currency, line.ordered, line.created_at)
        if newer:
            known = [row.price for row in rows if row.set_at < long_known]
            expected = prices.unit_price(known, line.currency, line.ordered, line.created_at)
        if expected != line.unit_price:
            yield PriceFault(line, expected)
