"""What clients may send, field by field."""

import pytest
from marshmallow import ValidationError

from gateway import schemas
from gateway.http import read_json
from shared.schema import MAX_AMOUNT

LINE = {"sku": "A-1", "quantity": 1, "unit_price": 0}
ORDER = {"currency": "EUR", "payment_method": "mock_ok", "items": [LINE]}


def order(**changes):
    return schemas.OrderRequest().load({**ORDER, **changes})


def line(**changes):
    return order(items=[{**LINE, **changes}])


def problems(schema, data):
    with pytest.raises(ValidationError) as caught:
        schema().load(data)
    return caught.value.messages


def test_an_order_is_taken_as_it_is():
    assert order() == ORDER


def test_the_limits_of_an_order_are_inside():
    assert line(quantity=10_000, unit_price=10**9)
    assert order(items=[LINE] * 100)
    assert line(sku="a" * 64)
    assert line(sku="0.9_x-Y")


def test_no_order_within_the_limits_has_a_total_that_json_readers_cannot_hold():
    assert schemas.MAX_ITEMS * schemas.MAX_QUANTITY * schemas.MAX_UNIT_PRICE <= MAX_AMOUNT


@pytest.mark.parametrize("value", [0, -1, 10_001, True, 1.0, "1", None, [1], 10**30])
def test_a_quantity_is_an_integer_from_1_to_10000(value):
    with pytest.raises(ValidationError):
        line(quantity=value)


@pytest.mark.parametrize("value", [-1, 10**9 + 1, False, 0.0, "0", None])
def test_a_unit_price_is_an_integer_from_0_to_a_milliard(value):
    with pytest.raises(ValidationError):
        line(unit_price=value)


@pytest.mark.parametrize("value", ["", "-a", ".a", "a b", "a/b", "a" * 65, "\N{SNOWMAN}", "a\n", "a\0", 7, None])
def test_a_sku_keeps_to_its_pattern(value):
    with pytest.raises(ValidationError):
        line(sku=value)


@pytest.mark.parametrize("value", ["", "eur", "EURO", "XXX", "XTS", "ABC", "EUR ", 978, None])
def test_a_currency_is_a_real_code(value):
    with pytest.raises(ValidationError):
        order(currency=value)


@pytest.mark.parametrize("value", ["EUR", "USD", "JPY", "GBP", "CHF", "CNY", "KWD", "XOF"])
def test_the_currencies_of_the_world_are_taken(value):
    assert order(currency=value)


@pytest.mark.parametrize("value", ["", "a\0b", "a\ud800b", "x" * 201, 7, None, {}])
def test_a_payment_method_is_text_that_can_be_stored(value):
    with pytest.raises(ValidationError):
        order(payment_method=value)


@pytest.mark.parametrize("value", [[], [LINE] * 101, LINE, None, "A-1", [None], [[]], ["A-1"]])
def test_an_order_has_1_to_100_items(value):
    with pytest.raises(ValidationError):
        order(items=value)


def test_an_unknown_field_is_told_at_its_place():
    assert list(problems(schemas.OrderRequest, {**ORDER, "total": 1})) == ["total"]
    assert problems(schemas.OrderRequest, {**ORDER, "items": [LINE, {**LINE, "colour": "red"}]}) == {
        "items": {1: {"colour": ["Unknown field."]}}
    }


def test_a_number_of_many_digits_is_read_and_then_refused():
    for digits in ("9" * 20, "9" * 5000, "-" + "9" * 5000, "1e999"):
        body = read_json(b'{"on_hand": %s}' % digits.encode())
        assert list(problems(schemas.StockRequest, body)) == ["on_hand"]


def test_stock_may_come_with_the_version_it_was_read_at():
    assert schemas.StockRequest().load({"on_hand": 10**9, "version": 3}) == {"on_hand": 10**9, "version": 3}
    for bad in ({}, {"on_hand": -1}, {"on_hand": 10**9 + 1}, {"on_hand": 1, "version": -1}, {"on_hand": True}):
        assert problems(schemas.StockRequest, bad)


def test_a_reservation_names_its_order_by_uuid():
    items = [{"sku": "A-1", "quantity": 1}]
    upper = "01A1FCF8-0515-7912-9139-7154577473A5"
    assert schemas.ReserveRequest().load({"order_id": upper, "items": items})["order_id"] == upper.lower()
    for bad in ("7", upper.replace("-", ""), "{" + upper + "}", f"urn:uuid:{upper}", 7, None):
        assert list(problems(schemas.ReserveRequest, {"order_id": bad, "items": items})) == ["order_id"]


# --- replays ---------------------------------------------------------------------------------------------------

ID = "01a1fcf8-0515-7912-9139-7154577473a5"


def replay(**fields):
    return schemas.ReplayRequest().load({"all": True, **fields})


def test_a_replay_goes_at_100_a_second_unless_asked():
    assert replay() == {"all": True, "rate": "100/s"}
    assert replay(rate="max")["rate"] == "max"


@pytest.mark.parametrize("which", [{"ids": [ID]}, {"max": 1}, {"all": True}, {"ids": [ID], "max": 1}])
def test_a_replay_says_which_messages_are_meant(which):
    assert schemas.ReplayRequest().load(which) == {**which, "rate": "100/s"}


@pytest.mark.parametrize(
    "which", [{}, {"all": False}, {"reasons": ["crash"]}, {"order_id": ID}, {"max": 1, "all": True}]
)
def test_filters_alone_do_not_say_which_and_max_and_all_contradict_each_other(which):
    assert list(problems(schemas.ReplayRequest, which)) == ["_schema"]


@pytest.mark.parametrize("name", ["since", "until"])
def test_a_time_needs_its_zone(name):
    assert replay(**{name: "2026-01-14T12:00:00+02:00"})[name] == "2026-01-14T10:00:00.000Z"
    for bad in ("2026-01-14T12:00:00", "2026-01-14", "2h", "", 7, None, [], "0001-01-01T00:00:00+14:00"):
        assert list(problems(schemas.ReplayRequest, {"all": True, name: bad})) == [name]


def test_a_time_span_does_not_end_before_it_begins():
    early, late = "2026-01-14T00:00:00Z", "2026-01-15T00:00:00Z"
    assert replay(since=early, until=early)
    assert list(problems(schemas.ReplayRequest, {"all": True, "since": late, "until": early})) == ["until"]


@pytest.mark.parametrize(
    "rate", ["0/s", "0.0/h", "000/m", "1", "1/d", "-1/s", "1e3/s", "10000000/s", " 1/s", "max/s", "", 1, None]
)
def test_a_rate_is_so_many_in_a_unit_of_time_and_not_none(rate):
    assert list(problems(schemas.ReplayRequest, {"all": True, "rate": rate})) == ["rate"]


@pytest.mark.parametrize("ramp", ["0", "1,0", "1,,2", "1,", ",1", "1;2", "1000000", "x", "", 1, [1, 2], None])
def test_a_ramp_is_a_list_of_sizes_of_waves(ramp):
    assert list(problems(schemas.ReplayRequest, {"all": True, "ramp": ramp})) == ["ramp"]


@pytest.mark.parametrize("name", ["all", "force", "stop_on_redeath"])
@pytest.mark.parametrize("value", [1, 0, "true", "yes", "", None, []])
def test_a_flag_is_true_or_false_and_nothing_that_looks_like_it(name, value):
    assert list(problems(schemas.ReplayRequest, {"max": 1, name: value})) == [name]


@pytest.mark.parametrize("value", [[], [ID] * 1001, ["7"], [7], [None], ID, {}, None])
def test_ids_are_1_to_1000_uuids(value):
    assert replay(ids=[ID] * 1000)
    assert list(problems(schemas.ReplayRequest, {"ids": value})) == ["ids"]
