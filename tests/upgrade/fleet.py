"""All services, each replica with the code of one version, and how replicas of another version take their places."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from ops.cli.flow import Flow
from ops.local.server import LOOPBACK
from ops.local.servers import Servers
from ops.local.supervisor import Child
from shared.config import PROBES
from tests.e2e.broker import channel
from tests.e2e.system import System
from tests.upgrade.balancer import Balancer
from tests.upgrade.versions import Version
from topology.services import START_ORDER
from topology.table import queue_arguments

# The gateway is upgraded last: it calls methods that only the new version of the others has. Back, it is the first. The
# others may come in any order: in one of these two, each of them has the new version before any other has it.
*_OTHERS, _GATEWAY = START_ORDER
FORWARD = (*_OTHERS, _GATEWAY)
FORWARD_REVERSED = (*_OTHERS[::-1], _GATEWAY)
BACK = (_GATEWAY, *_OTHERS)


class Client(Flow):
    """A client of a fleet. As long as there is no catalog it puts nothing on the menu: `Fleet.open_menu` does it."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(fleet.balancer.url)
        self.fleet = fleet

    def sell(self, prices: Mapping[str, int]) -> None:
        if self.fleet.children_of("catalog"):
            super().sell(prices)


class Fleet(System):
    """It begins with one version. Nobody starts a dead process again: each death is a fault."""

    def __init__(self, directory: Path, version: Version, replicas: int = 2) -> None:
        super().__init__(directory, replicas=0)
        self.replicas = replicas
        self.first = version
        self.supervisor.command = lambda child: Version(child.checkout or self.first.root).ecom(
            "run", child.service, "--replica", str(child.replica)
        )
        self.balancer = Balancer()
        broker = Servers.attach(os.environ["ECOM_TEST_STACK"]).broker
        assert broker
        self.broker = broker
        self.checked = False  # whether all was well, so that nothing may be found when it stops

    def _set_up(self) -> None:
        """What the first version makes where there is no database and no queue."""
        server = create_engine(self.settings.database_admin_url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        with server.connect() as connection:
            for engine in self.databases.engines.values():
                connection.execute(text(f'DROP DATABASE IF EXISTS "{engine.url.database}" WITH (FORCE)'))
        with channel(self.amqp_uri) as opened:
            for queue in queue_arguments():
                opened.queue_delete(queue)
        self.prepare(self.first)

    def prepare(self, version: Version) -> None:
        """What is done before the first process of a version starts. A way back undoes nothing of it.

        The users get their rights by rabbitmqctl, because the broker of the tests has no management API.
        """
        version.run("migrate")
        version.run("topology", "apply")
        users = self.directory / "users.json"
        users.write_text(version.run("topology", "users"))
        self.broker.rabbitmqctl("import_definitions", str(users))

    def _start_processes(self) -> None:
        for service in START_ORDER:
            if self.first.has(service):
                for _ in range(self.replicas):
                    self.add(service, self.first)
        self.serve()

    def _stop_processes(self) -> None:
        self.supervisor.stop()
        self.balancer.stop()

    def flow(self, replica: int = 0) -> Flow:
        """A client that knows one address and opens a connection for each request, as a balancer of HTTP would."""
        flow = Client(self)
        flow.http.headers["Connection"] = "close"
        flow._tokens, flow._prices = self._tokens, self._prices
        return flow

    def open_menu(self, version: Version, prices: Mapping[str, int]) -> None:
        """What is done before a service of a version with a catalog takes orders, if the version before has none.

        The catalog starts, and gets the prices through a gateway of the new version to which no customer is sent.
        """
        if self.children_of("catalog"):
            return
        for _ in range(self.replicas):
            self.add("catalog", version)
        aside = self.add("gateway", version)
        self.supervisor.wait_ready()
        editor = Flow(f"http://{LOOPBACK}:{aside.port}")
        editor._tokens, editor._prices = self._tokens, self._prices
        editor.sell(prices)
        self.remove(aside)

    def children_of(self, service: str) -> list[Child]:
        """Those that run, the oldest first."""
        return [child for child in self.supervisor.children if child.service == service]

    def add(self, service: str, version: Version) -> Child:
        """Start one more replica at a free place."""
        place = min(set(range(self.replicas + 1)) - {child.replica for child in self.children_of(service)})
        child = Child(
            service,
            place,
            self.settings.port(service, place),
            self.directory / f"{service}-{place}.log",
            probe_port=self.settings.port(PROBES.get(service, service), place),
            checkout=version.root,
        )
        self.supervisor.add(child)
        return child

    def serve(self) -> None:
        """Return when all replicas are ready; then all gateways get connections."""
        self.supervisor.wait_ready()
        self.balancer.ports = tuple(child.port for child in self.children_of("gateway"))

    def remove(self, child: Child) -> None:
        """Stop a replica by SIGTERM; a gateway gets no new connections before."""
        if child.service == "gateway":
            self.balancer.take_out(child.port)
        assert self.supervisor.remove(child), f"{child.name} did not stop by itself"

    def replace(self, service: str, version: Version) -> None:
        """One by one, new replicas become ready and old ones stop."""
        for old in self.children_of(service) or [None] * self.replicas:
            if version.has(service):
                self.add(service, version)
                self.serve()
            if old:
                self.remove(old)

    def check_deaths(self, but_for: str = "") -> None:
        """No message has died, but for those of one queue."""
        dead = [row for row in self.deaths() if row["queue"] != but_for]
        assert not dead, dead[:5]

    def check(self) -> None:
        """All orders are at rest, the books agree, the audit is intact; no process and no message has died."""
        self.supervisor.run_once()
        assert not self.died
        self.check_deaths()
        self.wait_quiet()
        assert "intact" in self.first.run("audit", "verify")
        wrong = self.faults()
        assert not wrong, "\n".join(wrong[:20])
        self.checked = True
