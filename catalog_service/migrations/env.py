"""Alembic's door to this service's tables."""

from catalog_service.models import TABLES
from shared.migrations import run

run(TABLES)
