"""Each reading of the menu, and of orders by what was ordered, uses the index that was made for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import event

from catalog_service.menu import MOST_SORTED
from shared.edge.prepared import divided
from tests.databases import Databases
from tests.integration.support import ADMIN, OPERATOR, Bench

Benches = Callable[..., Bench]

ITEMS, CATEGORIES, SOME = 20_000, 100, 7
# One sku was priced so often, before all others, that most of the first rows of the table are its own.
OFTEN = 2_000
# Each item has one variant, and a name with words of its own. `item_id` is made of its number.
CATALOG = """
    INSERT INTO categories (category_id, slug, name)
    SELECT md5('c' || n)::uuid, 'category-' || n, 'Category' FROM generate_series(0, :categories - 1) n;

    INSERT INTO items (item_id, name, category_id, position, status, published_at)
    SELECT md5('i' || n)::uuid, 'lamp w' || md5('' || n), md5('c' || n % :categories)::uuid, n * 7919 % 1000,
           'published', now() FROM generate_series(0, :items - 1) n;

    INSERT INTO variants (sku, item_id, offer_version)
    SELECT 'sku-' || n, md5('i' || n)::uuid, 1 FROM generate_series(0, :items - 1) n;

    INSERT INTO availability (sku, sold_out, version)
    SELECT 'sku-' || n, n % 2 = 0, 1 FROM generate_series(0, :items - 1) n;

    INSERT INTO prices (sku, currency, min_quantity, valid_from, unit_price, offer_version, set_by)
    SELECT 'sku-0', 'EUR', 1, now() - (:often - n) * interval '1 minute', n, 1, 'admin'
    FROM generate_series(1, :often) n;

    INSERT INTO prices (sku, currency, min_quantity, valid_from, unit_price, offer_version, set_by)
    SELECT 'sku-' || n, currency, 1, now() - interval '1 minute', n, 1, 'admin'
    FROM generate_series(0, :items - 1) n, unnest(ARRAY['EUR', 'USD']) currency;

    INSERT INTO item_versions (item_id, version, document, changed_by, trace_id)
    SELECT md5('i' || n)::uuid, version, '{}', 'admin', '' FROM generate_series(0, :items - 1) n,
    LATERAL generate_series(1, CASE WHEN n = 0 THEN 200 ELSE 1 END) version
"""
ORDERS = """
    INSERT INTO orders (order_id, user_id, status, currency, total, payment_method, trace_id, idempotency_key,
                        fingerprint, order_no, created_at)
    SELECT md5('o' || n)::uuid, 'user-' || n % 200, 'PAID', 'EUR', n, 'mock_ok', '', 'key-' || n, '',
           lpad(n::text, 8, '0'), now() - n * interval '1 minute' FROM generate_series(0, :orders - 1) n;

    INSERT INTO order_items (order_id, line, sku, quantity, unit_price)
    SELECT md5('o' || n)::uuid, line, 'sku-' || (n + line) % 2000, 1, 1
    FROM generate_series(0, :orders - 1) n, generate_series(1, 2) line
"""


@pytest.fixture
def catalog(bench: Benches, database: Databases) -> Bench:
    """The catalog with many items."""
    made = bench("catalog")
    made.called_by(ADMIN)
    for statement in CATALOG.split(";"):
        database.run("catalog", statement, **given(statement, items=ITEMS, categories=CATEGORIES, often=OFTEN))
    database.run("catalog", "VACUUM ANALYZE")
    return made


@pytest.fixture
def order(bench: Benches, database: Databases) -> Bench:
    """The order service with many orders of two lines each."""
    made = bench("order")
    made.called_by(OPERATOR)
    for statement in ORDERS.split(";"):
        database.run("order", statement, orders=ITEMS)
    database.run("order", "VACUUM ANALYZE orders, order_items")
    return made


def given(statement: str, **values: int) -> dict[str, int]:
    """Those of the values that a statement names."""
    return {name: value for name, value in values.items() if f":{name}" in statement}


@contextmanager
def asked(bench: Bench) -> Iterator[list[tuple[str, Any, bool]]]:
    """The statements sent to the service's database, with their values, and whether they are prepared."""
    sent: list[tuple[str, Any, bool]] = []

    def note(connection: Any, cursor: Any, statement: str, values: Any, context: Any, many: bool) -> None:
        sent.append((statement, values, bool(context and context.execution_options.get("prepared"))))

    event.listen(bench.database.engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(bench.database.engine, "before_cursor_execute", note)


def plans(bench: Bench, statement: str, values: Any, is_prepared: bool) -> Iterator[str]:
    """How the database reads for a statement: for these values, and for any if it is prepared."""
    with bench.sessions.read() as session:
        connection = session.connection()
        explain = "EXPLAIN (ANALYZE, TIMING OFF) "
        yield "\n".join(row[0] for row in connection.exec_driver_sql(explain + statement, values))
        if is_prepared:
            parts = divided(statement)
            connection.exec_driver_sql("SET LOCAL plan_cache_mode = force_generic_plan")
            connection.exec_driver_sql(f"PREPARE explained AS {parts.sql.replace('%', '%%')}")
            types = "SELECT parameter_types::text[] FROM pg_prepared_statements WHERE name = 'explained'"
            execute = parts.execute("explained", connection.exec_driver_sql(types).scalar_one())
            yield "\n".join(row[0] for row in connection.exec_driver_sql(explain + execute, values))
            connection.exec_driver_sql("DEALLOCATE explained")


def assert_read_by(bench: Bench, call: Callable[[], Any], indexes: set[str], most: int, scanned: str = "") -> None:
    """A call reads few rows, by these indexes, but for the few categories and the table `scanned`."""
    with asked(bench) as sent:
        call()
    assert sent
    used: set[str] = set()
    for statement, values, is_prepared in sent:
        for plan in plans(bench, statement, values, is_prepared):
            used |= set(re.findall(r"Index (?:Only )?Scan (?:Backward )?(?:using|on) (\w+)", plan))
            assert not set(re.findall(r"Seq Scan on (\w+)", plan)) - {"categories", scanned}, plan
            of_tables = "\n".join(line for line in plan.splitlines() if "Bitmap Index Scan" not in line)
            counts = re.findall(r"actual rows=(\d+)(?:\.\d+)? loops=(\d+)", of_tables)
            read = [int(rows) * int(loops) for rows, loops in counts]
            filtered = [int(rows) for rows in re.findall(r"Rows Removed by Filter: (\d+)", plan)]
            assert max(read + filtered) <= most, plan
    assert indexes <= used, f"{sorted(used)}\n{sent}"


def item_id(n: int, database: Databases) -> str:
    return str(UUID(str(database.rows("catalog", "SELECT md5('i' || :n)::uuid AS id", n=str(n))[0]["id"])))


def all_pages(read: Callable[[str | None], dict[str, Any]], pages: int = 2) -> None:
    cursor = None
    for _ in range(pages):
        cursor = read(cursor)["next_cursor"]
        if cursor is None:
            return


LIMIT = 40
# All items have the first word, and one has the second.
WORD = "lamp wc4ca4238a0b923820dcc509a6f75849b"
# What is asked of the menu, and the indexes by which it must be read.
MENU: dict[str, tuple[dict[str, Any], set[str]]] = {
    "the whole menu": ({}, {"ix_items_status_position_item_id"}),
    "a category": ({"category": "category-7"}, {"ix_items_status_category_id_position_item_id"}),
    "words": ({"q": WORD}, {"ix_items_search"}),
    "the beginning of a word": ({"q": WORD[:12]}, {"ix_items_search"}),
    "words in a category": ({"q": WORD, "category": "category-1"}, {"ix_items_search"}),
    "a sku": ({"sku": "sku-7"}, {"pk_variants", "pk_items"}),
    "what there is": ({"available": True}, {"ix_items_status_position_item_id", "pk_availability"}),
    "one currency": ({"currency": "USD"}, {"ix_prices_in_force"}),
}


def test_each_page_of_the_menu_is_read_by_its_index(catalog: Bench, subtests: pytest.Subtests) -> None:
    for name, (filters, indexes) in MENU.items():
        with subtests.test(name):
            assert_read_by(
                catalog,
                lambda: all_pages(lambda cursor: catalog.service.list_items(LIMIT, cursor, filters)),  # noqa: B023
                indexes | {"ix_variants_item_id_position_sku", "pk_availability", "ix_prices_in_force"},
                most=5 * LIMIT + OFTEN,
            )


def test_a_search_for_what_all_items_have_reads_the_menu_until_a_page_is_full(catalog: Bench) -> None:
    assert_read_by(
        catalog,
        lambda: all_pages(lambda cursor: catalog.service.list_items(LIMIT, cursor, {"q": "lamp"})),
        {"ix_items_status_position_item_id"},
        most=max(MOST_SORTED + 1, 5 * LIMIT + OFTEN),
        scanned="items",  # to see that there are many
    )


def test_offers_are_read_by_their_skus(catalog: Bench, subtests: pytest.Subtests) -> None:
    skus = [f"sku-{n * 31}" for n in range(20)]
    calls: dict[str, tuple[Callable[[], Any], set[str]]] = {
        "as anyone sees them": (
            lambda: catalog.service.get_offers(skus),
            {"pk_variants", "pk_items", "pk_availability", "ix_prices_in_force"},
        ),
        "as the order service does": (
            lambda: catalog.service.offers_of(skus),
            {"pk_variants", "pk_items", "ix_variants_item_id_position_sku", "ix_prices_in_force"},
        ),
        "their versions": (lambda: catalog.service.offer_versions("sku-3", 100), {"pk_variants", "pk_items"}),
    }
    for name, (call, indexes) in calls.items():
        with subtests.test(name):
            assert_read_by(catalog, call, indexes, most=500 + OFTEN)


def test_what_an_item_was_and_cost_is_read_by_its_index(
    catalog: Bench, database: Databases, subtests: pytest.Subtests
) -> None:
    first, other = item_id(0, database), item_id(SOME, database)
    for name, read, index, most in (
        ("versions", catalog.service.item_versions, "pk_item_versions", LIMIT + 1),
        ("prices", catalog.service.item_prices, "ix_prices_in_force", OFTEN + 2),
    ):
        for which in (first, other):
            with subtests.test(name, item=which):
                assert_read_by(
                    catalog,
                    lambda: all_pages(lambda cursor: read(which, LIMIT, cursor)),  # noqa: B023
                    {index},
                    most,
                )


def test_orders_are_found_by_their_number_and_by_what_was_ordered(order: Bench, subtests: pytest.Subtests) -> None:
    asks: dict[str, tuple[dict[str, str], str]] = {
        "a number": ({"order_no": "0000-0007"}, "uq_orders_order_no"),
        "a sku": ({"sku": "sku-7"}, "ix_order_items_sku_order_id"),
        "a sku of a user": ({"sku": "sku-7", "user": "user-7"}, "ix_order_items_sku_order_id"),
    }
    for name, (filters, index) in asks.items():
        with subtests.test(name):
            assert_read_by(
                order,
                lambda: all_pages(lambda cursor: order.service.list_orders(5, cursor, filters)),  # noqa: B023
                {index},
                most=200,
            )
