"""A service under test in a process of its own, so that one which dies or hangs disturbs nobody."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

import amqp
import psutil

from ops.processes import spawn
from ops.servers import free_port
from shared.config import Settings
from tests.databases import Databases
from tests.integration.stock.services import QUEUES
from tests.integration.support import Mail, Wire, comes_true, order_created, told, until

ROOT = Path(__file__).resolve().parents[3]
START_PATIENCE_S = 40.0


class Subject:
    """One process of "ours" or "stock" classes, asked over HTTP; what it prints is its log."""

    def __init__(
        self,
        which: str,
        kind: str,
        settings: Settings,
        database: Databases,
        wire: Wire,
        directory: Path,
        environment: Mapping[str, str],
    ) -> None:
        self.which = which
        self.consumes = not kind
        self.mail = Mail(settings)  # its own: the sides act side by side
        self.database = database
        self.wire = wire  # through which it reaches the broker
        self.queue = QUEUES[which]
        self.log = directory / f"{which}.log"
        self.port = free_port()
        self.popen = spawn(
            [sys.executable, "-m", "tests.integration.stock.run", f"{which.capitalize()}{kind}"],
            log=self.log,
            env={
                **os.environ,
                "INVENTORY_PORT": str(self.port),
                "AMQP_URI": wire.amqp_uri(settings.amqp_uri),
                "AMQP_HEARTBEAT_S": "10",
                **environment,
            },
            cwd=ROOT,
            dies_with_us=signal.SIGKILL,
        )

    def wait_ready(self) -> None:
        """Return when it works."""
        path = "/readyz" if self.which == "ours" else "/ping"
        until(lambda: self.get(path) in (200, 404), START_PATIENCE_S)  # what has no probes has no /readyz
        assert not self.consumes or self.handles()

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
        """Put an order for the item `what` into its queue; the body."""
        return self.put(told(order_created(skus=(what,))).to_json().encode())

    def handles(self, within_s: float = 15.0) -> bool:
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
        connections = psutil.Process(self.popen.pid).net_connections()
        return {each.laddr.port for each in connections if each.raddr and each.raddr.port == self.wire.port}

    def runs(self) -> bool:
        """Whether the process is still there."""
        return self.popen.poll() is None

    def ends(self, within_s: float) -> bool:
        """Ask it to stop: whether it has, in time."""
        self.popen.send_signal(signal.SIGTERM)
        return comes_true(lambda: not self.runs(), within_s)

    def kill(self) -> None:
        """SIGKILL: what it held goes back to its queue."""
        self.popen.kill()
        self.popen.wait()
