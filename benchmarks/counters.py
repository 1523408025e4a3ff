"""CPU and memory of processes from /proc, and what the servers counted."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
MB = 1024  # in the kB of /proc


@dataclass(frozen=True)
class Counts:
    """Totals of the servers. `a - b` is what happened between two readings."""

    statements: int  # SQL statements without BEGIN, COMMIT and the like
    transactions: int  # that were committed, reading ones too
    wal_syncs: int
    wal_bytes: int
    published: int  # messages that clients published, replies of RPC too
    acknowledged: int

    def __sub__(self, other: Counts) -> Counts:
        return Counts(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def per(self, orders: int) -> dict[str, float]:
        """Each for one order."""
        return {name: round(value / orders, 2) for name, value in vars(self).items()}


@dataclass(frozen=True)
class Usage:
    """Seconds of CPU, and memory in MB, by group of processes."""

    cpu_s: Mapping[str, float]
    memory_mb: Mapping[str, float]

    def cpu_since(self, before: Usage) -> dict[str, float]:
        """Seconds of CPU that each group took since an earlier reading."""
        return {group: seconds - before.cpu_s.get(group, 0.0) for group, seconds in self.cpu_s.items()}


def usage_of(roots: Mapping[int, str]) -> Usage:
    """CPU and memory of these processes and their descendants, those that have ended included.

    `roots`: pid -> group. Memory is the highest so far; for PostgreSQL, whose processes share most of theirs, it is
    what they have now, with each shared page counted once.
    """
    table = {int(name): row for name in os.listdir("/proc") if name.isdecimal() and (row := _row(int(name)))}
    cpu_s, memory_kb = dict.fromkeys(roots.values(), 0.0), dict.fromkeys(roots.values(), 0)
    for pid, (_, ticks) in table.items():
        group = _group(pid, table, roots)
        if group:
            cpu_s[group] += ticks / TICKS_PER_S
            memory_kb[group] += (
                _field(pid, "smaps_rollup", "Pss:") if group == "postgres" else _field(pid, "status", "VmHWM:")
            )
    return Usage(cpu_s, {group: round(kb / MB, 1) for group, kb in memory_kb.items()})


def _row(pid: int) -> tuple[int, int] | None:
    """A process's parent, and its ticks of CPU with those of its children that have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[1]), sum(int(field) for field in fields[11:15])


def _group(pid: int, table: Mapping[int, tuple[int, int]], roots: Mapping[int, str]) -> str | None:
    while pid in table and pid not in roots:
        pid = table[pid][0]
    return roots.get(pid)


def _field(pid: int, file: str, name: str) -> int:
    """A field of a file of /proc in kB; 0 for a process that has just ended."""
    try:
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1])
    except OSError:
        pass
    return 0
