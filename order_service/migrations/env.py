"""Alembic's door to this service's tables."""

from order_service.models import TABLES
from shared.migrations import run

run(TABLES)
