"""Who works on each DLQ, with which command and operation, and since when."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None
phase = "expand"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "dlq_holders",
        sa.Column("queue", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("command", sa.Text, nullable=False),
        sa.Column("gives_way", sa.Boolean, nullable=False),
        sa.Column("operation_id", sa.Uuid),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("now()")),
        sa.PrimaryKeyConstraint("queue", name="pk_dlq_holders"),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("dlq_holders")
