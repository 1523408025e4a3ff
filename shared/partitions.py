"""Outbox and inbox in partitions by time: what is old is dropped with its partition, not deleted row by row.

docs/decisions/0024 has the reasons. The functions run as the owner of the tables; the service's own role may only call
`purge_outbox` and `purge_consumed_messages`, which drop nothing that is younger than what is promised.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from alembic import op

from shared.migrations import lock_in_short_attempts

# A purge that waits for a lock keeps others waiting behind it: it gives up soon, and the next one tries again.
LOCK_TIMEOUT_MS = 200


@dataclass(frozen=True)
class Partitions:
    """How a table is divided. A partition is named by the day at which it ends: `outbox_until_20261129`."""

    table: str
    rest: str  # the default partition: rows that belong to no other
    key: str
    bound: str  # SQL: the smallest key of a moment, which is %s
    step: str
    ahead: str  # for how long partitions are made before they are needed
    keep: str
    dated: str  # the column that says how old a row is
    options: str = ""  # of each partition
    spares_young: bool = False  # whether a partition may hold rows that are younger than its keys
    also_dropped: str = ""  # a table of the version before, whose rows are older than those of every partition


# Unpublished rows have no time and so lie in the default partition. Publishing a row moves it to the partition of its
# day. So relay and writers use a table of few rows, and a partition that is dropped cannot hold an unpublished row.
OUTBOX = Partitions(
    table="outbox",
    rest="outbox_waiting",
    key="published_at",
    bound="%s",
    step="1 day",
    ahead="7 days",
    keep="7 days",
    dated="published_at",
    options="autovacuum_enabled = off, toast.autovacuum_enabled = off",  # nothing in it changes before it is dropped
    also_dropped="outbox_before",
)

# Our ids are UUIDv7, so a range of ids is a range of time. Ids of other programs may tell no time.
INBOX = Partitions(
    table="consumed_messages",
    rest="consumed_messages_undated",
    key="message_id",
    bound="(lpad(to_hex((extract(epoch FROM %s) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid",
    step="7 days",
    ahead="28 days",
    keep="90 days",
    dated="consumed_at",
    spares_young=True,
)

_ENDS = "to_timestamp(right(relname, 8), 'YYYYMMDD')"
_PARTITIONS = """
    FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
    WHERE inhparent = '{table}'::regclass AND relname ~ '_until_[0-9]{{8}}$'
"""
# All partitions begin at a multiple of their step after this Monday.
_MONDAY = "2001-01-01 00:00:00+00"

# Rows of the new partition that are in the default partition already move with it.
_EXTEND = """
CREATE FUNCTION extend_{table}(begins timestamptz, until timestamptz) RETURNS void LANGUAGE plpgsql
SET search_path = public, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    ends timestamptz;
    name text;
    low text;
    high text;
BEGIN
    SELECT greatest(begins, max({ends})) INTO begins {partitions};
    IF begins >= until THEN
        RETURN;
    END IF;
    LOCK TABLE {table} IN SHARE UPDATE EXCLUSIVE MODE;
    SELECT greatest(begins, max({ends})) INTO begins {partitions};
    WHILE begins < until LOOP
        ends := begins + interval '{step}';
        name := '{table}_until_' || to_char(ends, 'YYYYMMDD');
        low := {low};
        high := {high};
        EXECUTE format('CREATE TABLE %I (LIKE {table} INCLUDING ALL EXCLUDING IDENTITY){options}', name);
        EXECUTE format(
            'WITH moved AS (DELETE FROM {rest} WHERE {key} >= %L AND {key} < %L RETURNING *)'
            ' INSERT INTO %I SELECT * FROM moved', low, high, name);
        EXECUTE format('ALTER TABLE {table} ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', name, low, high);
        begins := ends;
    END LOOP;
END $$
"""

_PURGE = """
CREATE FUNCTION purge_{table}(most bigint) RETURNS TABLE (deleted bigint, ready boolean)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp SET timezone = 'UTC' SET lock_timeout = {lock_timeout} AS $$
DECLARE
    oldest CONSTANT timestamptz := now() - interval '{keep}';
    name text;
    young boolean;
BEGIN
    BEGIN
        DELETE FROM {rest} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {rest} WHERE {dated} < oldest LIMIT most));
        GET DIAGNOSTICS deleted = ROW_COUNT;
        FOR name IN SELECT relname {partitions} AND {ends} < oldest ORDER BY relname LOOP
            {spare}
            EXECUTE format('DROP TABLE %I', name);
            {also_drop}
        END LOOP;
        PERFORM extend_{table}(date_bin('{step}', now(), '{monday}'), now() + interval '{ahead}');
    EXCEPTION WHEN lock_not_available THEN
        -- The next call tries again. The answer says whether the partitions will last until tomorrow.
        deleted := 0;
    END;
    SELECT coalesce(max({ends}) > now() + interval '1 day', false) INTO ready {partitions};
    RETURN NEXT;
END $$
"""
_SPARE = """EXECUTE format('LOCK TABLE %I IN SHARE MODE', name);
            EXECUTE format('SELECT EXISTS (SELECT FROM %I WHERE {dated} >= %L)', name, oldest) INTO young;
            CONTINUE WHEN young;"""


def partition_outbox_v1() -> None:
    """Put a partitioned outbox in the place of the old one. Events that wait move into it.

    Published events of before stay in `outbox_before`, which is dropped together with the first partition.
    """
    lock_in_short_attempts("outbox")
    for index in _OLD_OUTBOX_INDEXES:
        op.execute(f"ALTER INDEX {index} RENAME TO {index}_before")
    next_id = op.get_bind().scalar(sa.text("SELECT nextval('outbox_id_seq')"))
    op.execute("ALTER TABLE outbox ALTER COLUMN id DROP IDENTITY")
    op.execute("ALTER TABLE outbox RENAME TO outbox_before")
    op.execute("CREATE TABLE outbox_new (LIKE outbox_before INCLUDING DEFAULTS) PARTITION BY RANGE (published_at)")
    op.execute(f"ALTER TABLE outbox_new ALTER COLUMN id ADD GENERATED BY DEFAULT AS IDENTITY (START WITH {next_id})")
    op.execute("CREATE INDEX ix_outbox_unpublished ON outbox_new (id) WHERE published_at IS NULL")
    op.execute("CREATE INDEX ix_outbox_held ON outbox_new (aggregate_id, id) WHERE held_until IS NOT NULL")
    op.execute("ALTER TABLE outbox_new RENAME TO outbox")
    op.execute("ALTER SEQUENCE outbox_new_id_seq RENAME TO outbox_id_seq")
    # Rows live for moments: clean up after few of them.
    op.execute(
        "CREATE TABLE outbox_waiting PARTITION OF outbox DEFAULT"
        " WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000)"
    )
    _copy_rights("outbox_before", "outbox")
    op.execute(
        "WITH waiting AS (DELETE FROM outbox_before WHERE published_at IS NULL RETURNING *)"
        " INSERT INTO outbox SELECT * FROM waiting"
    )
    _create_functions(OUTBOX)
    in_use = op.get_bind().scalar(sa.text("SELECT EXISTS (SELECT FROM outbox_before)"))
    op.execute(f"SELECT extend_outbox({_this('1 day')}, now() + interval '7 days')")
    if in_use:
        _let_the_version_before_mark_by_id()
    else:
        op.execute("DROP TABLE outbox_before")


def _let_the_version_before_mark_by_id() -> None:
    """Index the ids of the partitions of two days, so long as replicas of the version before may run beside the new."""
    names = op.get_bind().scalars(
        sa.text(f"SELECT relname {_PARTITIONS.format(table='outbox')} ORDER BY relname LIMIT 2")
    )
    for name in names.all():
        op.execute(f"CREATE INDEX {name}_id ON {name} (id)")


def undo_partition_outbox_v1() -> None:
    """Undo partition_outbox_v1: copy all rows back."""
    lock_in_short_attempts("outbox")
    next_id = op.get_bind().scalar(sa.text("SELECT nextval('outbox_id_seq')"))
    op.execute("ALTER TABLE outbox RENAME TO outbox_parts")
    op.execute("ALTER TABLE outbox_parts ALTER COLUMN id DROP IDENTITY")
    op.execute("CREATE TABLE outbox (LIKE outbox_parts INCLUDING DEFAULTS)")
    op.execute(f"ALTER TABLE outbox ALTER COLUMN id ADD GENERATED BY DEFAULT AS IDENTITY (START WITH {next_id})")
    op.execute("ALTER TABLE outbox SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000)")
    _copy_rights("outbox_parts", "outbox")
    op.execute("INSERT INTO outbox SELECT * FROM outbox_parts")
    if op.get_bind().scalar(sa.text("SELECT to_regclass('outbox_before') IS NOT NULL")):
        op.execute("INSERT INTO outbox SELECT * FROM outbox_before")
        op.execute("DROP TABLE outbox_before")
    op.execute("DROP TABLE outbox_parts")
    op.execute("ALTER TABLE outbox ADD CONSTRAINT pk_outbox PRIMARY KEY (id)")
    op.execute("ALTER TABLE outbox ADD CONSTRAINT uq_outbox_message_id UNIQUE (message_id)")
    op.execute("CREATE INDEX ix_outbox_unpublished ON outbox (id) WHERE published_at IS NULL")
    op.execute("CREATE INDEX ix_outbox_held ON outbox (aggregate_id, id) WHERE held_until IS NOT NULL")
    op.execute("CREATE INDEX ix_outbox_published_at ON outbox USING brin (published_at)")
    _drop_functions(OUTBOX)


def partition_inbox_v1() -> None:
    """Put a partitioned inbox in the place of the old one, which becomes its default partition as it is."""
    lock_in_short_attempts("consumed_messages")
    for index in _OLD_INBOX_INDEXES:
        op.execute(f"ALTER INDEX {index} RENAME TO {index.replace(INBOX.table, INBOX.rest)}")
    op.execute("ALTER TABLE consumed_messages RENAME TO consumed_messages_undated")
    op.execute(
        "CREATE TABLE consumed_messages_new (LIKE consumed_messages_undated INCLUDING DEFAULTS,"
        " CONSTRAINT pk_consumed_messages PRIMARY KEY (consumer, message_id)) PARTITION BY RANGE (message_id)"
    )
    op.execute("CREATE INDEX ix_consumed_messages_consumed_at ON consumed_messages_new USING brin (consumed_at)")
    op.execute("ALTER TABLE consumed_messages_new RENAME TO consumed_messages")
    op.execute("ALTER TABLE consumed_messages ATTACH PARTITION consumed_messages_undated DEFAULT")
    _copy_rights("consumed_messages_undated", "consumed_messages")
    _create_functions(INBOX)


def undo_partition_inbox_v1() -> None:
    """Undo partition_inbox_v1: copy the rows of all partitions into one table."""
    lock_in_short_attempts("consumed_messages")
    op.execute("ALTER TABLE consumed_messages DETACH PARTITION consumed_messages_undated")
    op.execute("INSERT INTO consumed_messages_undated SELECT * FROM consumed_messages")
    op.execute("DROP TABLE consumed_messages")
    op.execute("ALTER TABLE consumed_messages_undated RENAME TO consumed_messages")
    for index in _OLD_INBOX_INDEXES:
        op.execute(f"ALTER INDEX {index.replace(INBOX.table, INBOX.rest)} RENAME TO {index}")
    _drop_functions(INBOX)


def first_partitions_of_inbox_v1() -> None:
    """Make the partitions of an inbox that is in use, while others read and write it.

    A new partition needs proof that none of its rows is in the default partition, or PostgreSQL reads all of that
    under a lock. A checked constraint is such a proof. These partitions last until the rows of before are forgotten.
    """
    with op.get_context().autocommit_block():
        op.execute("ALTER TABLE consumed_messages_undated DROP CONSTRAINT IF EXISTS of_no_partition")
        in_use = op.get_bind().scalar(sa.text("SELECT EXISTS (SELECT FROM consumed_messages_undated)"))
    if not in_use:
        op.execute(f"SELECT extend_consumed_messages({_this('7 days')}, now() + interval '28 days')")
        return
    low, high = (op.get_bind().scalar(sa.text(f"SELECT {INBOX.bound.replace('%s', moment)}")) for moment in _UNDER_WAY)
    with op.get_context().autocommit_block():
        op.execute(
            "ALTER TABLE consumed_messages_undated ADD CONSTRAINT of_no_partition"
            f" CHECK (message_id < '{low}' OR message_id >= '{high}') NOT VALID"
        )
    moved = op.get_bind().execute(
        sa.text("DELETE FROM consumed_messages_undated WHERE message_id >= :low AND message_id < :high RETURNING *"),
        {"low": low, "high": high},
    )
    rows = [dict(row) for row in moved.mappings()]
    op.execute("ALTER TABLE consumed_messages_undated VALIDATE CONSTRAINT of_no_partition")
    op.execute("SELECT extend_consumed_messages({}, {})".format(*_UNDER_WAY))
    if rows:
        op.bulk_insert(sa.table("consumed_messages", *map(sa.column, rows[0])), rows)
    op.execute("ALTER TABLE consumed_messages_undated DROP CONSTRAINT of_no_partition")


def undo_first_partitions_of_inbox_v1() -> None:
    """Undo first_partitions_of_inbox_v1: copy the rows into the default partition."""
    lock_in_short_attempts("consumed_messages")
    names = op.get_bind().scalars(sa.text(f"SELECT relname {_PARTITIONS.format(table='consumed_messages')}"))
    for name in names.all():
        op.execute(f"ALTER TABLE consumed_messages DETACH PARTITION {name}")
        op.execute(f"INSERT INTO consumed_messages SELECT * FROM {name}")
        op.execute(f"DROP TABLE {name}")


def _this(step: str) -> str:
    """SQL: when the present step began."""
    return f"date_bin('{step}', now(), timestamptz '{_MONDAY}')"


_OLD_OUTBOX_INDEXES = (
    "pk_outbox",
    "uq_outbox_message_id",
    "ix_outbox_unpublished",
    "ix_outbox_held",
    "ix_outbox_published_at",
)
_OLD_INBOX_INDEXES = ("pk_consumed_messages", "ix_consumed_messages_consumed_at")

# The first partitions of an inbox in use: they begin so late that a migration that was broken off can be repeated
# first, and end when the messages of before have been forgotten for longer than partitions are made ahead.
_UNDER_WAY = tuple(f"{_this('7 days')} + interval '{days} days'" for days in (14, 140))


def _copy_rights(old: str, new: str) -> None:
    """Give everybody the rights on a new table that they have on the old one: the services are using it."""
    rights = op.get_bind().execute(
        sa.text("""
            SELECT privilege_type, '', quote_ident(grantee::regrole::text) FROM pg_class, aclexplode(relacl)
            WHERE oid = CAST(:old AS regclass) AND grantee <> relowner
            UNION ALL
            SELECT privilege_type, '(' || quote_ident(attname) || ')', quote_ident(grantee::regrole::text)
            FROM pg_attribute, aclexplode(attacl) WHERE attrelid = CAST(:old AS regclass)
        """),
        {"old": old},
    )
    for privilege, column, role in rights.all():
        op.execute(f"GRANT {privilege} {column} ON {new} TO {role}")


def _create_functions(its: Partitions) -> None:
    words = {
        **vars(its),
        "ends": _ENDS,
        "partitions": _PARTITIONS.format(table=its.table),
        "low": its.bound.replace("%s", "begins"),
        "high": its.bound.replace("%s", "ends"),
        "monday": _MONDAY,
        "lock_timeout": LOCK_TIMEOUT_MS,
        "options": f" WITH ({its.options})" if its.options else "",
        "spare": _SPARE.format(dated=its.dated) if its.spares_young else "",
        "also_drop": f"DROP TABLE IF EXISTS {its.also_dropped};" if its.also_dropped else "",
    }
    for function in (_EXTEND, _PURGE):
        op.execute(function.format(**words))
    for signature in _signatures(its):
        op.execute(f"REVOKE ALL ON FUNCTION {signature} FROM PUBLIC")


def _drop_functions(its: Partitions) -> None:
    for signature in _signatures(its):
        op.execute(f"DROP FUNCTION {signature}")


def _signatures(its: Partitions) -> tuple[str, str]:
    """The functions of a table, as GRANT and DROP name them."""
    return f"extend_{its.table}(timestamptz, timestamptz)", f"purge_{its.table}(bigint)"
