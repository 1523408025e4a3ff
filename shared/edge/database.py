"""Sessions that survive their database: bounded waits, a guarded teardown, and one way to commit."""

from __future__ import annotations

import logging
import select
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import eventlet
import nameko_sqlalchemy
import psycopg2
import psycopg2.extensions
from eventlet.hubs import trampoline
from nameko.containers import WorkerContext
from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import DBAPIError, InterfaceError, TimeoutError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import NullPool

from shared.errors import CannotWork
from shared.tables import Base

log = logging.getLogger(__name__)

STATEMENT_TIMEOUT_MS = 5000
LOCK_TIMEOUT_MS = 2000
IDLE_IN_TRANSACTION_TIMEOUT_MS = 15000

# Green psycopg2 ignores connect_timeout, and a query cut short goes on at the server: the server's own limits come
# first, this one is for a server that answers nothing at all.
SILENT_SERVER_S = 7.0

POOL_TIMEOUT_S = 5.0

# A probe's caller gives up after a few seconds.
PROBE_S = 2.0

# Beside one connection for each worker: what consumers hold for their batches.
POOL_SPARE = 5


class DatabaseSilent(psycopg2.OperationalError):
    """The database server answered nothing in time."""


class NothingCame(Exception):
    """Nothing came while waiting for a NOTIFY."""


def wait_with_a_limit(connection: Any) -> None:
    """A psycopg2 wait callback for eventlet that gives up after SILENT_SERVER_S."""
    while True:
        state = connection.poll()
        if state == psycopg2.extensions.POLL_OK:
            return
        reading = state == psycopg2.extensions.POLL_READ
        error = DatabaseSilent("the database server does not answer")
        trampoline(connection.fileno(), read=reading, write=not reading, timeout=SILENT_SERVER_S, timeout_exc=error)


def connect(url: str, application: str, pool_size: int = 0, **settings: Any) -> Engine:
    """An engine whose connections have server-side limits; with no pool each is closed when it is given back.

    `settings` are PostgreSQL's own, as given with -c.
    """
    limits = {
        "statement_timeout": STATEMENT_TIMEOUT_MS,
        "lock_timeout": LOCK_TIMEOUT_MS,
        "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION_TIMEOUT_MS,
        "timezone": "UTC",
        **settings,
    }
    pool: dict[str, Any] = {"poolclass": NullPool}
    if pool_size:
        pool = {"pool_size": pool_size, "max_overflow": 0, "pool_timeout": POOL_TIMEOUT_S, "pool_pre_ping": True}
    engine = create_engine(
        url,
        **pool,
        hide_parameters=True,  # an error's text goes into logs and dead letters: no keys, no bodies
        connect_args={
            "application_name": application,
            "options": " ".join(f"-c {name}={value}" for name, value in limits.items()),
            "tcp_user_timeout": int(SILENT_SERVER_S * 1000),
            "keepalives_idle": 10,
            "keepalives_interval": 5,
        },
    )
    # SQLAlchemy names the level when it leaves AUTOCOMMIT, and psycopg2 then sends a SET with each change to and fro.
    engine.dialect.set_isolation_level = _set_autocommit  # type: ignore[method-assign, assignment]
    return engine


def _set_autocommit(connection: Any, level: str) -> None:
    """The two levels in use: AUTOCOMMIT, and the server's own READ COMMITTED."""
    connection.autocommit = level == "AUTOCOMMIT"


def is_conflict(error: BaseException) -> bool:
    """Whether repeating the transaction is the answer: serialization failure, deadlock, lock not available."""
    return _sqlstate(error) in ("40001", "40P01", "55P03")


def is_outage(error: BaseException) -> bool:
    """Whether the database itself is away or unable, so that nothing is wrong with the message in work."""
    if isinstance(error, TimeoutError):  # the pool is empty
        return True
    if not isinstance(error, DBAPIError):
        return False
    state = _sqlstate(error)
    if error.connection_invalidated or isinstance(error, InterfaceError):
        return True
    if state is None:
        return isinstance(error.orig, psycopg2.OperationalError)
    # Classes 08 connection, 53 resources (disk full, too many connections), 58 system; 57P0x shutting down or
    # starting; 25006 a standby that does not take writes.
    return state[:2] in ("08", "53", "58") or state.startswith("57P") or state in ("25006", "25P03")


def _sqlstate(error: BaseException) -> str | None:
    return getattr(getattr(error, "orig", None), "pgcode", None)


class Sessions:
    """What a service method uses: `begin` is one transaction, in `autocommit` each statement is one."""

    def __init__(self, sessions: sessionmaker[Session], singles: sessionmaker[Session]) -> None:
        self._sessions = sessions
        self._singles = singles

    @contextmanager
    def begin(self) -> Iterator[Session]:
        """One transaction: committed at the end of the block, rolled back by an exception."""
        with closing(self._sessions()) as session:
            try:
                yield session
                session.commit()
            except BaseException:
                quietly(session.rollback)
                raise

    @contextmanager
    def autocommit(self) -> Iterator[Session]:
        """Each statement commits itself and sees what is committed at that moment; nothing is held open."""
        with closing(self._singles()) as session:
            yield session

    read = autocommit


class WorkerSessions(Sessions):
    """The same for the methods of a service: an outage is CannotWork, so a client is asked to try again."""

    @contextmanager
    def begin(self) -> Iterator[Session]:
        with telling_outages(), super().begin() as session:
            yield session

    @contextmanager
    def autocommit(self) -> Iterator[Session]:
        with telling_outages(), super().autocommit() as session:
            yield session

    read = autocommit


@contextmanager
def telling_outages() -> Iterator[None]:
    """Raises CannotWork where the database is away or unable."""
    try:
        yield
    except Exception as error:
        if is_outage(error):
            raise CannotWork(f"the database is away: {type(getattr(error, 'orig', error)).__name__}") from error
        raise


@contextmanager
def closing(session: Session) -> Iterator[Session]:
    """Give the connection back, or throw it away when its backend has died."""
    try:
        yield session
    finally:
        try:
            session.close()
        except Exception:
            log.warning("a session could not be closed, its connection is thrown away", exc_info=True)
            quietly(session.invalidate)


def quietly(action: Any) -> None:
    """Do what may fail because the connection is gone; the failure that matters is already on its way."""
    try:
        action()
    except Exception:
        log.debug("after a fault: %s", action, exc_info=True)


class Database(nameko_sqlalchemy.Database):
    """The service's database. Injects `Sessions`; batch handlers get theirs from the consumer."""

    def __init__(self) -> None:
        super().__init__(Base)

    def setup(self) -> None:
        if psycopg2.extensions.get_wait_callback() is not None:  # eventlet made psycopg2 green
            psycopg2.extensions.set_wait_callback(wait_with_a_limit)
        name = self.container.service_name
        self.db_uri = self.container.config["DB_URIS"][f"{name}:{self.declarative_base.__name__}"]
        self.engine = connect(self.db_uri, name, pool_size=self.container.max_workers + POOL_SPARE)
        self.Session = sessionmaker(self.engine, expire_on_commit=False)
        self.Singles = sessionmaker(
            self.engine.execution_options(isolation_level="AUTOCOMMIT"), expire_on_commit=False, autoflush=False
        )
        self.sessions = Sessions(self.Session, self.Singles)
        self.worker_sessions = WorkerSessions(self.Session, self.Singles)

    def get_dependency(self, worker_ctx: WorkerContext) -> Sessions:
        return self.worker_sessions

    def trouble(self) -> str | None:
        """Why the service cannot use its database now, for /readyz."""
        try:
            with eventlet.Timeout(PROBE_S), self.sessions.read() as session:
                session.connection().exec_driver_sql("select 1")
        except (Exception, eventlet.Timeout) as error:
            return f"the database does not answer ({type(error).__name__})"
        return None

    def worker_teardown(self, worker_ctx: WorkerContext) -> None:
        """Nothing is left to tear down: each block has given its connection back."""

    def stop(self) -> None:
        self.engine.dispose()

    kill = stop


def wait_for_notice(connection: Any, timeout_s: float) -> bool:
    """Whether a NOTIFY came to a raw psycopg2 connection within the time. Raises psycopg2.OperationalError."""
    connection.poll()
    if not connection.notifies:
        if psycopg2.extensions.get_wait_callback() is None:
            select.select([connection], [], [], timeout_s)
        else:
            try:
                trampoline(connection.fileno(), read=True, timeout=timeout_s, timeout_exc=NothingCame)
            except NothingCame:
                return False
        connection.poll()
    heard = bool(connection.notifies)
    connection.notifies.clear()
    return heard
