"""Processes that the stack starts: each leads a session of its own, is known by pid and start time, and ends whole.

Standard library only: this runs before anything is installed. No threads, so that tests patched by eventlet can use it.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

KILL_TIMEOUT_S = 10.0  # a process that SIGKILL does not end in this time waits for a disk
OTHERS = 0o077  # the rights that other users do not get: orders are in the broker's files, user ids in logs
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class StackFault(Exception):
    """The stack cannot do what was asked: one line for people, and the exit code of the command."""

    def __init__(self, message: str, exit_code: int = 3) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class _Row:
    parent: int
    session: int
    state: str
    started: str


@dataclass(frozen=True)
class Process:
    """One process and no later one of the same pid: the start time tells them apart."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process that has this pid now, or None."""
        row = _row(pid)
        return cls(pid, row.started) if row else None

    def alive(self) -> bool:
        """Whether it still runs (a frozen one does, a zombie does not)."""
        row = _row(self.pid)
        return row is not None and row.started == self.started and not row.state.startswith("Z")

    def family(self) -> list[Process]:
        """Itself, its session and all their descendants: PostgreSQL's backends lead sessions of their own."""
        table = _table()
        if self.pid in table and table[self.pid].started != self.started:
            return []
        found = {pid for pid, row in table.items() if pid == self.pid or row.session == self.pid}
        found |= _descendants(table, found)
        return [Process(pid, table[pid].started) for pid in sorted(found, key=lambda pid: pid != self.pid)]

    def send(self, number: int) -> None:
        """Send one signal to this process alone. One that is gone is no error."""
        if self.alive():
            _send(self.pid, number)

    def send_to_family(self, number: int) -> None:
        """Send one signal to it and to everything it started, itself first, so that it cannot start more."""
        for member in self.family():
            member.send(number)

    def end(self, number: int = signal.SIGTERM, patience_s: float = 15.0) -> bool:
        """End it politely, wait, then kill what is left of its family. True when the signal alone was enough."""
        return end([self], number, patience_s)


def end(processes: Iterable[Process], number: int = signal.SIGTERM, patience_s: float = 15.0) -> bool:
    """End several processes at the same time as `Process.end` does one."""
    processes = list(processes)
    families = [member for process in processes for member in process.family()]
    for process in processes:
        process.send(number)
    for member in families:
        member.send(signal.SIGCONT)  # a frozen process gets no signal until it continues
    polite = wait_until(lambda: not any(process.alive() for process in processes), patience_s)
    kill(families)
    return polite


def kill(families: Iterable[Process]) -> None:
    """SIGKILL these processes and wait until they are gone."""
    families = list(families)
    for member in families:
        member.send(signal.SIGKILL)
    wait_until(lambda: not any(member.alive() for member in families), KILL_TIMEOUT_S)


def orphans_in(folder: Path, title: str) -> list[Process]:
    """The processes that work in this folder, are titled so and whose parent works elsewhere (Linux only)."""
    if sys.platform != "linux":
        return []
    table = _table()
    there = {pid for pid in table if _works_in(pid, folder)}
    found = [pid for pid in there if table[pid].parent not in there and _title(pid).startswith(title)]
    return [Process(pid, table[pid].started) for pid in found]


def wait_until(condition: Callable[[], bool], patience_s: float, pause_s: float = 0.05) -> bool:
    """Poll until the condition holds; False when the time ran out first."""
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
    return True


def spawn(
    argv: Sequence[str | Path],
    *,
    log: Path,
    env: Mapping[str, str],
    cwd: Path,
    user: str | None = None,
    dies_with_us: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, its output appended to a log. Others cannot read what it writes.

    `user` runs it as that user (we are root then). `dies_with_us` is the signal it gets when the thread that started
    it is gone, for any reason (Linux only): the last guard against servers without a supervisor.
    """
    with private_log(log) as output:
        return subprocess.Popen(
            [str(word) for word in argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(env),
            cwd=cwd,
            start_new_session=True,
            preexec_fn=tie(dies_with_us),
            umask=OTHERS,
            **as_user(user),
        )


def private_log(path: Path) -> BinaryIO:
    """Open a log to append to, which other users of this machine cannot read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.fchmod(file, 0o600)  # an earlier version made it for everybody
    return os.fdopen(file, "ab")


def as_user(user: str | None) -> dict[str, Any]:
    """The arguments of subprocess that make a child run as this user and its group, with no other rights of ours."""
    if user is None:
        return {}
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies, so that `end_descendants` finds it (Linux only)."""
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_descendants() -> None:
    """Kill and reap everything that still descends from this process."""
    table = _table()
    kill(Process(pid, table[pid].started) for pid in _descendants(table, {os.getpid()}))
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log, indented, to stand under an error."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join("    " + line for line in text.splitlines()[-lines:])


def tie(number: int | None) -> Callable[[], None] | None:
    """For `preexec_fn`: the child gets this signal when the thread that started it is gone (Linux only)."""
    if number is None or _LIBC is None:
        return None
    return lambda: _LIBC.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _row(pid: int) -> _Row | None:
    if sys.platform != "linux":
        return _table().get(pid)
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The second field is the program's name in brackets and may hold anything; see proc(5) for the places after it.
    rest = text.rpartition(")")[2].split()
    return _Row(parent=int(rest[1]), session=int(rest[3]), state=rest[0], started=rest[19])


def _works_in(pid: int, folder: Path) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/cwd") == str(folder.resolve())
    except OSError:  # it has ended, or is another user's
        return False


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _table() -> dict[int, _Row]:
    if sys.platform == "linux":  # a minimal Debian has no ps
        rows = {int(name): _row(int(name)) for name in os.listdir("/proc") if name.isdecimal()}
        return {pid: row for pid, row in rows.items() if row}
    listing = subprocess.run(
        ["ps", "-axo", "pid=,ppid=,pgid=,stat=,lstart="], check=False, capture_output=True, text=True
    )
    table = {}
    for line in listing.stdout.splitlines():
        pid, parent, group, state, started = line.split(None, 4)
        table[int(pid)] = _Row(int(parent), int(group), state, started)
    return table


def _descendants(table: Mapping[int, _Row], of: set[int]) -> set[int]:
    found: set[int] = set()
    fresh = set(of)
    while fresh:
        fresh = {pid for pid, row in table.items() if row.parent in fresh and pid not in found and pid not in of}
        found |= fresh
    return found
