"""The tables of messages: events about people are published from an outbox."""

from shared.migrations import (
    add_copies_of_dead_messages,
    create_messaging_tables_v1,
    drop_copies_of_dead_messages,
    drop_messaging_tables_v1,
)

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None
phase = "expand"


def upgrade() -> None:
    """Create them."""
    create_messaging_tables_v1()
    add_copies_of_dead_messages()


def downgrade() -> None:
    """Drop them."""
    drop_copies_of_dead_messages()
    drop_messaging_tables_v1()
