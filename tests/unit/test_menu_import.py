"""How `ecom menu import` divides a file into requests."""

import pytest

from gateway.menu_editor import MAX_OFFERS, OffersRequest
from ops.cli.menu import as_body, lists_of
from shared.edge.connection import MAX_BODY_BYTES

LONGEST = {
    "currency": "EUR",
    "unit_price": 2**53 - 1,
    "min_quantity": 10**6,
    "valid_from": "2030-01-14T10:30:00.123+00:00",
    "category": "c" * 64,
    "on_sale": False,
}


@pytest.mark.parametrize("name", ["lamp", "\u706f" * 120, "\U0001f4a1" * 120, '"' * 120])
def test_every_list_has_a_size_that_the_gateway_takes(name):
    offers = [{"sku": f"{number:064}", "name": name, **LONGEST} for number in range(450)]

    lists = list(lists_of(offers))

    assert [offer for some in lists for offer in some] == offers
    for some in lists:
        body = {"offers": some}
        assert len(some) <= MAX_OFFERS
        assert len(as_body(body)) <= MAX_BODY_BYTES
        OffersRequest().load(body)


def test_short_offers_stand_in_as_few_lists_as_possible():
    offers = [{"sku": f"lamp-{number}", "currency": "EUR", "unit_price": 1} for number in range(450)]
    assert [len(some) for some in lists_of(offers)] == [200, 200, 50]
    assert list(lists_of([])) == []


def test_all_lines_of_a_sku_are_in_one_list():
    offers = [
        {"sku": f"lamp-{number:03}", "currency": currency, "unit_price": 1}
        for number in range(150)
        for currency in ("EUR", "USD", "SEK")
    ]
    lists = list(lists_of(offers))
    skus = [sku for some in lists for sku in {offer["sku"] for offer in some}]
    assert len(skus) == len(set(skus)) == 150
    assert [len(some) for some in lists] == [198, 198, 54]
