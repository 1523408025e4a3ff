"""`ecom migrate`: roles, databases, migrations and rights of every service's database.

With DATABASE_ADMIN_URL set, it also creates roles and databases: an owner role that runs the migrations and cannot log
in, an app role with DML only, and `ecom_reader`, which may only read. Without it, the role of the service's own URL
must be allowed to create tables in its database.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import psycopg2
from alembic import command
from alembic.config import Config
from psycopg2 import sql
from sqlalchemy import Connection, create_engine, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from shared.config import Settings
from shared.errors import CannotWork
from topology.services import BY_NAME, DATABASES

ROOT = Path(__file__).resolve().parents[2]
READER = "ecom_reader"

# An advisory lock with this id makes two `ecom migrate` at the same time take turns.
LOCK_ID = 0x6D69_6772
TURN_EVERY_S = 0.2


def migrate(settings: Settings, services: Sequence[str] = DATABASES) -> list[str]:
    """Migrate these services' databases to the newest version. Returns one line for each. Raises CannotWork."""
    try:
        return [migrate_one(settings, service) for service in services]
    except (DBAPIError, psycopg2.Error) as error:
        raise CannotWork(f"the databases could not be migrated: {str(error).splitlines()[0]}") from error


def migrate_one(settings: Settings, service: str) -> str:
    """Create roles and database, migrate, and set the rights of one service."""
    app = make_url(settings.database_url(service))
    url, owner = app, None
    if settings.database_admin_url:
        admin = make_url(settings.database_admin_url)
        owner = f"{service}_owner"
        _provision(admin, app, owner, settings.reader_password)
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
            _grant(connection, service, app.username or "", owner)
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


def tables_named(service: str, constant: str) -> tuple[str, ...]:
    """The tables in APPEND_ONLY or NEVER_DELETED of a service's models.py; none where models.py lacks the constant."""
    models = importlib.import_module(f"{BY_NAME[service].package}.models")
    tables: tuple[str, ...] = getattr(models, constant, ())
    return tables


def _provision(admin: URL, app: URL, owner: str, reader_password: str) -> None:
    with closing(_connect(admin)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", [LOCK_ID])
        _role(cursor, owner, None)
        _role(cursor, app.username or "", app.password and str(app.password))
        _role(cursor, READER, reader_password or None)
        cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", [app.database])
        if not cursor.fetchone():
            cursor.execute(
                sql.SQL("CREATE DATABASE {} OWNER {} ENCODING 'UTF8' TEMPLATE template0").format(
                    sql.Identifier(app.database or ""), sql.Identifier(owner)
                )
            )
        database = sql.Identifier(app.database or "")
        cursor.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(database))
        for role in (app.username or "", READER):
            cursor.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(database, sql.Identifier(role)))


def _connect(url: URL) -> psycopg2.extensions.connection:
    connection = psycopg2.connect(url.set(drivername="postgresql").render_as_string(hide_password=False))
    connection.autocommit = True
    return connection


def _role(cursor: psycopg2.extensions.cursor, name: str, password: str | None) -> None:
    """Create a role or change its password. Without a password it cannot log in."""
    cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name])
    verb = sql.SQL("ALTER" if cursor.fetchone() else "CREATE")
    login = sql.SQL("LOGIN PASSWORD {}").format(sql.Literal(password)) if password else sql.SQL("NOLOGIN")
    cursor.execute(sql.SQL("{} ROLE {} {}").format(verb, sql.Identifier(name), login))


def _grant(connection: Connection, service: str, app: str, owner: str) -> None:
    """Grant DML to the app role and SELECT to the reader, and nothing to other roles."""
    quoted_app = '"' + app.replace('"', '""') + '"'
    for statement in (
        "REVOKE ALL ON SCHEMA public FROM PUBLIC",
        f'GRANT ALL ON SCHEMA public TO "{owner}"',
        f"GRANT USAGE ON SCHEMA public TO {quoted_app}, {READER}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {quoted_app}",
        f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {quoted_app}",
        f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {READER}",
        f"REVOKE INSERT, UPDATE, DELETE ON alembic_version FROM {quoted_app}",
        *(f"REVOKE UPDATE, DELETE ON {table} FROM {quoted_app}" for table in tables_named(service, "APPEND_ONLY")),
        *(f"REVOKE DELETE ON {table} FROM {quoted_app}" for table in tables_named(service, "NEVER_DELETED")),
    ):
        connection.execute(text(statement))
