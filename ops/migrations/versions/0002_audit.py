"""The release audit in the ledger: the heads of its chain, and the results of verifications."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None
phase = "expand"


def upgrade() -> None:
    """Create both."""
    now = sa.text("now()")
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "audit_heads",
        sa.Column("seq", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("mac", sa.Text, nullable=False),
        sa.Column("total", sa.BigInteger, nullable=False),
        sa.Column("at", moment, nullable=False, server_default=now),
        sa.PrimaryKeyConstraint("seq", name="pk_audit_heads"),
    )
    op.create_table(
        "audit_verifications",
        sa.Column("verification_id", sa.Uuid, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("intact", sa.Boolean, nullable=False),
        sa.Column("seals", sa.BigInteger, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("started_at", moment, nullable=False),
        sa.Column("finished_at", moment, nullable=False, server_default=now),
        sa.PrimaryKeyConstraint("verification_id", name="pk_audit_verifications"),
    )


def downgrade() -> None:
    """Drop both."""
    op.drop_table("audit_verifications")
    op.drop_table("audit_heads")
