"""What each role of the databases may do: every service's own role, the reader and the operator try it themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import psycopg2
import pytest
from psycopg2.extensions import connection as Session
from sqlalchemy import URL, make_url

from ops.cli.migrate import migrate
from ops.local.servers import Servers
from ops.roles import COMMON_DATABASES, SESSION_LIMITS, connect, rights_of
from shared.config import Settings
from shared.edge import postgres
from shared.rights import OPERATOR, READER
from shared.tables import Base
from tests.databases import Databases
from topology.services import BY_NAME, DATABASES, REPLICAS

# Insufficient privilege. A statement that is denied has no effect, whatever else it says.
DENIED = "42501"

# The databases of which ops reads and writes tables.
OPERATED = ("order", "inventory", "payment", "catalog", "auth")

# Each role, and the database in which it tries what it may not do.
ROLES = [
    *((f"{service}_app", service) for service in DATABASES),
    *((role, service) for role in (READER, OPERATOR) for service in OPERATED),
]

ATTACKS = [
    # The shape of the database.
    "CREATE TABLE mine (n int)",
    "CREATE TEMPORARY TABLE mine (n int)",
    "CREATE SCHEMA mine",
    "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE EXTENSION pgcrypto",
    "ALTER TABLE {table} ADD COLUMN mine int",
    "CREATE INDEX mine ON {table} ({column})",
    "CREATE TRIGGER mine BEFORE INSERT ON {table} EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "DROP TABLE {table}",
    "TRUNCATE {table}",
    "UPDATE alembic_version SET version_num = 'mine'",
    "DELETE FROM alembic_version",
    "INSERT INTO alembic_version VALUES ('mine')",
    # Other roles.
    "CREATE ROLE mine",
    "CREATE DATABASE mine",
    "SET ROLE {service}_owner",
    "SET ROLE postgres",
    "ALTER ROLE {role} CONNECTION LIMIT -1",
    "ALTER ROLE {role} SUPERUSER",
    "ALTER ROLE {other} PASSWORD 'mine'",
    "SELECT rolpassword FROM pg_authid",
    "SELECT passwd FROM pg_shadow",
    "SELECT pg_terminate_backend({stranger})",
    "SELECT pg_cancel_backend({stranger})",
    # The machine.
    "COPY (SELECT 1) TO '/tmp/mine'",
    "COPY {table} FROM '/etc/passwd'",
    "COPY (SELECT 1) TO PROGRAM 'id'",
    "SELECT pg_read_file('/etc/passwd')",
    "SELECT pg_ls_dir('.')",
    "ALTER SYSTEM SET fsync = off",
    "SELECT pg_reload_conf()",
    "SET session_replication_role = replica",
    # Large objects, in which anybody could keep anything.
    "SELECT lo_create(0)",
    "SELECT lo_creat(-1)",
    "SELECT lo_from_bytea(0, 'mine')",
    "SELECT lo_import('/etc/passwd')",
    "SELECT lo_export(1, '/tmp/mine')",
    "SELECT lo_unlink(1)",
]

NEVER_IN_A_TRANSACTION = ("CREATE DATABASE", "ALTER SYSTEM")


def url_of(settings: Settings, role: str, service: str) -> URL:
    """A role's own URL in the database of a service."""
    url = make_url(settings.database_url(service))
    if role == READER:
        return url.set(username=role, password=settings.reader_password)
    if role == OPERATOR:
        return url.set(username=role, password=settings.operator_password)
    own = make_url(settings.database_url(role.removesuffix("_app")))
    return url.set(username=own.username, password=own.password)


class Tries:
    """One role's session, in which statements are denied or not."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def run(self, statement: str) -> str | None:
        """Try a statement and return PostgreSQL's code of its error, or None; nothing of it stays."""
        with self.session.cursor() as cursor:
            if not statement.startswith(NEVER_IN_A_TRANSACTION):
                cursor.execute("BEGIN")
            try:
                cursor.execute(statement)
            except psycopg2.Error as error:
                return error.pgcode
            finally:
                cursor.execute("ROLLBACK")
        return None

    def allowed(self, *statements: str) -> list[str]:
        """Those of the statements that are not denied."""
        return [statement for statement in statements if self.run(statement) != DENIED]


@pytest.fixture
def tries(settings: Settings, role: str, service: str) -> Iterator[Tries]:
    session = connect(url_of(settings, role, service))
    yield Tries(session)
    session.close()


def columns_of(table: str) -> list[str]:
    """Those that can be written. Nobody can set what the database computes: it says so before it looks at rights."""
    return [column.name for column in Base.metadata.tables[table].columns if column.computed is None]


@pytest.mark.parametrize(("role", "service"), ROLES)
def test_a_role_can_attack_neither_the_database_nor_the_server(
    settings: Settings, tries: Tries, role: str, service: str
) -> None:
    stranger = connect(make_url(settings.database_admin_url))
    table = next(table for table, its in rights_of(service).items() if its.read or role.endswith("_app"))
    column = columns_of(table)[0]
    names = {"table": table, "column": column, "role": role, "service": service}
    names |= {"other": "auth_app" if role == "order_app" else "order_app", "stranger": str(stranger.get_backend_pid())}

    numbered = [name for name in rights_of(service) if "id" in Base.metadata.tables[name].columns]

    allowed = tries.allowed(
        *(statement.format(**names) for statement in ATTACKS),
        *(f"SELECT {call}('{name}_id_seq')" for name in numbered for call in ("nextval", "currval")),
        *(f"SELECT setval('{name}_id_seq', 1)" for name in numbered),
    )

    with stranger.cursor() as cursor:
        cursor.execute("SELECT 1")  # nobody ended its session
    stranger.close()
    assert allowed == []


@pytest.mark.parametrize(("role", "service"), ROLES)
def test_a_role_can_connect_only_to_the_databases_it_needs(settings: Settings, role: str, service: str) -> None:
    admin = make_url(settings.database_admin_url)
    named = {name: str(make_url(settings.database_url(name)).database) for name in DATABASES}
    needed = {named[name] for name in (OPERATED if role in (READER, OPERATOR) else [service])}
    entered, said = set(), []
    for database in (*named.values(), *COMMON_DATABASES, "template0"):
        try:
            connect(url_of(settings, role, service).set(host=admin.host, port=admin.port, database=database)).close()
        except psycopg2.OperationalError as error:
            said.append(str(error))
        else:
            entered.add(database)

    assert all(re.search("permission denied for database|not currently accepting", words) for words in said)
    assert entered == needed


@pytest.mark.parametrize(("role", "service"), [(f"{service}_app", service) for service in DATABASES])
def test_a_service_changes_and_deletes_only_what_its_table_of_rights_says(
    tries: Tries, role: str, service: str
) -> None:
    for table, its in rights_of(service).items():
        changes = {column: f"UPDATE {table} SET {column} = {column}" for column in columns_of(table)}
        assert tries.allowed(*changes.values()) == [changes[name] for name in changes if name in its.changed]
        delete = f"DELETE FROM {table}"
        assert tries.allowed(delete) == ([delete] if its.deleted_because else [])
        assert tries.run(f"SELECT FROM {table} WHERE false") is None
        insert = f"INSERT INTO {table} SELECT * FROM {table} WHERE false"
        assert tries.allowed(insert) == ([insert] if its.added else [])


@pytest.mark.parametrize(("role", "service"), [(role, service) for role in (READER, OPERATOR) for service in OPERATED])
def test_the_reader_and_the_operator_have_the_columns_of_their_lists_and_no_others(
    tries: Tries, role: str, service: str
) -> None:
    for table, its in rights_of(service).items():
        names = columns_of(table)
        operates = role == OPERATOR and bool(its.operator_adds)
        seen = its.read if role == READER or operates else ()
        for statement, granted in (
            ("SELECT {0} FROM {1}", seen),
            ("UPDATE {1} SET {0} = NULL", its.operator_changes if operates else ()),
            ("INSERT INTO {1} ({0}) SELECT NULL WHERE false", its.operator_adds if operates else ()),
        ):
            all_of_them = [statement.format(name, table) for name in names]
            assert tries.allowed(*all_of_them) == [statement.format(name, table) for name in names if name in granted]
        assert tries.allowed(f"DELETE FROM {table}", f"SELECT FROM {table} FOR UPDATE") == (
            [f"SELECT FROM {table} FOR UPDATE"] if operates else []
        )


@pytest.mark.parametrize(("role", "service"), ROLES)
def test_a_session_that_sets_no_limits_has_limits_above_those_of_the_code(
    tries: Tries, role: str, service: str
) -> None:
    with tries.session.cursor() as cursor:
        cursor.execute("SELECT name, setting::int FROM pg_settings WHERE name = ANY(%s)", [list(SESSION_LIMITS)])
        limits = dict(cursor.fetchall())

    assert postgres.STATEMENT_TIMEOUT_MS < limits["statement_timeout"] <= 30_000
    assert postgres.LOCK_TIMEOUT_MS < limits["lock_timeout"] <= 30_000
    assert postgres.IDLE_IN_TRANSACTION_TIMEOUT_MS < limits["idle_in_transaction_session_timeout"] <= 60_000


def test_no_role_can_take_all_connections_and_each_has_those_of_its_replicas(databases: Databases) -> None:
    limits = {
        row["rolname"]: row["rolconnlimit"]
        for row in databases.rows("order", "SELECT rolname, rolconnlimit FROM pg_roles WHERE rolcanlogin")
    }
    (row,) = databases.rows("order", "SELECT current_setting('max_connections')::int AS most")
    for service in DATABASES:
        assert limits[f"{service}_app"] == REPLICAS * BY_NAME[service].connections
    assert all(0 < limit < row["most"] for name, limit in limits.items() if name != "postgres")


def test_migrating_takes_back_the_rights_that_an_older_version_gave(settings: Settings, databases: Databases) -> None:
    before = {service: privileges(databases, service) for service in DATABASES}
    for service in DATABASES:
        app, database = f"{service}_app", make_url(settings.database_url(service)).database
        for statement in (
            f'GRANT CONNECT, TEMPORARY ON DATABASE "{database}" TO {READER}, PUBLIC',
            f"GRANT ALL ON SCHEMA public TO {app}, PUBLIC",
            f"GRANT USAGE ON SCHEMA public TO {READER}",
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {app}",
            f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {READER}",
            f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {app}",
            "GRANT EXECUTE ON FUNCTION lo_create(oid) TO PUBLIC",
        ):
            databases.run(service, statement)
        assert privileges(databases, service) != before[service]

    migrate(settings)

    assert {service: privileges(databases, service) for service in DATABASES} == before


def privileges(databases: Databases, service: str) -> set[tuple[str, str]]:
    """Every right in a database, as (what it is on, who has it)."""
    rows = databases.rows(
        service,
        """
        SELECT 'database' AS what, unnest(datacl)::text AS who FROM pg_database WHERE datname = current_database()
        UNION ALL SELECT nspname::text, unnest(nspacl)::text FROM pg_namespace WHERE nspname = 'public'
        UNION ALL SELECT oid::regclass::text, unnest(relacl)::text FROM pg_class
            WHERE relnamespace = 'public'::regnamespace
        UNION ALL SELECT attrelid::regclass::text || '.' || attname, unnest(attacl)::text FROM pg_attribute
            WHERE attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace)
        UNION ALL SELECT oid::regprocedure::text, unnest(proacl)::text FROM pg_proc WHERE proname LIKE 'lo%'
        """,
    )
    return {(row["what"], row["who"]) for row in rows}


def test_no_password_is_in_a_statement(settings: Settings, servers_of_this_run: Servers) -> None:
    server = servers_of_this_run.postgres
    assert server is not None
    words = {name: f"{name}-in-clear" for name in ("reader", "operator", "app")}
    url = make_url(settings.database_url("payment")).set(password=words["app"])
    logged = make_url(settings.database_admin_url).update_query_dict({"options": "-clog_statement=all"})
    changed = replace(
        settings,
        database_admin_url=logged.render_as_string(hide_password=False),
        database_urls={**settings.database_urls, "payment": url.render_as_string(hide_password=False)},
        reader_password=words["reader"],
        operator_password=words["operator"],
    )
    start = server.log.stat().st_size
    try:
        migrate(changed, ["payment"])
        connect(url).close()  # it is the password all the same
    finally:
        migrate(settings, ["payment"])

    said = server.log.read_bytes()[start:].decode()
    assert "ALTER ROLE" in said
    assert "SCRAM-SHA-256$" in said
    assert [word for word in words.values() if word in said] == []


def test_triggers_log_every_step_of_a_payment_and_of_its_refund(settings: Settings, database: Databases) -> None:
    session = connect(url_of(settings, "payment_app", "payment"))
    order_id = "00000000-0000-7000-8000-000000000001"
    with session.cursor() as cursor:
        for statement in (
            "INSERT INTO payments (order_id, payment_id, status, amount, currency, method, user_id, roles, trace_id)"
            f" VALUES ('{order_id}', gen_random_uuid(), 'PENDING', 1, 'EUR', '', 'ann', '{{}}', 't')",
            "UPDATE payments SET updated_at = now()",  # asked for again: no step
            "UPDATE payments SET status = 'SUCCEEDED', reference = 'r-1'",
            "INSERT INTO refunds (refund_id, order_id, status, user_id, roles, trace_id)"
            f" VALUES ('{order_id}', '{order_id}', 'PENDING', 'bob', '{{}}', 't')",
            "UPDATE refunds SET status = 'DONE'",
        ):
            cursor.execute(statement)
    session.close()

    steps = database.rows("payment", "SELECT * FROM payment_log ORDER BY id")
    assert [
        (step["from_status"], step["to_status"], step["reference"], step["user_id"], step["refund_id"] is not None)
        for step in steps
    ] == [
        (None, "PENDING", "", "ann", False),
        ("PENDING", "SUCCEEDED", "r-1", "ann", False),
        (None, "PENDING", "", "bob", True),
        ("PENDING", "DONE", "", "bob", True),
    ]
