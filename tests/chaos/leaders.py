"""Finds the replica that leads a service's relays: its session holds the lock in the database."""

from __future__ import annotations

from dataclasses import dataclass

import psutil

from tests.e2e.system import System, eventually

HOLDER = (
    "SELECT pid, client_port FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' AND granted"
    " AND application_name LIKE '% relay' AND datname = current_database()"
)


@dataclass(frozen=True)
class Leader:
    """The database session that leads, and its replica."""

    session: int
    name: str
    pid: int


def session_that_leads(system: System, service: str) -> int | None:
    """The database backend that holds the lock now."""
    rows = system.databases.rows(service, HOLDER)
    assert len(rows) <= 1, rows
    return rows[0]["pid"] if rows else None


def leader_of(system: System, service: str) -> Leader:
    """The replica that leads."""

    def found() -> Leader | None:
        for row in system.databases.rows(service, HOLDER):
            for name, pid in system.replicas_of(service).items():
                if row["client_port"] in ports_of(pid):
                    return Leader(row["pid"], name, pid)
        return None

    leader: Leader = eventually(found, lambda leader: leader is not None, otherwise=f"nobody leads {service}")
    return leader


def ports_of(pid: int) -> set[int]:
    """The local ports of a process's connections."""
    return {connection.laddr.port for connection in psutil.Process(pid).net_connections("tcp")}
