"""Runs one of these services by its own runner: `python -m tests.integration.stock.run Ours|Stock|OursWeb|StockWeb`."""

import tests.patched  # noqa: F401  # isort: skip

import logging
import os
import resource
import sys

from nameko.cli.run import run as run_stock

from shared.config import read
from shared.edge import postgres, runner
from tests.integration.stock import services

MAX_WORKERS = 3


def main(name: str) -> None:
    """Serve until SIGTERM."""
    if files := int(os.environ.get("SUBJECT_FILES", "0")):
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    settings = read()
    if name.startswith("Ours"):
        postgres.STATEMENT_TIMEOUT_MS = 2000
        runner.MAX_WORKERS = MAX_WORKERS
        runner.service_class = lambda service: getattr(services, name)
        sys.exit(runner.run("inventory"))
    logging.basicConfig(level=logging.INFO)
    config = {
        "AMQP_URI": settings.amqp_uri,
        "HEARTBEAT": settings.heartbeat_s,
        "WEB_SERVER_ADDRESS": f"127.0.0.1:{settings.port('inventory')}",
        "DB_URIS": {"stock_service:Base": settings.database_url("inventory")},
        "max_workers": MAX_WORKERS,
    }
    run_stock([getattr(services, name)], config)


if __name__ == "__main__":
    main(sys.argv[1])
