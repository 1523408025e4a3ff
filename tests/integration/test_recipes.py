"""Recipes: orders of what is made hold its components, each by the recipe that its own transaction has read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import eventlet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from inventory_service.recipes import checks, queries
from shared.errors import Conflict, HasStock, NotFound, RoleMissing, ValidationFailed, VersionMoved
from shared.events import CommitRequested, OrderCreated, OrderedItem, ReleaseRequested
from tests.databases import Databases, Row
from tests.integration.support import (
    ADMIN,
    CUSTOMER,
    OPERATOR,
    WAITING,
    Bench,
    assert_read_by_index,
    emitted,
    order_created,
    statements,
    until,
)
from tests.integration.test_reservations import (
    COMMITS,
    CREATED,
    RELEASES,
    awaited,
    handle,
    reservations,
    told,
)

Benches = Callable[..., Bench]

PIZZA = [{"sku": "flour", "quantity": 250}, {"sku": "cheese", "quantity": 100}]
BREAD = [{"sku": "flour", "quantity": 500}]
# Of every POST that a person makes.
MOST_STATEMENTS = 10


@pytest.fixture
def inventory(bench: Benches, database: Databases) -> Bench:
    made = bench("inventory")
    put(database, flour=10_000, cheese=5_000)
    made.service.put_recipe("pizza", PIZZA)
    made.service.put_recipe("bread", BREAD)
    return made


def put(database: Databases, **on_hand: int) -> None:
    for sku, quantity in on_hand.items():
        database.run(
            "inventory",
            "INSERT INTO stock_items (sku, on_hand) VALUES (:sku, :n)"
            " ON CONFLICT (sku) DO UPDATE SET on_hand = :n, updated_at = now()",
            sku=sku,
            n=quantity,
        )


def stock(database: Databases) -> dict[str, tuple[int, int]]:
    rows = database.rows("inventory", "SELECT sku, on_hand, reserved FROM stock_items ORDER BY sku")
    return {row["sku"]: (row["on_hand"], row["reserved"]) for row in rows}


def held(database: Databases, order_id: UUID) -> dict[str, int]:
    rows = database.rows(
        "inventory", "SELECT sku, quantity FROM reservation_items WHERE order_id = :order_id", order_id=order_id
    )
    return {row["sku"]: row["quantity"] for row in rows}


def payloads(database: Databases, type_: str) -> list[dict[str, Any]]:
    query = "SELECT CAST(body AS jsonb) -> 'payload' AS payload FROM outbox WHERE event_type = :type_ ORDER BY id"
    return [row["payload"] for row in database.rows("inventory", query, type_=type_)]


def made(database: Databases) -> list[Row]:
    return database.rows("inventory", "SELECT sku, component, quantity FROM recipe_lines ORDER BY sku, component")


# What a recipe may say.


def test_a_recipe_is_written_read_and_removed(inventory: Bench, database: Databases) -> None:
    put(database, salt=1)
    body = inventory.service.put_recipe("cake", [{"sku": "salt", "quantity": 3}, {"sku": "flour", "quantity": 1}])

    assert body["components"] == [{"sku": "flour", "quantity": 1}, {"sku": "salt", "quantity": 3}]
    assert (body["sku"], body["changed_by"]) == ("cake", "admin")
    inventory.called_by(OPERATOR)
    assert inventory.service.get_recipe("cake") == body
    inventory.called_by(ADMIN)
    inventory.service.delete_recipe("cake")
    for call in (inventory.service.get_recipe, inventory.service.delete_recipe):
        with pytest.raises(NotFound):
            call("cake")


def test_a_recipe_is_replaced_whole_with_a_greater_version_and_the_same_again_changes_nothing(
    inventory: Bench,
) -> None:
    before = inventory.service.get_recipe("pizza")
    assert inventory.service.put_recipe("pizza", PIZZA[::-1]) == before

    after = inventory.service.put_recipe("pizza", BREAD, before["version"])
    assert after["components"] == BREAD
    assert after["version"] > before["version"]
    assert inventory.service.put_recipe("pizza", [])["components"] == []


def test_a_recipe_that_was_removed_and_written_again_is_not_the_one_that_was_read(
    inventory: Bench, database: Databases
) -> None:
    read = inventory.service.get_recipe("pizza")
    with pytest.raises(VersionMoved):
        inventory.service.put_recipe("pizza", BREAD, 0)
    inventory.service.delete_recipe("pizza")
    with pytest.raises(VersionMoved):
        inventory.service.put_recipe("pizza", BREAD, read["version"])
    inventory.service.put_recipe("pizza", BREAD, 0)
    with pytest.raises(VersionMoved) as refused:
        inventory.service.put_recipe("pizza", PIZZA, read["version"])

    assert refused.value.details == {"version": inventory.service.get_recipe("pizza")["version"]}


@pytest.mark.parametrize("component", ["ghost", "bread", "pizza"])
def test_a_component_that_is_unknown_or_made_is_refused(inventory: Bench, database: Databases, component: str) -> None:
    before = made(database)
    with pytest.raises(ValidationFailed):
        inventory.service.put_recipe("pizza", [*BREAD, {"sku": component, "quantity": 1}])

    assert made(database) == before


def test_a_sku_with_stock_has_no_recipe_not_even_a_component(inventory: Bench, database: Databases) -> None:
    put(database, lamp=0)
    for sku in ("lamp", "flour"):
        with pytest.raises(HasStock):
            inventory.service.put_recipe(sku, [])


def test_a_recipe_costs_few_statements(inventory: Bench, database: Databases) -> None:
    put(database, **{f"part-{n}": 1 for n in range(50)})
    with statements(inventory) as sent:
        inventory.service.put_recipe("set", [{"sku": f"part-{n}", "quantity": n + 1} for n in range(50)])
    assert len(sent) <= MOST_STATEMENTS
    with statements(inventory) as sent:
        inventory.service.get_recipe("set")
    assert len(sent) == 1


def test_recipes_are_for_those_who_run_the_stock(inventory: Bench) -> None:
    inventory.called_by(OPERATOR)
    for call in (lambda: inventory.service.put_recipe("pizza", []), lambda: inventory.service.delete_recipe("pizza")):
        with pytest.raises(RoleMissing):
            call()
    inventory.called_by(CUSTOMER)
    with pytest.raises(RoleMissing):
        inventory.service.get_recipe("pizza")


def test_of_two_that_write_one_recipe_at_once_the_later_one_sees_the_earlier(
    inventory: Bench, database: Databases
) -> None:
    with inventory.sessions.begin() as session:
        queries.decide_alone(session, ["cake"])
        late = eventlet.spawn(pytest.raises, VersionMoved, inventory.service.put_recipe, "cake", PIZZA, 0)
        until(lambda: database.rows("inventory", WAITING))
        queries.save(session, "cake", {"flour": 1}, "somebody")
    late.wait()


# What orders hold.


def test_an_order_of_dishes_holds_components_and_its_events_say_lines_and_components(
    inventory: Bench, database: Databases
) -> None:
    order = order_created(skus=("pizza", "bread"), quantity=2)
    inventory.handle_batch(CREATED, [emitted(order)])

    assert held(database, order.order_id) == {"cheese": 200, "flour": 1500}
    assert stock(database) == {"cheese": (5_000, 200), "flour": (10_000, 1_500)}
    inventory.handle_batch(COMMITS, [emitted(CommitRequested(order.order_id))])

    assert stock(database) == {"cheese": (4_800, 0), "flour": (8_500, 0)}
    (reserved,), (committed,) = payloads(database, "inventory.reserved"), payloads(database, "inventory.committed")
    assert {item["sku"]: item["quantity"] for item in reserved["items"]} == {"pizza": 2, "bread": 2}
    assert {item["sku"]: item["quantity"] for item in committed["items"]} == {"cheese": 200, "flour": 1500}


@pytest.mark.parametrize("change", ["changed", "removed"])
def test_what_becomes_of_a_recipe_touches_no_order_under_way(
    inventory: Bench, database: Databases, change: str
) -> None:
    orders = [order_created(skus=("pizza",), quantity=2) for _ in range(2)]
    inventory.handle_batch(CREATED, [emitted(order) for order in orders])
    if change == "changed":
        inventory.service.put_recipe("pizza", BREAD)
    else:
        inventory.service.delete_recipe("pizza")

    inventory.handle_batch(CREATED, [emitted(order) for order in orders])  # repeats
    inventory.handle_batch(RELEASES, [emitted(ReleaseRequested(orders[0].order_id, "deadline"))])
    inventory.handle_batch(COMMITS, [emitted(CommitRequested(orders[1].order_id))])

    assert stock(database) == {"cheese": (4_800, 0), "flour": (9_500, 0)}
    assert database.rows("inventory", "SELECT sku, quantity FROM inventory_release_events ORDER BY sku") == [
        {"sku": "cheese", "quantity": 200},
        {"sku": "flour", "quantity": 500},
    ]
    assert database.rows("inventory", "SELECT 1 FROM dead_messages") == []


def test_an_order_after_the_change_holds_by_the_new_recipe_or_is_of_an_unknown_sku(
    inventory: Bench, database: Databases
) -> None:
    inventory.service.put_recipe("pizza", BREAD)
    inventory.service.delete_recipe("bread")
    orders = [order_created(skus=("pizza",)), order_created(skus=("bread",))]
    inventory.handle_batch(CREATED, [emitted(order) for order in orders])

    assert held(database, orders[0].order_id) == {"flour": 500}
    (failed,) = payloads(database, "inventory.failed")
    assert (failed["reason"], failed["shortages"]) == (
        "unknown_sku",
        [{"sku": "bread", "requested": 1, "available": 0}],
    )


def test_a_repeat_that_asks_for_something_else_is_dead_although_its_recipe_has_changed(
    inventory: Bench, database: Databases
) -> None:
    order = order_created(skus=("pizza",), quantity=2)
    inventory.handle_batch(CREATED, [emitted(order)])
    inventory.service.put_recipe("pizza", BREAD)
    inventory.handle_batch(CREATED, [emitted(order_created(order.order_id, skus=("pizza",), quantity=3))])

    (dead,) = database.rows("inventory", "SELECT error_class FROM dead_messages")
    assert dead["error_class"] == "Contradiction"


def test_a_recipe_that_changes_while_an_order_is_held_changes_after_it(inventory: Bench, database: Databases) -> None:
    """The order has locked the stock of its components, and whoever names one in a recipe waits for that."""
    order = order_created(skus=("pizza",), quantity=2)
    with inventory.sessions.begin() as session:
        handle(inventory, CREATED, session, [emitted(order)])
        late = eventlet.spawn(inventory.service.put_recipe, "pizza", BREAD)
        until(lambda: database.rows("inventory", WAITING))
        inventory.service.delete_recipe("bread")
    late.wait()

    assert held(database, order.order_id) == {"cheese": 200, "flour": 500}
    assert stock(database) == {"cheese": (5_000, 200), "flour": (10_000, 500)}


def test_an_order_holds_what_it_has_read_when_its_recipe_changes_before_it_has_locked(
    inventory: Bench, database: Databases
) -> None:
    order = order_created(skus=("bread",), quantity=2)
    with awaited(inventory, database, CREATED, emitted(order)) as session:
        session.execute(text("SELECT 1 FROM stock_items WHERE sku = 'flour' FOR UPDATE"))
        queries.save(session, "bread", {"cheese": 1}, "somebody")

    assert held(database, order.order_id) == {"flour": 1000}
    assert stock(database) == {"cheese": (5_000, 0), "flour": (10_000, 1000)}


def test_stock_by_hand_is_held_in_components_and_given_back(inventory: Bench, database: Databases) -> None:
    order_id = str(uuid4())
    body = inventory.service.reserve_manually(order_id, [{"sku": "bread", "quantity": 3}])

    assert body["items"] == [{"sku": "bread", "quantity": 3}]
    assert stock(database)["flour"] == (10_000, 1_500)
    inventory.service.put_recipe("bread", [])
    inventory.service.release_reservation(body["reservation_id"])
    assert stock(database)["flour"] == (10_000, 0)
    with pytest.raises(Conflict) as refused:
        inventory.service.reserve_manually(str(uuid4()), [{"sku": "pizza", "quantity": 41}])
    assert refused.value.details == {"shortages": [{"sku": "pizza", "requested": 41, "available": 40}]}


def test_millions_of_a_component_are_held_told_and_given_back(inventory: Bench, database: Databases) -> None:
    put(database, sand=10**9)
    inventory.service.put_recipe("beach", [{"sku": "sand", "quantity": 10**6}])
    many, too_many = order_created(skus=("beach",), quantity=900), order_created(skus=("beach",), quantity=10_000)
    inventory.handle_batch(CREATED, [emitted(order) for order in (many, too_many)])
    inventory.handle_batch(COMMITS, [emitted(CommitRequested(many.order_id))])
    inventory.handle_batch(RELEASES, [emitted(ReleaseRequested(many.order_id, "order_cancelled"))])

    for type_ in ("inventory.committed", "inventory.released"):
        assert payloads(database, type_)[0]["items"] == [{"sku": "sand", "quantity": 900 * 10**6}]
    assert payloads(database, "inventory.failed")[0]["shortages"] == [
        {"sku": "beach", "requested": 10_000, "available": 100}
    ]
    assert stock(database)["sand"] == (10**9, 0)


def test_what_is_made_of_nothing_is_never_short(inventory: Bench, database: Databases) -> None:
    inventory.service.put_recipe("blessing", [])
    order = order_created(skus=("blessing",), quantity=10_000)
    for queue, event in (
        (CREATED, order),
        (CREATED, order),
        (COMMITS, CommitRequested(order.order_id)),
        (RELEASES, ReleaseRequested(order.order_id, "order_cancelled")),
    ):
        inventory.handle_batch(queue, [emitted(event)])

    assert reservations(database) == {order.order_id: "RELEASED"}
    assert told(database) == ["inventory.reserved", "inventory.committed", "inventory.released"]
    assert database.rows("inventory", "SELECT 1 FROM dead_messages") == []


def test_300_orders_of_two_dishes_at_two_replicas_never_hold_more_of_an_ingredient_than_there_is(
    inventory: Bench, bench: Benches, database: Databases
) -> None:
    """A recipe changes in between, too."""
    put(database, flour=60_000, cheese=20_000)
    replicas = [inventory, bench("inventory")]
    orders = [order_created(skus=(("pizza",), ("bread",), ("bread", "pizza"))[n % 3]) for n in range(300)]
    batches = [
        eventlet.spawn(
            replicas[n % 2].handle_batch, CREATED, [emitted(order) for order in orders[n * 10 : n * 10 + 10]]
        )
        for n in range(30)
    ]
    for quantity in (260, 240, 250):
        inventory.service.put_recipe("pizza", [{"sku": "flour", "quantity": quantity}, PIZZA[1]])
    for batch in batches:
        batch.wait()

    counted = database.rows(
        "inventory",
        "SELECT sku, CAST(sum(quantity) AS bigint) AS held FROM reservation_items GROUP BY sku ORDER BY sku",
    )
    assert {row["sku"]: row["held"] for row in counted} == {sku: n for sku, (_, n) in stock(database).items()}
    on_hand, reserved = stock(database)["flour"]
    assert reserved <= on_hand
    assert on_hand - reserved < 760, "an order that would have fitted was refused"
    states = list(reservations(database).values())
    assert len(states) == 300
    assert 0 < states.count("REFUSED") < 300
    assert database.rows("inventory", "SELECT 1 FROM dead_messages") == []


def test_recipes_are_read_by_index(inventory: Bench, database: Databases) -> None:
    database.run(
        "inventory",
        "INSERT INTO recipes (sku, changed_by) SELECT 'dish-' || n, 'admin' FROM generate_series(1, 20000) AS n",
    )
    for component in ("flour", "cheese"):
        database.run(
            "inventory",
            "INSERT INTO recipe_lines SELECT 'dish-' || n, :component, 1 FROM generate_series(1, 20000) AS n",
            component=component,
        )
    database.run("inventory", "ANALYZE recipes, recipe_lines")

    with inventory.sessions.read() as session, statements(inventory) as sent:
        found = queries.recipes_of(session, [f"dish-{n}" for n in range(1, 51)])
        queries.find(session, "dish-7")
        queries.body_of(session, "dish-7")
        queries.made(session, ["dish-7", "lamp"])
    assert len(found) == 50
    assert len(sent) == 4
    assert_read_by_index(inventory, sent, 100)


# Whatever happens, the books agree with a plain model.

DISHES = ("dish-a", "dish-b")
PARTS = ("part-a", "part-b", "part-c")
menus = st.dictionaries(st.sampled_from(PARTS), st.integers(1, 5))
baskets = st.dictionaries(st.sampled_from((*DISHES, *PARTS)), st.integers(1, 3), min_size=1)
which = st.integers(0, 99)
steps = st.one_of(
    st.tuples(st.just("cook"), st.sampled_from(DISHES), menus | st.none()),
    st.tuples(st.just("order"), st.lists(baskets, min_size=1, max_size=4)),
    st.tuples(st.sampled_from(("order again", "commit", "release")), which),
)


class Kitchen:
    """What is on the shelf and what is put aside for whom, by a plain model; each step is also the service's."""

    def __init__(self, inventory: Bench) -> None:
        self.inventory = inventory
        self.there = dict.fromkeys(PARTS, 40)
        self.recipes: dict[str, dict[str, int]] = {}
        self.orders: list[OrderCreated] = []
        self.states: dict[UUID, str] = {}
        self.taken: dict[UUID, dict[str, int]] = {}

    def aside(self, sku: str) -> int:
        return sum(self.taken[order_id].get(sku, 0) for order_id, state in self.states.items() if state == "RESERVED")

    def cook(self, dish: str, recipe: dict[str, int] | None) -> None:
        if recipe is not None:
            self.recipes[dish] = recipe
            lines = [{"sku": sku, "quantity": quantity} for sku, quantity in recipe.items()]
            self.inventory.service.put_recipe(dish, lines)
        elif self.recipes.pop(dish, None) is not None:
            self.inventory.service.delete_recipe(dish)

    def order(self, some: list[dict[str, int]]) -> None:
        orders = [
            OrderCreated(uuid4(), "EUR", 1, tuple(OrderedItem(*line, 1) for line in basket.items()), "mock_ok")
            for basket in some
        ]
        self.inventory.handle_batch(CREATED, [emitted(order) for order in orders])
        for order in orders:
            self.orders.append(order)
            taken: dict[str, int] = {}
            for item in order.items:
                for sku, each in self.recipes.get(item.sku, {item.sku: 1}).items():
                    taken[sku] = taken.get(sku, 0) + each * item.quantity
            fits = all(sku in PARTS and taken[sku] <= self.there[sku] - self.aside(sku) for sku in taken)
            self.states[order.order_id] = "RESERVED" if fits else "REFUSED"
            self.taken[order.order_id] = taken

    def go_on(self, verb: str, number: int) -> None:
        if not self.orders:
            return
        order = self.orders[number % len(self.orders)]
        order_id = order.order_id
        state = self.states[order_id]
        if verb == "order again":
            self.inventory.handle_batch(CREATED, [emitted(order)])
        elif verb == "commit" and state != "REFUSED":
            self.inventory.handle_batch(COMMITS, [emitted(CommitRequested(order_id))])
            if state == "RESERVED":
                self.states[order_id] = "COMMITTED"
                self.move(order_id, -1)
        elif verb == "release":
            self.inventory.handle_batch(RELEASES, [emitted(ReleaseRequested(order_id, "order_cancelled"))])
            if state in ("RESERVED", "COMMITTED"):
                self.states[order_id] = "RELEASED"
            if state == "COMMITTED":
                self.move(order_id, 1)

    def move(self, order_id: UUID, sign: int) -> None:
        for sku, quantity in self.taken[order_id].items():
            self.there[sku] += sign * quantity


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12, deadline=None)
@given(st.lists(steps, min_size=5, max_size=25))
def test_components_are_conserved_by_orders_cancels_and_recipes_that_change(
    inventory: Bench, database: Databases, some: list[tuple[Any, ...]]
) -> None:
    database.empty()
    put(database, **dict.fromkeys(PARTS, 40))
    kitchen = Kitchen(inventory)
    for name, *more in some:
        match name:
            case "cook":
                kitchen.cook(*more)
            case "order":
                kitchen.order(*more)
            case verb:
                kitchen.go_on(verb, *more)

    assert stock(database) == {sku: (kitchen.there[sku], kitchen.aside(sku)) for sku in PARTS}
    assert reservations(database) == kitchen.states
    assert database.rows("inventory", "SELECT 1 FROM dead_messages") == []


# What must always hold.


def test_a_sku_that_is_made_and_stocked_is_named(inventory: Bench, database: Databases) -> None:
    with inventory.sessions.read() as session:
        assert checks.made_components(session) == []
    database.run("inventory", "INSERT INTO recipes (sku, changed_by) VALUES ('flour', 'somebody')")
    with inventory.sessions.read() as session:
        assert checks.made_components(session) == ["flour"]


def test_a_sku_of_which_something_else_was_told_is_named(inventory: Bench, database: Databases) -> None:
    inventory.service.watch_all()
    database.run("inventory", "UPDATE stock_items SET updated_at = now() - interval '11 seconds'")
    database.run("inventory", "UPDATE recipes SET changed_at = now() - interval '11 seconds'")
    with inventory.sessions.read() as session:
        assert checks.untold(session) == []
    database.run("inventory", "UPDATE stock_signals SET sold_out = true WHERE sku = 'flour'")
    database.run("inventory", "UPDATE stock_signals SET few = 4 WHERE sku = 'pizza'")
    database.run("inventory", "UPDATE stock_signals SET low = true WHERE sku = 'cheese'")
    database.run("inventory", "INSERT INTO stock_signals (sku, sold_out, version) VALUES ('gone', false, 1)")
    with inventory.sessions.read() as session:
        assert checks.untold(session) == ["cheese", "flour", "gone", "pizza"]
    database.run("inventory", "UPDATE stock_items SET updated_at = now() WHERE sku = 'flour'")
    with inventory.sessions.read() as session:
        assert checks.untold(session) == ["cheese", "gone"]  # bread and pizza are made of flour
