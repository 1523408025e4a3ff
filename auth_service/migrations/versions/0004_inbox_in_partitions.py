"""The inbox in partitions by the time in the ids of messages."""

from shared.partitions import partition_inbox_v1, undo_partition_inbox_v1

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None
phase = "expand"


def upgrade() -> None:
    """Replace the table. The old one becomes the default partition of the new one."""
    partition_inbox_v1()


def downgrade() -> None:
    """Copy all rows into one table."""
    undo_partition_inbox_v1()
