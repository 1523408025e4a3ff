from auth_service.models import TABLES
from shared.migrations import run

run(TABLES)
