"""The audit with the rows of years: every page costs the same, totals are fast, an export needs little memory.

A million rows with --long, else a hundredth. What is measured is printed: run it with -s for docs/audit.md.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session

from gateway.api.cursors import Cursors
from inventory_service.audit import pages
from shared.paging import encode_cursor
from tests.audit.support import EVENTS, begin, plant, proved, wait_sealed
from tests.e2e.system import System

pytestmark = pytest.mark.timeout(3600)

MOST_MB = 150
# A late page may cost this much more than the first: blocks are cold, and it may read a block more or less.
ABOUT = 1.5
# The limit of a statement is 5 s.
TOTALS_WITHIN_S = 4.0

FILTERS: list[dict[str, str]] = [{}, {"sku": "sku-3"}, {"reason": "expired"}, {"user_id": "user-1"}]
OFTEN = 20


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest, system: System) -> int:
    """Have this many sealed rows in the audit, with statistics as autovacuum would make them."""
    count = 1_000_000 if request.config.getoption("--long") else 10_000
    began = time.monotonic()
    plant(system, count)
    took = time.monotonic() - began
    system.databases.run("inventory", "VACUUM ANALYZE inventory_release_events")
    (there,) = system.databases.rows("inventory", "SELECT count(*) AS n FROM inventory_release_events")
    say(f"{there['n']} rows; what was missing of {count} was written and sealed in {took:.1f} s")
    return int(there["n"])


def say(words: str) -> None:
    print(f"\n  {words}", end="", flush=True)


def in_the_middle(system: System, filters: dict[str, str]) -> tuple[str, int]:
    """The cursor after the release in the middle of the set, and its id."""
    where = " AND ".join(f"{pages.FILTERS[name]} = '{value}'" for name, value in filters.items()) or "true"
    (row,) = system.databases.rows(
        "inventory",
        f"SELECT released_at, id FROM inventory_release_events WHERE {where} ORDER BY released_at DESC, id DESC LIMIT 1"
        f" OFFSET (SELECT count(*) / 2 FROM inventory_release_events WHERE {where})",
    )
    return encode_cursor([row["released_at"].isoformat(), row["id"]], filters), row["id"]


def explained(system: System, ask: Callable[[Session], Any]) -> dict[str, Any]:
    """The executed plan of the one statement that the service sends."""
    engine = system.databases.engines["inventory"]
    sent: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        sent.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    try:
        with Session(engine) as session:
            ask(session)
    finally:
        event.remove(engine, "before_cursor_execute", note)
    ((statement, parameters),) = sent
    with engine.connect() as connection:
        ((plan,),) = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters)
    return dict((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"])


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


def blocks(plan: dict[str, Any]) -> int:
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def test_a_late_page_costs_as_much_as_the_first(system: System, rows: int) -> None:
    flow = system.flow()
    for filters in FILTERS:
        deep, event_id = in_the_middle(system, filters)
        plans = {
            where: explained(system, partial(pages.page, filters=filters, limit=50, cursor=cursor))
            for where, cursor in (("first", None), ("deep", deep))
        }
        before = partial(pages.page_before, filters=filters, limit=50, event_id=event_id)
        plans["before"] = explained(system, before)
        for where, plan in plans.items():
            kinds = [node["Node Type"] for node in nodes(plan)]
            assert "Index Scan" in kinds, (where, filters, plan)
            assert not [kind for kind in kinds if "Sort" in kind or kind == "Seq Scan"], (where, filters, plan)
        assert blocks(plans["deep"]) <= ABOUT * blocks(plans["first"]), plans
        # It reads that release as well.
        assert blocks(plans["before"]) <= ABOUT * blocks(plans["first"]) + 4, plans

        signed = Cursors(system.settings.auth_keys, EVENTS)
        query = "&".join(f"{name}={value}" for name, value in filters.items())
        paths = {"first": f"{EVENTS}?{query}", "deep": f"{EVENTS}?{query}&cursor={signed.sign(deep)}"}
        took: dict[str, list[float]] = {where: [] for where in paths}
        for _ in range(OFTEN):
            for where, path in paths.items():
                began = time.perf_counter()
                assert len(flow.get(path, "auditor")["items"]) == 50
                took[where].append(1000 * (time.perf_counter() - began))
        first, middle = (statistics.median(took[where]) for where in paths)
        say(
            f"page of 50 by {query or 'no filter'}: first {first:.1f} ms, {blocks(plans['first'])} blocks;"
            f" deep {middle:.1f} ms, {blocks(plans['deep'])} blocks; ratio {middle / first:.2f}"
        )
        assert middle < 3 * first


def test_totals_and_counts_are_fast_enough(system: System, rows: int) -> None:
    flow = system.flow()
    for filters in FILTERS:
        query = "&".join(f"{name}={value}" for name, value in filters.items())
        began = time.perf_counter()
        page = flow.get(f"{EVENTS}?{query}&include_total=true&limit=1", "auditor")
        took = time.perf_counter() - began
        with Session(system.databases.engines["inventory"]) as session:
            began = time.perf_counter()
            days = pages.totals(session, filters)
            summed = time.perf_counter() - began
        assert sum(day["releases"] for day in days) == page["total"] > rows / 10
        say(f"by {query or 'no filter'}: {page['total']} counted in {took:.2f} s, totals in {summed:.2f} s")
        assert max(took, summed) < TOTALS_WITHIN_S
    assert flow.get(f"{EVENTS}?include_total=true&limit=1", "auditor")["total"] == rows


def test_an_offset_costs_only_the_rows_it_skips(system: System, rows: int) -> None:
    plan = explained(system, lambda session: pages.page(session, {}, 50, None, 9_000))
    kinds = [node["Node Type"] for node in nodes(plan)]
    assert "Index Scan" in kinds
    assert not [kind for kind in kinds if "Sort" in kind], plan
    (scan,) = [node for node in nodes(plan) if node["Node Type"] == "Index Scan"]
    assert scan["Actual Rows"] <= 9_051


@contextmanager
def memory(system: System, *names: str) -> Iterator[dict[str, float]]:
    """The peak resident memory of each process until the end of the block, in MB."""
    most: dict[str, float] = {}
    yield most
    for name in names:
        status = Path(f"/proc/{system.supervisor.pids()[name]}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
        most[name] = int(line.split()[1]) / 1024


def test_an_export_streams_every_row_in_constant_memory(system: System, rows: int) -> None:
    wait_sealed(system)
    names = ("gateway-0", "inventory-0", "ops-0")
    before = {name: psutil.Process(system.supervisor.pids()[name]).memory_info().rss / 2**20 for name in names}
    spent = {name: sum(psutil.Process(system.supervisor.pids()[name]).cpu_times()[:2]) for name in names}
    began = time.perf_counter()
    with memory(system, *names) as most, begin(system) as answer:
        file = b"".join(answer.iter_content(1024 * 1024))
        took = time.perf_counter() - began
    for name in names:
        process = psutil.Process(system.supervisor.pids()[name])
        spent[name] = sum(process.cpu_times()[:2]) - spent[name]
    assert proved(system, file)["rows"] == rows
    ids = {line.partition(b",")[0] for line in file.split(b"\r\n")}
    assert len(ids) == rows + len((b"id", b"manifest", b""))
    say(f"{rows} rows, {len(file) / 2**20:.0f} MB, exported in {took:.1f} s: {rows / took:.0f} rows/s")
    say("CPU: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in spent.items()))
    say("memory: " + ", ".join(f"{name} {before[name]:.0f} MB before, {most[name]:.0f} MB at most" for name in names))
    assert max(most.values()) < MOST_MB, most
