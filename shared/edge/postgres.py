"""Connections to PostgreSQL with a limit on every wait: the server's own limits first, ours for a silent server."""

from __future__ import annotations

import math
import select
import time
from typing import Any

import psycopg2
import psycopg2.extensions
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.pool import NullPool

from shared.edge.green import trampoline
from shared.edge.prepared import prepare_on

STATEMENT_TIMEOUT_MS = 5000
LOCK_TIMEOUT_MS = 2000
IDLE_IN_TRANSACTION_TIMEOUT_MS = 15000

# Green psycopg2 ignores connect_timeout, and a query cut short goes on at the server: the server's own limits come
# first, this one is for a server that answers nothing at all.
SILENT_SERVER_S = 7.0

POOL_TIMEOUT_S = 5.0

# A pooled connection that has rested for longer is tried out before it is used. One that has died sooner costs an
# error, on which all older connections of the pool are thrown away.
PING_AFTER_S = 1.0


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
    if psycopg2.extensions.get_wait_callback() is not None:  # eventlet made psycopg2 green
        psycopg2.extensions.set_wait_callback(wait_with_a_limit)
    limits = {
        "statement_timeout": STATEMENT_TIMEOUT_MS,
        "lock_timeout": LOCK_TIMEOUT_MS,
        "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION_TIMEOUT_MS,
        "timezone": "UTC",
        **settings,
    }
    pool: dict[str, Any] = {"poolclass": NullPool}
    if pool_size:
        # The connection that was given back last is used first: the others rest, and it need not be tried out.
        pool = {"pool_size": pool_size, "max_overflow": 0, "pool_timeout": POOL_TIMEOUT_S, "pool_use_lifo": True}
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
    prepare_on(engine)
    if pool_size:
        _ping_after_rest(engine)
    return engine


def _ping_after_rest(engine: Engine) -> None:
    """Try out a pooled connection before it is used, but only after a rest: under load it was used a moment ago."""

    def given_back(connection: Any, record: Any) -> None:
        record.info["rests_since"] = time.monotonic()

    def taken(connection: Any, record: Any, proxy: Any) -> None:
        if time.monotonic() - record.info.get("rests_since", math.inf) > PING_AFTER_S:
            try:
                engine.dialect.do_ping(connection)
            except psycopg2.Error as error:
                raise InvalidatePoolError("the connection has died while it rested") from error

    event.listen(engine, "checkin", given_back)
    event.listen(engine, "checkout", taken)


def _set_autocommit(connection: Any, level: str) -> None:
    """The two levels in use: AUTOCOMMIT, and the server's own READ COMMITTED."""
    connection.autocommit = level == "AUTOCOMMIT"


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
