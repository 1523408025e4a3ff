"""What is made of stock over HTTP: written by admins, sold by its recipe, and sold out when a component is."""

import uuid
from typing import Any

import pytest
import requests

from ops.cli.flow import Flow
from tests.e2e.system import System, eventually


@pytest.fixture
def flow(system: System) -> Flow:
    return system.flow()


@pytest.fixture
def named() -> str:
    return uuid.uuid4().hex[:10]


def put_stock(flow: Flow, sku: str, on_hand: int) -> None:
    flow.send("PUT", f"/api/stocks/{sku}", {"on_hand": on_hand}, user="admin").raise_for_status()


def put_recipe(flow: Flow, sku: str, components: dict[str, int], user: str = "admin", **more: Any) -> requests.Response:
    lines = [{"sku": component, "quantity": quantity} for component, quantity in components.items()]
    return flow.send("PUT", f"/api/inventory/recipes/{sku}", {"components": lines, **more}, user=user)


def error_of(answer: requests.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def shown(flow: Flow, sku: str) -> tuple[bool, int | None]:
    (offer,) = flow.send("GET", f"/api/menu/offers?skus={sku}", user=None).json()["offers"]
    return offer["sold_out"], offer["few"]


def test_a_dish_is_sold_by_its_recipe_until_an_ingredient_is_gone(flow: Flow, named: str) -> None:
    flour, pizza = f"flour-{named}", f"pizza-{named}"
    put_stock(flow, flour, 1_000)
    assert put_recipe(flow, pizza, {flour: 250}).status_code == 200
    flow.sell({pizza: 900})
    eventually(lambda: shown(flow, pizza), lambda seen: seen == (False, 4))

    paid = flow.order(pizza, 2, unit_price=900)
    assert flow.at_rest(paid["order_id"])["status"] == "PAID"
    flow.timeline(paid["order_id"], last="inventory.committed")
    stock = flow.get(f"/api/stocks/{flour}")
    assert (stock["on_hand"], stock["reserved"]) == (500, 0)

    # Another recipe, and the order is given back by the old one.
    assert put_recipe(flow, pizza, {flour: 300}).status_code == 200
    flow.cancel(paid["order_id"])
    flow.timeline(paid["order_id"], last="inventory.released")
    assert flow.get(f"/api/stocks/{flour}")["available"] == 1_000

    short = flow.order(pizza, 4, unit_price=900)
    assert flow.at_rest(short["order_id"])["reason"] == "out_of_stock"
    put_stock(flow, flour, 299)
    eventually(lambda: shown(flow, pizza), lambda seen: seen == (True, None))


def test_a_recipe_is_refused_with_its_reason(flow: Flow, named: str) -> None:
    flour, pizza = f"flour-{named}", f"pizza-{named}"
    put_stock(flow, flour, 0)
    written = put_recipe(flow, pizza, {flour: 250}).json()

    assert error_of(put_recipe(flow, pizza, {flour: 250}, user="operator")) == (403, "forbidden")
    assert error_of(put_recipe(flow, flour, {})) == (409, "has_stock")
    assert error_of(put_recipe(flow, pizza, {}, version=written["version"] - 1)) == (409, "version_moved")
    unknown = put_recipe(flow, pizza, {flour: 1, f"ghost-{named}": 1})
    assert error_of(unknown) == (422, "validation_failed")
    assert list(unknown.json()["error"]["details"]["components"]) == ["1"]
    assert error_of(put_recipe(flow, f"cake-{named}", {pizza: 1})) == (422, "validation_failed")
    assert error_of(put_recipe(flow, pizza, {flour: 0})) == (422, "validation_failed")
    assert error_of(put_recipe(flow, pizza, {flour: 10**6 + 1})) == (422, "validation_failed")
    path = f"/api/inventory/recipes/{pizza}"
    for user in ("operator", "auditor", "admin"):
        assert flow.get(path, user=user) == written
    assert error_of(flow.send("GET", path)) == (403, "forbidden")

    assert flow.send("DELETE", path, user="admin").status_code == 204
    assert [flow.send(verb, path, user="admin").status_code for verb in ("DELETE", "GET")] == [404, 404]
