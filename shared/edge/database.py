"""Sessions that survive their database: bounded waits, a guarded teardown, and one way to commit."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import nameko_sqlalchemy
from nameko.containers import WorkerContext
from sqlalchemy.orm import Session, sessionmaker

from shared.database_errors import UNDEFINED_TABLE, is_conflict, is_hold_up, is_outage, refusal, sqlstate
from shared.edge import green
from shared.edge.postgres import connect
from shared.edge.settings import own_name
from shared.errors import CannotWork
from shared.revisions import lacking
from shared.tables import Base
from topology.services import POOL_SPARE

log = logging.getLogger(__name__)

# A probe's caller gives up after a few seconds.
PROBE_S = 2.0


class Sessions:
    """Sessions for a service's methods: `begin` is one transaction, in `autocommit` each statement is one."""

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
    """The same for calls: a fault of the database is raised as CannotWork, so that the client tries again."""

    @contextmanager
    def begin(self) -> Iterator[Session]:
        with no_fault_of_the_call(), super().begin() as session:
            yield session

    @contextmanager
    def autocommit(self) -> Iterator[Session]:
        with no_fault_of_the_call(), super().autocommit() as session:
            yield session

    read = autocommit


@contextmanager
def no_fault_of_the_call() -> Iterator[None]:
    """Raises CannotWork where the database is away, or another transaction was in the way for too long."""
    try:
        yield
    except Exception as error:
        if is_outage(error):
            raise CannotWork(f"the database is away: {type(getattr(error, 'orig', error)).__name__}") from error
        if is_conflict(error) or is_hold_up(error):
            raise CannotWork("another transaction is in the way, or a statement took too long") from error
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
    """Run an action that may fail because the connection is gone; the error that matters was raised already."""
    try:
        action()
    except Exception:
        log.debug("after a fault: %s", action, exc_info=True)


class Database(nameko_sqlalchemy.Database):
    """The service's database. Injects `Sessions`; batch handlers get theirs from the consumer."""

    def __init__(self) -> None:
        super().__init__(Base)

    def setup(self) -> None:
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

    def not_ready_reason(self) -> str | None:
        """Why the service cannot use its database now: it is away, or its schema is older than this version needs."""
        revision = None
        try:
            with green.Timeout(PROBE_S), self.sessions.read() as session:
                revision = session.connection().exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
        except (Exception, green.Timeout) as error:
            if words := refusal(error):
                return f"the database refuses: {words}"
            if sqlstate(error) != UNDEFINED_TABLE:
                return f"the database does not answer ({type(error).__name__})"
        return lacking(own_name(self.container), revision)

    def worker_teardown(self, worker_ctx: WorkerContext) -> None:
        """Nothing is left to tear down: each block has given its connection back."""

    def stop(self) -> None:
        self.engine.dispose()

    kill = stop
