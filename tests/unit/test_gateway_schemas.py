"""What clients may send, field by field."""

import pytest
from marshmallow import ValidationError

from gateway.api.fields import OTHER_ID, OneOfApart, RequestSchema, Text, WholeNumber
from gateway.api.reading import read_json
from gateway.operations import ReplayRequest
from gateway.orders import OrderRequest
from gateway.stock import ReserveRequest, StockRequest
from shared.schema import MAX_AMOUNT

LINE = {"sku": "A-1", "quantity": 1, "unit_price": 0}
ORDER = {"currency": "EUR", "payment_method": "mock_ok", "items": [LINE]}


def order(**changes):
    return OrderRequest().load({**ORDER, **changes})


def line(**changes):
    return order(items=[{**LINE, **changes}])


def problems(schema, data):
    with pytest.raises(ValidationError) as caught:
        schema().load(data)
    return caught.value.messages


def test_a_valid_order_is_loaded_unchanged():
    assert order() == ORDER


def test_the_limits_of_an_order_are_inclusive():
    assert line(quantity=10_000)
    assert line(unit_price=MAX_AMOUNT)
    assert order(items=[LINE] * 100)
    assert line(sku="a" * 64)
    assert line(sku="0.9_x-Y")


@pytest.mark.parametrize("value", [0, -1, 10_001, True, 1.0, "1", None, [1], 10**30])
def test_a_quantity_is_an_integer_from_1_to_10000(value):
    with pytest.raises(ValidationError):
        line(quantity=value)


@pytest.mark.parametrize("value", [-1, MAX_AMOUNT + 1, False, 0.0, "0", None])
def test_a_unit_price_is_an_integer_from_0_to_the_largest_amount(value):
    with pytest.raises(ValidationError):
        line(unit_price=value)


@pytest.mark.parametrize("value", ["", "-a", ".a", "a b", "a/b", "a" * 65, "\N{SNOWMAN}", "a\n", "a\0", 7, None])
def test_a_sku_matches_its_pattern(value):
    with pytest.raises(ValidationError):
        line(sku=value)


@pytest.mark.parametrize("value", ["", "eur", "EURO", "XXX", "XTS", "ABC", "EUR ", 978, None])
def test_an_unknown_currency_is_refused(value):
    with pytest.raises(ValidationError):
        order(currency=value)


@pytest.mark.parametrize("value", ["EUR", "USD", "JPY", "GBP", "CHF", "CNY", "KWD", "XOF"])
def test_currencies_in_use_are_accepted(value):
    assert order(currency=value)


@pytest.mark.parametrize("value", ["", "a\0b", "a\ud800b", "x" * 201, 7, None, {}])
def test_a_payment_method_that_cannot_be_stored_is_refused(value):
    with pytest.raises(ValidationError):
        order(payment_method=value)


@pytest.mark.parametrize("value", [[], [LINE] * 101, LINE, None, "A-1", [None], [[]], ["A-1"]])
def test_an_order_has_1_to_100_items(value):
    with pytest.raises(ValidationError):
        order(items=value)


def test_an_unknown_field_is_reported_at_its_place():
    assert list(problems(OrderRequest, {**ORDER, "total": 1})) == ["total"]
    assert problems(OrderRequest, {**ORDER, "items": [LINE, {**LINE, "colour": "red"}]}) == {
        "items": {1: {"colour": ["Unknown field."]}}
    }


def test_a_number_with_many_digits_is_refused_by_its_field():
    for digits in ("9" * 20, "9" * 5000, "-" + "9" * 5000, "1e999"):
        body = read_json(b'{"on_hand": %s}' % digits.encode())
        assert list(problems(StockRequest, body)) == ["on_hand"]


def test_a_stock_request_may_have_a_version():
    assert StockRequest().load({"on_hand": 10**9, "version": 3}) == {"on_hand": 10**9, "version": 3}
    for bad in ({}, {"on_hand": -1}, {"on_hand": 10**9 + 1}, {"on_hand": 1, "version": -1}, {"on_hand": True}):
        assert problems(StockRequest, bad)


def test_the_order_of_a_reservation_is_a_uuid():
    items = [{"sku": "A-1", "quantity": 1}]
    upper = "01A1FCF8-0515-7912-9139-7154577473A5"
    assert ReserveRequest().load({"order_id": upper, "items": items})["order_id"] == upper.lower()
    for bad in ("7", upper.replace("-", ""), "{" + upper + "}", f"urn:uuid:{upper}", 7, None):
        assert list(problems(ReserveRequest, {"order_id": bad, "items": items})) == ["order_id"]


class ByName(RequestSchema):
    name = Text("a", required=True)


class ByNameAndAge(ByName):
    age = WholeNumber(0, 200, 7, required=True)


class ByNumber(RequestSchema):
    number = WholeNumber(1, 9, 7, required=True)


def test_a_body_is_loaded_as_the_shape_that_has_its_fields():
    class Person(OneOfApart):
        shapes = (ByName, ByNumber)

    assert [Person().load(body) for body in ({"name": "ann"}, {"number": 7})] == [{"name": "ann"}, {"number": 7}]
    for body in ({}, {"name": "ann", "number": 7}, [], {"colour": "red"}):
        assert problems(Person, body)


def test_shapes_that_share_a_field_cannot_be_told_apart():
    with pytest.raises(TypeError, match="the shapes of Person share a field"):

        class Person(OneOfApart):
            shapes = (ByName, ByNameAndAge)


def test_a_body_that_a_service_validates_is_not_loaded_by_the_gateway():
    with pytest.raises(TypeError, match="ReplayRequest only documents a body"):
        ReplayRequest().load({"ids": [OTHER_ID]})
