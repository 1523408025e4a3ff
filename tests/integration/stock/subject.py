"""A service under test in a process of its own, so that a death or a hang disturbs no other test."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast
from uuid import uuid4

import amqp
import psutil

from ops.local.processes import Process, tie
from ops.local.servers import free_port
from shared.config import Settings
from shared.envelope import envelope
from shared.events import Identity
from shared.ids import new_trace_id
from tests.databases import Databases
from tests.integration.stock.services import QUEUES, queue_of
from tests.integration.support import Mail, Wire, comes_true, until

ROOT = Path(__file__).resolve().parents[3]
START_TIMEOUT_S = 40.0


class Nursery:
    """The process from which all others come."""

    def __init__(self) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.stock.run"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            start_new_session=True,
            preexec_fn=tie(signal.SIGKILL),
        )

    def start(self, **asked: Any) -> Process:
        """A process of its own, see `run.become`."""
        into, out = cast(IO[str], self._popen.stdin), cast(IO[str], self._popen.stdout)
        print(json.dumps(asked), file=into, flush=True)
        process = Process.of(int(out.readline()))
        assert process
        return process

    def close(self) -> None:
        """Start no more."""
        self._popen.communicate()


class Subject:
    """One process of "ours" or "stock" classes, asked over HTTP; what it prints is its log."""

    def __init__(
        self,
        nursery: Nursery,
        which: str,
        kind: str,
        queue: str,
        settings: Settings,
        database: Databases,
        wire: Wire,
        directory: Path,
        environment: Mapping[str, str],
    ) -> None:
        self.which = which
        self.mail = Mail(settings)  # its own: the sides act side by side
        self.database = database
        self.wire = wire  # through which it reaches the broker
        self.hears = queue
        self.queue = queue_of(which, queue)
        self.log = directory / f"{which}.log"
        self.port = free_port()
        self.process = nursery.start(
            side=which,
            kind=kind,
            queue=queue,
            log=str(self.log),
            environment={
                "INVENTORY_PORT": str(self.port),
                "AMQP_URI": wire.amqp_uri(settings.amqp_uri),
                "AMQP_HEARTBEAT_S": "10",
                **environment,
            },
        )

    def wait_ready(self) -> None:
        """Return when it works."""
        path = "/readyz" if self.which == "ours" else "/ping"
        until(lambda: self.get(path) in (200, 404), START_TIMEOUT_S)  # what has no probes has no /readyz
        assert not self.hears or self.handles()

    def get(self, path: str, within_s: float = 2.0) -> int | None:
        """The status of the answer, or None when none came in time."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=within_s)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def dial(self) -> socket.socket:
        """A bare connection to it."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=5)

    def put(self, body: bytes, content_type: str = "application/json") -> bytes:
        """Put a message into its queue; the body."""
        message = amqp.Message(body, content_type=content_type, content_encoding="utf-8", delivery_mode=2)
        self.mail.channel.basic_publish(message, "", self.queue)
        return body

    def order(self, what: str) -> bytes:
        """Put an event of the user `what` into its queue; the body."""
        event = envelope("test", QUEUES[self.hears](uuid4()), new_trace_id(), Identity(what, ()))
        return self.put(event.to_json().encode())

    def handles(self, within_s: float = 30.0) -> bool:
        """Whether it handles a message that comes now."""
        order_id = json.loads(self.order("nothing"))["payload"]["order_id"]
        comes_true(lambda: order_id in self.told("done") or not self.runs(), within_s)
        return order_id in self.told("done")

    def told(self, word: str) -> set[str]:
        """Which orders it has `began`, or `done`."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return {line.removeprefix(f"{word} ") for line in lines if line.startswith(f"{word} ")}

    def to_broker(self) -> set[int]:
        """The local ports of its connections to the broker."""
        connections = psutil.Process(self.process.pid).net_connections()
        return {each.laddr.port for each in connections if each.raddr and each.raddr.port == self.wire.port}

    def runs(self) -> bool:
        """Whether the process is still there."""
        return self.process.alive()

    def ends(self, within_s: float) -> bool:
        """Ask it to stop: whether it has, in time."""
        self.process.send(signal.SIGTERM)
        return comes_true(lambda: not self.runs(), within_s)

    def kill(self) -> None:
        """SIGKILL: its messages go back to the queue."""
        self.process.send(signal.SIGKILL)
        until(lambda: not self.runs())
