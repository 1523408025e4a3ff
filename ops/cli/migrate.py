"""`ecom migrate`: roles, databases, migrations and rights of every service's database.

With DATABASE_ADMIN_URL set, it also creates roles and databases, and sets the rights of each role (ops/roles.py). Its
role needs CREATEDB and CREATEROLE, and need not be a superuser. Without it, the role of the service's own URL must be
allowed to create tables in its database.

Everybody else waits behind a migration that waits for a lock. So each waits LOCK_TIMEOUT_MS at most, is rolled back,
and is tried again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import takewhile

import psycopg2
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from ops import roles
from ops.roles import LOCK_ID
from shared.config import Settings
from shared.database_errors import is_hold_up
from shared.errors import CannotWork
from shared.revisions import ROOT, is_newer, pending
from topology.services import DATABASES, REPLICAS

TURN_EVERY_S = 0.2

LOCK_TIMEOUT_MS = 2000
TRIES = 10
BETWEEN_TRIES_S = 1.0

# The phase in which everything is done.
ALL = "all"


def migrate(
    settings: Settings,
    services: Sequence[str] = DATABASES,
    replicas: int = REPLICAS,
    *,
    own_cluster: bool = False,
    phase: str = ALL,
) -> list[str]:
    """Migrate these services' databases to the newest version. Returns one line for each. Raises CannotWork.

    `replicas`: how many of each service may be connected at one time. `own_cluster`: nobody else uses the database
    server, so nobody but its administrator needs its common databases. `phase`: only the migrations of this phase.
    """
    try:
        if own_cluster:
            settings.require("DATABASE_ADMIN_URL")
            roles.close_common_databases(make_url(settings.database_admin_url))
        return [migrate_one(settings, service, replicas, phase) for service in services]
    except (DBAPIError, psycopg2.Error) as error:
        raise CannotWork(f"the databases could not be migrated: {str(error).splitlines()[0]}") from error


def migrate_one(settings: Settings, service: str, replicas: int = REPLICAS, phase: str = ALL) -> str:
    """Create roles and database, migrate, and set the rights of one service.

    A database of a newer version is left as it is: its rights are those that the newer version needs.
    """
    app = make_url(settings.database_url(service))
    url, owner = app, None
    if settings.database_admin_url:
        admin = make_url(settings.database_admin_url)
        owner = roles.provision(settings, admin, app, service, replicas)
        url = admin.set(database=app.database)
    limits = f"-c lock_timeout={LOCK_TIMEOUT_MS}"
    engine = create_engine(url, poolclass=NullPool, connect_args={"options": limits})
    with engine.connect() as connection:
        _wait_for_turn(connection)
        if owner:
            connection.execute(text(f'SET ROLE "{owner}"'))
        found = MigrationContext.configure(connection).get_current_revision()
        connection.commit()
        if is_newer(service, found):
            return f"{service}: {app.database} at {found}, which is of a newer version; nothing is to do"
        _upgrade(connection, service, last_of(service, found, phase))
        version = connection.scalar(text("SELECT version_num FROM alembic_version"))
        if owner:
            for statement in roles.grants(roles.rights_of(service), owner, app.username or ""):
                connection.execute(text(statement))
        connection.commit()
    left = ", ".join(f"{revision.name} ({revision.phase})" for revision in pending(service, version))
    return f"{service}: {app.database} at {version}" + (f"; not done: {left}" if left else "")


def last_of(service: str, found: str | None, phase: str) -> str:
    """The revision to which a phase brings a database that is at this one. Raises CannotWork if the other comes first.

    An empty database, which nobody uses, gets everything.
    """
    due = pending(service, found)
    chosen = due if phase == ALL or found is None else tuple(takewhile(lambda each: each.phase == phase, due))
    for revision in due[len(chosen) :]:
        if revision.phase == phase:
            first = due[len(chosen)]
            raise CannotWork(
                f"{service}: {first.name} ({first.phase}) comes before {revision.name} ({phase}): "
                f"run `ecom migrate --phase {first.phase}` first, or `ecom migrate` for all"
            )
    return chosen[-1].name if chosen else str(found)


def _upgrade(connection: Connection, service: str, revision: str) -> None:
    """Run the migrations up to a revision. One that waits too long for a lock is tried again. Raises DBAPIError."""
    config = Config(str(ROOT / "setup.cfg"), ini_section=service)
    config.set_section_option(service, "script_location", str(ROOT / str(config.get_main_option("script_location"))))
    config.attributes["connection"] = connection
    for tried in range(1, TRIES + 1):
        try:
            command.upgrade(config, revision)
            connection.commit()
            return
        except DBAPIError as error:
            connection.rollback()
            if not is_hold_up(error) or tried == TRIES:
                raise
            time.sleep(BETWEEN_TRIES_S)


def _wait_for_turn(connection: Connection) -> None:
    """Wait until no other `ecom migrate` is at work in this database.

    A statement that waits for a lock keeps its snapshot. The other may be building an index, which waits until no such
    snapshot is left: the two would wait for each other. So nothing is open between the attempts.
    """
    while not connection.scalar(text("SELECT pg_try_advisory_lock(:id)"), {"id": LOCK_ID}):
        connection.rollback()
        time.sleep(TURN_EVERY_S)
