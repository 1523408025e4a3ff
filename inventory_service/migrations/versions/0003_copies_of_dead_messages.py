"""How many messages of one id lie in a DLQ."""

from shared.migrations import add_copies_of_dead_messages, drop_copies_of_dead_messages

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None
phase = "expand"


def upgrade() -> None:
    """Add the column."""
    add_copies_of_dead_messages()


def downgrade() -> None:
    """Drop it."""
    drop_copies_of_dead_messages()
