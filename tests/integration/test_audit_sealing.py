"""Sealing the release audit: which rows are sealed and when, by which process, and when sealing is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import eventlet
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from inventory_service.audit import chain as sealing_chain
from inventory_service.service import InventoryService
from ops.audit.chain import Verdict, verify
from ops.dlq.service_databases import ServiceDatabases
from shared.config import Settings
from shared.edge.runner import nameko_config
from shared.errors import CannotWork, ConfigurationFault, NotFound
from shared.logs import Reminder
from shared.metrics import AUDIT_OLDEST, AUDIT_TROUBLE, AUDIT_UNSEALED
from tests import releases
from tests.databases import Databases
from tests.integration.support import Bench, Mail, container_of, until

ONE = (
    "INSERT INTO inventory_release_events"
    " (order_id, reservation_id, sku, quantity, reason, requested_by, roles, trace_id)"
    " VALUES (gen_random_uuid(), gen_random_uuid(), 'apple', 1, 'manual', 'ann', '{}', :trace_id) RETURNING id"
)


@pytest.fixture
def inventory(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> InventoryService:
    """The service without its timers, so that tests call its methods themselves."""
    made = bench("inventory")
    made.service.settings = replace(made._container.config["settings"], audit_keys=(releases.KEY,))
    monkeypatch.setattr(InventoryService, "reminder", Reminder())
    service: InventoryService = made.service
    return service


def transaction(database: Databases) -> Any:
    """A connection whose transaction stays open until it is committed."""
    return database.engines["inventory"].execution_options(isolation_level="READ COMMITTED").connect()


def verified(settings: Settings, database: Databases) -> Verdict:
    databases = ServiceDatabases(settings, "tests")
    with databases.read("inventory") as chain, database.connect("ops") as witness:
        verdict = verify(chain, witness, [releases.KEY])
    databases.close()
    return verdict


def gauge(metric: Any) -> float:
    return float(metric.labels("inventory_service")._value.get())


def test_a_seal_covers_what_was_committed_and_counts_it(database: Databases) -> None:
    releases.write(database, 3)
    assert releases.seal_once(database) == 3
    assert releases.seal_once(database) == 0, "every row is sealed"
    (seal,) = releases.chain(database)
    newest = releases.rows(database)[-1]
    assert (seal.seq, seal.rows, seal.total) == (1, 3, 3)
    assert (seal.until_xid, seal.until_id) == (newest["xid"], newest["id"])


def test_more_rows_than_a_seal_holds_go_into_several(settings: Settings, database: Databases) -> None:
    releases.write(database, 25)  # one transaction, split over three seals
    assert releases.seal(database, limit=10) == 3
    assert [(seal.rows, seal.total) for seal in releases.chain(database)] == [(10, 10), (10, 20), (5, 25)]
    assert verified(settings, database).intact


def test_a_late_commit_lands_in_a_later_seal_and_the_chain_stays_intact(
    settings: Settings, database: Databases
) -> None:
    with transaction(database) as slow:
        late = slow.execute(text(ONE), {"trace_id": "late"}).scalar_one()
        releases.write(database, 3)  # larger xid and ids, but committed first
        assert releases.seal(database) == 0, "a row with a smaller xid may still come"
        slow.commit()
    releases.write(database, 1, 10)
    assert releases.seal(database, limit=3) == 2
    assert releases.rows(database)[0]["id"] == late
    assert verified(settings, database).intact


def test_rows_committed_before_an_open_transaction_began_are_sealed(settings: Settings, database: Databases) -> None:
    releases.write(database, 2)
    with transaction(database) as slow:
        slow.execute(text(ONE), {"trace_id": "late"})
        releases.write(database, 3, 10)
        assert releases.seal(database) == 1
        assert releases.chain(database)[-1].total == 2
        slow.rollback()
    releases.seal(database)
    assert releases.chain(database)[-1].total == 5
    assert verified(settings, database).intact


def test_a_row_of_a_savepoint_has_the_id_of_the_whole_transaction(settings: Settings, database: Databases) -> None:
    with transaction(database) as connection:
        with connection.begin_nested():
            connection.execute(text(ONE), {"trace_id": "inner"})
        connection.execute(text(ONE), {"trace_id": "outer"})
        releases.write(database, 1)
        assert releases.seal(database) == 0
        connection.commit()
    assert releases.seal(database) == 1
    assert len({row["xid"] for row in releases.rows(database)}) == 2
    assert verified(settings, database).intact


def sealing(database: Databases) -> Session:
    return Session(database.engines["inventory"].execution_options(isolation_level="READ COMMITTED"))


def test_a_second_sealer_skips_its_turn_without_waiting(settings: Settings, database: Databases) -> None:
    releases.write(database, 3)
    with sealing(database) as first, eventlet.Timeout(10):
        assert sealing_chain.seal_once(first, releases.KEY) == 3  # not committed yet
        assert releases.seal_once(database) == 0
        first.commit()
    assert [seal.rows for seal in releases.chain(database)] == [3]
    assert verified(settings, database).intact


def test_parallel_sealers_make_one_chain(settings: Settings, database: Databases) -> None:
    releases.write(database, 200)
    sealers = [eventlet.spawn(releases.seal, database, releases.KEY, 7) for _ in range(4)]
    for sealer in sealers:
        sealer.wait()
    releases.seal(database, limit=7)
    assert sum(seal.rows for seal in releases.chain(database)) == 200
    assert verified(settings, database).intact


def test_a_frozen_sealer_loses_its_lock_and_cannot_commit_later(settings: Settings, database: Databases) -> None:
    releases.write(database, 3)
    with sealing(database) as frozen:
        assert sealing_chain.seal_once(frozen, releases.KEY, limit=1) == 1
        assert until(lambda: releases.seal_once(database)) == 3
        with pytest.raises(DBAPIError):
            frozen.commit()
    assert [seal.rows for seal in releases.chain(database)] == [3]
    assert verified(settings, database).intact


def restore_elsewhere(database: Databases) -> None:
    """Change the rows as if a dump had been restored into a cluster with much lower transaction ids."""
    database.run("inventory", "UPDATE release_seals SET until_xid = until_xid + 1000000")
    database.run("inventory", "UPDATE inventory_release_events SET xid = xid + 1000000")


def test_nothing_is_sealed_if_transaction_ids_are_behind_the_chain(
    inventory: InventoryService, database: Databases, caplog: pytest.LogCaptureFixture
) -> None:
    releases.sealed(database, 3)
    restore_elsewhere(database)
    database.run("inventory", ONE.replace(":trace_id", "'new'"))
    with pytest.raises(CannotWork, match="transaction ids are behind"):
        releases.seal_once(database)
    with caplog.at_level(logging.ERROR):
        inventory.seal()
        inventory.seal()
    assert [record.getMessage() for record in caplog.records] == [sealing_chain.IDS_FELL_BACK], (
        "logged once, not at every run"
    )
    status = inventory.release_chain()
    assert (status["trouble"], status["seals"], status["waiting"]) == (sealing_chain.IDS_FELL_BACK, 1, 0)
    assert gauge(AUDIT_TROUBLE) == 1
    with pytest.raises(CannotWork, match="transaction ids are behind"):
        inventory.open_release_export({})


def test_rows_of_future_transactions_are_reported_before_the_first_seal(
    inventory: InventoryService, database: Databases
) -> None:
    releases.write(database, 3)
    restore_elsewhere(database)
    with pytest.raises(CannotWork, match="transaction ids are behind"):
        releases.seal_once(database)
    status = inventory.release_chain()
    assert (status["trouble"], status["seals"], status["waiting"]) == (sealing_chain.IDS_FELL_BACK, 0, 3)


def test_a_solved_problem_is_cleared_and_logged_again_when_it_returns(
    inventory: InventoryService, database: Databases, caplog: pytest.LogCaptureFixture
) -> None:
    releases.sealed(database, 3)
    database.run("inventory", "UPDATE release_seals SET until_xid = until_xid + 1000000")
    inventory.seal()
    assert (gauge(AUDIT_TROUBLE), inventory.release_chain()["trouble"]) == (1, sealing_chain.IDS_FELL_BACK)
    database.run("inventory", "UPDATE release_seals SET until_xid = until_xid - 1000000")
    releases.write(database, 2, 10)
    inventory.seal()
    assert gauge(AUDIT_TROUBLE) == 0
    assert inventory.release_chain()["trouble"] is None
    assert releases.chain(database)[-1].total == 5
    database.run("inventory", "UPDATE release_seals SET until_xid = until_xid + 1000000")
    inventory.seal()
    assert caplog.text.count(sealing_chain.IDS_FELL_BACK) == 2


def test_only_inventory_refuses_to_start_without_an_audit_key(settings: Settings) -> None:
    keyless = replace(settings, audit_keys=())
    with pytest.raises(ConfigurationFault, match=r"^AUDIT_KEY is not set$"):
        nameko_config(keyless, "inventory")
    for service in ("gateway", "order", "payment", "auth", "ops"):
        nameko_config(keyless, service)


def test_the_timer_seals_all_waiting_rows_and_sets_the_metrics(
    inventory: InventoryService, database: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing_chain, "ROWS_PER_SEAL", 10)
    monkeypatch.setattr(sealing_chain.seal_once, "__defaults__", (10,))
    releases.write(database, 25)
    began = datetime(2026, 1, 1, tzinfo=UTC)
    inventory.seal()
    assert [seal.rows for seal in releases.chain(database)] == [10, 10, 5]
    assert gauge(AUDIT_UNSEALED) == 25
    assert gauge(AUDIT_OLDEST) == pytest.approx((datetime.now(UTC) - began).total_seconds(), abs=60)
    inventory.seal()
    assert (gauge(AUDIT_UNSEALED), gauge(AUDIT_OLDEST)) == (0, 0)


def test_a_failed_run_of_the_timer_is_logged_and_the_next_run_seals(
    settings: Settings, database: Databases, mail: Mail, caplog: pytest.LogCaptureFixture
) -> None:
    container = container_of(settings, "inventory", WEB_SERVER_ADDRESS="127.0.0.1:0")
    database.run("inventory", "ALTER TABLE release_seals RENAME mac TO lost")
    try:
        releases.write(database, 3)
        container.start()
        until(lambda: "UndefinedColumn" in caplog.text)
    finally:
        database.run("inventory", "ALTER TABLE release_seals RENAME lost TO mac")
    try:
        assert until(lambda: releases.chain(database))[0].rows == 3
    finally:
        container.kill()


def test_a_release_is_returned_with_the_seal_that_covers_it(inventory: InventoryService, database: Databases) -> None:
    releases.sealed(database, 3, 2)
    releases.write(database, 1, 10)
    found = [inventory.release_event(row["id"])["seal"] for row in releases.rows(database)]
    assert [seal and seal["seq"] for seal in found] == [1, 1, 1, 2, 2, None]
    with pytest.raises(NotFound):
        inventory.release_event(0)


def test_an_export_seals_all_committed_rows_before_it_begins(inventory: InventoryService, database: Databases) -> None:
    releases.write(database, 3)
    opened = inventory.open_release_export({})
    assert opened["sealed_to"] == 1
    assert len(inventory.release_export_page(opened["export_id"], 10)["items"]) == 3


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every check of an export whether it must wait."""
    checks_made: list[int] = []

    def is_open_below(session: Session, xid: int) -> bool:
        checks_made.append(xid)
        return original(session, xid)

    original = sealing_chain.is_open_below
    monkeypatch.setattr(sealing_chain, "is_open_below", is_open_below)
    return checks_made


def test_an_export_waits_for_transactions_that_were_open_when_it_began(
    inventory: InventoryService, database: Databases, checks: list[int]
) -> None:
    with transaction(database) as slow:
        slow.execute(text(ONE), {"trace_id": "late"})
        releases.write(database, 2, 10)
        export = eventlet.spawn(inventory.open_release_export, {})
        until(lambda: len(checks) > 2)
        slow.commit()
    assert len(inventory.release_export_page(export.wait()["export_id"], 10)["items"]) == 3


def test_an_export_stops_waiting_for_an_open_transaction_after_seal_wait_s(
    inventory: InventoryService, database: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inventory_service.audit.entrypoints.SEAL_WAIT_S", 0.2)
    releases.write(database, 3)
    with transaction(database) as slow, eventlet.Timeout(10):
        slow.execute(text(ONE), {"trace_id": "late"})
        releases.write(database, 2, 10)
        opened = inventory.open_release_export({})
        slow.rollback()
    assert len(inventory.release_export_page(opened["export_id"], 10)["items"]) == 3, "the rows committed before"


def test_an_export_is_refused_while_committed_rows_stay_unsealed(
    inventory: InventoryService, database: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inventory_service.audit.entrypoints.BACKLOG_WAIT_S", 0.2)
    releases.write(database, 3)
    with sealing(database) as other:  # another process is sealing
        sealing_chain.seal_once(other, releases.KEY)
        with pytest.raises(CannotWork, match="being sealed"):
            inventory.open_release_export({})
        other.commit()
    assert inventory.open_release_export({})["sealed_to"] == 1
