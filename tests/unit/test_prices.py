"""What a line costs: the rule as a table."""

from datetime import UTC, datetime, timedelta

import pytest

from shared.prices import Price, currencies, tiers, unit_price

NOON = datetime(2026, 1, 14, 12, tzinfo=UTC)
BEFORE, LATER = NOON - timedelta(hours=1), NOON + timedelta(hours=1)


def price(amount: int | None, valid_from: datetime = BEFORE, least: int = 1, currency: str = "EUR") -> Price:
    return Price(currency, least, amount, valid_from)


@pytest.mark.parametrize(
    ("prices", "quantity", "expected"),
    [
        ([], 1, None),
        ([price(10)], 1, 10),
        ([price(10, LATER)], 1, None),
        ([price(10, NOON)], 1, 10),
        ([price(10), price(12, LATER)], 1, 10),
        ([price(10), price(12, NOON)], 1, 12),
        ([price(12, NOON), price(10)], 1, 12),
        ([price(10), price(12)], 1, 12),
        ([price(10), price(None)], 1, None),
        ([price(10), price(None), price(0)], 1, 0),
        ([price(10, least=2)], 1, None),
        ([price(10), price(8, least=5)], 4, 10),
        ([price(10), price(8, least=5)], 5, 8),
        ([price(10), price(8, least=5), price(None, NOON, least=5)], 5, 10),
        ([price(10), price(8, LATER, least=5)], 5, 10),
        ([price(10, currency="USD")], 1, None),
    ],
    ids=[
        "no price",
        "one price",
        "a price to come",
        "a price of this moment",
        "a later price does not hold yet",
        "a later price takes the place of the earlier",
        "the order of the list does not matter",
        "of one moment the price set later holds",
        "not sold so any more",
        "free is a price",
        "fewer than the smallest quantity",
        "fewer than the tier",
        "as many as the tier",
        "a tier that ended",
        "a tier to come",
        "another currency",
    ],
)
def test_the_price_of_a_line(prices: list[Price], quantity: int, expected: int | None) -> None:
    assert unit_price(prices, "EUR", quantity, NOON) == expected


def test_the_tiers_are_the_prices_in_force_smallest_quantity_first() -> None:
    prices = [price(8, least=5), price(10), price(7, LATER, least=9), price(9, currency="USD")]

    assert list(tiers(prices, "EUR", NOON).items()) == [(1, 10), (5, 8)]


def test_the_currencies_are_those_with_a_price_in_force() -> None:
    prices = [price(1, currency="USD"), price(None), price(2, currency="SEK"), price(3, LATER, currency="CHF")]

    assert currencies(prices, NOON) == ["SEK", "USD"]
