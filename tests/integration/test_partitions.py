"""Outbox and inbox in partitions: how a database of the version before gets them, and how they are made and dropped."""

from __future__ import annotations

import threading
from contextlib import closing
from uuid import UUID, uuid4

import pytest
from alembic import command
from sqlalchemy import Connection, make_url, text
from sqlalchemy.orm import Session

from ops.roles import connect
from shared import inbox, migrations, partitions
from shared.config import Settings
from shared.ids import uuid7
from tests.integration.support import alembic

BEFORE = "0007"
QUEUE = "q.test"
INSERT = "INSERT INTO outbox (message_id, aggregate_id, event_type, traceparent, body) VALUES (:id, :of, 'a.b', '', '')"
INBOX = "INSERT INTO consumed_messages (consumer, message_id) VALUES ('q.test', :id)"

# What replicas of the version before send.
OLD_READ = (
    "SELECT id, message_id FROM outbox o WHERE published_at IS NULL AND NOT EXISTS (SELECT 1 FROM outbox held"
    " WHERE held.aggregate_id = o.aggregate_id AND held.id <= o.id AND held.held_until > now()) ORDER BY id LIMIT 500"
)
OLD_MARK = "UPDATE outbox SET published_at = now(), held_until = NULL WHERE id = ANY(:ids)"
OLD_PURGES = (
    "DELETE FROM outbox WHERE id IN (SELECT id FROM outbox WHERE published_at < now() - interval '7 days' LIMIT 5000)",
    "DELETE FROM consumed_messages WHERE (consumer, message_id) IN (SELECT consumer, message_id FROM consumed_messages"
    " WHERE consumed_at < now() - interval '90 days' LIMIT 5000)",
)

pytestmark = pytest.mark.parametrize("service", ["order"])


def emit(connection: Connection, count: int = 1) -> list[UUID]:
    ids = [uuid7() for _ in range(count)]
    for message_id in ids:
        connection.execute(text(INSERT), {"id": message_id, "of": uuid4()})
    connection.commit()
    return ids


def publish(connection: Connection, message_ids: list[UUID], at: str = "now()") -> None:
    mark = f"UPDATE outbox SET published_at = {at} WHERE message_id = ANY(:ids)"
    connection.execute(text(mark), {"ids": message_ids})
    connection.commit()


def remember(connection: Connection, *message_ids: UUID) -> None:
    for message_id in message_ids:
        connection.execute(text(INBOX), {"id": message_id})
    connection.commit()


def new_to(connection: Connection, *message_ids: UUID) -> set[UUID]:
    """The messages that the inbox does not know."""
    with Session(connection) as session:
        found = inbox.claim(session, QUEUE, message_ids)
        session.rollback()
    return found


def upgrade(connection: Connection, service: str, revision: str = "head") -> None:
    connection.commit()
    command.upgrade(alembic(service, connection), revision)
    connection.commit()


def tables(connection: Connection, like: str) -> list[str]:
    found = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE :like ORDER BY relname"
    names = list(connection.scalars(text(found), {"like": like}))
    connection.commit()
    return names


def lies_in(connection: Connection, table: str, message_id: UUID) -> str:
    where = f"SELECT tableoid::regclass::text FROM {table} WHERE message_id = :id"
    found = connection.execute(text(where), {"id": message_id}).scalar_one()
    connection.commit()
    return str(found)


def purge(connection: Connection, table: str, most: int = 5000) -> tuple[int, bool]:
    deleted, ready = connection.execute(text(f"SELECT deleted, ready FROM purge_{table}(:most)"), {"most": most}).one()
    connection.commit()
    return deleted, ready


def first_id_of(connection: Connection, moment: str) -> UUID:
    """The smallest UUIDv7 of a moment, given in SQL."""
    return UUID(str(connection.scalar(text(f"SELECT {partitions.INBOX.bound.replace('%s', moment)}"))))


@pytest.fixture
def new(scratch: Connection, service: str) -> Connection:
    """A new database of this version."""
    upgrade(scratch, service)
    return scratch


@pytest.fixture
def old(scratch: Connection, service: str) -> Connection:
    """A database of the version before."""
    upgrade(scratch, service, BEFORE)
    return scratch


def test_events_that_wait_during_an_upgrade_are_published_in_their_order(old: Connection, service: str) -> None:
    published, waiting = emit(old, 2), emit(old, 3)
    publish(old, published)
    before = old.execute(text("SELECT id, message_id FROM outbox WHERE published_at IS NULL ORDER BY id")).all()

    upgrade(old, service)
    later = emit(old)

    found = old.execute(text("SELECT id, message_id FROM outbox WHERE published_at IS NULL ORDER BY id")).all()
    assert found[:3] == before
    assert [row.message_id for row in found] == [*waiting, *later]
    assert {lies_in(old, "outbox", message_id) for message_id in waiting} == {"outbox_waiting"}
    assert {lies_in(old, "outbox_before", message_id) for message_id in published} == {"outbox_before"}


def test_replicas_of_the_version_before_go_on_after_the_upgrade(old: Connection, service: str) -> None:
    emit(old, 2)
    publish(old, emit(old))
    upgrade(old, service)
    emitted = emit(old)

    ids = [row.id for row in old.execute(text(OLD_READ))]
    old.execute(text("SET enable_seqscan = off"))
    plan = "\n".join(old.scalars(text(f"EXPLAIN {OLD_MARK}"), {"ids": ids}))
    assert old.execute(text(OLD_MARK), {"ids": ids}).rowcount == 3
    for statement in OLD_PURGES:
        assert old.execute(text(statement)).rowcount == 0
    old.commit()

    assert old.execute(text(OLD_READ)).all() == []
    today, tomorrow = tables(old, "outbox_until_%")[:2]
    assert lies_in(old, "outbox", emitted[0]) == today
    assert all(f"{name}_id" in plan for name in (today, tomorrow)), plan


def test_the_rights_on_a_table_are_those_on_the_table_in_its_place_at_once(
    old: Connection, service: str, settings: Settings
) -> None:
    app = make_url(settings.database_url(service)).username
    old.execute(text(f'GRANT SELECT, INSERT ON outbox TO "{app}"'))
    old.execute(text(f'GRANT UPDATE (published_at) ON outbox TO "{app}"'))
    old.execute(text(f'GRANT SELECT, INSERT ON consumed_messages TO "{app}"'))
    old.commit()
    upgrade(old, service)

    may = "SELECT has_{}_privilege(:app, '{}', '{}')"
    for kind, what, right, expected in (
        ("table", "outbox", "INSERT", True),
        ("table", "outbox", "DELETE", False),
        ("column", "outbox', 'published_at", "UPDATE", True),
        ("column", "outbox', 'body", "UPDATE", False),
        ("table", "consumed_messages", "SELECT", True),
        ("function", "extend_outbox(timestamptz, timestamptz)", "EXECUTE", False),
        ("function", "purge_outbox(bigint)", "EXECUTE", False),  # `ecom migrate` grants it afterwards
    ):
        assert old.scalar(text(may.format(kind, what, right)), {"app": app}) is expected, (what, right)


def test_a_message_that_was_consumed_before_an_upgrade_has_no_second_effect(old: Connection, service: str) -> None:
    undated, dated, ahead = uuid4(), uuid7(), UUID(int=first_id_of(old, "now() + interval '40 days'").int + 1)
    remember(old, undated, dated, ahead)

    upgrade(old, service)

    assert lies_in(old, "consumed_messages", dated) == "consumed_messages_undated"
    assert lies_in(old, "consumed_messages", ahead).startswith("consumed_messages_until_")
    fresh = uuid7()
    assert new_to(old, undated, dated, ahead, fresh) == {fresh}
    assert old.scalar(text("SELECT count(*) FROM pg_constraint WHERE conname = 'of_no_partition'")) == 0


def test_an_upgrade_waits_for_a_transaction_that_writes_and_holds_up_nobody_for_long(
    old: Connection, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = threading.Event()
    monkeypatch.setattr(migrations, "LOCK_TIMEOUT_MS", 20)
    monkeypatch.setattr(migrations.time, "sleep", lambda _: tried.set())
    url = old.engine.url
    with closing(connect(url)) as writer, closing(connect(url)) as other, writer.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("INSERT INTO consumed_messages VALUES ('q', gen_random_uuid())")
        upgrading = threading.Thread(target=upgrade, args=(old, service))
        upgrading.start()
        assert tried.wait(20), "an attempt gives up"
        with other.cursor() as second:
            second.execute("SET lock_timeout = '5s'")
            second.execute("INSERT INTO consumed_messages VALUES ('q', gen_random_uuid())")
        cursor.execute("COMMIT")
        upgrading.join(60)

    assert len(old.execute(text("SELECT FROM consumed_messages")).all()) == 2


def test_a_published_event_moves_to_its_day_and_is_dropped_with_it_after_a_week(new: Connection) -> None:
    emitted, waiting = emit(new), emit(new)
    publish(new, emitted)
    today = tables(new, "outbox_until_%")[0]
    assert lies_in(new, "outbox", emitted[0]) == today
    assert len(tables(new, "outbox_until_%")) == 8
    for days in (6, 7):
        past(new, "outbox", days, f"now() - interval '{days} days'", "published_at")

    assert purge(new, "outbox") == (0, True)

    assert len(tables(new, "outbox_until_%")) == 8 + 1
    left = set(new.scalars(text("SELECT message_id FROM outbox")))
    assert len(left) == 3
    assert {*emitted, *waiting} < left


def past(connection: Connection, table: str, days: int, moment: str, dated: str) -> str:
    """Make the partition that ended so many days ago, with one row that is dated by an SQL expression."""
    its = {"outbox": partitions.OUTBOX, "consumed_messages": partitions.INBOX}[table]
    day = f"date_trunc('day', now(), 'UTC') - interval '{days} days'"
    name, *bounds = connection.execute(
        text(
            f"SELECT to_char({day}, 'YYYYMMDD'), {its.bound.replace('%s', f'{day} - interval $$1 day$$')},"
            f" {its.bound.replace('%s', day)}"
        )
    ).one()
    part = f"{table}_until_{name}"
    connection.execute(
        text(f"CREATE TABLE {part} PARTITION OF {table} FOR VALUES FROM ('{bounds[0]}') TO ('{bounds[1]}')")
    )
    if table == "outbox":
        publish(connection, emit(connection), f"{day} - interval '1 hour'")
    else:
        row = f"INSERT INTO {table} VALUES ('{QUEUE}', '{bounds[0]}', {moment})"
        connection.execute(text(row))
    connection.commit()
    return part


def test_a_partition_of_the_inbox_goes_after_90_days_unless_something_in_it_was_consumed_since(
    new: Connection,
) -> None:
    kept = past(new, "consumed_messages", 89, "now() - interval '95 days'", "consumed_at")
    late = past(new, "consumed_messages", 91, "now() - interval '1 day'", "consumed_at")
    gone = past(new, "consumed_messages", 92, "now() - interval '91 days'", "consumed_at")

    assert purge(new, "consumed_messages") == (0, True)

    left = tables(new, "consumed_messages_until_%")
    assert {kept, late} < set(left)
    assert gone not in left


def test_rows_of_no_partition_are_kept_and_deleted_one_by_one_when_they_are_old(new: Connection) -> None:
    """Ids that tell no time; and events that were published while their day had no partition."""
    young, old = uuid4(), [uuid4() for _ in range(3)]
    remember(new, young, *old)
    new.execute(
        text("UPDATE consumed_messages SET consumed_at = now() - interval '91 days' WHERE message_id = ANY(:ids)"),
        {"ids": old},
    )
    publish(new, emit(new), "now() - interval '8 days'")
    waiting = emit(new)

    assert [purge(new, "consumed_messages", 2)[0] for _ in range(3)] == [2, 1, 0]
    assert purge(new, "outbox")[0] == 1

    assert list(new.scalars(text("SELECT message_id FROM consumed_messages"))) == [young]
    assert list(new.scalars(text("SELECT message_id FROM outbox"))) == waiting


def test_partitions_that_were_not_made_in_time_take_their_rows_when_they_are_made(new: Connection) -> None:
    for name in (*tables(new, "outbox_until_%"), *tables(new, "consumed_messages_until_%")):
        new.execute(text(f"DROP TABLE {name}"))
    new.commit()
    emitted, waiting, consumed = emit(new), emit(new), uuid7()
    publish(new, emitted)
    remember(new, consumed)
    assert lies_in(new, "outbox", emitted[0]) == "outbox_waiting"

    assert purge(new, "outbox") == purge(new, "consumed_messages") == (0, True)

    assert lies_in(new, "outbox", emitted[0]).startswith("outbox_until_")
    assert lies_in(new, "outbox", waiting[0]) == "outbox_waiting"
    assert lies_in(new, "consumed_messages", consumed).startswith("consumed_messages_until_")
    assert new_to(new, consumed) == set()


@pytest.mark.parametrize("table", ["outbox", "consumed_messages"])
def test_a_purge_gives_up_soon_while_another_session_holds_the_table_and_says_so(new: Connection, table: str) -> None:
    for name in tables(new, f"{table}_until_%"):
        new.execute(text(f"DROP TABLE {name}"))
    new.commit()
    with closing(connect(new.engine.url)) as holder, holder.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute(f"LOCK TABLE {table} IN ROW EXCLUSIVE MODE")
        new.execute(text("SET statement_timeout = '5s'"))
        assert purge(new, table) == (0, False)
        cursor.execute("COMMIT")

    assert purge(new, table) == (0, True)


def test_two_purges_at_once_make_each_partition_once(new: Connection) -> None:
    for name in tables(new, "outbox_until_%"):
        new.execute(text(f"DROP TABLE {name}"))
    new.commit()
    with closing(connect(new.engine.url)) as first, first.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("SELECT ready FROM purge_outbox(1)")
        assert cursor.fetchall() == [(True,)]
        assert purge(new, "outbox") == (0, False), "it cannot see the partitions of the first yet"
        cursor.execute("COMMIT")

    assert purge(new, "outbox") == (0, True)
    assert len(tables(new, "outbox_until_%")) == 8
