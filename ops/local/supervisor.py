"""Keeps the services running: starts each, restarts the dead, stops them in order. Standard library only."""

from __future__ import annotations

import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ops.local.processes import Process, StackFault, end, spawn, tail

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 5.0
HEALTHY_AFTER_S = 30.0  # a process that lived this long is restarted at once again
HOPELESS_AFTER = 3  # deaths in a row before the first readiness: then the start is given up


@dataclass
class Child:
    """One replica of one service, through all its processes."""

    service: str
    replica: int
    port: int
    log: Path
    popen: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    deaths: int = 0  # in a row
    ready: bool = False

    @property
    def name(self) -> str:
        """As in its log's name."""
        return f"{self.service}-{self.replica}"

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"


class Supervisor:
    """Runs `command(service, replica)` for every child and keeps it running."""

    def __init__(
        self,
        children: Sequence[Child],
        command: Callable[[Child], Sequence[str | Path]],
        env: Mapping[str, str],
        cwd: Path,
        say: Callable[[str], None],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.children = children
        self.command = command
        self.env = env
        self.cwd = cwd
        self.say = say
        self.changed = changed  # called when processes were started or have died, so that their pids can be kept

    def start(self) -> None:
        """Start every child, waiting for none."""
        for child in self.children:
            self._start(child)
        self.changed()

    def run_once(self) -> int:
        """Notice the dead and start those whose time has come; returns how many were started."""
        now = time.monotonic()
        died = started = 0
        for child in self.children:
            if child.popen is not None and child.popen.poll() is not None:
                self._bury(child, now)
                died += 1
            if child.popen is None and child.start_at <= now:
                self._start(child)
                started += 1
        if died or started:
            self.changed()
        return started

    def run(self, until: Callable[[], bool], pause_s: float = 0.2) -> None:
        """Watch over the children until the condition holds."""
        while not until():
            self.run_once()
            time.sleep(pause_s)

    def wait_ready(self, patience_s: float = READY_TIMEOUT_S) -> None:
        """Return once every child has answered 200 on /readyz; raise StackFault with the log of one that does not."""
        deadline = time.monotonic() + patience_s
        while waiting := [child for child in self.children if not child.ready]:
            self.run_once()
            for child in waiting:
                child.ready = child.popen is not None and is_ready(child.url)
                if not child.ready and (child.deaths >= HOPELESS_AFTER or time.monotonic() > deadline):
                    why = f"died {child.deaths} times" if child.deaths else f"is not ready after {patience_s:.0f} s"
                    raise StackFault(f"{child.name} {why}; log: {child.log}\n{tail(child.log)}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop the gateway first, so that nothing new comes in, then the others side by side."""
        for is_gateway in (True, False):
            running = [child for child in self.children if child.popen and (child.service == "gateway") == is_gateway]
            processes = {child.name: Process.of(child.popen.pid) for child in running if child.popen}
            end([process for process in processes.values() if process], signal.SIGTERM, STOP_TIMEOUT_S)
            for child in running:
                if child.popen:
                    child.popen.wait()
                child.popen = None

    def pids(self) -> dict[str, int]:
        """The running processes by name."""
        return {child.name: child.popen.pid for child in self.children if child.popen}

    def _start(self, child: Child) -> None:
        child.popen = spawn(self.command(child), log=child.log, env=self.env, cwd=self.cwd, dies_with_us=signal.SIGTERM)
        child.started_at = time.monotonic()

    def _bury(self, child: Child, now: float) -> None:
        assert child.popen is not None
        code = child.popen.returncode
        if now - child.started_at >= HEALTHY_AFTER_S:
            child.deaths = 0
        child.popen = None
        child.deaths += 1
        wait = backoff(child.deaths)
        child.start_at = now + wait
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self.say(f"{child.name} died ({how}); restarting " + (f"in {wait:g} s" if wait else "at once"))


def backoff(deaths: int) -> float:
    """How long to wait before a restart: not at all after the first death in a row, then 0.5 s doubling to 5 s."""
    if deaths <= 1:
        return 0.0
    return float(min(FIRST_BACKOFF_S * 2 ** min(deaths - 2, 10), LONGEST_BACKOFF_S))


def is_ready(url: str) -> bool:
    """Whether the process at this URL answers 200 on /readyz."""
    try:
        # No proxy: an environment that sets one would send even this through it.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{url}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError, ValueError):
        return False
