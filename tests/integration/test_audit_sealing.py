"""Sealing: what is sealed when, by whom, and what is never sealed."""

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
    """The service's own methods, with no timer beside them."""
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


# --- what is sealed ---------------------------------------------------------------------------------------------------


def test_a_seal_covers_what_was_committed_and_counts_it(database: Databases) -> None:
    releases.write(database, 3)
    assert releases.seal_once(database) == 3
    assert releases.seal_once(database) == 0, "nothing is left"
    (seal,) = releases.chain(database)
    newest = releases.rows(database)[-1]
    assert (seal.seq, seal.rows, seal.total) == (1, 3, 3)
    assert (seal.until_xid, seal.until_id) == (newest["xid"], newest["id"])


def test_more_rows_than_a_seal_holds_go_into_several(settings: Settings, database: Databases) -> None:
    releases.write(database, 25)  # one transaction: it is cut in the middle
    assert releases.seal(database, limit=10) == 3
    assert [(seal.rows, seal.total) for seal in releases.chain(database)] == [(10, 10), (10, 20), (5, 25)]
    assert verified(settings, database).intact


def test_a_late_commit_lands_in_a_later_seal_and_nothing_is_found_wrong(
    settings: Settings, database: Databases
) -> None:
    with transaction(database) as slow:
        late = slow.execute(text(ONE), {"trace_id": "late"}).scalar_one()
        releases.write(database, 3)  # has a later xid and later ids, and is committed first
        assert releases.seal(database) == 0, "a row with a smaller xid may still come"
        slow.commit()
    releases.write(database, 1, 10)
    assert releases.seal(database, limit=3) == 2
    assert releases.rows(database)[0]["id"] == late
    assert verified(settings, database).intact


def test_what_was_settled_before_an_open_transaction_is_sealed_meanwhile(
    settings: Settings, database: Databases
) -> None:
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


# --- who seals --------------------------------------------------------------------------------------------------------


def sealing(database: Databases) -> Session:
    return Session(database.engines["inventory"].execution_options(isolation_level="READ COMMITTED"))


def test_a_second_sealer_leaves_it_to_the_first_and_does_not_wait(settings: Settings, database: Databases) -> None:
    releases.write(database, 3)
    with sealing(database) as first, eventlet.Timeout(10):
        assert sealing_chain.seal_once(first, releases.KEY) == 3  # and is not committed yet
        assert releases.seal_once(database) == 0
        first.commit()
    assert [seal.rows for seal in releases.chain(database)] == [3]
    assert verified(settings, database).intact


def test_sealers_side_by_side_make_one_chain(settings: Settings, database: Databases) -> None:
    releases.write(database, 200)
    sealers = [eventlet.spawn(releases.seal, database, releases.KEY, 7) for _ in range(4)]
    for sealer in sealers:
        sealer.wait()
    releases.seal(database, limit=7)
    assert sum(seal.rows for seal in releases.chain(database)) == 200
    assert verified(settings, database).intact


def test_a_frozen_sealer_loses_its_turn_and_can_do_no_harm_when_it_wakes(
    settings: Settings, database: Databases
) -> None:
    releases.write(database, 3)
    with sealing(database) as frozen:
        assert sealing_chain.seal_once(frozen, releases.KEY, limit=1) == 1
        assert until(lambda: releases.seal_once(database)) == 3
        with pytest.raises(DBAPIError):
            frozen.commit()
    assert [seal.rows for seal in releases.chain(database)] == [3]
    assert verified(settings, database).intact


# --- what is never sealed ---------------------------------------------------------------------------------------------


def restore_elsewhere(database: Databases) -> None:
    """As a dump restored into a cluster whose transaction ids are far behind."""
    database.run("inventory", "UPDATE release_seals SET until_xid = until_xid + 1000000")
    database.run("inventory", "UPDATE inventory_release_events SET xid = xid + 1000000")


def test_nothing_is_sealed_where_transaction_ids_fell_behind_the_chain(
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
    assert [record.getMessage() for record in caplog.records] == [sealing_chain.IDS_FELL_BACK], "once in a while"
    told = inventory.release_chain()
    assert (told["trouble"], told["seals"], told["waiting"]) == (sealing_chain.IDS_FELL_BACK, 1, 0)
    assert gauge(AUDIT_TROUBLE) == 1
    with pytest.raises(CannotWork, match="transaction ids are behind"):
        inventory.open_release_export({})


def test_rows_of_transactions_to_come_are_told_though_nothing_was_sealed(
    inventory: InventoryService, database: Databases
) -> None:
    releases.write(database, 3)
    restore_elsewhere(database)
    with pytest.raises(CannotWork, match="transaction ids are behind"):
        releases.seal_once(database)
    told = inventory.release_chain()
    assert (told["trouble"], told["seals"], told["waiting"]) == (sealing_chain.IDS_FELL_BACK, 0, 3)


def test_trouble_that_is_over_is_not_told_and_is_news_when_it_comes_again(
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


# --- the service ------------------------------------------------------------------------------------------------------


def test_inventory_does_not_start_without_a_key_and_others_do(settings: Settings) -> None:
    keyless = replace(settings, audit_keys=())
    with pytest.raises(ConfigurationFault, match=r"^AUDIT_KEY is not set$"):
        nameko_config(keyless, "inventory")
    for service in ("gateway", "order", "payment", "auth", "ops"):
        nameko_config(keyless, service)


def test_the_timer_seals_all_that_waits_and_counts_what_did(
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


def test_a_timer_that_fails_is_logged_and_seals_the_next_time(
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


def test_a_release_is_found_with_the_seal_that_covers_it(inventory: InventoryService, database: Databases) -> None:
    releases.sealed(database, 3, 2)
    releases.write(database, 1, 10)
    found = [inventory.release_event(row["id"])["seal"] for row in releases.rows(database)]
    assert [seal and seal["seq"] for seal in found] == [1, 1, 1, 2, 2, None]
    with pytest.raises(NotFound):
        inventory.release_event(0)


# --- an export begins -------------------------------------------------------------------------------------------------


def test_an_export_seals_what_is_committed_before_it_begins(inventory: InventoryService, database: Databases) -> None:
    releases.write(database, 3)
    opened = inventory.open_release_export({})
    assert opened["sealed_to"] == 1
    assert len(inventory.release_export_page(opened["export_id"], 10)["items"]) == 3


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often an export has looked whether it must wait."""
    looked: list[int] = []

    def is_open_below(session: Session, xid: int) -> bool:
        looked.append(xid)
        return asked(session, xid)

    asked = sealing_chain.is_open_below
    monkeypatch.setattr(sealing_chain, "is_open_below", is_open_below)
    return looked


def test_an_export_waits_for_a_transaction_that_was_open_when_it_began(
    inventory: InventoryService, database: Databases, looks: list[int]
) -> None:
    with transaction(database) as slow:
        slow.execute(text(ONE), {"trace_id": "late"})
        releases.write(database, 2, 10)
        export = eventlet.spawn(inventory.open_release_export, {})
        until(lambda: len(looks) > 2)
        slow.commit()
    assert len(inventory.release_export_page(export.wait()["export_id"], 10)["items"]) == 3


def test_an_export_does_not_wait_for_ever(
    inventory: InventoryService, database: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inventory_service.audit.entrypoints.SEAL_WAIT_S", 0.2)
    releases.write(database, 3)
    with transaction(database) as slow, eventlet.Timeout(10):
        slow.execute(text(ONE), {"trace_id": "late"})
        releases.write(database, 2, 10)
        opened = inventory.open_release_export({})
        slow.rollback()
    assert len(inventory.release_export_page(opened["export_id"], 10)["items"]) == 3, "what was settled before"


def test_an_export_is_refused_while_many_rows_are_not_sealed_yet(
    inventory: InventoryService, database: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inventory_service.audit.entrypoints.BACKLOG_WAIT_S", 0.2)
    releases.write(database, 3)
    with sealing(database) as other:  # somebody else seals, and is not done
        sealing_chain.seal_once(other, releases.KEY)
        with pytest.raises(CannotWork, match="being sealed"):
            inventory.open_release_export({})
        other.commit()
    assert inventory.open_release_export({})["sealed_to"] == 1
