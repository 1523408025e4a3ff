"""A private RabbitMQ node and a private PostgreSQL cluster; never the system's.

Each saves its facts (ports, passwords, pid) in one JSON file in its stack's directory, so that any
process can take it up: a test attaches by `Servers.attach(os.environ["ECOM_TEST_STACK"])` and then kills, freezes
or restarts the servers that `ops/stack.py test` started. Standard library only; no threads.
"""

from __future__ import annotations

from pathlib import Path

from ops.local.broker import Broker
from ops.local.postgres import Postgres
from ops.local.processes import StackFault
from ops.local.server import Server, ServerTls, free_port

__all__ = ["Broker", "Postgres", "Server", "ServerTls", "Servers", "free_port"]


class Servers:
    """The broker and the database server of one stack; None stands for one that the user brings along."""

    def __init__(self, directory: Path, broker: bool = True, postgres: bool = True) -> None:
        self.broker = Broker(directory) if broker else None
        self.postgres = Postgres(directory) if postgres else None

    @classmethod
    def attach(cls, state_file: str | Path) -> Servers:
        """The servers of a stack that another process started, from the path in ECOM_TEST_STACK."""
        directory = Path(state_file).parent
        return cls(directory, (directory / "broker.json").exists(), (directory / "postgres.json").exists())

    def each(self) -> list[Server]:
        """Those that are ours, in the order in which they stop."""
        return [server for server in (self.broker, self.postgres) if server]

    def stop(self) -> None:
        """Stop them; both are tried even if one fails."""
        faults = []
        for server in self.each():
            try:
                server.stop()
            except (OSError, StackFault) as fault:
                faults.append(f"{server.title}: {fault}")
        if faults:
            raise StackFault("; ".join(faults))

    def remove(self) -> None:
        """Delete their data."""
        for server in self.each():
            server.remove()
