"""Whether an order is taken at the prices that are known: the rules as tables."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from order_service import judging
from order_service.domain import order_no_in
from order_service.judging import Offer, PostedLine, Problem
from order_service.new_orders import DIGITS, new_order_no
from shared.errors import Conflict, NoPrice, NotForSale, PriceChanged, UnknownSku, ValidationFailed
from shared.prices import Price, unit_price

NOON = datetime(2026, 1, 14, 12, tzinfo=UTC)
PAST = NOON - timedelta(days=1)


def offer(sku: str, *prices: Price, sellable: bool = True) -> Offer:
    return Offer(sku, 7, uuid4(), f"The {sku}", sellable, prices)


def eur(amount: int | None, least: int = 1, valid_from: datetime = PAST) -> Price:
    return Price("EUR", least, amount, valid_from)


OFFERS = {
    "lamp": offer("lamp", eur(10), eur(8, least=5)),
    "rug": offer("rug", eur(20, valid_from=NOON + timedelta(seconds=1))),
    "desk": offer("desk", eur(30), sellable=False),
    "chair": offer("chair", Price("USD", 1, 40, PAST)),
}


@pytest.mark.parametrize(
    ("line", "problem", "price"),
    [
        (PostedLine("lamp", 1), None, 10),
        (PostedLine("lamp", 1, seen=10), None, 10),
        (PostedLine("lamp", 1, seen=9), Problem.PRICE_CHANGED, 10),
        (PostedLine("lamp", 1, seen=11), Problem.PRICE_CHANGED, 10),
        (PostedLine("lamp", 5, seen=10), Problem.PRICE_CHANGED, 8),
        (PostedLine("none", 1, seen=10), Problem.UNKNOWN_SKU, None),
        (PostedLine("desk", 1, seen=30), Problem.NOT_FOR_SALE, 30),
        (PostedLine("chair", 1), Problem.NO_PRICE, None),
        (PostedLine("rug", 1), Problem.NO_PRICE, None),
    ],
)
def test_the_verdict_on_a_line(line: PostedLine, problem: Problem | None, price: int | None) -> None:
    (verdict,) = judging.judge([line], "EUR", OFFERS, NOON)

    assert (verdict.problem, verdict.unit_price) == (problem, price)
    assert judging.is_taken([verdict]) == (problem is None)


def test_the_tier_is_that_of_all_lines_of_a_sku_together() -> None:
    verdicts = judging.judge([PostedLine("lamp", 3), PostedLine("lamp", 2)], "EUR", OFFERS, NOON)

    assert [verdict.unit_price for verdict in verdicts] == [8, 8]


@pytest.mark.parametrize(
    ("skus", "error", "kind"),
    [
        (("lamp", "none", "desk", "chair"), UnknownSku, ValidationFailed),
        (("lamp", "desk", "chair"), NotForSale, Conflict),
        (("lamp", "chair"), NoPrice, ValidationFailed),
        (("lamp",), PriceChanged, Conflict),
    ],
)
def test_a_refusal_is_named_for_the_first_problem_and_lists_every_line(
    skus: tuple[str, ...], error: type[Exception], kind: type[Exception]
) -> None:
    verdicts = judging.judge([PostedLine(sku, 2, seen=1) for sku in skus], "EUR", OFFERS, NOON)

    refusal = judging.refusal(verdicts, "EUR", NOON)

    assert type(refusal) is error
    assert [line["sku"] for line in refusal.details["lines"]] == list(skus)
    assert refusal.details["lines"][0] | {"unit_price": 10, "seen": 1} == refusal.details["lines"][0]
    assert refusal.details["total"] == (20 if skus == ("lamp",) else None)
    older = judging.as_of_old(refusal)
    assert (type(older), older.details) == (kind, refusal.details)


def test_a_refusal_for_want_of_a_price_names_the_currencies_there_are() -> None:
    refusal = judging.refusal(judging.judge([PostedLine("chair", 1)], "EUR", OFFERS, NOON), "EUR", NOON)

    assert refusal.details["lines"][0]["currencies"] == ["USD"]


MOMENTS = st.integers(-3, 3).map(lambda hours: NOON + timedelta(hours=hours))
PRICES = st.lists(
    st.builds(
        Price,
        st.sampled_from(["EUR", "USD"]),
        st.integers(1, 4),
        st.none() | st.integers(0, 9),
        MOMENTS,
    ),
    max_size=12,
)


def naive(prices: list[Price], currency: str, quantity: int, at: datetime) -> int | None:
    """The same rule, written down by looking at each quantity from the greatest to the smallest."""
    for least in range(quantity, 0, -1):
        held = None
        for moment in sorted({price.valid_from for price in prices if price.valid_from <= at}):
            for price in prices:
                if (price.currency, price.min_quantity, price.valid_from) == (currency, least, moment):
                    held = price.unit_price
        if held is not None:
            return held
    return None


@given(PRICES, st.sampled_from(["EUR", "USD"]), st.integers(1, 5), MOMENTS)
def test_the_price_of_a_line_is_what_a_second_implementation_says(
    prices: list[Price], currency: str, quantity: int, at: datetime
) -> None:
    assert unit_price(prices, currency, quantity, at) == naive(prices, currency, quantity, at)


def test_the_number_of_an_order_is_found_however_it_is_written() -> None:
    number = new_order_no()

    assert len(number) == 9
    assert set(number.replace("-", "")) <= set(DIGITS)
    for written in (number, number.lower(), number.replace("-", "")):
        assert order_no_in(written) == number
    assert order_no_in("o1lI-abcd") == "0111-ABCD"
