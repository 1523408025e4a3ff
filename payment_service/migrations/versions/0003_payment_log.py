"""The log of payments and refunds: triggers write it, so that no code forgets and none can rewrite it."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None
phase = "expand"

# The service's own role may not write the log. So the functions run as their owner, who owns the log as well.
FUNCTION = """
CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO payment_log (order_id, refund_id, from_status, to_status, reference, reason, user_id, trace_id)
    {select};
    RETURN NULL;
END $$
"""
SELECTS = {
    "log_new_payments": "SELECT order_id, NULL, NULL, status, reference, reason, user_id, trace_id FROM after",
    "log_changed_payments": """
        SELECT order_id, NULL, before.status, after.status, after.reference, after.reason, after.user_id, after.trace_id
        FROM after JOIN before USING (order_id)
        WHERE (before.status, before.reference, before.reason, before.cancelled)
            IS DISTINCT FROM (after.status, after.reference, after.reason, after.cancelled)
    """,
    "log_new_refunds": "SELECT order_id, refund_id, NULL, status, '', '', user_id, trace_id FROM after",
    "log_changed_refunds": """
        SELECT after.order_id, refund_id, before.status, after.status, '', '', after.user_id, after.trace_id
        FROM after JOIN before USING (refund_id) WHERE before.status <> after.status
    """,
}


def upgrade() -> None:
    """Create the log and its triggers. Payments of before begin in it with their next step."""
    op.create_table(
        "payment_log",
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("order_id", sa.Uuid, nullable=False),
        sa.Column("refund_id", sa.Uuid),
        sa.Column("from_status", sa.Text),
        sa.Column("to_status", sa.Text, nullable=False),
        sa.Column("reference", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("trace_id", sa.Text, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("clock_timestamp()")),
        sa.PrimaryKeyConstraint("id", name="pk_payment_log"),
    )
    op.create_index("ix_payment_log_order_id_id", "payment_log", ["order_id", "id"])
    for name, select in SELECTS.items():
        table = name.rpartition("_")[2]
        change, rows = (
            ("INSERT", "NEW TABLE AS after")
            if name.startswith("log_new")
            else ("UPDATE", "OLD TABLE AS before NEW TABLE AS after")
        )
        op.execute(FUNCTION.format(name=name, select=select))
        op.execute(f"REVOKE ALL ON FUNCTION {name}() FROM PUBLIC")
        op.execute(
            f"CREATE TRIGGER {name} AFTER {change} ON {table} REFERENCING {rows}"
            f" FOR EACH STATEMENT EXECUTE FUNCTION {name}()"
        )


def downgrade() -> None:
    """Drop them."""
    for name in SELECTS:
        op.execute(f"DROP TRIGGER {name} ON {name.rpartition('_')[2]}")
        op.execute(f"DROP FUNCTION {name}()")
    op.drop_table("payment_log")
