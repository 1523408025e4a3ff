"""What every service's Alembic environment does, and the messaging tables they all begin with."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.exc import DBAPIError

from shared.database_errors import is_hold_up
from shared.tables import Base

# How long an attempt to lock a table may wait, how many there are, and the time between them.
LOCK_TIMEOUT_MS = 200
ATTEMPTS = 100
BETWEEN_ATTEMPTS_S = 0.5


def run(tables: Collection[str]) -> None:
    """Run the migrations of one service on the connection that `ecom migrate` handed over."""

    def include(name: str | None, kind: str, parents: Any) -> bool:
        return kind != "table" or name in tables

    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=Base.metadata,
        include_name=include,
        include_object=lambda item, name, kind, reflected, other: include(name, kind, None),
        compare_server_default=False,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def create_indexes(
    table: str,
    indexes: Mapping[str, Sequence[str]],
    where: str | None = None,
    unique: bool = False,
    using: str = "btree",
) -> None:
    """Create indexes, given as {name: columns}, while others read and write the table. `where` chooses their rows.

    PostgreSQL does this only outside a transaction. So a revision that creates indexes does nothing else, and it can
    run again after it was broken off: an index that is there is dropped first, since it may be invalid.
    """
    with _concurrently():
        for name, columns in indexes.items():
            op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)
            chosen = sa.text(where) if where else None
            op.create_index(
                name,
                table,
                list(columns),
                unique=unique,
                postgresql_concurrently=True,
                postgresql_where=chosen,
                postgresql_using=using,
            )


def drop_indexes(table: str, names: Iterable[str]) -> None:
    """Undo create_indexes; others read and write the table meanwhile."""
    with _concurrently():
        for name in names:
            op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)


@contextmanager
def _concurrently() -> Iterator[None]:
    """Outside a transaction, and without a limit to waits: nobody waits behind a build that waits for transactions."""
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = 0")
        yield
        op.execute("RESET lock_timeout")


def replace_primary_key(table: str, unique_index: str) -> None:
    """Make a unique index that exists the primary key of a table, in the place of the one there is.

    It takes a lock on the table for a moment, for which it waits as `lock_in_short_attempts` does.
    """
    lock_in_short_attempts(table)
    op.execute(f"ALTER TABLE {table} DROP CONSTRAINT pk_{table}")
    op.execute(f"ALTER TABLE {table} ADD CONSTRAINT pk_{table} PRIMARY KEY USING INDEX {unique_index}")


def lock_in_short_attempts(table: str) -> None:
    """Lock a table against everybody until the migration commits.

    Others wait behind each attempt, so an attempt is short and there are many. Raises DBAPIError after the last one.
    """
    connection = op.get_bind()
    connection.execute(sa.text(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"))
    for attempt in range(ATTEMPTS):
        try:
            with connection.begin_nested():
                connection.execute(sa.text(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))
            break
        except DBAPIError as error:
            if not is_hold_up(error) or attempt == ATTEMPTS - 1:
                raise
            time.sleep(BETWEEN_ATTEMPTS_S)
    connection.execute(sa.text("SET LOCAL lock_timeout = DEFAULT"))


def create_messaging_tables_v1() -> None:
    """Inbox, outbox and dead messages as of their first version. Never edited: a change is a new function."""
    now = sa.text("now()")
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "consumed_messages",
        sa.Column("consumer", sa.Text, nullable=False),
        sa.Column("message_id", sa.Uuid, nullable=False),
        sa.Column("consumed_at", moment, nullable=False, server_default=now),
        sa.PrimaryKeyConstraint("consumer", "message_id", name="pk_consumed_messages"),
    )
    op.create_index("ix_consumed_messages_consumed_at", "consumed_messages", ["consumed_at"], postgresql_using="brin")
    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("message_id", sa.Uuid, nullable=False),
        sa.Column("aggregate_id", sa.Uuid, nullable=False),
        sa.Column("event_type", sa.Text, nullable=False),
        sa.Column("traceparent", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("created_at", moment, nullable=False, server_default=now),
        sa.Column("published_at", moment),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("last_error", sa.Text),
        sa.Column("held_until", moment),
        sa.PrimaryKeyConstraint("id", name="pk_outbox"),
        sa.UniqueConstraint("message_id", name="uq_outbox_message_id"),
        # Rows live a short life: clean up after few of them, or the index of the unpublished bloats.
        postgresql_with={"autovacuum_vacuum_scale_factor": "0.01", "autovacuum_vacuum_threshold": "1000"},
    )
    op.create_index("ix_outbox_unpublished", "outbox", ["id"], postgresql_where=sa.text("published_at IS NULL"))
    op.create_index(
        "ix_outbox_held", "outbox", ["aggregate_id", "id"], postgresql_where=sa.text("held_until IS NOT NULL")
    )
    op.create_index("ix_outbox_published_at", "outbox", ["published_at"], postgresql_using="brin")
    op.create_table(
        "dead_messages",
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("message_id", sa.Uuid, nullable=False),
        sa.Column("queue", sa.Text, nullable=False),
        sa.Column("service", sa.Text, nullable=False),
        sa.Column("event_type", sa.Text),
        sa.Column("order_id", sa.Uuid),
        sa.Column("trace_id", sa.Text),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("error_class", sa.Text, nullable=False),
        sa.Column("error_message", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("replays", sa.Integer, nullable=False, server_default="0"),
        sa.Column("first_failed_at", moment, nullable=False),
        sa.Column("died_at", moment, nullable=False, server_default=now),
        sa.Column("left_at", moment),
        sa.Column("left_how", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_dead_messages"),
        sa.UniqueConstraint("queue", "message_id", name="uq_dead_messages_queue_message_id"),
    )
    op.create_index("ix_dead_messages_order_id", "dead_messages", ["order_id"])
    op.create_index(
        "ix_dead_messages_there", "dead_messages", ["queue", "died_at"], postgresql_where=sa.text("left_at IS NULL")
    )


def drop_messaging_tables_v1() -> None:
    """Undo create_messaging_tables_v1."""
    for table in ("dead_messages", "outbox", "consumed_messages"):
        op.drop_table(table)


def add_copies_of_dead_messages() -> None:
    """How many messages of one id lie in a DLQ: a crash of the broker can leave more than one."""
    op.add_column("dead_messages", sa.Column("copies", sa.Integer, nullable=False, server_default="1"))


def drop_copies_of_dead_messages() -> None:
    """Undo add_copies_of_dead_messages."""
    op.drop_column("dead_messages", "copies")


def create_idempotency_keys_v1() -> None:
    """The table of `shared.idempotency` as of its first version. Never edited: a change is a new function."""
    op.create_table(
        "idempotency_keys",
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("route", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("body", sa.JSON, nullable=False),
        sa.Column("location", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("now()")),
        sa.PrimaryKeyConstraint("user_id", "route", "key", name="pk_idempotency_keys"),
    )
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"], postgresql_using="brin")
