"""One address in front of all gateways, as a Service of Kubernetes is: each new connection goes to the next gateway."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from itertools import count
from typing import Any

from ops.local.processes import wait_until
from ops.local.server import LOOPBACK

# The `preStop` of the gateway's pods: how long a gateway that gets no new connections goes on as before.
LEAVES_WITHIN_S = 5.0


class Balancer:
    """Listens on a free port and passes bytes on. It knows nothing of HTTP and tries nothing twice."""

    def __init__(self) -> None:
        self.ports: tuple[int, ...] = ()  # of the gateways that get new connections
        self._turns = count()
        self._open: Counter[int] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="balancer", daemon=True)
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._serve, LOOPBACK, 0, backlog=1024))
        self.url = f"http://{LOOPBACK}:{self._server.sockets[0].getsockname()[1]}"

    def take_out(self, port: int) -> None:
        """A gateway is about to stop: return when its connections have ended, or after LEAVES_WITHIN_S."""
        self.ports = tuple(other for other in self.ports if other != port)
        wait_until(lambda: not self._open[port], LEAVES_WITHIN_S)

    def stop(self) -> None:
        """Listen no more."""
        self._server.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ports = self.ports
        port = ports[next(self._turns) % len(ports)]
        self._open[port] += 1
        try:
            from_gateway, to_gateway = await asyncio.open_connection(LOOPBACK, port)
            await asyncio.gather(_pass_on(reader, to_gateway), _pass_on(from_gateway, writer))
            to_gateway.close()
        finally:
            self._open[port] -= 1
            writer.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until the end of what is read; then the other side is told of it."""
    with suppress(ConnectionError):
        while some := await reader.read(65536):
            writer.write(some)
            await writer.drain()
        writer.write_eof()
