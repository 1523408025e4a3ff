"""The roles of the databases, and what each may do. `ecom migrate` calls this as the administrator and as the owner.

Each service has an owner role that runs the migrations and cannot log in, and an app role, that of its URL. For all
services together there are `ecom_reader` and `ecom_operator`. docs/decisions/0020 has the reasons.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection as Session
from psycopg2.extensions import encrypt_password
from sqlalchemy import URL, make_url

from shared.config import Settings
from shared.errors import CannotWork
from shared.rights import OPERATOR, READER, Rights
from topology.services import BY_NAME

# An advisory lock with this id makes two `ecom migrate` at the same time take turns.
LOCK_ID = 0x6D69_6772

# Readers and operators come with ops and with people at terminals. Each takes a few connections for moments: this is
# a third of the connections of our own database servers.
OTHERS_CONNECTIONS = 100

# For sessions that set no limits themselves, so above all limits that the code sets. A session may still set others.
SESSION_LIMITS = {
    "statement_timeout": "30s",
    "lock_timeout": "15s",
    "idle_in_transaction_session_timeout": "60s",
}

# The databases that every cluster has. PUBLIC may connect to them until somebody says no.
COMMON_DATABASES = ("postgres", "template1")

# Large objects have no owner among our tables, fill the disk and are never deleted.
_LARGE_OBJECTS = """
    SELECT oid::regprocedure::text FROM pg_proc
    WHERE pronamespace = 'pg_catalog'::regnamespace AND proname ~ '^(lo_|loread$|lowrite$)'
    AND has_function_privilege('public', oid, 'EXECUTE') AND pg_has_role(proowner, 'USAGE')
"""


def rights_of(service: str) -> Mapping[str, Rights]:
    """The rights on each table of a service: RIGHTS of its models.py."""
    found: Mapping[str, Rights] = importlib.import_module(f"{BY_NAME[service].package}.models").RIGHTS
    return found


def provision(settings: Settings, admin: URL, app: URL, service: str, replicas: int) -> str:
    """Create a service's database and the roles that use it, or bring them up to date; return the owner role's name.

    Passwords are sent as SCRAM verifiers, so the server's log never has one. Raises psycopg2.Error, CannotWork.
    """
    owner = f"{service}_owner"
    if not app.username or not app.database:
        raise CannotWork(f"{service.upper()}_DATABASE_URL names no user or no database: it is to say whom to create")
    with closing(connect(admin)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", [LOCK_ID])
        _make_role(connection, owner)
        _make_role(connection, app.username, str(app.password or ""), BY_NAME[service].connections * replicas)
        _make_role(connection, READER, settings.reader_password, OTHERS_CONNECTIONS)
        _make_role(connection, OPERATOR, settings.operator_password, OTHERS_CONNECTIONS)
        _join(connection, owner)
        cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", [app.database])
        if not cursor.fetchone():
            cursor.execute(
                sql.SQL("CREATE DATABASE {} OWNER {} ENCODING 'UTF8' TEMPLATE template0").format(
                    sql.Identifier(app.database), sql.Identifier(owner)
                )
            )
        users = [app.username, *_others(rights_of(service))]
        cursor.execute(sql.SQL("; ").join(_database_rights(app.database, users)))
        for role in users:
            for name, value in SESSION_LIMITS.items():
                cursor.execute(
                    sql.SQL("ALTER ROLE {} IN DATABASE {} SET {} = {}").format(
                        sql.Identifier(role), sql.Identifier(app.database), sql.Identifier(name), sql.Literal(value)
                    )
                )
    with closing(connect(admin.set(database=app.database))) as connection, connection.cursor() as cursor:
        cursor.execute(_LARGE_OBJECTS)
        for (function,) in cursor.fetchall():
            cursor.execute(f"REVOKE ALL ON FUNCTION {function} FROM PUBLIC")
    return owner


def close_common_databases(admin: URL) -> None:
    """Take the right to connect to the databases that every cluster has from everybody but their owner.

    For a cluster that nobody else uses. Raises psycopg2.Error, CannotWork when the administrator may not do it.
    """
    with closing(connect(admin)) as connection, connection.cursor() as cursor:
        for database in COMMON_DATABASES:
            cursor.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(database)))
            cursor.execute("SELECT has_database_privilege('public', %s, 'CONNECT')", [database])
            if cursor.fetchone() == (True,):
                raise CannotWork(f"the role of DATABASE_ADMIN_URL may not close the database {database} to others")


def grants(rights: Mapping[str, Rights], owner: str, app: str) -> Iterator[str]:
    """The statements, run in one transaction as the owner, after which each role has these rights and no others."""
    app = _quoted(app)
    every = (f"ALL {kind} IN SCHEMA public" for kind in ("TABLES", "SEQUENCES", "FUNCTIONS"))
    for what in ("SCHEMA public", *every):
        yield f"REVOKE ALL ON {what} FROM PUBLIC, {app}, {READER}, {OPERATOR}"
    yield f"GRANT ALL ON SCHEMA public TO {_quoted(owner)}"
    yield f"GRANT USAGE ON SCHEMA public TO {', '.join([app, *_others(rights)])}"
    yield f"GRANT SELECT ON alembic_version TO {app}"
    for table, its in rights.items():
        yield f"GRANT SELECT ON {table} TO {app}"
        if its.added:
            yield f"GRANT INSERT ON {table} TO {app}"
        if its.deleted_because:
            yield f"GRANT DELETE ON {table} TO {app}"
        if its.purged_by:
            yield f"GRANT EXECUTE ON FUNCTION {its.purged_by} TO {app}"
        for verb, columns, role in (
            ("UPDATE", its.changed, app),
            ("SELECT", its.read, READER),
            ("SELECT", its.read if its.operator_adds or its.operator_changes else (), OPERATOR),
            ("INSERT", its.operator_adds, OPERATOR),
            ("UPDATE", its.operator_changes, OPERATOR),
        ):
            if columns:
                yield f"GRANT {verb} ({', '.join(map(_quoted, columns))}) ON {table} TO {role}"


def url_as(settings: Settings, service: str, role: str) -> URL:
    """Where a service's database is, as READER or OPERATOR. The user and the password of its URL are not used then.

    Who has set no password for the role has brought databases of his own, in which the URL's user does it all.
    Raises ConfigurationFault when the URL is not set.
    """
    url = make_url(settings.database_url(service))
    password = settings.reader_password if role == READER else settings.operator_password
    return url.set(username=role, password=password) if password else url


def connect(url: URL) -> Session:
    """A connection whose statements commit themselves. Raises psycopg2.Error."""
    connection = psycopg2.connect(url.set(drivername="postgresql").render_as_string(hide_password=False))
    connection.autocommit = True
    return connection


def _others(rights: Mapping[str, Rights]) -> list[str]:
    """Of READER and OPERATOR those that have any right on these tables."""
    reads = any(its.read for its in rights.values())
    operates = any(its.operator_adds or its.operator_changes for its in rights.values())
    return [READER] * reads + [OPERATOR] * operates


def _database_rights(database: str, users: Iterable[str]) -> Iterator[sql.Composable]:
    """Statements after which only these roles may connect. Sent together they are one transaction: nobody who may
    connect is refused meanwhile."""
    name = sql.Identifier(database)
    yield sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(name)
    for role in (READER, OPERATOR, *users):
        yield sql.SQL("REVOKE ALL ON DATABASE {} FROM {}").format(name, sql.Identifier(role))
    for role in users:
        yield sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(name, sql.Identifier(role))


def _make_role(connection: Session, name: str, password: str = "", connections: int = -1) -> None:
    """Create a role, or change its password and its limit of connections. Without a password it cannot log in."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name])
        login: sql.Composable = sql.SQL("NOLOGIN")
        if password:
            verifier = encrypt_password(password, name, scope=connection, algorithm="scram-sha-256")
            login = sql.SQL("LOGIN PASSWORD {}").format(sql.Literal(verifier))
        cursor.execute(
            sql.SQL("{} ROLE {} {} CONNECTION LIMIT {}").format(
                sql.SQL("ALTER" if cursor.fetchone() else "CREATE"),
                sql.Identifier(name),
                login,
                sql.Literal(connections),
            )
        )


def _join(connection: Session, role: str) -> None:
    """Let an administrator who is no superuser act as a role that he has made. PostgreSQL 16 lets him only grant it."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
        if cursor.fetchone() != (True,):
            cursor.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(sql.Identifier(role)))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
