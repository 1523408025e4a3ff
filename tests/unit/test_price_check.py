"""Whether each line was charged the price that held: each kind of fault, planted."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from order_service.price_check import ChargedLine, SetPrice, price_faults
from shared.prices import Price

NOON = datetime(2026, 1, 14, 12, tzinfo=UTC)


def row(amount: int, version: int, before_s: float, valid_s: float | None = None, least: int = 1) -> SetPrice:
    """A price that was set so many seconds before noon."""
    valid_from = NOON - timedelta(seconds=before_s if valid_s is None else valid_s)
    return SetPrice(Price("EUR", least, amount, valid_from), version, NOON - timedelta(seconds=before_s))


def line(unit_price: int, version: int, ordered: int = 1) -> ChargedLine:
    return ChargedLine(uuid4(), 1, "lamp", "EUR", ordered, unit_price, version, NOON)


ROWS = [row(10, 1, 1000), row(8, 2, 900, least=5), row(12, 3, 30)]


@pytest.mark.parametrize(
    ("charged", "expected"),
    [
        (line(10, 2), None),
        (line(12, 3), None),
        (line(8, 2, ordered=5), None),
        (line(11, 2), 10),
        (line(10, 3), 12),
        (line(10, 2, ordered=5), 8),
        (line(12, 2), 10),
    ],
    ids=[
        "the price of its version, which changed 30 s ago",
        "the new price",
        "the tier",
        "a price that nobody set",
        "the old price by the new version",
        "the price of a smaller tier",
        "the new price by the old version",
    ],
)
def test_a_line_has_the_price_of_its_version(charged: ChargedLine, expected: int | None) -> None:
    assert [fault.expected for fault in price_faults([charged], {"lamp": ROWS})] == (
        [] if expected is None else [expected]
    )


def test_a_price_that_had_changed_long_before_is_a_fault() -> None:
    rows = [row(10, 1, 1000), row(12, 2, 200)]

    (fault,) = price_faults([line(10, 1)], {"lamp": rows})

    assert fault.expected == 12
    assert "was charged 10 EUR, and 12 held" in str(fault)


def test_a_price_from_a_date_holds_from_that_moment() -> None:
    rows = [row(10, 1, 1000), row(12, 2, 900, valid_s=0), row(14, 3, 800, valid_s=-1)]

    assert list(price_faults([line(12, 3)], {"lamp": rows})) == []
    assert len(list(price_faults([line(14, 3)], {"lamp": rows}))) == 1


def test_a_sku_that_was_never_on_the_menu_is_a_fault() -> None:
    assert [fault.expected for fault in price_faults([line(10, 1)], {})] == [None]
