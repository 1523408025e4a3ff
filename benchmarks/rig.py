"""What everything runs on: one private PostgreSQL and RabbitMQ, the provider, and the processes of a contender."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import amqp
import psycopg2
from sqlalchemy import create_engine

from benchmarks.counters import Counts, Usage, usage_of
from benchmarks.plan import SKUS, Plan, Post
from benchmarks.queues import BINDINGS, arguments_of, dead_letter_queue_of, exchange_of, queue_of
from benchmarks.tables import BASES
from ops.local.install import ROOT
from ops.local.processes import Process, StackFault, end, spawn, tail, wait_until
from ops.local.server import LOOPBACK, PORT_RANGE, free_port, is_free
from ops.local.stack import Progress, Stack
from shared.config import PORTS_BETWEEN_REPLICAS

NAME = "bench"
REQUIREMENTS = ROOT / "benchmarks" / "requirements.txt"
PLENTY = 10**9
READY_S = 30.0

# The settings of this project while it is measured. The code of the limits runs, and no limit is reached.
SETTINGS = {
    "PAYMENT_PROVIDER": "http",
    "MAX_OPEN_ORDERS_PER_USER": "1000000",
    "MAX_HELD_UNITS_PER_USER": "100000000",
    "RATE_USER_PER_MIN": "10000000",
    "RATE_ADDRESS_PER_MIN": "10000000",
    "RATE_PROOFS_PER_MIN": "10000000",
}


class Rig:
    """The servers of one run of the benchmark, in `.run/bench/`, which is deleted at its end."""

    def __init__(self, progress: Progress, replicas: int = 1) -> None:
        self.progress = progress
        self.stack = Stack(NAME)
        self.replicas = replicas
        self.python = self.stack.directory.parent / "bench-venv" / "bin" / "python"
        self.processes: dict[str, list[subprocess.Popen[bytes]]] = {}

    @contextmanager
    def running(self) -> Iterator[Rig]:
        """Start servers and provider; at the end stop and delete everything."""
        with self.stack.owned() as ours:
            if not ours:
                raise StackFault("another benchmark runs here")
            make_venv(self.python.parent.parent, self.progress)
            if self.stack.state:
                self.stack.end_leftovers()
                self.stack.remove()
                self.stack = Stack(NAME)
            self.stack.directory.mkdir(parents=True, exist_ok=True)
            self.provider_port = free_port()
            # What the user has set stays.
            os.environ.update(SETTINGS | {"PAYMENT_PROVIDER_URL": self.provider_url} | os.environ)
            try:
                # Not where `make up` would start meanwhile: the load would reach a stack of somebody else.
                first_port = PORT_RANGE[secrets.randbelow(100) * PORTS_BETWEEN_REPLICAS]
                self.ports = self.stack.prepare(self.progress, self.replicas, first_port)
                self._count_statements()
                self._start_provider()
                yield self
            finally:
                self.stop_processes()
                self.stack.stop()
                self.stack.remove()

    @property
    def provider_url(self) -> str:
        """Where the provider listens."""
        return f"http://{LOOPBACK}:{self.provider_port}"

    @property
    def databases_url(self) -> str:
        """The URL of the database server, to which the name of a database is added."""
        assert self.stack.servers.postgres
        return self.stack.servers.postgres.admin_url.rpartition("/")[0]

    def cursor(self, database: str) -> Any:
        """A cursor that commits each statement by itself."""
        connection = psycopg2.connect(f"{self.databases_url}/{database}")
        connection.autocommit = True
        return connection.cursor()

    def _count_statements(self) -> None:
        """Restart PostgreSQL with pg_stat_statements. Whoever is measured pays for it alike."""
        server = self.stack.servers.postgres
        assert server
        self.cursor("postgres").execute("ALTER SYSTEM SET shared_preload_libraries = 'pg_stat_statements'")
        server.stop()
        server.launch(dies_with_us=True)
        server.wait()
        self.cursor("postgres").execute("CREATE EXTENSION pg_stat_statements")

    def _start_provider(self) -> None:
        ledger = self.stack.directory / "provider.ledger"
        argv = ["-m", "benchmarks.provider", str(self.provider_port), str(ledger)]
        self.provider = self._spawn("provider", argv)
        self._wait(lambda: not is_free(self.provider_port), "the provider")

    def _spawn(self, name: str, words: Sequence[str], **env: str) -> subprocess.Popen[bytes]:
        argv = [str(self.python), *words]
        return spawn(argv, log=self._log(name), env={**os.environ, **env}, cwd=ROOT, dies_with_us=signal.SIGTERM)

    def _log(self, name: str) -> Path:
        return self.stack.directory / "log" / f"{name}.log"

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        def settled() -> bool:
            for group in self.ended_processes():
                raise StackFault(f"{what}: {group} has died; log: {self._log(group)}\n{tail(self._log(group))}")
            return condition()

        if not wait_until(settled, READY_S):
            raise StackFault(f"{what} is not ready after {READY_S:.0f} s")

    # The processes of a contender

    def contender_environment(self) -> dict[str, str]:
        """What the floor and the peers find in their environment."""
        assert self.stack.servers.broker
        return {
            "BENCH_DATABASES": self.databases_url,
            "BENCH_AMQP_URI": self.stack.servers.broker.amqp_uri,
            "BENCH_PROVIDER_URL": self.provider_url,
        }

    def start_process(self, group: str, *words: str, **env: str) -> subprocess.Popen[bytes]:
        """Start a process of the contender under the benchmark's own Python; its CPU is that of the group."""
        child = self._spawn(group, words, **self.contender_environment(), **env)
        self.processes.setdefault(group, []).append(child)
        return child

    def stop_processes(self) -> None:
        """Stop the contender."""
        running = [Process.of(child.pid) for children in self.processes.values() for child in children]
        end([process for process in running if process], signal.SIGTERM, 5.0)
        for children in self.processes.values():
            for child in children:
                child.wait()
        self.processes = {}

    def check_processes(self) -> None:
        """Raise StackFault if a process has ended."""
        if ended := self.ended_processes():
            raise StackFault(f"died: {', '.join(ended)}; logs in {self._log('x').parent}")

    def ended_processes(self) -> list[str]:
        """The groups of which a process has ended."""
        groups = {**self.processes, "provider": [self.provider], **self._services()}
        return [group for group, children in groups.items() if any(child.poll() is not None for child in children)]

    def _services(self) -> dict[str, list[subprocess.Popen[bytes]]]:
        found: dict[str, list[subprocess.Popen[bytes]]] = {}
        for child in self.stack.supervisor.children if self.stack.supervisor else []:
            if child.popen:
                found.setdefault(child.service, []).append(child.popen)
        return found

    def usage(self) -> Usage:
        """CPU and memory of every group so far."""
        servers = self.stack.servers
        postgres = servers.postgres.process if servers.postgres else None
        broker = servers.broker.process if servers.broker else None
        if not postgres or not broker:
            raise StackFault("a server has died")
        roots = {postgres.pid: "postgres", broker.pid: "rabbitmq"}
        roots[self.provider.pid] = "provider"
        for group, children in {**self.processes, **self._services()}.items():
            roots |= {child.pid: group for child in children}
        return usage_of(roots)

    def make_contender(self, name: str) -> None:
        """Make the databases, queues and stock of the floor or of a peer, if they are not there."""
        admin = self.cursor("postgres")
        for service, base in BASES.items():
            database = f"{name}_{service}"
            admin.execute("SELECT 1 FROM pg_database WHERE datname = %s", (database,))
            if admin.fetchone():
                continue
            admin.execute(f"CREATE DATABASE {database}")
            engine = create_engine(f"{self.databases_url}/{database}".replace("postgresql:", "postgresql+psycopg2:"))
            base.metadata.create_all(engine)
            engine.dispose()
        self.stock(f"{name}_inventory")
        with self.broker() as connection:
            channel = connection.channel()
            channel.exchange_declare(exchange_of(name), "topic", durable=True, auto_delete=False)
            for short, keys in BINDINGS.items():
                queue = queue_of(name, short)
                channel.queue_declare(queue, durable=True, auto_delete=False, arguments=arguments_of(queue))
                dead = dead_letter_queue_of(queue)
                channel.queue_declare(dead, durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"})
                for key in keys:
                    channel.queue_bind(queue, exchange_of(name), key)

    def stock(self, database: str) -> None:
        """So much of every sku that none runs out."""
        self.cursor(database).execute(
            "INSERT INTO stock_items (sku, on_hand) SELECT 'bench-' || n, %s FROM generate_series(0, %s) n"
            " ON CONFLICT (sku) DO UPDATE SET on_hand = excluded.on_hand",
            (PLENTY, SKUS - 1),
        )

    @contextmanager
    def broker(self) -> Iterator[amqp.Connection]:
        """A connection as administrator."""
        assert self.stack.servers.broker
        uri = urlsplit(self.stack.servers.broker.amqp_uri)
        connection = amqp.Connection(
            host=f"{uri.hostname}:{uri.port}", userid=uri.username, password=uri.password, virtual_host=uri.path[1:]
        )
        with connection:
            yield connection

    def wait_consumers(self, name: str) -> None:
        """Return when each queue of a contender has a consumer."""
        with self.broker() as connection:
            channel = connection.channel()
            queues = [queue_of(name, short) for short in BINDINGS]
            self._wait(lambda: all(channel.queue_declare(q, passive=True).consumer_count for q in queues), name)

    def wait_offers(self, database: str) -> None:
        """Return when the order service knows the offer of every sku: before that it asks the catalog."""
        cursor = self.cursor(database)

        def known() -> bool:
            cursor.execute("SELECT count(*) FROM offers WHERE sku LIKE 'bench-%'")
            return bool(cursor.fetchone()[0] == SKUS)

        self._wait(known, "the order service's copy of the offers")

    def wait_port(self, port: int) -> None:
        """Return when somebody listens there."""
        self._wait(lambda: not is_free(port), f"the server on port {port}")

    # Measuring

    def counts(self, databases: Sequence[str]) -> Counts:
        """What the servers have done so far for these databases and in all."""
        assert self.stack.servers.broker
        cursor = self.cursor("postgres")
        cursor.execute(
            "SELECT coalesce(sum(calls), 0) FROM pg_stat_statements JOIN pg_database ON oid = dbid"
            " WHERE datname = ANY(%s) AND query !~* '^(begin|commit|rollback|start|set|show|discard|savepoint)'",
            (list(databases),),
        )
        (statements,) = cursor.fetchone()
        cursor.execute("SELECT sum(xact_commit) FROM pg_stat_database WHERE datname = ANY(%s)", (list(databases),))
        (transactions,) = cursor.fetchone()
        cursor.execute("SELECT wal_sync, wal_bytes FROM pg_stat_wal")
        syncs, written = cursor.fetchone()
        overview = self.stack.servers.broker.rabbitmqctl("eval", "rabbit_global_counters:overview().")
        received = sum(int(n) for n in re.findall(r"messages_received_total => (\d+)", overview))
        acknowledged = sum(int(n) for n in re.findall(r"messages_acknowledged_total => (\d+)", overview))
        return Counts(int(statements), int(transactions), int(syncs), int(written), received, acknowledged)

    def post(self, plan: Plan) -> tuple[list[Post], float]:
        """Run the load generator; every post, and the seconds of CPU that all of them took."""
        asked, told = (self.stack.directory / f"load-{word}.json" for word in ("plan", "posts"))
        asked.write_text(json.dumps(asdict(plan)))
        cpu_s = self.run_aside("load", "-m", "benchmarks.load", str(asked), str(told))
        return [Post(*row) for row in json.loads(told.read_text())], cpu_s

    def run_aside(self, name: str, *words: str) -> float:
        """Run a process that ends by itself, and return the seconds of CPU it took."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        child = self._spawn(name, words, **self.contender_environment())
        if child.wait():
            raise StackFault(f"{name} failed with {child.returncode}; log: {self._log(name)}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def make_venv(place: Path, progress: Progress) -> None:
    """Make the benchmark's own virtual environment hold exactly what its requirements name."""
    stamp, wanted = place / "installed", hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(place, ignore_errors=True)
    log = place.parent / "bench-install.log"
    python = place / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
    with log.open("wb") as output:
        for command in ([sys.executable, "-m", "venv", str(place)], [*install, "--requirement", str(REQUIREMENTS)]):
            if subprocess.call(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output):
                raise StackFault(f"the benchmark's packages cannot be installed; log: {log}\n{tail(log)}")
    stamp.write_text(wanted)
    progress.done("the benchmark's packages are installed")
