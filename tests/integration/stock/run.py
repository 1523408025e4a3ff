"""Runs these services, each in a process of its own and by its own runner.

    python -m tests.integration.stock.run

starts one for each line on standard input, the JSON of `become`'s arguments, and answers with its pid. What is imported
need not be imported again for each of them.
"""

import tests.patched  # noqa: F401  # isort: skip

import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace

from eventlet import hubs
from nameko.cli.run import run as run_stock

from ops.local.processes import tie
from shared.config import read
from shared.edge import postgres, runner
from tests.integration.stock import services

MAX_WORKERS = 3


def main() -> None:
    """Start services until standard input ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # this process does not wait for them
    while line := sys.stdin.readline():
        pid = os.fork()
        if not pid:
            become(**json.loads(line))
        print(pid, flush=True)


def become(side: str, kind: str, queue: str, log: str, environment: Mapping[str, str]) -> None:
    """Be one service until SIGTERM; its output is the log."""
    if outlived := tie(signal.SIGKILL):
        outlived()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    hubs.use_hub()  # a new one: what all wait on together would wake each for the others
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment)
    if files := int(os.environ.get("SUBJECT_FILES", "0")):
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    service = services.consumer(side, queue) if queue else getattr(services, f"{side.capitalize()}{kind}")
    settings = read()
    if side == "ours":
        postgres.STATEMENT_TIMEOUT_MS = 2000
        runner.BY_NAME["inventory"] = replace(runner.BY_NAME["inventory"], workers=MAX_WORKERS)
        runner.service_class = lambda name: service
        sys.exit(runner.run("inventory"))
    logging.basicConfig(level=logging.INFO)
    config = {
        "AMQP_URI": settings.amqp_uri,
        "HEARTBEAT": settings.heartbeat_s,
        "WEB_SERVER_ADDRESS": f"127.0.0.1:{settings.port('inventory')}",
        "DB_URIS": {"stock_service:Base": settings.database_url("inventory")},
        "max_workers": MAX_WORKERS,
    }
    run_stock([service], config)
    sys.exit()


if __name__ == "__main__":
    main()
