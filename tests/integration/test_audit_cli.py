"""`ecom audit` as an operator types it: its output, its records and its exit codes."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import pytest

from inventory_service.audit import exports
from ops.audit import ledger
from shared.events import Identity
from tests import releases
from tests.commands import Ended, ecom_here
from tests.databases import Databases
from tests.integration.test_audit_sealing import sealing


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIT_KEY", f"{releases.OTHER_KEY},{releases.KEY}")


@pytest.fixture
def chain(database: Databases) -> list[Any]:
    """A chain of three seals, all of them witnessed."""
    releases.sealed(database, 3, 2, 4)
    with database.connect("ops") as connection:
        ledger.write_heads(connection, releases.chain(database))
    return releases.chain(database)


def audit_verify(*words: str, code: int = 0) -> Ended:
    return ecom_here("audit", "verify", *words, code=code)


def cut(database: Databases) -> None:
    database.run(
        "inventory", "DELETE FROM inventory_release_events WHERE id > :id", id=releases.rows(database)[4]["id"]
    )
    database.run("inventory", "DELETE FROM release_seals WHERE seq = 3")


def test_people_are_told_that_it_is_intact(chain: list[Any]) -> None:
    said = audit_verify()
    assert said.out.splitlines() == [
        "intact: 3 seals over 9 rows",
        f"head: seal 3, {chain[-1].mac}",
        "rows without seal: 0; seals that the ledger does not know: 0",
    ]
    assert said.err == ""


def test_people_are_told_what_is_wrong_and_where(chain: list[Any], database: Databases) -> None:
    ids = [row["id"] for row in releases.rows(database)]
    database.run("inventory", "UPDATE inventory_release_events SET sku = 'pear' WHERE id = :id", id=ids[1])
    cut(database)
    altered, gone, *_, summary, _, _ = audit_verify(code=1).out.splitlines()
    assert altered.startswith(f"fault: seal 1, rows {ids[0]} to {ids[2]} until 20")
    assert altered.endswith(": its rows or the seal itself were altered")
    assert gone.startswith("fault: seal 3 after 20")
    assert gone.endswith(": the ledger knows seal 3, the chain ends at 2: 1 seal with 4 rows cut off")
    assert summary == "2 faults: 2 seals over 5 rows"


def test_programs_are_told_the_same(chain: list[Any], database: Databases) -> None:
    intact = audit_verify("--json").answer
    assert (intact["intact"], intact["seals"], intact["rows"], intact["last"]) == (True, 3, 9, 3)
    assert (intact["head"], intact["faults"], intact["waiting"], intact["unwitnessed"]) == (chain[-1].mac, [], 0, 0)
    cut(database)
    broken = audit_verify("--json", code=1).answer
    (fault,) = broken["faults"]
    assert (broken["intact"], broken["found"], fault["first_seal"], fault["last_seal"]) == (False, 1, 3, 3)
    assert datetime.fromisoformat(fault["after"]) < datetime.fromisoformat(fault["until"])


def test_how_it_ended_is_written_down_with_who_did_it(chain: list[Any], database: Databases) -> None:
    audit_verify("--actor", "ann")
    cut(database)
    audit_verify(code=1)
    first, second = database.rows("ops", "SELECT * FROM audit_verifications ORDER BY verification_id")
    assert (first["actor"], first["intact"], first["seals"], first["rows"]) == ("ann", True, 3, 9)
    assert first["outcome"] == "intact: 3 seals over 9 rows"
    assert first["started_at"] < first["finished_at"]
    assert "@" in second["actor"]
    assert (second["intact"], second["seals"], second["rows"]) == (False, 2, 5)
    assert second["outcome"].startswith("1 fault: 2 seals over 5 rows; first: seal 3 after ")


def test_an_empty_audit_is_intact(database: Databases) -> None:
    assert audit_verify().out.splitlines()[0] == "intact: 0 seals over 0 rows"


def test_a_key_that_is_not_there_is_told(chain: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIT_KEY", releases.OTHER_KEY)
    assert "which AUDIT_KEY does not hold" in audit_verify(code=1).out


def test_a_command_that_cannot_work_exits_3_with_one_line(database: Databases, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INVENTORY_DATABASE_URL", "postgresql://a:b@127.0.0.1:1/c")
    said = audit_verify(code=3)
    assert said.err.startswith("ecom: the database of inventory cannot be used: ")
    assert len(said.err.splitlines()) == 1
    assert database.rows("ops", "SELECT 1 FROM audit_verifications") == []


def test_history_tells_who_verified_and_who_exported_newest_first(chain: list[Any], database: Databases) -> None:
    audit_verify("--actor", "ann")
    with sealing(database) as session, session.begin():
        done = exports.open_export(session, {"sku": "sku-1"}, Identity("bob", ("auditor",)))
        exports.open_export(session, {}, Identity("carl", ("auditor",)))
    with sealing(database) as session, session.begin():
        exports.close_export(session, UUID(done["export_id"]), 2, "ab12", releases.KEY)
    audit_verify("--actor", "dora")
    found = ecom_here("audit", "history", "--json").answer["history"]
    assert [(one["kind"], one["actor"]) for one in found if one["actor"] in ("ann", "dora")] == [
        ("verification", "dora"),
        ("verification", "ann"),
    ]
    told = {one["actor"]: one["outcome"] for one in found}
    assert told == {
        "dora": "intact: 3 seals over 9 rows",
        "carl": "everything; not finished",
        "bob": "2 rows of sku sku-1, up to seal 3; sha256 ab12",
        "ann": "intact: 3 seals over 9 rows",
    }
    assert [one["started_at"] for one in found] == sorted((one["started_at"] for one in found), reverse=True)
    said = ecom_here("audit", "history", "--max", "1").out
    assert "dora" in said
    assert "carl" not in said
