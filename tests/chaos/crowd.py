"""A crowd of clients on one gateway, each on a connection of its own, from one thread."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

HEAD_LIMIT = 1024 * 1024


@dataclass(frozen=True)
class Heard:
    """The answer that one client got, and when, in seconds since 1970."""

    at: float
    status: int
    body: Any


class Crowd:
    """Asks one gateway for many paths at once; `answers` waits for all."""

    def __init__(self, url: str, token: str) -> None:
        parts = urlsplit(url)
        self.host, self.port, self.token = parts.hostname or "", parts.port or 0, token
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="crowd")
        self._thread.start()
        self._asked: list[Any] = []
        self.sent = 0

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._hang_up(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def ask(self, paths: list[str]) -> None:
        """Send a GET for each; return when all are on their way."""
        goal = self.sent + len(paths)
        self._asked += [self._run(self._ask(path)) for path in paths]
        while self.sent < goal:
            time.sleep(0.01)

    def answers(self, patience_s: float = 60.0) -> list[Heard]:
        """The answers, in the order of the paths."""
        deadline = time.monotonic() + patience_s
        return [future.result(max(0.1, deadline - time.monotonic())) for future in self._asked]

    def _run(self, coroutine: Coroutine[Any, Any, Heard]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def _hang_up(self) -> None:
        asking = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    async def _ask(self, path: str) -> Heard:
        reader, writer = await asyncio.open_connection(self.host, self.port, limit=HEAD_LIMIT)
        try:
            lines = [f"GET {path} HTTP/1.1", "Host: gateway", f"Authorization: Bearer {self.token}", "", ""]
            writer.write("\r\n".join(lines).encode())
            await writer.drain()
            self.sent += 1
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            status = int(head.split(" ", 2)[1])
            named = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
            if "content-length" in named:
                body = json.loads(await reader.readexactly(int(named["content-length"])))
            else:
                body = (await reader.readuntil(b"\r\n0\r\n\r\n")).decode()  # an event stream, to its proper end
            return Heard(time.time(), status, body)
        finally:
            writer.close()
