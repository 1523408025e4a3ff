"""The witness copies the heads of the chain into the ledger, and reports a head that is gone."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from ops.audit import ledger
from ops.audit import witness as witnessing
from ops.audit.witness import Witness
from ops.dlq.service_databases import ServiceDatabases
from ops.service import OpsService
from shared.config import Settings
from shared.edge.database import Sessions
from shared.errors import CannotWork
from tests import releases
from tests.databases import Databases
from tests.integration.support import Mail, container_of, until
from tests.integration.test_ops_service import asking


class Watcher:
    """A witness with what it reads and writes, as the service has it."""

    def __init__(self, settings: Settings) -> None:
        self.engine = create_engine(settings.database_url("ops"))
        self.databases = ServiceDatabases(settings, "tests")
        self.sessions = Sessions(
            sessionmaker(self.engine), sessionmaker(self.engine.execution_options(isolation_level="AUTOCOMMIT"))
        )
        self.witness = Witness()

    def look(self) -> int:
        return self.witness.run_once(self.sessions, self.databases)


@pytest.fixture
def watcher(settings: Settings, database: Databases) -> Iterator[Watcher]:
    watcher = Watcher(settings)
    yield watcher
    watcher.databases.close()
    watcher.engine.dispose()


def heads(database: Databases) -> list[tuple[int, str, int]]:
    rows = database.rows("ops", "SELECT seq, mac, total FROM audit_heads ORDER BY seq")
    return [(row["seq"], row["mac"], row["total"]) for row in rows]


def test_every_head_is_copied_once(watcher: Watcher, database: Databases, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witnessing, "HEADS_AT_ONCE", 2)  # so that there are several batches
    assert watcher.look() == 0
    releases.sealed(database, 2, 3, 1, 4, 1)
    assert watcher.look() == 5
    assert watcher.look() == 0
    assert heads(database) == [(seal.seq, seal.mac, seal.total) for seal in releases.chain(database)]
    assert watcher.witness.trouble is None


def test_two_witnesses_write_what_one_would(settings: Settings, watcher: Watcher, database: Databases) -> None:
    releases.sealed(database, 2, 3)
    watcher.look()
    with watcher.sessions.begin() as session:
        ledger.write_heads(session.connection(), releases.chain(database))
    assert len(heads(database)) == 2


def test_a_chain_that_became_shorter_is_told_and_stays_told(
    watcher: Watcher, database: Databases, caplog: pytest.LogCaptureFixture
) -> None:
    releases.sealed(database, 2, 3, 1)
    watcher.look()
    database.run("inventory", "DELETE FROM release_seals WHERE seq > 1")
    with caplog.at_level(logging.ERROR):
        watcher.look()
        watcher.look()
    assert watcher.witness.trouble == "the ledger knows seal 3, the chain ends at 1"
    assert caplog.text.count("the chain ends at 1") == 1, "said once in a while, not each second"


def test_a_chain_that_was_cut_and_has_grown_again_is_told(watcher: Watcher, database: Databases) -> None:
    releases.sealed(database, 2, 3)
    watcher.look()
    known = heads(database)
    database.run("inventory", "DELETE FROM release_seals WHERE seq = 2")
    releases.seal(database, limit=1)
    assert watcher.look() == 0
    assert watcher.witness.trouble == "the ledger knows another seal 2"
    assert heads(database) == known


def test_a_head_that_is_missing_in_the_middle_is_told(watcher: Watcher, database: Databases) -> None:
    releases.sealed(database, 2)
    watcher.look()
    releases.write(database, 1, 10)
    releases.seal(database)
    database.run("inventory", "DELETE FROM release_seals WHERE seq = 1")
    watcher.look()
    assert watcher.witness.trouble == "seal 1 is gone"


def test_trouble_that_was_mended_is_over(watcher: Watcher, database: Databases) -> None:
    releases.sealed(database, 2)
    watcher.look()
    database.run("ops", "UPDATE audit_heads SET seq = 2")
    watcher.look()
    assert watcher.witness.trouble
    database.run("ops", "UPDATE audit_heads SET seq = 1")
    watcher.look()
    assert watcher.witness.trouble is None


def test_a_database_that_is_away_is_no_trouble_of_the_chain(settings: Settings, watcher: Watcher) -> None:
    away = Settings(database_urls={"inventory": "postgresql+psycopg2://nobody:x@127.0.0.1:1/inventory"})
    watcher.databases = ServiceDatabases(away, "tests")
    with pytest.raises(CannotWork):
        watcher.look()
    assert watcher.witness.trouble is None


def test_the_service_tells_the_newest_head_and_how_it_was_verified(
    settings: Settings, watcher: Watcher, database: Databases, mail: Mail
) -> None:
    container = container_of(settings, OpsService, WEB_SERVER_ADDRESS="127.0.0.1:0")
    container.start()
    ask = asking(container)
    try:
        assert ask("audit_status") == {"head": None, "verification": None, "trouble": None}
        releases.sealed(database, 2, 3)
        head = until(lambda: (found := ask("audit_status")["head"]) and found["seq"] == 2 and found)
        assert (head["mac"], head["total"]) == (releases.chain(database)[1].mac, 5)
        for outcome in ("first", "second"):
            with watcher.sessions.begin() as session:
                figures = {"intact": True, "seals": 2, "rows": 5}
                ledger.write_verification(session.connection(), "bob", figures, outcome, datetime.now(UTC))
        told = ask("audit_status")["verification"]
        assert told.pop("finished_at")
        assert told == {"actor": "bob", "intact": True, "seals": 2, "rows": 5, "outcome": "second"}
        database.run("inventory", "DELETE FROM release_seals WHERE seq = 2")
        assert until(lambda: ask("audit_status")["trouble"]) == "the ledger knows seal 2, the chain ends at 1"
    finally:
        container.kill()
