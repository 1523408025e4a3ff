"""Buying on PostgreSQL: rules, suppliers, purchase orders, what is proposed, and what is booked when it comes."""

import json
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import eventlet
import pytest

from inventory_service.purchasing import checks, domain, queries, reorder, rules
from inventory_service.purchasing.domain import TABLE, Verb
from shared.enumerations import PurchaseStatus as Status
from shared.errors import (
    Conflict,
    EcomError,
    IdempotencyKeyReused,
    NotFound,
    OverReceived,
    ValidationFailed,
    VersionMoved,
)
from tests.databases import Databases
from tests.integration.support import ADMIN, Bench, assert_read_by_index, statements, until

Benches = Callable[..., Bench]
Body = dict[str, Any]

RULE: Body = {
    "unit": "piece",
    "low_at": None,
    "reorder_at": 5,
    "reorder_to": 20,
    "supplier_id": None,
    "pack_size": 6,
}
NO_COST: Body = {"unit_cost": None, "currency": None}


class Shop:
    """The inventory service with a supplier, as an admin uses it."""

    def __init__(self, bench: Bench, database: Databases) -> None:
        self.bench, self.service, self.database = bench, bench.service, database
        self.supplier = self.add_supplier()

    def add_supplier(self, **changed: Any) -> str:
        supplier = {"name": f"S-{uuid4()}", "email": None, "phone": None, "lead_days": 3, "active": True} | changed
        return str(self.service.create_supplier(supplier, str(uuid4()))["body"]["supplier_id"])

    def stock(self, *skus: str, on_hand: int = 0) -> None:
        for sku in skus:
            self.service.put_stock(sku, on_hand)

    def rule(self, sku: str, **changed: Any) -> Body:
        return dict(self.service.put_rule(sku, {**RULE, "supplier_id": self.supplier, **changed}))

    def propose(self, quantities: dict[str, int], **changed: Any) -> Body:
        lines = [{"sku": sku, "quantity": quantity, **NO_COST} for sku, quantity in quantities.items()]
        proposal = {"supplier_id": self.supplier, "note": None, "lines": lines} | changed
        return dict(self.service.create_purchase_order(proposal, str(uuid4()))["body"])

    def act(self, verb: Verb | str, order: Body, *given: Any, key: str | None = None) -> Body:
        method = getattr(self.service, f"{verb}_purchase")
        return dict(method(order["purchase_order_id"], *given, key=key or str(uuid4()))["body"])

    def ordered(self, quantities: dict[str, int]) -> Body:
        return self.act(Verb.ORDER, self.propose(quantities))

    def receive(self, order: Body, quantities: dict[str, int], key: str | None = None) -> Body:
        return self.act(Verb.RECEIVE, order, arrivals(quantities), key=key)

    def again(self, order: Body) -> Body:
        return dict(self.service.get_purchase_order(order["purchase_order_id"]))

    def proposals(self) -> list[Body]:
        heads = self.service.list_purchase_orders(200, filters={"status": "PROPOSED"})["items"]
        return [self.again(head) for head in heads]

    def on_hand(self, sku: str) -> int:
        return int(self.service.get_stock(sku)["on_hand"])

    def misreceived(self) -> list[tuple[str, int, int]]:
        with self.bench.sessions.read() as session:
            return [(row.sku, row.received, row.moved) for row in checks.misreceived(session)]


@pytest.fixture
def shop(bench: Benches, database: Databases) -> Shop:
    made = bench("inventory")
    made.called_by(ADMIN)
    return Shop(made, database)


def arrivals(quantities: dict[str, int]) -> list[Body]:
    return [{"sku": sku, "quantity": quantity, "unit_cost": None} for sku, quantity in quantities.items()]


def quantities(order: Body, of: str = "quantity") -> dict[str, int]:
    return {line["sku"]: line[of] for line in order["lines"]}


def result(call: Callable[[], Any]) -> Any:
    """What a call returns, or the error with which it refuses."""
    try:
        return call()
    except EcomError as error:
        return error


def at_once(calls: Iterable[Callable[[], Any]]) -> list[Any]:
    """What many calls return or raise that run side by side, each in a transaction of its own."""
    return [thread.wait() for thread in [eventlet.spawn(result, call) for call in calls]]


def begun(shop: Shop, call: Callable[[], Any]) -> Any:
    """A call that runs beside, when it waits for a lock or has ended."""
    running = eventlet.spawn(result, call)
    until(lambda: running.dead or is_waiting(shop.database))
    return running


def is_waiting(database: Databases) -> bool:
    """Whether a transaction waits for a lock."""
    waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return bool(database.rows("inventory", waiting))


# Rules of stock


def test_a_sku_without_a_rule_has_the_defaults_and_version_0(shop: Shop) -> None:
    shop.stock("lamp")
    assert shop.service.get_rule("lamp") == {
        "sku": "lamp", "unit": "piece", "low_at": None, "reorder_at": None, "reorder_to": None, "supplier_id": None,
        "pack_size": 1, "snoozed_until": None, "version": 0,
    }  # fmt: skip


def test_a_rule_is_set_as_a_whole_and_counts_its_versions(shop: Shop) -> None:
    shop.stock("flour")
    first = shop.rule("flour", unit="g", low_at=500, pack_size=1000)
    assert first == {"sku": "flour", **RULE, "unit": "g", "low_at": 500, "pack_size": 1000, "version": 1,
                     "supplier_id": shop.supplier, "snoozed_until": None}  # fmt: skip
    nothing = {**RULE, "reorder_at": None, "reorder_to": None}
    assert shop.service.put_rule("flour", nothing, 1)["version"] == 2
    assert shop.service.get_rule("flour") == {"sku": "flour", **nothing, "snoozed_until": None, "version": 2}


@pytest.mark.parametrize("version", [0, 2, 7])
def test_a_rule_that_has_changed_since_it_was_read_is_not_set(shop: Shop, version: int) -> None:
    shop.stock("lamp")
    shop.rule("lamp")
    with pytest.raises(VersionMoved) as refusal:
        shop.service.put_rule("lamp", {**RULE, "supplier_id": shop.supplier}, version)
    assert refusal.value.details == {"version": 1}


def test_a_rule_that_is_not_there_has_no_later_version(shop: Shop) -> None:
    shop.stock("lamp")
    with pytest.raises(VersionMoved) as refusal:
        shop.service.put_rule("lamp", {**RULE, "supplier_id": shop.supplier}, 1)
    assert (refusal.value.details, shop.service.get_rule("lamp")["version"]) == ({"version": 0}, 0)


def test_of_two_that_set_a_rule_of_one_version_at_once_the_second_is_told(shop: Shop) -> None:
    shop.stock("lamp")
    rule = {**RULE, "supplier_id": shop.supplier}
    with shop.bench.sessions.begin() as session:
        assert rules.put_rule(session, "lamp", rule, 0)["version"] == 1
        second = begun(shop, lambda: shop.service.put_rule("lamp", rule, 0))
    refusal = second.wait()
    assert isinstance(refusal, VersionMoved)
    assert refusal.details == {"version": 1}


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"reorder_at": 20}, "reorder_to"),
        ({"reorder_to": None}, "reorder_to"),
        ({"reorder_at": None}, "reorder_to"),
        ({"supplier_id": None}, "supplier_id"),
        ({"supplier_id": str(uuid4())}, "supplier_id"),
    ],
)
def test_a_rule_that_could_not_work_is_refused(shop: Shop, changed: Body, field: str) -> None:
    shop.stock("lamp")
    with pytest.raises(ValidationFailed) as refusal:
        shop.rule("lamp", **changed)
    assert [*refusal.value.details] == [field]


def test_a_rule_needs_stock_and_an_active_supplier(shop: Shop) -> None:
    for refused in (lambda: shop.rule("nothing"), lambda: shop.service.get_rule("nothing")):
        with pytest.raises(NotFound):
            refused()
    shop.stock("lamp")
    with pytest.raises(ValidationFailed):
        shop.rule("lamp", supplier_id=shop.add_supplier(active=False))


# Suppliers


def test_a_supplier_is_added_once_for_each_key_and_changed_by_its_version(shop: Shop) -> None:
    supplier = {"name": "Lamps", "email": "a@b.example", "phone": "+49 30 1", "lead_days": 3, "active": True}
    first, again = (shop.service.create_supplier(supplier, "key-1") for _ in range(2))
    supplier_id = first["body"]["supplier_id"]
    assert (again["body"], again["replayed"]) == (first["body"], True)
    assert first["location"] == f"/api/inventory/suppliers/{supplier_id}"

    changed = shop.service.put_supplier(supplier_id, {**supplier, "active": False, "email": None}, 1)
    assert changed == {**supplier, "supplier_id": supplier_id, "active": False, "email": None, "version": 2}
    assert shop.service.get_supplier(supplier_id) == changed
    with pytest.raises(VersionMoved) as refusal:
        shop.service.put_supplier(supplier_id, supplier, 1)
    assert refusal.value.details == {"version": 2}
    with pytest.raises(NotFound):
        shop.service.put_supplier(str(uuid4()), {**supplier, "name": "Other"}, 1)
    with pytest.raises(NotFound):
        shop.service.get_supplier(str(uuid4()))


def test_no_two_suppliers_have_one_name_and_a_refusal_uses_up_no_key(shop: Shop) -> None:
    supplier = {"name": "Lamps", "email": None, "phone": None, "lead_days": 3, "active": True}
    shop.service.create_supplier(supplier, "key-1")
    other = shop.add_supplier()
    for refused in (
        lambda: shop.service.create_supplier(supplier, "key-2"),
        lambda: shop.service.put_supplier(other, supplier, 1),
    ):
        with pytest.raises(Conflict) as refusal:
            refused()
        assert (refusal.value.code, refusal.value.details) == ("conflict", {"name": "Lamps"})
    assert shop.service.create_supplier({**supplier, "name": "Desks"}, "key-2")["replayed"] is False


def test_suppliers_are_listed_by_name_page_by_page(shop: Shop) -> None:
    for name in "CABED":
        shop.add_supplier(name=name)
    names, cursor = [], None
    while True:
        page = shop.service.list_suppliers(2, cursor)
        names += [item["name"] for item in page["items"]]
        if (cursor := page["next_cursor"]) is None:
            break
    assert [name for name in names if len(name) == 1] == [*"ABCDE"]
    assert len(names) == 6


# Purchase orders


def test_a_proposal_is_made_once_for_each_key_also_when_its_supplier_is_not_active_any_more(shop: Shop) -> None:
    shop.stock("lamp", "bulb")
    line = {"sku": "lamp", "quantity": 3, "unit_cost": 1250, "currency": "EUR"}
    proposal = {
        "supplier_id": shop.supplier,
        "note": "soon",
        "lines": [line, {"sku": "bulb", "quantity": 9, **NO_COST}],
    }
    first = shop.service.create_purchase_order(proposal, "key-1")
    shop.database.run("inventory", "UPDATE suppliers SET active = false")
    again = shop.service.create_purchase_order(proposal, "key-1")

    assert (first["status"], first["replayed"], again["replayed"], again["body"]) == (201, False, True, first["body"])
    assert first["location"] == f"/api/inventory/purchase-orders/{first['body']['purchase_order_id']}"
    order = shop.again(first["body"])
    assert order == first["body"]
    assert (order["status"], order["version"], order["note"], order["made_by"]) == ("PROPOSED", 1, "soon", "admin")
    assert order["lines"] == [
        {"sku": "bulb", "quantity": 9, "received": 0, "open": 9, **NO_COST},
        {"received": 0, "open": 3, **line},
    ]
    with pytest.raises(IdempotencyKeyReused):
        shop.service.create_purchase_order({**proposal, "note": None}, "key-1")


def test_a_supplier_has_one_proposal_and_a_second_one_is_told_which(shop: Shop) -> None:
    shop.stock("lamp")
    results = at_once([lambda: shop.propose({"lamp": 1})] * 5)
    (made,) = [result for result in results if isinstance(result, dict)]
    refusals = [result for result in results if isinstance(result, Conflict)]
    assert [error.details for error in refusals] == [{"purchase_order_id": made["purchase_order_id"]}] * 4
    shop.act(Verb.ORDER, made)
    assert shop.propose({"lamp": 1})["status"] == "PROPOSED"


@pytest.mark.parametrize(
    ("lines", "place", "field"),
    [
        ([{"sku": "lamp", "quantity": 1}, {"sku": "nothing", "quantity": 1}], "1", "sku"),
        ([{"sku": "lamp", "quantity": 1}, {"sku": "lamp", "quantity": 2}], "1", "sku"),
        ([{"sku": "lamp", "quantity": 1, "unit_cost": 5}], "0", "unit_cost"),
        ([{"sku": "lamp", "quantity": 1, "currency": "EUR"}], "0", "unit_cost"),
    ],
)
def test_lines_that_cannot_be_bought_are_refused_by_their_place(
    shop: Shop, lines: list[Body], place: str, field: str
) -> None:
    shop.stock("lamp")
    order = shop.propose({"lamp": 1})
    for refused in (
        lambda: shop.propose({}, lines=lines, supplier_id=shop.add_supplier()),
        lambda: shop.service.put_purchase_order(order["purchase_order_id"], lines, 1),
    ):
        with pytest.raises(ValidationFailed) as refusal:
            refused()
        assert [*refusal.value.details["lines"][place]] == [field]
    assert shop.again(order) == order


def test_nothing_is_proposed_to_a_supplier_that_is_not_active_or_not_there(shop: Shop) -> None:
    shop.stock("lamp")
    for supplier in (shop.add_supplier(active=False), str(uuid4())):
        with pytest.raises(ValidationFailed):
            shop.propose({"lamp": 1}, supplier_id=supplier)


def test_a_proposal_is_rewritten_as_a_whole(shop: Shop) -> None:
    shop.stock("lamp", "bulb", "desk")
    order = shop.propose({"lamp": 3, "bulb": 9}, note="old")
    lines = [{"sku": "lamp", "quantity": 5, "unit_cost": 7, "currency": "EUR"}, {"sku": "desk", "quantity": 1}]
    written = shop.service.put_purchase_order(order["purchase_order_id"], lines, 1, "new")

    assert shop.again(order) == written
    assert (quantities(written), written["note"], written["version"]) == ({"desk": 1, "lamp": 5}, "new", 2)
    assert quantities(written, "unit_cost") == {"desk": None, "lamp": 7}
    with pytest.raises(VersionMoved) as refusal:
        shop.service.put_purchase_order(order["purchase_order_id"], lines, 1)
    assert refusal.value.details == {"version": 2}


def test_what_is_ordered_is_not_rewritten(shop: Shop) -> None:
    shop.stock("lamp")
    order = shop.ordered({"lamp": 3})
    with pytest.raises(Conflict) as refusal:
        shop.service.put_purchase_order(order["purchase_order_id"], [{"sku": "lamp", "quantity": 5}], order["version"])
    assert refusal.value.details == {"status": "ORDERED"}
    assert shop.again(order) == order


def test_purchase_orders_are_listed_newest_first_by_status_and_supplier(shop: Shop) -> None:
    shop.stock("lamp")
    other = shop.add_supplier()
    made = [shop.propose({"lamp": 1}, supplier_id=supplier) for supplier in (shop.supplier, other)]
    shop.act(Verb.ORDER, made[0])
    made.append(shop.propose({"lamp": 1}))

    def listed(limit: int = 2, **filters: str) -> list[int]:
        found, cursor = [], None
        while True:
            page = shop.service.list_purchase_orders(limit, cursor, filters)
            found += [item["purchase_order_id"] for item in page["items"]]
            if (cursor := page["next_cursor"]) is None:
                return [[one["purchase_order_id"] for one in made].index(po_id) for po_id in found]

    assert listed() == [2, 1, 0]
    assert listed(1, status="PROPOSED") == [2, 1]
    assert listed(1, supplier=shop.supplier) == [2, 0]
    assert listed(supplier=shop.supplier, status="ORDERED") == [0]
    assert listed(status="CANCELLED") == []


# The table


def brought_to(shop: Shop, status: Status) -> Body:
    shop.stock("lamp")
    order = shop.propose({"lamp": 2})
    if status == Status.CANCELLED:
        return shop.act(Verb.CANCEL, order)
    if status != Status.PROPOSED:
        order = shop.act(Verb.ORDER, order)
    return shop.receive(order, {"lamp": 2}) if status == Status.RECEIVED else order


@pytest.mark.parametrize("verb", Verb)
@pytest.mark.parametrize("status", Status)
def test_each_step_is_that_of_the_table_and_all_others_are_refused(shop: Shop, status: Status, verb: Verb) -> None:
    order = brought_to(shop, status)
    given = [arrivals({"lamp": 1})] if verb == Verb.RECEIVE else []
    if (status, verb) in TABLE:
        after = shop.act(verb, order, *given)
        assert after["status"] == TABLE[status, verb].becomes
        assert after["version"] == order["version"] + 1
    else:
        with pytest.raises(Conflict) as refusal:
            shop.act(verb, order, *given)
        assert refusal.value.details == {"status": status}
        after = order
    assert shop.again(order) == after


def test_the_order_is_expected_after_the_suppliers_days(shop: Shop) -> None:
    shop.stock("lamp")
    order = shop.ordered({"lamp": 1})
    ordered_at, expected_at = (datetime.fromisoformat(order[name]) for name in ("ordered_at", "expected_at"))
    assert expected_at - ordered_at == timedelta(days=3)
    assert order["closed_at"] is None


def test_who_orders_names_the_version_that_they_have_seen(shop: Shop) -> None:
    shop.stock("lamp", "bulb")
    order = shop.propose({"lamp": 1})
    shop.rule("bulb")
    shop.service.reorder()

    with pytest.raises(VersionMoved) as refusal:
        shop.service.order_purchase(order["purchase_order_id"], "key-1", 1)
    assert refusal.value.details == {"version": 2}
    assert shop.service.order_purchase(order["purchase_order_id"], "key-1", 2)["body"]["status"] == "ORDERED"


def test_what_is_not_there_is_not_found(shop: Shop) -> None:
    for verb in Verb:
        given = [arrivals({"lamp": 1})] if verb == Verb.RECEIVE else []
        with pytest.raises(NotFound):
            shop.act(verb, {"purchase_order_id": str(uuid4())}, *given)
    with pytest.raises(NotFound):
        shop.again({"purchase_order_id": str(uuid4())})


def test_what_was_closed_short_is_not_to_come_any_more(shop: Shop) -> None:
    shop.stock("lamp")
    order = shop.ordered({"lamp": 20})
    shop.receive(order, {"lamp": 2})
    closed = shop.act(Verb.CLOSE, order)
    assert (closed["status"], quantities(closed, "received"), quantities(closed, "open")) == (
        "RECEIVED",
        {"lamp": 2},
        {"lamp": 0},
    )
    assert closed["closed_at"] is not None

    shop.rule("lamp", pack_size=1)
    shop.service.reorder()
    assert [quantities(proposal) for proposal in shop.proposals()] == [{"lamp": 18}]


def test_what_has_come_in_part_is_closed_and_not_cancelled(shop: Shop) -> None:
    shop.stock("lamp")
    order = shop.ordered({"lamp": 20})
    after = shop.receive(order, {"lamp": 2})
    with pytest.raises(Conflict):
        shop.act(Verb.CANCEL, order)
    assert shop.again(order) == after


# Receiving


def moves(shop: Shop) -> list[Body]:
    rows = shop.database.rows(
        "inventory",
        "SELECT sku, change, cause, on_hand_after, purchase_order_id, moved_by FROM stock_movements"
        " WHERE purchase_order_id IS NOT NULL ORDER BY id",
    )
    return [dict(row) for row in rows]


def test_what_comes_in_parts_is_booked_and_told_each_time(shop: Shop) -> None:
    shop.stock("lamp", on_hand=1)
    shop.stock("bulb")
    order = shop.ordered({"lamp": 10, "bulb": 4})

    after = shop.receive(order, {"lamp": 6, "bulb": 4})
    assert (after["status"], quantities(after, "open"), after["closed_at"]) == ("ORDERED", {"bulb": 0, "lamp": 4}, None)
    after = shop.receive(order, {"lamp": 4})
    assert (after["status"], quantities(after, "received")) == ("RECEIVED", {"bulb": 4, "lamp": 10})
    assert after == shop.again(order)

    assert (shop.on_hand("lamp"), shop.on_hand("bulb")) == (11, 4)
    booked = [(row["sku"], row["change"], row["on_hand_after"]) for row in moves(shop)]
    assert booked == [("bulb", 4, 4), ("lamp", 6, 7), ("lamp", 4, 11)]
    assert {(row["cause"], row["moved_by"], str(row["purchase_order_id"])) for row in moves(shop)} == {
        ("received", "admin", order["purchase_order_id"])
    }
    rows = shop.database.rows("inventory", "SELECT body FROM outbox WHERE event_type = 'stock.moved' ORDER BY id")
    told = [json.loads(row["body"])["payload"] for row in rows]
    assert [(one["sku"], one["change"], one["on_hand"]) for one in told if one["cause"] == "received"] == booked
    assert {one["purchase_order_id"] for one in told if one["cause"] == "received"} == {order["purchase_order_id"]}
    assert shop.misreceived() == []


def test_twenty_receipts_of_one_key_book_once(shop: Shop) -> None:
    shop.stock("lamp")
    order = shop.ordered({"lamp": 1000})
    po_id, lines = order["purchase_order_id"], arrivals({"lamp": 3})

    results = at_once([lambda: shop.service.receive_purchase(po_id, lines, "key-1")] * 20)

    assert sorted(result["replayed"] for result in results) == [False] + [True] * 19
    assert {json.dumps(result["body"]) for result in results} == {json.dumps(shop.again(order))}
    assert (shop.on_hand("lamp"), len(moves(shop))) == (3, 1)
    assert shop.misreceived() == []


def test_of_two_keys_that_receive_more_than_is_open_one_is_refused(shop: Shop) -> None:
    shop.stock("lamp")
    order = shop.ordered({"lamp": 10})

    results = at_once([lambda key=key: shop.receive(order, {"lamp": 6}, key) for key in ("key-1", "key-2")])

    (refusal,) = [result for result in results if isinstance(result, EcomError)]
    assert isinstance(refusal, OverReceived)
    assert refusal.details == {"lines": [{"sku": "lamp", "quantity": 6, "open": 4}]}
    assert (shop.on_hand("lamp"), quantities(shop.again(order), "open")) == (6, {"lamp": 4})


def test_a_receipt_is_booked_as_a_whole_or_not_at_all_and_a_refusal_uses_up_no_key(shop: Shop) -> None:
    shop.stock("lamp", "bulb", "desk")
    order = shop.ordered({"lamp": 10, "bulb": 4})

    with pytest.raises(OverReceived) as refusal:
        shop.receive(order, {"lamp": 10, "bulb": 5, "desk": 1}, "key-1")

    assert refusal.value.details == {
        "lines": [{"sku": "bulb", "quantity": 5, "open": 4}, {"sku": "desk", "quantity": 1, "open": 0}]
    }
    assert (shop.on_hand("lamp"), moves(shop)) == (0, [])
    assert shop.receive(order, {"lamp": 10}, "key-1")["version"] == order["version"] + 1


def test_a_key_belongs_to_one_receipt(shop: Shop) -> None:
    shop.stock("lamp")
    order = shop.ordered({"lamp": 10})
    shop.receive(order, {"lamp": 1}, "key-1")
    other = shop.ordered({"lamp": 10})
    for refused in (
        lambda: shop.receive(order, {"lamp": 2}, "key-1"),
        lambda: shop.receive(other, {"lamp": 1}, "key-1"),
    ):
        with pytest.raises(IdempotencyKeyReused):
            refused()
    assert shop.on_hand("lamp") == 1


def test_a_sku_stands_once_in_a_receipt(shop: Shop) -> None:
    shop.stock("lamp")
    order = shop.ordered({"lamp": 10})
    with pytest.raises(ValidationFailed):
        shop.act(Verb.RECEIVE, order, arrivals({"lamp": 1}) * 2)
    assert shop.on_hand("lamp") == 0


def test_a_line_keeps_the_cost_at_which_it_came(shop: Shop) -> None:
    shop.stock("lamp", "bulb")
    lines = [{"sku": "lamp", "quantity": 2, "unit_cost": 100, "currency": "EUR"}, {"sku": "bulb", "quantity": 2}]
    order = shop.act(Verb.ORDER, shop.propose({}, lines=lines))

    first = shop.act(Verb.RECEIVE, order, [{"sku": "lamp", "quantity": 1, "unit_cost": 120}])
    assert quantities(first, "unit_cost") == {"bulb": None, "lamp": 120}
    assert quantities(shop.receive(order, {"lamp": 1}), "unit_cost") == {"bulb": None, "lamp": 120}
    with pytest.raises(ValidationFailed) as refusal:
        shop.act(Verb.RECEIVE, order, [{"sku": "bulb", "quantity": 1, "unit_cost": 120}])
    assert [*refusal.value.details["lines"]["0"]] == ["unit_cost"]


def test_more_than_can_be_told_is_not_on_hand(shop: Shop) -> None:
    shop.stock("lamp", on_hand=1)
    order = shop.ordered({"lamp": 10**12})
    with pytest.raises(Conflict):
        shop.receive(order, {"lamp": 10**12})
    assert shop.on_hand("lamp") == 1


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        ("UPDATE purchase_order_lines SET received = received + 1 WHERE sku = 'lamp'", ("lamp", 3, 2)),
        ("UPDATE purchase_order_lines SET received = 0 WHERE sku = 'lamp'", ("lamp", 0, 2)),
        ("UPDATE stock_movements SET purchase_order_id = NULL WHERE sku = 'lamp'", ("lamp", 2, 0)),
        ("UPDATE stock_movements SET change = change + 5 WHERE cause = 'received' AND sku = 'lamp'", ("lamp", 2, 7)),
    ],
)
def test_what_is_received_and_was_not_moved_is_found(shop: Shop, damage: str, found: tuple[str, int, int]) -> None:
    shop.stock("lamp", "bulb")
    order = shop.ordered({"lamp": 10, "bulb": 5})
    shop.receive(order, {"lamp": 2, "bulb": 1})
    assert shop.misreceived() == []
    shop.database.run("inventory", damage)
    assert shop.misreceived() == [found]


# Reorder


def test_what_is_used_up_is_proposed_in_whole_packs_to_its_supplier(shop: Shop) -> None:
    other = shop.add_supplier()
    shop.stock("lamp", on_hand=5)
    shop.stock("bulb", on_hand=4)
    shop.stock("desk", on_hand=0)
    shop.stock("chair", on_hand=6)
    shop.stock("table")
    for sku in ("lamp", "bulb", "chair"):
        shop.rule(sku)
    shop.rule("desk", supplier_id=other, pack_size=1)
    shop.rule("table", reorder_at=None, reorder_to=None)

    shop.service.reorder()

    found = {proposal["supplier_id"]: quantities(proposal) for proposal in shop.proposals()}
    assert found == {shop.supplier: {"bulb": 18, "lamp": 18}, other: {"desk": 20}}
    assert {proposal["made_by"] for proposal in shop.proposals()} == {"system:reorder"}


def test_a_hundred_runs_make_one_line(shop: Shop) -> None:
    shop.stock("lamp", on_hand=5)
    shop.rule("lamp")
    for _ in range(100):
        shop.service.reorder()

    (proposal,) = shop.proposals()
    assert (quantities(proposal), proposal["version"]) == ({"lamp": 18}, 1)
    shop.act(Verb.ORDER, proposal)
    shop.service.reorder()
    assert shop.proposals() == []


def test_many_that_run_at_once_make_one_line(shop: Shop) -> None:
    shop.stock("lamp", "bulb")
    shop.rule("lamp")
    shop.rule("bulb")

    at_once([shop.service.reorder] * 10)

    (proposal,) = shop.proposals()
    assert quantities(proposal) == {"bulb": 24, "lamp": 24}


def test_two_that_have_both_seen_the_need_make_one_line(shop: Shop) -> None:
    shop.stock("lamp")
    shop.rule("lamp")
    with shop.bench.sessions.read() as session:
        due = reorder.look(session, "")

    def propose() -> int:
        with shop.bench.sessions.begin() as session:
            return reorder.propose(session, due.skus, due.suppliers, "system:reorder")

    assert sorted(at_once([propose] * 5)) == [0, 0, 0, 0, 1]
    assert [quantities(proposal) for proposal in shop.proposals()] == [{"lamp": 24}]


def test_a_sku_whose_supplier_is_changed_meanwhile_is_proposed_to_one_of_them(shop: Shop) -> None:
    shop.stock("lamp")
    shop.rule("lamp")
    other = shop.add_supplier()

    def change() -> None:
        shop.rule("lamp", supplier_id=other)
        shop.service.reorder()

    with shop.bench.sessions.begin() as session:
        due = reorder.look(session, "")
        assert reorder.propose(session, due.skus, due.suppliers, "system:reorder") == 1
        changing = begun(shop, change)
    changing.wait()

    assert [(one["supplier_id"], quantities(one)) for one in shop.proposals()] == [(shop.supplier, {"lamp": 24})]


def test_a_proposal_that_is_being_ordered_gets_no_line_that_nobody_has_seen(shop: Shop) -> None:
    shop.stock("lamp", "bulb")
    shop.rule("lamp")
    proposal = shop.propose({"bulb": 1})
    with shop.bench.sessions.begin() as session:
        order = queries.lock_order(session, proposal["purchase_order_id"])
        running = begun(shop, shop.service.reorder)
        queries.save_step(session, order, domain.step(order, Verb.ORDER))
    assert running.wait() is None
    assert quantities(shop.again(proposal)) == {"bulb": 1}
    shop.service.reorder()
    assert [quantities(one) for one in shop.proposals()] == [{"lamp": 24}]


def test_a_need_that_has_gone_since_it_was_seen_leaves_no_empty_proposal(shop: Shop) -> None:
    shop.stock("lamp")
    shop.rule("lamp")
    with shop.bench.sessions.read() as session:
        due = reorder.look(session, "")
    shop.stock("lamp", on_hand=100)
    with shop.bench.sessions.begin() as session:
        assert reorder.propose(session, due.skus, due.suppliers, "system:reorder") == 0
    assert shop.proposals() == []


def test_a_line_grows_when_more_is_sold_before_it_is_ordered_and_keeps_its_cost(shop: Shop) -> None:
    shop.stock("lamp", on_hand=5)
    shop.rule("lamp", reorder_at=15, pack_size=1)
    shop.service.reorder()
    (proposal,) = shop.proposals()
    lines = [{"sku": "lamp", "quantity": 9, "unit_cost": 7, "currency": "EUR"}]
    shop.service.put_purchase_order(proposal["purchase_order_id"], lines, 1)
    with statements(shop.bench) as sent:
        shop.service.reorder()

    (proposal,) = shop.proposals()
    assert (proposal["lines"], proposal["version"]) == (
        [{"sku": "lamp", "quantity": 15, "received": 0, "open": 15, "unit_cost": 7, "currency": "EUR"}],
        3,
    )
    assert len(sent) == 9
    shop.stock("lamp", on_hand=0)
    shop.service.reorder()
    assert [quantities(one) for one in shop.proposals()] == [{"lamp": 20}]


def test_what_is_reserved_is_not_available(shop: Shop) -> None:
    shop.stock("lamp", on_hand=8)
    shop.rule("lamp", pack_size=1)
    shop.service.reorder()
    assert shop.proposals() == []
    shop.service.reserve_manually(str(uuid4()), [{"sku": "lamp", "quantity": 3}])
    shop.service.reorder()
    assert [quantities(proposal) for proposal in shop.proposals()] == [{"lamp": 15}]


def test_a_proposal_that_was_cancelled_is_not_made_again_for_24_hours(shop: Shop) -> None:
    shop.stock("lamp", "bulb")
    shop.rule("lamp")
    shop.service.reorder()
    (proposal,) = shop.proposals()
    shop.act(Verb.CANCEL, proposal)
    left = shop.database.rows("inventory", "SELECT snoozed_until - now() AS left FROM stock_rules")[0]["left"]
    assert timedelta(hours=23, minutes=55) < left <= timedelta(hours=24)

    shop.rule("bulb")
    shop.service.reorder()
    assert [quantities(one) for one in shop.proposals()] == [{"bulb": 24}]
    shop.database.run("inventory", "UPDATE stock_rules SET snoozed_until = now() + interval '1 second'")
    shop.service.reorder()
    assert [quantities(one) for one in shop.proposals()] == [{"bulb": 24}]
    shop.database.run("inventory", "UPDATE stock_rules SET snoozed_until = now()")
    shop.service.reorder()
    assert [quantities(one) for one in shop.proposals()] == [{"bulb": 24, "lamp": 24}]


def test_an_order_that_is_cancelled_is_proposed_again_at_once(shop: Shop) -> None:
    shop.stock("lamp")
    shop.rule("lamp")
    order = shop.ordered({"lamp": 24})
    shop.service.reorder()
    assert shop.proposals() == []
    shop.act(Verb.CANCEL, order)
    shop.service.reorder()
    assert [quantities(one) for one in shop.proposals()] == [{"lamp": 24}]


def test_nothing_is_proposed_to_a_supplier_who_is_not_active_any_more(shop: Shop) -> None:
    shop.stock("lamp")
    shop.rule("lamp")
    shop.database.run("inventory", "UPDATE suppliers SET active = false")
    shop.service.reorder()
    assert shop.proposals() == []


def many(shop: Shop, number: int) -> None:
    shop.database.run(
        "inventory",
        "INSERT INTO stock_items (sku, on_hand) SELECT 'sku-' || n, 0 FROM generate_series(1, :n) AS n ORDER BY 1",
        n=number,
    )


def rules_of(shop: Shop, number: int, supplier: str) -> None:
    shop.database.run(
        "inventory",
        "INSERT INTO stock_rules (sku, reorder_at, reorder_to, supplier_id)"
        " SELECT 'sku-' || n, 5, 20, CAST(:supplier AS uuid) FROM generate_series(1, :n) AS n ORDER BY 1",
        n=number,
        supplier=supplier,
    )


def test_a_proposal_that_is_full_leaves_the_rest_to_the_next_one(shop: Shop) -> None:
    many(shop, 150)
    rules_of(shop, 150, shop.supplier)
    for _ in range(2):
        shop.service.reorder()
    (proposal,) = shop.proposals()
    assert len(proposal["lines"]) == 100

    shop.act(Verb.ORDER, proposal)
    shop.service.reorder()
    (rest,) = shop.proposals()
    assert len(rest["lines"]) == 50
    assert {line["quantity"] for line in proposal["lines"] + rest["lines"]} == {20}


def test_more_skus_than_a_batch_are_proposed_in_one_run(shop: Shop) -> None:
    many(shop, 2 * reorder.BATCH + 1)
    rules_of(shop, 2 * reorder.BATCH + 1, shop.supplier)
    shop.database.run(
        "inventory",
        "INSERT INTO suppliers (supplier_id, name, lead_days)"
        " SELECT gen_random_uuid(), 'of ' || n, 1 FROM generate_series(0, 19) AS n",
    )
    shop.database.run(
        "inventory",
        "UPDATE stock_rules SET supplier_id = (SELECT supplier_id FROM suppliers"
        " WHERE name = 'of ' || CAST(substr(sku, 5) AS integer) % 20)",
    )

    shop.service.reorder()

    assert sorted(len(proposal["lines"]) for proposal in shop.proposals()) == [50] * 19 + [51]


# What it costs


def test_the_statements_of_each_step(shop: Shop) -> None:
    skus = [f"sku-{n}" for n in range(1, 101)]
    many(shop, 100)

    def cost(call: Callable[[], Any]) -> int:
        with statements(shop.bench) as sent:
            call()
        return len(sent)

    assert cost(lambda: shop.propose(dict.fromkeys(skus, 10))) == 4
    (order,) = shop.proposals()
    lines = [{"sku": sku, "quantity": 2} for sku in skus]
    assert cost(lambda: shop.service.put_purchase_order(order["purchase_order_id"], lines, 1)) == 6
    assert cost(lambda: shop.act(Verb.ORDER, order)) == 5
    for _ in range(2):
        assert cost(lambda: shop.receive(order, dict.fromkeys(skus, 1))) == 10
    other = shop.propose({"sku-1": 1})
    assert cost(lambda: shop.act(Verb.CANCEL, other)) == 6
    ordered = shop.ordered({"sku-1": 1})
    assert cost(lambda: shop.act(Verb.CLOSE, ordered)) == 5
    assert cost(lambda: shop.again(order)) == 1
    assert cost(lambda: shop.service.list_purchase_orders(200)) == 1
    assert cost(lambda: shop.service.put_rule("sku-1", RULE | {"supplier_id": shop.supplier})) == 2


def test_the_statements_of_a_run_of_reorder(shop: Shop) -> None:
    many(shop, 100)
    with statements(shop.bench) as sent:
        shop.service.reorder()
    assert len(sent) == 1

    rules_of(shop, 100, shop.supplier)
    for expected in (8, 1):
        with statements(shop.bench) as sent:
            shop.service.reorder()
        assert len(sent) == expected


def test_lists_and_the_look_of_reorder_read_by_an_index(shop: Shop) -> None:
    many(shop, 80_000)
    rules_of(shop, 80_000, shop.supplier)
    run = shop.database.run
    run("inventory", "UPDATE stock_rules SET reorder_at = NULL, reorder_to = NULL WHERE sku LIKE '%5'")
    run("inventory", "UPDATE stock_items SET on_hand = 100")
    run(
        "inventory",
        "INSERT INTO purchase_orders (po_id, supplier_id, status, made_by) SELECT gen_random_uuid(),"
        " CAST(:supplier AS uuid), CASE WHEN n % 100 = 0 THEN 'ORDERED' ELSE 'RECEIVED' END, 'admin'"
        " FROM generate_series(1, 20000) AS n",
        supplier=shop.supplier,
    )
    run(
        "inventory",
        "INSERT INTO purchase_order_lines (po_id, sku, quantity, received)"
        " SELECT po_id, 'sku-' || row_number() OVER (), 5, CASE status WHEN 'ORDERED' THEN 0 ELSE 5 END"
        " FROM purchase_orders",
    )
    run(
        "inventory",
        "INSERT INTO suppliers (supplier_id, name, lead_days) SELECT gen_random_uuid(), 'of ' || n, 1"
        " FROM generate_series(1, 5000) AS n",
    )
    for table in ("stock_items", "stock_rules", "suppliers", "purchase_orders", "purchase_order_lines"):
        run("inventory", f"ANALYZE {table}")
    supplier = {"supplier": shop.supplier}
    with statements(shop.bench) as sent:
        for filters in ({}, supplier, {"status": "ORDERED"}, {"status": "ORDERED", **supplier}):
            shop.service.list_purchase_orders(20, filters=filters)
    assert_read_by_index(shop.bench, sent, most=21)
    with statements(shop.bench) as sent:
        shop.service.reorder()
    assert_read_by_index(shop.bench, sent, most=reorder.BATCH)
