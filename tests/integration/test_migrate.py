"""`ecom migrate`: its phases, its waits for locks, and an administrator who is no superuser."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import eventlet
import pytest
from alembic import command
from sqlalchemy import Connection, create_engine, make_url, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.pool import NullPool

from ops.cli import migrate as migrations
from ops.cli.migrate import migrate, migrate_one
from shared.config import Settings
from shared.errors import CannotWork
from shared.revisions import CONTRACT, EXPAND, needed_revision, revisions_of
from tests.databases import Databases
from tests.integration.support import administer, alembic, until

SERVICE = "payment"
NEEDED, NEWEST = needed_revision(SERVICE), revisions_of(SERVICE)[-1].name
BEFORE = revisions_of(SERVICE)[-3].name

at_service = pytest.mark.parametrize("service", [SERVICE])


@pytest.fixture
def own(settings: Settings, scratch: Connection) -> Settings:
    """The settings of one who has brought a database of his own."""
    url = scratch.engine.url.render_as_string(hide_password=False)
    return replace(settings, database_admin_url="", database_urls={SERVICE: url})


def upgrade(scratch: Connection, revision: str) -> None:
    command.upgrade(alembic(SERVICE, scratch), revision)
    scratch.commit()


@at_service
def test_each_phase_does_its_own_migrations_and_says_what_is_left(scratch: Connection, own: Settings) -> None:
    upgrade(scratch, BEFORE)
    database = f"{SERVICE}: test_scratch_{SERVICE}"
    with pytest.raises(CannotWork, match=rf"{NEEDED} \(expand\) comes before {NEWEST} \(contract\): run `ecom migrate"):
        migrate(own, [SERVICE], phase=CONTRACT)

    assert migrate(own, [SERVICE], phase=EXPAND) == [f"{database} at {NEEDED}; not done: {NEWEST} (contract)"]
    assert migrate(own, [SERVICE], phase=EXPAND) == [f"{database} at {NEEDED}; not done: {NEWEST} (contract)"]
    assert migrate(own, [SERVICE], phase=CONTRACT) == [f"{database} at {NEWEST}"]
    assert migrate(own, [SERVICE]) == [f"{database} at {NEWEST}"]


@at_service
def test_an_empty_database_gets_everything_and_one_of_a_newer_version_nothing(
    scratch: Connection, own: Settings
) -> None:
    assert migrate_one(own, SERVICE, phase=EXPAND).endswith(f" at {NEWEST}")
    scratch.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    scratch.commit()

    assert migrate_one(own, SERVICE).endswith(" at 9999, which is of a newer version; nothing is to do")
    assert scratch.scalar(text("SELECT version_num FROM alembic_version")) == "9999"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between the tries of a migration, which are short here, as its tries are."""
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        eventlet.sleep(0.02)

    monkeypatch.setattr(migrations, "LOCK_TIMEOUT_MS", 50)
    monkeypatch.setattr(migrations, "time", SimpleNamespace(sleep=sleep))
    return waits


@at_service
def test_a_migration_that_waits_for_a_lock_lets_the_others_pass_between_its_tries(
    scratch: Connection, own: Settings, waits: list[float]
) -> None:
    upgrade(scratch, "0001")
    scratch.execute(text("SELECT FROM dead_messages"))  # and the transaction stays open
    migrating = eventlet.spawn(migrate_one, own, SERVICE)
    until(lambda: len(waits) >= 2)
    with create_engine(scratch.engine.url, poolclass=NullPool).begin() as other:
        other.execute(text("SET lock_timeout = '5s'; SELECT FROM dead_messages"))
    assert not migrating.dead
    scratch.rollback()

    assert migrating.wait().endswith(f" at {NEWEST}")


@at_service
def test_a_migration_that_never_gets_its_lock_gives_up(scratch: Connection, own: Settings, waits: list[float]) -> None:
    upgrade(scratch, "0001")
    scratch.execute(text("SELECT FROM dead_messages"))
    with pytest.raises(CannotWork, match="lock timeout"):
        migrate(own, [SERVICE])

    assert len(waits) == migrations.TRIES - 1
    assert scratch.scalar(text("SELECT version_num FROM alembic_version")) == "0001"


@at_service
def test_the_build_of_an_index_waits_for_a_writer_as_long_as_it_takes(
    scratch: Connection, own: Settings, waits: list[float], database: Databases
) -> None:
    upgrade(scratch, BEFORE)
    scratch.execute(text("LOCK TABLE payment_log IN ROW EXCLUSIVE MODE"))
    builds = (
        "SELECT pid FROM pg_stat_activity WHERE query ~ 'CREATE.* INDEX CONCURRENTLY' AND wait_event_type = 'Lock'"
        f" AND datname = 'test_scratch_{SERVICE}' AND clock_timestamp() - query_start > interval '0.3 s'"
    )
    migrating = eventlet.spawn(migrate_one, own, SERVICE)
    until(lambda: migrating.dead or database.rows(SERVICE, builds))
    scratch.rollback()

    assert migrating.wait().endswith(f" at {NEWEST}")
    assert waits == []


ADMINISTRATOR = "test_administrator"
PASSWORD = "demo-administrator"


@pytest.fixture
def administered(settings: Settings, database: Databases) -> Iterator[Settings]:
    """The settings of a server whose administrator may make roles and databases, and is no superuser."""
    services, home = (SERVICE, "ops"), make_url(settings.database_admin_url).database
    urls = {
        name: make_url(settings.database_url(name)).set(database=f"test_administered_{name}").render_as_string(False)
        for name in services
    }
    database.run(SERVICE, f"CREATE ROLE {ADMINISTRATOR} LOGIN CREATEDB CREATEROLE PASSWORD '{PASSWORD}'")
    database.run(SERVICE, f"GRANT CONNECT ON DATABASE {home} TO {ADMINISTRATOR}")
    with database.connect(SERVICE) as superuser:
        if int(superuser.scalar(text("SHOW server_version_num")) or 0) >= 160000:
            # Roles that he has made himself come to him so; other tests have made them before.
            for role in (*(f"{name}_{kind}" for name in services for kind in ("owner", "app")), *OTHERS):
                superuser.execute(text(f"GRANT {role} TO {ADMINISTRATOR} WITH ADMIN TRUE, INHERIT FALSE, SET FALSE"))
    admin = make_url(settings.database_admin_url).set(username=ADMINISTRATOR, password=PASSWORD)
    yield replace(settings, database_admin_url=admin.render_as_string(False), database_urls=urls)
    for name in services:
        administer(database, SERVICE, f"DROP DATABASE IF EXISTS test_administered_{name} WITH (FORCE)")
    database.run(SERVICE, f"REVOKE CONNECT ON DATABASE {home} FROM {ADMINISTRATOR}")
    database.run(SERVICE, f"DROP OWNED BY {ADMINISTRATOR}")
    database.run(SERVICE, f"DROP ROLE {ADMINISTRATOR}")


OTHERS = ("ecom_reader", "ecom_operator")


def test_an_administrator_who_is_no_superuser_makes_everything_that_a_superuser_makes(
    settings: Settings, administered: Settings
) -> None:
    services = tuple(administered.database_urls)
    made = migrate(administered, services)
    assert made == [
        f"{name}: test_administered_{name} at {revisions_of(name)[-1].name}" for name in administered.database_urls
    ]
    assert migrate(administered, services) == made

    for name in services:
        assert rights_in(administered, name) == rights_in(settings, name)
    with create_engine(administered.database_url(SERVICE), poolclass=NullPool).connect() as app:
        app.execute(text("SELECT FROM payments"))
        app.execute(text("SELECT * FROM purge_outbox(0)"))
        with pytest.raises(ProgrammingError, match="permission denied"):
            app.execute(text("DELETE FROM payments"))


def rights_in(settings: Settings, service: str) -> list[tuple[object, ...]]:
    """The owner of each table and function of a service's database, and who may do what with it."""
    url = make_url(settings.database_url(service))
    admin = make_url(settings.database_admin_url).set(database=url.database)
    parts = (
        "SELECT relname, pg_get_userbyid(relowner), relacl::text FROM pg_class"
        " WHERE relnamespace = 'public'::regnamespace AND relname !~ '_until_'",
        "SELECT proname, pg_get_userbyid(proowner), proacl::text FROM pg_proc"
        " WHERE pronamespace = 'public'::regnamespace",
        "SELECT relname, attname, attacl::text FROM pg_attribute JOIN pg_class ON attrelid = pg_class.oid"
        " WHERE relnamespace = 'public'::regnamespace AND attacl IS NOT NULL",
    )
    with create_engine(admin, poolclass=NullPool).connect() as connection:
        return sorted((tuple(row) for part in parts for row in connection.execute(text(part))), key=str)
