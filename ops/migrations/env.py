"""Alembic's door to the operations ledger's tables."""

from ops.models import TABLES
from shared.migrations import run

run(TABLES)
