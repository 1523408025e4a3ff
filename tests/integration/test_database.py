"""Sessions that survive their database."""

import time
from collections.abc import Callable

import eventlet
import pytest
from nameko.containers import ServiceContainer
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, TimeoutError

from shared.config import Settings
from shared.database_errors import is_conflict, is_hold_up, is_outage
from shared.edge import postgres as edge
from shared.edge.database import Database
from shared.edge.rpc import RpcServer, rpc
from shared.edge.rpc_proxy import Replies, RpcProxy
from tests.databases import Databases
from tests.integration.support import Bench, Mail, Wire, container_of, extension, until

Benches = Callable[..., Bench]

SLEEP = text("SELECT pg_sleep(1)")


def test_two_queries_run_side_by_side(bench: Benches) -> None:
    payment = bench("payment")

    def sleep() -> None:
        with payment.sessions.read() as session:
            session.execute(SLEEP)

    began = time.monotonic()
    for sleeping in [eventlet.spawn(sleep) for _ in range(4)]:
        sleeping.wait()

    assert time.monotonic() - began < 3  # of 4


def test_a_block_is_one_transaction_and_autocommit_is_many(bench: Benches, database: Databases) -> None:
    payment = bench("payment")
    now = text("SELECT pg_current_xact_id()::text")
    with payment.sessions.begin() as session:
        assert session.scalar(now) == session.scalar(now)
    with payment.sessions.autocommit() as session:
        assert session.scalar(now) != session.scalar(now)
    with payment.sessions.begin() as session:
        assert session.scalar(now) == session.scalar(now), "the connection was given back as it was"


def test_a_killed_backend_is_an_outage_and_the_pool_heals(bench: Benches, database: Databases) -> None:
    payment = bench("payment")
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'payment_service'"

    def killed_at_work() -> None:
        with payment.sessions.begin() as session:
            session.execute(text("SELECT 1"))
            database.rows("payment", kill)
            session.execute(text("SELECT 1"))

    with pytest.raises(DBAPIError) as raised:
        killed_at_work()
    assert is_outage(raised.value)

    with payment.sessions.begin() as session:
        assert session.scalar(text("SELECT 1")) == 1


@pytest.mark.parametrize("rested", [True, False])
def test_a_connection_that_died_in_the_pool_is_noticed_after_a_rest_and_costs_one_error_before(
    bench: Benches, database: Databases, monkeypatch: pytest.MonkeyPatch, rested: bool
) -> None:
    payment = bench("payment")
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'payment_service'"

    def work(at_once: int) -> list[object]:
        def one() -> object:
            try:
                with payment.sessions.begin() as session:
                    return session.scalar(text("SELECT 1 FROM pg_sleep(0.05)"))
            except DBAPIError as error:
                return error

        return [greenlet.wait() for greenlet in [eventlet.spawn(one) for _ in range(at_once)]]

    assert work(3) == [1, 1, 1]
    database.rows("payment", kill)  # three lie idle in the pool
    if rested:
        monkeypatch.setattr(edge, "PING_AFTER_S", 0)
        assert work(3) == [1, 1, 1]
    else:
        (error,) = work(1)
        assert is_outage(error)  # type: ignore[arg-type]
        assert work(3) == [1, 1, 1], "the other two were thrown away with it"


def test_a_connection_that_was_used_a_moment_ago_is_not_tried_out(
    bench: Benches, settings: Settings, wire: Wire
) -> None:
    payment = bench("payment", url=wire.url(settings.database_url("payment")))
    with payment.sessions.read() as session:
        session.execute(text("SELECT 2"))  # the first connection asks the server about itself, too
    wire.completed.clear()
    for _ in range(3):
        with payment.sessions.read() as session:
            session.execute(text("SELECT 2"))
    assert wire.statements() == ["SELECT 1"] * 3, "the tags of those that returned one row, and no others"


def test_a_server_that_falls_silent_is_given_up_in_time_and_the_pool_heals(
    bench: Benches, settings: Settings, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge, "SILENT_SERVER_S", 0.5)
    payment = bench("payment", url=wire.url(settings.database_url("payment")))
    with payment.sessions.read() as session:
        session.execute(text("SELECT 1"))
    wire.silent = True
    for _ in range(2):  # with the connection there is, then with one that gets no greeting
        began = time.monotonic()
        with pytest.raises(DBAPIError) as raised, payment.sessions.begin() as session:
            session.execute(text("SELECT 1"))
        assert is_outage(raised.value)
        assert time.monotonic() - began < 4
    wire.silent = False

    with payment.sessions.begin() as session:
        assert session.scalar(text("SELECT 1")) == 1


def test_a_query_that_takes_too_long_is_ended_by_the_server(bench: Benches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "STATEMENT_TIMEOUT_MS", 200)
    payment = bench("payment")
    with pytest.raises(DBAPIError) as raised, payment.sessions.begin() as session:
        session.execute(SLEEP)

    assert raised.value.orig.pgcode == "57014"  # type: ignore[union-attr]


def test_a_lock_that_is_not_given_in_time_holds_its_message_up(bench: Benches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "LOCK_TIMEOUT_MS", 100)
    payment = bench("payment")
    with payment.sessions.begin() as session:
        session.execute(text("INSERT INTO consumed_messages VALUES ('q', '00000000-0000-0000-0000-000000000000')"))
        with pytest.raises(DBAPIError) as raised, payment.sessions.begin() as other:
            other.execute(text("INSERT INTO consumed_messages VALUES ('q', '00000000-0000-0000-0000-000000000000')"))
    assert is_hold_up(raised.value)
    assert not is_outage(raised.value)


def test_an_empty_pool_is_an_outage(bench: Benches, monkeypatch: pytest.MonkeyPatch) -> None:
    payment = bench("payment", pool_size=5)
    monkeypatch.setattr(payment.database.engine.pool, "_timeout", 0.1)
    held = [payment.database.engine.connect() for _ in range(5)]
    with pytest.raises(TimeoutError) as raised, payment.sessions.begin() as session:
        session.execute(text("SELECT 1"))
    for connection in held:
        connection.close()

    assert is_outage(raised.value)


def test_tables_that_are_not_there_are_an_outage_and_readiness_says_what_helps(
    bench: Benches, settings: Settings
) -> None:
    migrated, empty = bench("payment"), bench("payment", url=settings.database_admin_url)
    with pytest.raises(DBAPIError) as raised, empty.sessions.begin() as session:
        session.execute(text("SELECT FROM payments"))

    assert is_outage(raised.value)
    assert "ecom migrate" in (empty.database.not_ready_reason() or "")
    assert migrated.database.not_ready_reason() is None


def test_a_column_that_is_not_there_is_an_outage(bench: Benches) -> None:
    with pytest.raises(DBAPIError) as raised, bench("payment").sessions.begin() as session:
        session.execute(text("SELECT column_of_the_next_version FROM payments"))

    assert is_outage(raised.value)


def test_a_right_that_is_missing_is_an_outage(bench: Benches) -> None:
    with pytest.raises(DBAPIError) as raised, bench("payment").sessions.begin() as session:
        session.execute(text("DELETE FROM payments"))

    assert is_outage(raised.value)


def test_a_fault_of_the_statement_is_no_outage(bench: Benches) -> None:
    for statement in ("SELECT 1 / 0", "SELECT no_function()", "INSERT INTO payments VALUES (1)", "SELEC"):
        with pytest.raises(DBAPIError) as raised, bench("payment").sessions.begin() as session:
            session.execute(text(statement))
        assert not is_outage(raised.value), statement
        assert not is_conflict(raised.value), statement


class Fragile:
    """A service whose backends are killed under it."""

    name = "payment_service"
    db = Database()

    @rpc
    def query(self, kill: bool) -> int:
        with self.db.begin() as session:
            pid = session.scalar(text("SELECT pg_backend_pid()"))
            if kill:
                Fragile.killed.append(pid)
                until(lambda: Fragile.dead)
            return int(session.scalar(text("SELECT 1")))

    killed: list[int] = []  # noqa: RUF012
    dead = False


class Asking:
    """The calling service."""

    name = "order_service"
    payment = RpcProxy("payment_service")


def test_a_worker_whose_backend_died_does_not_take_the_container_with_it(
    settings: Settings, database: Databases, mail: Mail
) -> None:
    Fragile.killed, Fragile.dead = [], False
    fragile, asking = container_of(settings, Fragile), container_of(settings, Asking)
    for container in (fragile, asking):
        container.start()
    replies = extension(asking, Replies)

    def query(kill: bool) -> object:
        try:
            return replies.call("payment_service.query", (kill,), {}, {}, 3)
        except Exception as error:
            return error

    try:
        until(lambda: replies.not_ready_reason() is None and extension(fragile, RpcServer).not_ready_reason() is None)
        dying = [eventlet.spawn(query, True) for _ in range(5)]
        until(lambda: len(Fragile.killed) == 5)
        for pid in Fragile.killed:
            database.rows("payment", "SELECT pg_terminate_backend(:pid)", pid=pid)
        Fragile.dead = True

        assert [isinstance(answer.wait(), Exception) for answer in dying] == [True] * 5
        assert query(False) == 1
        assert_lives(fragile)
    finally:
        for container in (fragile, asking):
            container.kill()


def assert_lives(container: ServiceContainer) -> None:
    assert not container._died.ready()
