"""The first partitions of the inbox, made while others read and write it."""

from shared.partitions import first_partitions_of_inbox_v1, undo_first_partitions_of_inbox_v1

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None
phase = "expand"


def upgrade() -> None:
    """Make them."""
    first_partitions_of_inbox_v1()


def downgrade() -> None:
    """Copy their rows into the default partition."""
    undo_first_partitions_of_inbox_v1()
