"""The outbox in partitions: an event that is published moves into that of its day."""

from shared.partitions import partition_outbox_v1, undo_partition_outbox_v1

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None
phase = "expand"


def upgrade() -> None:
    """Replace the table. Events that wait move into the new one."""
    partition_outbox_v1()


def downgrade() -> None:
    """Copy all events back."""
    undo_partition_outbox_v1()
