"""Keeps services and servers running: restarts the dead, stops the services in order. Standard library only."""

from __future__ import annotations

import http.client
import json
import os
import signal
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ops.local.processes import Process, StackFault, end, spawn, tail
from ops.local.server import LOOPBACK, Server
from shared.config import environment_of

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
READYZ_TIMEOUT_S = 3.0  # a service gives its database 2 s to answer
FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 5.0
HEALTHY_AFTER_S = 30.0  # a process that lived this long is restarted at once again
HOPELESS_AFTER = 3  # deaths in a row before the first readiness: then the start is given up


@dataclass
class Restarts:
    """When a process that died is started again: later after each death in a row."""

    started_at: float = 0.0
    start_at: float = 0.0
    deaths: int = 0  # in a row

    def count_death(self, now: float) -> float:
        """Count a death; for how many seconds to wait before the next start."""
        if now - self.started_at >= HEALTHY_AFTER_S:
            self.deaths = 0
        self.deaths += 1
        wait = backoff(self.deaths)
        self.start_at = now + wait
        return wait


@dataclass
class Child:
    """One replica of one service, through all its processes."""

    service: str
    replica: int
    port: int
    log: Path
    popen: subprocess.Popen[bytes] | None = None
    restarts: Restarts = field(default_factory=Restarts)
    ready: bool = False
    host: str = LOOPBACK  # as a URL writes it
    probe_port: int = 0  # where it answers probes, if not on its only port
    scheme: str = "http"
    checkout: Path | None = None  # where its code is, if not where that of the others is

    @property
    def name(self) -> str:
        """As in its log's name."""
        return f"{self.service}-{self.replica}"

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{self.scheme}://{self.host}:{self.port}"

    @property
    def probe_url(self) -> str:
        """Where it answers /readyz."""
        return f"http://{self.host}:{self.probe_port or self.port}"


class Supervisor:
    """Runs `command(child)` for every child and keeps it running, and the `servers`, which run already.

    Each child gets of the settings in `env` those of its service alone.
    """

    def __init__(
        self,
        children: Sequence[Child],
        command: Callable[[Child], Sequence[str | Path]],
        env: Mapping[str, str],
        cwd: Path,
        say: Callable[[str], None],
        changed: Callable[[], None] = lambda: None,
        servers: Sequence[Server] = (),
    ) -> None:
        self.children = children
        self.command = command
        self.env = env
        self.cwd = cwd
        self.say = say
        self.changed = changed  # called when services were started or have died, so that their pids can be kept
        self.servers = {server: Restarts(started_at=time.monotonic()) for server in servers}

    def start(self) -> None:
        """Start every child, waiting for none."""
        for child in self.children:
            self._start(child)
        self.changed()

    def add(self, child: Child) -> None:
        """Start one more child, not waiting for it."""
        self.children = [*self.children, child]
        self._start(child)
        self.changed()

    def remove(self, child: Child) -> bool:
        """Stop one child for good; whether SIGTERM was enough."""
        self.children = [other for other in self.children if other is not child]
        polite = self._end([child])
        self.changed()
        return polite

    def run_once(self) -> int:
        """Notice the dead and start those whose time has come; returns how many were started."""
        now = time.monotonic()
        started = sum([self._keep_server(server, restarts, now) for server, restarts in self.servers.items()])
        died = 0
        for child in self.children:
            if child.popen is not None and child.popen.poll() is not None:
                self._say_died(child.name, child.popen.returncode, child.restarts.count_death(now))
                child.popen = None
                died += 1
            if child.popen is None and child.restarts.start_at <= now:
                self._start(child)
                started += 1
        if died or started:
            self.changed()
        return started

    def _keep_server(self, server: Server, restarts: Restarts, now: float) -> bool:
        """Notice that a server has died, and start it on its ports and data when it is time; whether it was started."""
        if server.popen is not None and server.popen.poll() is not None:
            self._say_died(server.title, server.popen.returncode, restarts.count_death(now))
            server.popen = None
        if server.popen is not None or restarts.start_at > now:
            return False
        restarts.started_at = now
        try:
            server.launch(dies_with_us=True)
        except (OSError, StackFault) as fault:
            wait = restarts.count_death(now)
            self.say(f"{server.title} does not start: {str(fault).splitlines()[0]}; trying again {_in(wait)}")
        return server.popen is not None

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
                child.ready = child.popen is not None and is_ready(child.probe_url)
                if not child.ready and (child.restarts.deaths >= HOPELESS_AFTER or time.monotonic() > deadline):
                    why = (
                        f"died {child.restarts.deaths} times"
                        if child.restarts.deaths
                        else f"is not ready after {patience_s:.0f} s"
                    )
                    raise StackFault(f"{child.name} {why}; log: {child.log}\n{tail(child.log)}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop the gateway first, so that nothing new comes in, then the others side by side."""
        for is_gateway in (True, False):
            self._end([child for child in self.children if (child.service == "gateway") == is_gateway])

    def pids(self) -> dict[str, int]:
        """The running processes by name."""
        return {child.name: child.popen.pid for child in self.children if child.popen}

    @staticmethod
    def _end(children: Sequence[Child]) -> bool:
        """Stop these children side by side; whether SIGTERM was enough."""
        popens = [child.popen for child in children if child.popen]
        processes = [Process.of(popen.pid) for popen in popens]
        polite = end([process for process in processes if process], signal.SIGTERM, STOP_TIMEOUT_S)
        for popen in popens:
            popen.wait()
        for child in children:
            child.popen = None
        return polite

    def _start(self, child: Child) -> None:
        env, cwd = environment_of(child.service, self.env), child.checkout or self.cwd
        child.popen = spawn(self.command(child), log=child.log, env=env, cwd=cwd, dies_with_us=signal.SIGTERM)
        child.restarts.started_at = time.monotonic()

    def _say_died(self, name: str, code: int, wait: float) -> None:
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self.say(f"{name} died ({how}); restarting {_in(wait)}")


def _in(wait: float) -> str:
    return f"in {wait:g} s" if wait else "at once"


def backoff(deaths: int) -> float:
    """How long to wait before a restart: not at all after the first death in a row, then 0.5 s doubling to 5 s."""
    if deaths <= 1:
        return 0.0
    return float(min(FIRST_BACKOFF_S * 2 ** min(deaths - 2, 10), LONGEST_BACKOFF_S))


@dataclass(frozen=True)
class State:
    """Whether a service or server works: `ready`, and what a person should look at; or another word and why."""

    word: str
    reasons: tuple[str, ...] = ()

    @property
    def works(self) -> bool:
        """Whether it is ready, with warnings or without."""
        return self.word == READY.word


READY = State("ready")


def is_ready(url: str) -> bool:
    """Whether the process at this URL answers 200 on /readyz."""
    return readiness(url).works


def readiness(url: str) -> State:
    """What the process at this URL answers on /readyz, within READYZ_TIMEOUT_S."""
    try:
        # No proxy: an environment that sets one would send even this through it.
        # No verification: the certificate is for the name that clients use, and nothing secret is sent or told.
        unverified = urllib.request.HTTPSHandler(context=ssl._create_unverified_context())
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), unverified)
        with opener.open(f"{url}/readyz", timeout=READYZ_TIMEOUT_S) as answer:
            if answer.status != 200:
                return State("not ready", (f"status {answer.status}",))
            return State(READY.word, _list_in(answer, "warnings") or ())
    except urllib.error.HTTPError as refused:
        return State("not ready", _list_in(refused, "reasons") or (f"status {refused.status}",))
    except (OSError, http.client.HTTPException) as error:
        return State("does not answer", (in_words(getattr(error, "reason", error)),))


def _list_in(answer: Any, name: str) -> tuple[str, ...] | None:
    """A list in the JSON of an answer; None if the answer has no such list."""
    try:
        return tuple(json.load(answer)[name])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def in_words(error: object) -> str:
    """Why a connection failed, without the number of the error."""
    number = getattr(error, "errno", None) or 0
    return os.strerror(number) if number > 0 else str(error) or type(error).__name__
