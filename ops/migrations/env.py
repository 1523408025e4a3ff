"""What Alembic runs to migrate the operations ledger."""

from ops.models import TABLES
from shared.migrations import run

run(TABLES)
