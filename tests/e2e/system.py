"""The whole system as clients and operators see it: its processes, gateways, broker and databases."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import requests

from ops.cli.flow import Flow, Token
from ops.local.supervisor import Child, Supervisor
from shared.config import MOCK_METHODS, PROBES, read
from tests.databases import Databases
from tests.e2e.broker import depths, purge_all
from tests.ledger import CHECKS, under_way
from tests.oidc import REDIRECT_URI, FakeProvider
from topology.services import START_ORDER
from topology.table import CONSUMERS, QUEUES, dead_letter_queue

ROOT = Path(__file__).resolve().parent.parent.parent
ECOM = Path(sys.executable).with_name("ecom")
MARK = "ECOM_TEST_SYSTEM"  # in the environment of every process that a system starts, so that none is overlooked
QUIET_TIMEOUT_S = 40.0
READY_TIMEOUT_S = 60.0
# How often a condition is looked at: after each tenth of the time it was waited for so far. Each look costs something.
SOONEST_S, LATEST_S = 0.02, 0.25


class System:
    """Every service with some replicas, over the run's broker and databases, emptied first."""

    def __init__(self, directory: Path, replicas: int = 2, **settings: str) -> None:
        self.settings = read()
        self.directory = directory
        self.outage_file = directory / "provider-is-away"  # while it exists the payment provider is away
        self.replicas = replicas
        self.full_size = False  # of what chaos tests load it with
        self.mark = uuid.uuid4().hex
        self._agreed = ""  # how far the database server had written before books were read that agreed
        self.databases = Databases(self.settings)
        self.amqp_uri = self.settings.amqp_uri
        self._tokens: dict[str, Token] = {}
        self._prices: dict[str, int] = {}
        self._fault: BaseException | None = None
        self._ready, self._stopping = threading.Event(), threading.Event()
        children = [
            Child(
                service,
                replica,
                self.settings.port(service, replica),
                directory / f"{service}-{replica}.log",
                probe_port=self.settings.port(PROBES.get(service, service), replica),
                scheme="https" if service == "gateway" and "GATEWAY_TLS_CERT_FILE" in settings else "http",
            )
            for service in START_ORDER
            for replica in range(replicas)
        ]
        self._logs_read: dict[Path, int] = defaultdict(int)
        self.died: list[str] = []  # who, and how
        payment_mode = f"down_while:{self.outage_file}"
        # Every client of a test has the same address, and most crowds are one user.
        unlimited = {"CONNECTIONS_PER_ADDRESS": "0", "WAITS_PER_USER": "0"}
        # The server may list a method that its provider lacks.
        methods = {"PAYMENT_METHODS": f"{MOCK_METHODS},no_such_method"}
        # By whom people sign in: who plays the browser says who they are.
        self.google, self.staffs = FakeProvider("google"), FakeProvider("staff")
        self.mail_folder = directory / "mail"
        people = {
            "SMTP_URL": f"file:{self.mail_folder}",
            "OIDC_PROVIDERS": json.dumps([self.google.setting(), self.staffs.setting()]),
            "OIDC_REDIRECTS": REDIRECT_URI,
            "OIDC_STAFF_PROVIDERS": self.staffs.name,
        }
        chosen = {"PAYMENT_MODE": payment_mode, **methods, **unlimited, **people, **settings, MARK: self.mark}
        environment = {**os.environ, **chosen}
        self.supervisor = Supervisor(children, _command, environment, ROOT, say=self.died.append)
        # One thread starts, restarts and stops: a child gets SIGTERM when the thread that started it ends.
        self._thread = threading.Thread(target=self._supervise, name="supervisor")

    def start(self) -> None:
        """Make databases and broker as a first start finds them, start everything, return when all is ready."""
        self._set_up()
        self._start_processes()

    def _set_up(self) -> None:
        set_up()
        self.databases.empty()
        purge_all(self.amqp_uri)

    def _start_processes(self) -> None:
        self._thread.start()
        self._ready.wait()
        if self._fault:
            raise self._fault

    def _supervise(self) -> None:
        try:
            self.supervisor.start()
            self.supervisor.wait_ready()
            self._ready.set()
            self.supervisor.run(self._stopping.is_set)
        except BaseException as fault:
            self._fault = fault
        finally:
            self.supervisor.stop()
            self._ready.set()

    def faults(self, allowed: Iterable[str] = ()) -> list[str]:
        """The faults in the logs since the last call, without those that are allowed."""
        found = []
        for path in sorted(self.directory.glob("*.log")):
            # Up to the end of a line: a service may be writing the next one.
            log = path.read_bytes()
            log = log[self._logs_read[path] : log.rfind(b"\n") + 1]
            self._logs_read[path] += len(log)
            found += [f"{path}: {fault}" for fault in faults_in(log.decode(errors="replace"), allowed)]
        return found

    def stop(self) -> list[str]:
        """Stop everything; returns the faults: processes left or killed, errors in logs."""
        self._stop_processes()
        self.databases.close()
        for provider in (self.google, self.staffs):
            provider.close()
        wrong = [f"the supervisor failed: {self._fault!r}"] if self._fault else []
        wrong += [f"{child.name} did not end by itself" for child in self.supervisor.children if not _ended(child.log)]
        wrong += [f"left running: {process}" for process in psutil.process_iter() if _has_mark(process, self.mark)]
        return wrong + self.faults()

    def _stop_processes(self) -> None:
        self._stopping.set()
        self._thread.join()

    def flow(self, replica: int = 0) -> Flow:
        """A client of one gateway. It has one connection: each thread needs its own."""
        flow = Flow(self.url("gateway", replica))
        flow._tokens = self._tokens  # asking for each costs 0.1 s of argon2
        flow._prices = self._prices  # so that each sku is put on the menu once
        return flow

    def url(self, service: str, replica: int = 0) -> str:
        """Where a replica listens."""
        return f"http://127.0.0.1:{self.settings.port(service, replica)}"

    def probe_url(self, service: str, replica: int = 0) -> str:
        """Where a replica answers /readyz and /metrics."""
        return self.url(PROBES.get(service, service), replica)

    def become(self, user: str, *roles: str) -> str:
        """Let every flow know an unregistered user, by the mock sign-in; returns the name."""
        answer = self.flow().send("POST", "/api/auth/token", {"user_id": user, "roles": list(roles)}, user=None)
        answer.raise_for_status()
        self._tokens[user] = Token(answer.json()["access_token"], math.inf)
        return user

    def replicas_of(self, service: str) -> dict[str, int]:
        """The running processes of a service: pid by name."""
        return {name: pid for name, pid in self.supervisor.pids().items() if name.rpartition("-")[0] == service}

    def ecom(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """One command of an operator's."""
        return subprocess.run([ECOM, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)

    def kill(self, *names: str) -> None:
        """SIGKILL replicas, as a power cut would."""
        for name in names:
            if pid := self.supervisor.pids().get(name):
                os.kill(pid, signal.SIGKILL)

    def kill_service(self, service: str, patience_s: float = READY_TIMEOUT_S) -> None:
        """SIGKILL every replica of a service; return when the supervisor's new ones are ready."""
        before = set(self.replicas_of(service).values())
        self.kill(*self.replicas_of(service))

        def missing() -> dict[str, str]:
            now = set(self.replicas_of(service).values())
            started = len(now) == self.replicas and not now & before
            return self.troubles(service) if started else {service: "is not started again"}

        eventually(missing, lambda troubles: not troubles, patience_s, "not back")

    def troubles(self, *services: str) -> dict[str, str]:
        """Which replicas are not ready, and why."""
        asked = [child for child in self.supervisor.children if not services or child.service in services]
        answers = {child.name: readiness(child.probe_url) for child in asked}
        return {name: why for name, why in answers.items() if why is not None}

    def wait_ready(self, patience_s: float = READY_TIMEOUT_S) -> float:
        """Return when every replica is ready: after how many seconds."""
        began = time.monotonic()
        eventually(self.troubles, lambda troubles: not troubles, patience_s, "not ready")
        return time.monotonic() - began

    def wait_quiet(self, patience_s: float = QUIET_TIMEOUT_S) -> None:
        """Return when every order is at rest, every event is consumed, and all databases agree. No message may be dead.

        The books are not read again where nothing was written since they last agreed.
        """

        def open_matters() -> list[str]:
            written = self._written()
            if written == self._agreed:
                return []
            for check in (*CHECKS, under_way):  # the first that finds something is enough: they are asked again
                if found := check(self.databases):
                    return found
            self._agreed = written
            return []

        eventually(open_matters, lambda lines: not lines, patience_s, "the books do not agree")
        dead = {name: count for name, count in self.dead_letters().items() if count}
        assert not dead, f"dead letters: {dead}, {self.deaths()}"

    def _written(self) -> str:
        """How far the database server has written, for whichever service."""
        return str(self.databases.rows("order", "SELECT pg_current_wal_insert_lsn() AS at")[0]["at"])

    def dead_letters(self) -> dict[str, int]:
        """How many messages are in each DLQ."""
        return depths(self.amqp_uri, [dead_letter_queue(queue.name) for queue in QUEUES])

    def deaths(self) -> list[dict[str, Any]]:
        """The services' records of dead messages."""
        statement = "SELECT queue, event_type, reason, error_message FROM dead_messages WHERE left_at IS NULL"
        return [row for name in CONSUMERS for row in self.databases.rows(name, statement)]


class Systems:
    """Whole systems, one at a time. A test that needs the last one's kind gets it: starting one takes long."""

    def __init__(self, new_directory: Callable[[str], Path]) -> None:
        self._new_directory = new_directory
        self._running: System | None = None
        self._shape: tuple[int, dict[str, str]] | None = None

    def like(self, replicas: int, **settings: str) -> System:
        """One of so many replicas of each service, with these settings; a new one finds everything empty."""
        shape = (replicas, settings)
        if self._running is None or self._shape != shape:
            self.stop()
            system = System(self._new_directory(f"system-of-{replicas}-"), replicas, **settings)
            system.start()
            self._running, self._shape = system, shape
        return self._running

    def stop(self) -> None:
        """Stop what runs, which must leave nothing and be without fault."""
        system, self._running = self._running, None
        wrong = system.stop() if system else []
        assert not wrong, "\n".join(wrong[:20])


def set_up() -> None:
    """Tables and queues, as an operator makes them; side by side, since they have nothing to do with each other."""
    commands = [
        subprocess.Popen([ECOM, *words], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for words in (("migrate",), ("topology", "apply"))
    ]
    said = [command.communicate()[1] for command in commands]
    assert not any(command.returncode for command in commands), said


def eventually(
    read: Callable[[], Any], good: Callable[[Any], bool], patience_s: float = 30.0, otherwise: str = "still"
) -> Any:
    """Read again and again until the value is good, and return it. Fails with the value read last."""
    began = time.monotonic()
    while not good(seen := read()):
        waited = time.monotonic() - began
        if waited > patience_s:
            shown = "\n".join(str(line) for line in seen[:20]) if isinstance(seen, list) else seen
            raise AssertionError(f"after {patience_s:.0f} s {otherwise}: {shown}")
        time.sleep(min(max(waited / 10, SOONEST_S), LATEST_S))
    return seen


def readiness(url: str) -> str | None:
    """Why a replica is not ready, or None."""
    try:
        answer = requests.get(f"{url}/readyz", timeout=5)
    except requests.RequestException as error:
        return type(error).__name__
    return None if answer.status_code == 200 else answer.text


def faults_in(log: str, allowed: Iterable[str]) -> list[str]:
    """The faults in a log: errors, tracebacks and lines that are no JSON, without those that are allowed."""
    found = []
    for line in log.splitlines():
        try:
            entry = json.loads(line)
            critical = entry["level"] == "critical"
            bad = critical or entry["level"] == "error" or "Traceback" in entry.get("exception", "")
        except (ValueError, KeyError, TypeError):
            critical, bad = False, True
        if bad and (critical or not any(re.search(pattern, line) for pattern in allowed)):
            found.append(line)
    return found


def _command(child: Child) -> list[str | Path]:
    return [ECOM, "run", child.service, "--replica", str(child.replica)]


def _ended(log: Path) -> bool:
    """Whether the last process that wrote this log stopped in its own way."""
    return '"event": "stopped"' in "".join(log.read_text(encoding="utf-8").splitlines(keepends=True)[-3:])


def _has_mark(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
