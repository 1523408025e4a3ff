"""`ecom migrate`: roles, databases, migrations and rights of every service's database.

With DATABASE_ADMIN_URL set, it also creates roles and databases, and sets the rights of each role (ops/roles.py).
Without it, the role of the service's own URL must be allowed to create tables in its database.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import psycopg2
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from ops import roles
from ops.roles import LOCK_ID
from shared.config import Settings
from shared.errors import CannotWork
from topology.services import DATABASES, REPLICAS

ROOT = Path(__file__).resolve().parents[2]
TURN_EVERY_S = 0.2


def migrate(
    settings: Settings, services: Sequence[str] = DATABASES, replicas: int = REPLICAS, own_cluster: bool = False
) -> list[str]:
    """Migrate these services' databases to the newest version. Returns one line for each. Raises CannotWork.

    `replicas`: how many of each service may be connected at one time. `own_cluster`: nobody else uses the database
    server, so nobody but its administrator needs its common databases.
    """
    try:
        if own_cluster:
            settings.require("DATABASE_ADMIN_URL")
            roles.close_common_databases(make_url(settings.database_admin_url))
        return [migrate_one(settings, service, replicas) for service in services]
    except (DBAPIError, psycopg2.Error) as error:
        raise CannotWork(f"the databases could not be migrated: {str(error).splitlines()[0]}") from error


def migrate_one(settings: Settings, service: str, replicas: int = REPLICAS) -> str:
    """Create roles and database, migrate, and set the rights of one service."""
    app = make_url(settings.database_url(service))
    url, owner = app, None
    if settings.database_admin_url:
        admin = make_url(settings.database_admin_url)
        owner = roles.provision(settings, admin, app, service, replicas)
        url = admin.set(database=app.database)
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        _wait_for_turn(connection)
        if owner:
            connection.execute(text(f'SET ROLE "{owner}"'))
        connection.commit()
        config = Config(str(ROOT / "setup.cfg"), ini_section=service)
        config.set_section_option(
            service, "script_location", str(ROOT / str(config.get_main_option("script_location")))
        )
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()
        version = connection.scalar(text("SELECT version_num FROM alembic_version"))
        if owner:
            for statement in roles.grants(roles.rights_of(service), owner, app.username or ""):
                connection.execute(text(statement))
        connection.commit()
    return f"{service}: {app.database} at {version}"


def _wait_for_turn(connection: Connection) -> None:
    """Wait until no other `ecom migrate` is at work in this database.

    A statement that waits for a lock keeps its snapshot. The other may be building an index, which waits until no such
    snapshot is left: the two would wait for each other. So nothing is open between the attempts.
    """
    while not connection.scalar(text("SELECT pg_try_advisory_lock(:id)"), {"id": LOCK_ID}):
        connection.rollback()
        time.sleep(TURN_EVERY_S)
