"""Who made a reservation by hand."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None
phase = "expand"


def upgrade() -> None:
    """Add the column. Of older reservations nobody knows it."""
    op.add_column("reservations", sa.Column("made_by", sa.Text))


def downgrade() -> None:
    """Drop it."""
    op.drop_column("reservations", "made_by")
