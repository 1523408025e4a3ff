"""Indexes for the users of a role, and for those who are about to be erased."""

from shared.migrations import create_indexes, drop_indexes

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None
phase = "expand"


def upgrade() -> None:
    """Create them."""
    create_indexes("users", {"ix_users_roles": ["roles"]}, using="gin")
    create_indexes("users", {"ix_users_erase_after": ["erase_after"]}, where="erase_after IS NOT NULL")


def downgrade() -> None:
    """Drop them."""
    drop_indexes("users", ["ix_users_roles", "ix_users_erase_after"])
