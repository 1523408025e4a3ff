"""The operations ledger."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None
phase = "expand"


def upgrade() -> None:
    """Create the ledger."""
    now = sa.text("now()")
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "operations",
        sa.Column("operation_id", sa.Uuid, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("queue", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("filter", JSONB, nullable=False),
        sa.Column("options", JSONB, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False, server_default=""),
        sa.Column("counts", JSONB, nullable=False, server_default="{}"),
        sa.Column("file", sa.Text, nullable=False, server_default=""),
        sa.Column("sha256", sa.Text, nullable=False, server_default=""),
        sa.Column("started_at", moment, nullable=False, server_default=now),
        sa.Column("finished_at", moment),
        sa.PrimaryKeyConstraint("operation_id", name="pk_operations"),
    )
    op.create_index("ix_operations_queue_operation_id", "operations", ["queue", "operation_id"])
    op.create_index("ix_operations_actor_operation_id", "operations", ["actor", "operation_id"])
    op.create_index("ix_operations_open", "operations", ["queue"], postgresql_where=sa.text("status = 'started'"))
    op.create_index("ix_operations_sha256", "operations", ["sha256"], postgresql_where=sa.text("sha256 <> ''"))
    op.create_table(
        "operation_messages",
        sa.Column("operation_id", sa.Uuid, nullable=False),
        sa.Column("message_id", sa.Uuid, nullable=False),
        sa.Column("order_id", sa.Uuid),
        sa.Column("trace_id", sa.Text, nullable=False),
        sa.Column("event_type", sa.Text, nullable=False),
        sa.Column("fate", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False, server_default=""),
        sa.Column("at", moment, nullable=False, server_default=now),
        sa.ForeignKeyConstraint(
            ["operation_id"], ["operations.operation_id"], name="fk_operation_messages_operation_id"
        ),
        sa.PrimaryKeyConstraint("operation_id", "message_id", name="pk_operation_messages"),
    )
    op.create_index("ix_operation_messages_order_id", "operation_messages", ["order_id"])
    op.create_index("ix_operation_messages_message_id", "operation_messages", ["message_id"])


def downgrade() -> None:
    """Drop the ledger."""
    op.drop_table("operation_messages")
    op.drop_table("operations")
