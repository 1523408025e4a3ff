"""Queries of the release audit: every page uses an index and costs the same, and an export equals the query."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as some

from inventory_service.audit import pages
from inventory_service.service import InventoryService
from shared.paging import encode_cursor
from tests import releases
from tests.databases import Databases
from tests.integration.support import Bench
from tests.integration.test_orders import statements

ROWS = 10_000
LIMIT = 20
BEGAN = datetime(2026, 1, 14, tzinfo=UTC)

# One row a minute, a hundred rows to a transaction as in a batch of messages; 53 different orders, users and so on.
MANY = """
    INSERT INTO inventory_release_events
      (order_id, reservation_id, sku, quantity, reason, requested_by, roles, trace_id, released_at, xid)
    SELECT md5((n % 53)::text)::uuid, gen_random_uuid(), 'sku-' || n % 53, 1, 'reason-' || n % 53,
           'user-' || n % 53, '{}',
           'trace-' || n % 53, CAST(:began AS timestamptz) + n * interval '1 minute', n / 100
    FROM generate_series(0, :count - 1) n
"""
ONE_OF_53 = {
    "order_id": "eccbc87e-4b5c-e2fe-2830-8fd9f2a7baf3",  # md5 of 3
    "sku": "sku-3",
    "reason": "reason-3",
    "user_id": "user-3",
    "trace_id": "trace-3",
}


def minute(n: int) -> str:
    return (BEGAN + timedelta(minutes=n)).isoformat()


FILTERS: dict[str, Mapping[str, str]] = {
    "nothing": {},
    **{name: {name: value} for name, value in ONE_OF_53.items()},
    "from": {"from": minute(2000)},
    "to": {"to": minute(8000)},
    "from and to": {"from": minute(2000), "to": minute(8000)},
    **{f"{name} and time": {name: value, "to": minute(9000)} for name, value in ONE_OF_53.items()},
}


@pytest.fixture
def inventory(bench: Callable[..., Bench]) -> Bench:
    made = bench("inventory")
    made.service.settings = replace(made._container.config["settings"], audit_keys=(releases.KEY,))
    return made


@pytest.fixture
def many(inventory: Bench, database: Databases) -> Bench:
    database.run("inventory", MANY, began=BEGAN, count=ROWS)
    database.run("inventory", "VACUUM ANALYZE inventory_release_events")
    return inventory


def nodes(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


def explained(bench: Bench, statement: str, values: Any) -> Mapping[str, Any]:
    with bench.sessions.read() as session:
        explain = f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {statement}"
        answer = session.connection().exec_driver_sql(explain, values).scalar_one()
    (plan,) = json.loads(answer) if isinstance(answer, str) else answer
    return dict(plan["Plan"])


def refuse_slow(plan: Mapping[str, Any]) -> None:
    kinds = {str(node["Node Type"]) for node in nodes(plan)}
    assert not {kind for kind in kinds if "Sort" in kind or kind == "Seq Scan"}, kinds
    assert {kind for kind in kinds if "Index" in kind}, kinds
    assert not [node for node in nodes(plan) if node.get("Rows Removed by Filter")], (
        "the query reads rows that are not in the page"
    )


def page_at(bench: Bench, filters: Mapping[str, str], export_id: str, n: int) -> Mapping[str, Any]:
    """Return the plan of the query for the page that starts before the row of minute `n`."""
    cursor = encode_cursor([minute(n), 2**62], filters) if n < ROWS else None
    with statements(bench) as sent:
        if export_id:
            page = bench.service.release_export_page(export_id, LIMIT, cursor)
        else:
            page = bench.service.release_events(dict(filters), LIMIT, cursor)
    assert len(page["items"]) == LIMIT
    return explained(bench, *sent[-1])


def test_every_page_uses_an_index_and_a_deep_page_costs_as_much_as_the_first(
    many: Bench, subtests: pytest.Subtests
) -> None:
    for name, filters in FILTERS.items():
        for export_id in ("", many.service.open_release_export(dict(filters))["export_id"]):
            with subtests.test(name, export=bool(export_id)):
                plans = [page_at(many, filters, export_id, n) for n in (ROWS, 7000, 4000)]
                for plan in plans:
                    refuse_slow(plan)
                buffers = [plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] for plan in plans]
                # A page may touch a block more or less.
                assert max(buffers) <= 1.5 * min(buffers) + 5, buffers
                assert max(buffers) < 3 * LIMIT


def test_combined_filters_never_read_the_whole_table(many: Bench, database: Databases) -> None:
    plan = page_at(many, {"sku": "sku-3", "reason": "reason-3"}, "", ROWS)
    kinds = {str(node["Node Type"]) for node in nodes(plan)}
    assert "Seq Scan" not in kinds
    assert {kind for kind in kinds if "Index" in kind}


def test_one_release_with_its_seal_is_read_by_indexes(many: Bench, database: Databases) -> None:
    releases.seal(database)
    (row,) = database.rows("inventory", "SELECT max(id) AS id FROM inventory_release_events")
    with statements(many) as sent:
        assert many.service.release_event(row["id"])["seal"]
    plans = [explained(many, *one) for one in sent]
    assert len(plans) == 2
    for plan in plans:
        assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 10


def test_the_status_of_the_chain_is_read_without_reading_the_chain(many: Bench, database: Databases) -> None:
    releases.seal(database)
    with statements(many) as sent:
        assert many.service.release_chain()["waiting"] == 0
    plans = [explained(many, *one) for one in sent]
    assert sum(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] for plan in plans) < 20


VALUES = {
    "order_id": ["00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"],
    "sku": ["apple", "pear"],
    "reason": ["cancelled", "expired", "manual"],
    "user_id": ["ann", "bob"],
    "trace_id": ["a" * 32, "b" * 32],
}
# So few that many rows have the same time.
TIMES = [BEGAN + timedelta(seconds=n) for n in range(5)]
INSERT = (
    "INSERT INTO inventory_release_events"
    " (order_id, reservation_id, sku, quantity, reason, requested_by, roles, trace_id, released_at)"
    " VALUES (CAST(:order_id AS uuid), gen_random_uuid(), :sku, 1, :reason, :user_id, '{}', :trace_id, :released_at)"
)

a_row = some.fixed_dictionaries(
    {name: some.sampled_from(values) for name, values in VALUES.items()} | {"released_at": some.sampled_from(TIMES)}
)
a_filter = some.fixed_dictionaries(
    {},
    optional={
        name: some.sampled_from([*values, "nobody"] if name != "order_id" else values)
        for name, values in VALUES.items()
    }
    | {name: some.sampled_from([at.isoformat() for at in TIMES]) for name in ("from", "to")},
)


def fits(row: Mapping[str, Any], filters: Mapping[str, str]) -> bool:
    """Apply the filters as the contract describes them."""
    same = all(row[name] == filters[name] for name in VALUES if name in filters)
    since, until = (datetime.fromisoformat(filters[name]) if name in filters else None for name in ("from", "to"))
    return same and (since is None or row["released_at"] >= since) and (until is None or row["released_at"] < until)


def paged(read: Callable[[str | None], dict[str, Any]], between: Callable[[], None]) -> list[dict[str, Any]]:
    found, cursor = [], None
    while True:
        page = read(cursor)
        found += page["items"]
        assert len(found) < 100, "the pages never end"
        cursor = page["next_cursor"]
        if cursor is None:
            return found
        between()


def paged_back(read: Callable[[int], dict[str, Any]], queried: list[dict[str, Any]], limit: int) -> int:
    """Read the pages before the last release, up to the first page, and return their number."""
    place, pages = len(queried) - 1, 0
    while True:
        page = read(queried[place]["id"])
        pages += 1
        if page["is_first"]:
            assert page["items"] == queried[:limit]
            return pages
        assert page["items"] == queried[place - limit : place]
        place -= limit


@pytest.mark.parametrize("filters", [{}, {"sku": "apple"}])
@pytest.mark.parametrize("limit", [1, 4, 5, 40])
def test_pages_are_read_backwards_too(
    inventory: Bench, database: Databases, filters: dict[str, str], limit: int
) -> None:
    database.run("inventory", "TRUNCATE inventory_release_events, release_seals, release_exports")
    for number in range(26):  # many have the same time
        one = {name: values[number % 2] for name, values in VALUES.items()} | {"released_at": TIMES[number % 5]}
        database.run("inventory", INSERT, **one)
    service: InventoryService = inventory.service
    queried = paged(lambda cursor: service.release_events(filters, limit, cursor), lambda: None)
    pages = paged_back(lambda event_id: service.release_events_before(filters, limit, event_id), queried, limit)
    assert pages == max(1, -(-(len(queried) - 1) // limit))
    before = service.release_events_before(filters, limit, queried[-1]["id"])
    after = service.release_events(filters, limit, before["next_cursor"])["items"] if before["next_cursor"] else []
    place = queried.index(before["items"][-1]) + 1
    assert after == queried[place : place + limit]


@given(
    rows=some.lists(a_row, max_size=30),
    later=some.lists(a_row, min_size=1, max_size=5),
    filters=a_filter,
    limit=some.integers(1, 7),
)
@hypothesis(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_export_equals_the_query_at_its_start_whatever_is_written_meanwhile(
    inventory: Bench, database: Databases, rows: list[Any], later: list[Any], filters: dict[str, str], limit: int
) -> None:
    database.run("inventory", "TRUNCATE inventory_release_events, release_seals, release_exports")
    service: InventoryService = inventory.service

    def write(one: Mapping[str, Any]) -> None:
        database.run("inventory", INSERT, **one)

    for row in rows:
        write(row)
    queried = paged(lambda cursor: service.release_events(filters, limit, cursor), lambda: None)
    export_id = service.open_release_export(filters)["export_id"]
    for row in later:
        write(row)

    def meanwhile() -> None:
        write(later[0])
        service.seal()

    exported = paged(lambda cursor: service.release_export_page(export_id, limit, cursor), meanwhile)
    assert exported == queried
    assert len(exported) == sum(fits(row, filters) for row in rows)
    assert [(item["released_at"], item["id"]) for item in exported] == sorted(
        ((item["released_at"], item["id"]) for item in exported), reverse=True
    )
    assert service.release_events(filters, 1, include_total=True)["total"] == audit_count(inventory, filters)


def audit_count(inventory: Bench, filters: Mapping[str, str]) -> int:
    with inventory.sessions.read() as session:
        return pages.count(session, filters)
