"""A verification finds every change of the chain that bypassed the services, once, and names its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine

from inventory_service.audit.chain import sealed_values
from inventory_service.models import ReleaseEvent, SealRow
from ops.audit import chain as chains
from ops.audit import ledger
from ops.audit.chain import Fault, Verdict, verify
from ops.dlq.service_databases import ServiceDatabases
from shared.config import Settings
from shared.seals import Place, key_id, seal_mac
from tests import releases
from tests.databases import Databases

Verify = Callable[..., Verdict]

NEWEST = "SELECT * FROM inventory_release_events ORDER BY xid DESC, id DESC LIMIT :n"

# Five seals over rows 0 to 13, and where each ends.
COUNTS = (3, 2, 4, 1, 4)


@pytest.fixture
def ops(settings: Settings) -> Iterator[Engine]:
    engine = create_engine(settings.database_url("ops"), isolation_level="AUTOCOMMIT")
    yield engine
    engine.dispose()


@pytest.fixture
def verified(settings: Settings, database: Databases, ops: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Verify]:
    """Verifies in small pages, so that they end everywhere."""
    monkeypatch.setattr(chains, "SEALS_AT_ONCE", 2)
    monkeypatch.setattr(chains, "ROWS_AT_ONCE", 3)
    databases = ServiceDatabases(settings, "tests")

    def verified(*keys: str, **how: Any) -> Verdict:
        with databases.read("inventory") as chain, ops.connect() as witness:
            return verify(chain, witness, keys or (releases.KEY,), **how)

    yield verified
    databases.close()


@pytest.fixture
def chain(database: Databases, ops: Engine) -> list[Any]:
    """A chain of five seals, all of them witnessed; its seals."""
    releases.sealed(database, *COUNTS)
    with ops.connect() as witness:
        ledger.write_heads(witness, releases.chain(database))
    return releases.chain(database)


def ids(database: Databases) -> list[int]:
    return [row["id"] for row in releases.rows(database)]


def only(verdict: Verdict) -> Fault:
    assert not verdict.intact
    assert verdict.found == 1, verdict.faults
    return verdict.faults[0]


def test_nothing_is_intact(verified: Verify) -> None:
    assert verified().sentence() == "intact: 0 seals over 0 rows"


def test_an_untouched_chain_is_intact(verified: Verify, chain: list[Any]) -> None:
    heard: list[tuple[int, int]] = []
    verdict = verified(seen=lambda rows, of: heard.append((rows, of)))
    assert (verdict.intact, verdict.seals, verdict.rows, verdict.head) == (True, 5, 14, chain[-1].mac)
    assert (verdict.waiting, verdict.unwitnessed, verdict.warnings) == (0, 0, [])
    assert heard == [(5, 14), (10, 14), (14, 14)]


def test_rows_not_yet_sealed_or_witnessed_are_counted_and_no_fault(
    verified: Verify, chain: list[Any], database: Databases
) -> None:
    database.run("ops", "DELETE FROM audit_heads WHERE seq = 5")
    database.run(
        "inventory",
        "INSERT INTO inventory_release_events"
        " (order_id, reservation_id, sku, quantity, reason, requested_by, roles, trace_id)"
        " VALUES (gen_random_uuid(), gen_random_uuid(), 'apple', 1, 'manual', 'ann', '{}', 't')",
    )
    verdict = verified()
    assert (verdict.intact, verdict.waiting, verdict.unwitnessed, verdict.warnings) == (True, 1, 1, [])


def test_a_late_seal_is_a_warning(
    verified: Verify, chain: list[Any], database: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chains, "TIMEOUT_S", -1)
    database.run("ops", "DELETE FROM audit_heads WHERE seq = 4")
    releases.write(database, 2, 14)  # of January
    verdict = verified()
    assert verdict.intact
    unwitnessed, unsealed = verdict.warnings
    assert unwitnessed.startswith("the ledger does not know seal 4, which is ")
    assert unsealed.startswith("2 rows without seal, the oldest for ")


def test_a_chain_of_two_keys_is_intact_for_who_has_both(verified: Verify, database: Databases) -> None:
    releases.sealed(database, 3, 2)
    releases.write(database, 2, 5)
    releases.seal(database, releases.OTHER_KEY)
    assert verified(releases.OTHER_KEY, releases.KEY).intact
    for key, theirs in ((releases.KEY, [(3, 3)]), (releases.OTHER_KEY, [(1, 1), (2, 2)])):
        verdict = verified(key)
        assert [fault.seals for fault in verdict.faults] == theirs
        assert all("AUDIT_KEY does not hold" in fault.what for fault in verdict.faults)


def test_rows_are_written_during_a_verification_and_it_stays_intact(
    verified: Verify, chain: list[Any], database: Databases
) -> None:
    def meanwhile(rows: int, of: int) -> None:
        releases.write(database, 2, 100 + rows * 10)
        releases.seal(database)

    verdict = verified(seen=meanwhile)
    assert (verdict.intact, verdict.seals, verdict.rows) == (True, 5, 14)
    assert verified().seals == 8


ONE_DIGIT = "(translate(left({0}::text, 1), '0123456789abcdef', '123456789abcdef0') || substr({0}::text, 2))::uuid"
CHANGES = {
    "id": "id - 1000",
    "order_id": ONE_DIGIT.format("order_id"),
    "reservation_id": ONE_DIGIT.format("reservation_id"),
    "sku": "sku || ' '",
    "quantity": "quantity + 1",
    "reason": "initcap(reason)",
    "requested_by": "initcap(requested_by)",
    "roles": "roles || '{admin}'::text[]",
    "trace_id": "reverse(trace_id)",
    "released_at": "released_at + interval '1 microsecond'",
    "xid": "xid + 1",
}


def test_every_column_is_changed_below() -> None:
    assert set(CHANGES) == set(ReleaseEvent.__table__.c.keys())


@pytest.mark.parametrize("column", CHANGES)
def test_a_changed_byte_of_a_row_is_found_where_it_is(
    verified: Verify, chain: list[Any], database: Databases, column: str
) -> None:
    first, victim, last = (ids(database)[place] for place in (5, 6, 8))  # of the third seal
    change = f"UPDATE inventory_release_events SET {column} = {CHANGES[column]} WHERE id = :id"
    assert database.run("inventory", change, id=victim) == 1
    verdict = verified()
    fault = verdict.faults[0]
    assert (fault.seals, fault.after, fault.until) == ((3, 3), chain[1].sealed_at, chain[2].sealed_at)
    if column == "xid":  # it now stands under the next seal
        assert [one.what for one in verdict.faults] == [
            "sealed were 4 rows, there are 3: some were deleted",
            "sealed were 1 row, there are 2: some were inserted",
        ]
    else:
        assert verdict.found == 1
        assert fault.what == "its rows or the seal itself were altered"
        assert fault.ids == (victim - 1000 if column == "id" else first, last)


@pytest.mark.parametrize("moment", ["infinity", "20000-01-01T00:00:00Z", "0044-03-15T12:00:00Z BC"])
def test_a_time_that_python_has_not_is_found_like_any_other_change(
    verified: Verify, chain: list[Any], database: Databases, moment: str
) -> None:
    change = "UPDATE inventory_release_events SET released_at = CAST(:moment AS timestamptz) WHERE id = :id"
    database.run("inventory", change, moment=moment, id=ids(database)[3])
    assert only(verified()).seals == (2, 2)
    database.run(
        "inventory", "UPDATE release_seals SET sealed_at = CAST(:moment AS timestamptz) WHERE seq = 5", moment=moment
    )
    assert [fault.seals for fault in verified().faults] == [(2, 2), (5, 5)]


def test_a_deleted_row_is_found_where_it_was(verified: Verify, chain: list[Any], database: Databases) -> None:
    first, victim, last = (ids(database)[place] for place in (5, 6, 8))
    database.run("inventory", "DELETE FROM inventory_release_events WHERE id = :id", id=victim)
    fault = only(verified())
    assert fault.seals == (3, 3)
    assert fault.ids == (first, last)
    assert fault.what == "sealed were 4 rows, there are 3: some were deleted"


def test_all_rows_of_a_seal_deleted_are_found(verified: Verify, chain: list[Any], database: Databases) -> None:
    database.run("inventory", "DELETE FROM inventory_release_events WHERE id = ANY(:ids)", ids=ids(database)[3:5])
    fault = only(verified())
    assert (fault.seals, fault.ids) == ((2, 2), None)


@pytest.mark.parametrize("place", [0, 6, 13])
def test_a_row_inserted_under_a_seal_is_found(
    verified: Verify, chain: list[Any], database: Databases, place: int
) -> None:
    columns = "reservation_id, order_id, sku, quantity, reason, requested_by, roles, trace_id, released_at, xid"
    copied = columns.replace("reservation_id", "gen_random_uuid()", 1)
    row = releases.rows(database)[place]
    copy = f"INSERT INTO inventory_release_events (id, {columns}) OVERRIDING SYSTEM VALUE SELECT 0, {copied}"
    database.run("inventory", f"{copy} FROM inventory_release_events WHERE id = :id", id=row["id"])
    fault = only(verified())
    seal = 1 + sum(place >= sum(COUNTS[:n]) for n in range(1, 5))
    assert fault.seals == (seal, seal)
    assert fault.what.endswith("some were inserted")


def test_rows_replaced_by_as_many_others_are_found(verified: Verify, chain: list[Any], database: Databases) -> None:
    swap = "UPDATE inventory_release_events SET id = CASE id WHEN :a THEN -1 ELSE :a END WHERE id IN (:a, :b)"
    first, second = ids(database)[5:7]
    database.run("inventory", swap, a=first, b=second)
    assert only(verified()).seals == (3, 3)


SEAL_CHANGES = {
    "seq": "seq + 100",
    "until_xid": "until_xid - 1",
    "until_id": "until_id - 1",
    "rows": "rows + 1",
    "total": "total + 1",
    "sealed_at": "sealed_at + interval '1 microsecond'",
    "key_id": "reverse(key_id)",
    "mac": "reverse(mac)",
}


def test_every_column_of_a_seal_is_changed_below() -> None:
    assert set(SEAL_CHANGES) == set(SealRow.__table__.c.keys())


@pytest.mark.parametrize("column", SEAL_CHANGES)
def test_a_changed_seal_is_found_where_it_is(
    verified: Verify, chain: list[Any], database: Databases, column: str
) -> None:
    database.run("inventory", f"UPDATE release_seals SET {column} = {SEAL_CHANGES[column]} WHERE seq = 3")
    verdict = verified()
    assert not verdict.intact
    fault = verdict.faults[0]
    assert fault.seals == ((3, 4) if column == "seq" else (3, 3))
    # The others are whole: whose rows changed seals is told as well, and nothing more.
    more = {"seq": [(6, 103)], "until_xid": [(4, 4)], "until_id": [(4, 4)]}
    assert [one.seals for one in verdict.faults[1:]] == more.get(column, [])


def test_a_seal_deleted_from_the_middle_is_found(verified: Verify, chain: list[Any], database: Databases) -> None:
    database.run("inventory", "DELETE FROM release_seals WHERE seq IN (2, 3)")
    fault = only(verified())
    assert fault.seals == (2, 4)
    assert fault.what == "seals 2 to 3 are missing, and seal 4 cannot be checked without"
    assert (fault.after, fault.until) == (chain[0].sealed_at, chain[3].sealed_at)


def test_the_first_seal_deleted_is_found(verified: Verify, chain: list[Any], database: Databases) -> None:
    database.run("inventory", "DELETE FROM release_seals WHERE seq = 1")
    assert only(verified()).seals == (1, 2)


def test_the_newest_seal_deleted_with_its_rows_is_found_by_the_ledger(
    verified: Verify, chain: list[Any], database: Databases
) -> None:
    database.run("inventory", "DELETE FROM inventory_release_events WHERE id = ANY(:ids)", ids=ids(database)[9:])
    database.run("inventory", "DELETE FROM release_seals WHERE seq > 3")
    fault = only(verified())
    assert fault.seals == (4, 5)
    assert fault.what == "the ledger knows seal 5, the chain ends at 3: 2 seals with 5 rows cut off"
    assert fault.after == chain[2].sealed_at


def test_everything_deleted_is_found_by_the_ledger(verified: Verify, chain: list[Any], database: Databases) -> None:
    database.run("inventory", "TRUNCATE inventory_release_events, release_seals")
    fault = only(verified())
    assert (fault.seals, fault.after) == ((1, 5), None)
    assert "5 seals with 14 rows cut off" in fault.what


def test_a_tail_cut_off_and_grown_again_is_found_by_the_ledger(
    verified: Verify, chain: list[Any], database: Databases
) -> None:
    gone = ids(database)[10:]
    database.run("inventory", "DELETE FROM inventory_release_events WHERE id = ANY(:ids)", ids=gone)
    database.run("inventory", "DELETE FROM release_seals WHERE seq = 5")
    releases.write(database, 4, 50)
    releases.seal(database)  # with the right key, as the service would
    fault = only(verified())
    assert (fault.seals, fault.what) == ((5, 5), "the ledger knows another seal of this number")


def test_a_chain_sealed_anew_with_another_key_is_found(verified: Verify, chain: list[Any], database: Databases) -> None:
    database.run("inventory", "UPDATE inventory_release_events SET quantity = 9 WHERE id = :id", id=ids(database)[0])
    database.run("inventory", "TRUNCATE release_seals")
    releases.seal(database, releases.OTHER_KEY)
    verdict = verified()
    assert f"made with the key {key_id(releases.OTHER_KEY)}" in verdict.faults[0].what
    assert "the ledger knows another seal" in verdict.faults[0].what
    # Even who holds that key for good is told by the ledger.
    assert [fault.seals for fault in verified(releases.KEY, releases.OTHER_KEY).faults] == [(1, 1), (2, 5)]


def test_a_total_that_does_not_follow_is_found_though_its_seal_is_made_with_the_key(
    verified: Verify, chain: list[Any], database: Databases
) -> None:
    last, total = chain[-1], chain[-1].total + 7
    rows = [sealed_values(row) for row in database.rows("inventory", NEWEST, n=last.rows)]  # type: ignore[arg-type]
    until = last.until_xid, last.until_id
    mac = seal_mac(releases.KEY, chain[-2].mac, Place(last.seq, until, total, last.sealed_at), rows[::-1])
    database.run("inventory", "UPDATE release_seals SET total = :total, mac = :mac WHERE seq = 5", total=total, mac=mac)
    database.run("ops", "UPDATE audit_heads SET mac = :mac WHERE seq = 5", mac=mac)
    fault = only(verified())
    assert (fault.seals, fault.what) == ((5, 5), "it counts 21 rows in all, where 14 would follow")


def test_several_faults_are_told_each_once(verified: Verify, chain: list[Any], database: Databases) -> None:
    database.run("inventory", "UPDATE inventory_release_events SET quantity = 9 WHERE id = :id", id=ids(database)[0])
    database.run("inventory", "DELETE FROM inventory_release_events WHERE id = :id", id=ids(database)[12])
    assert [fault.seals for fault in verified().faults] == [(1, 1), (5, 5)]


def test_no_more_faults_are_kept_than_people_read(
    verified: Verify, chain: list[Any], database: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chains, "MOST_FAULTS", 2)
    database.run("inventory", "UPDATE inventory_release_events SET quantity = quantity + 1")
    verdict = verified()
    assert (verdict.found, len(verdict.faults)) == (5, 2)
    assert verdict.sentence().startswith("5 faults: 5 seals over 14 rows; first: seal 1, rows ")


def test_a_seal_over_more_rows_than_any_of_ours_is_counted_and_not_held(
    verified: Verify, chain: list[Any], database: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chains, "MOST_ROWS", 3)
    assert [fault.seals for fault in verified().faults] == [(3, 3), (5, 5)]
