"""Posts orders over HTTP and writes down each one. Runs in the benchmark's own virtual environment.

    python -m benchmarks.load PLAN RESULT

Both are JSON files: a `Plan`, and a list of `Post`s.

wrk cannot offer a fixed rate and does not tell which order an answer is about, so it is not used. With `rate` the posts
are due at fixed times whether or not earlier ones are answered, and each waiting time counts from there (an open loop);
without it every connection posts again as soon as it has its answer (a closed loop).
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

from benchmarks.plan import FIRST_PRICE, OTHER_PRICE, SKUS, Plan, Post

ORDER_ID = re.compile(rb'"order_id": ?"([0-9a-f-]{36})"')
PATIENCE_S = 30.0  # for the last answers
NO_ANSWER = 0


@dataclass
class Load:
    """One run of a plan."""

    plan: Plan
    done: list[Post] = field(default_factory=list)
    free: deque[Client] = field(default_factory=deque)
    due: deque[float] = field(default_factory=deque)
    sent: int = 0
    unanswered: int = 0
    ended: bool = False
    began: bool = False
    _opening: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self) -> None:
        """Post until the plan's end, then wait for the last answers."""
        for n in range(self.plan.connections):
            await self.connect(self.plan.urls[n % len(self.plan.urls)])
        began = time.time()
        self.began = True
        if self.plan.rate:
            await self._offer(began, self.plan.rate)
        else:
            while self.free:
                self.free.popleft().post(time.time())
            while time.time() < began + self.plan.seconds and not self._enough():
                await asyncio.sleep(0.01)
        self.ended = True
        deadline = time.time() + PATIENCE_S
        while (self.due or self.unanswered) and time.time() < deadline:
            await asyncio.sleep(0.01)

    async def connect(self, url: str) -> None:
        """Open a connection, which posts when a post is due."""
        host, _, port = urlsplit(url).netloc.rpartition(":")
        await asyncio.get_running_loop().create_connection(lambda: Client(self, url), host, int(port))

    def reconnect(self, url: str) -> None:
        """Open a connection in place of one that broke; one that cannot be opened is tried again."""

        async def again() -> None:
            while not self.ended:
                try:
                    return await self.connect(url)
                except OSError:
                    await asyncio.sleep(0.1)

        task = asyncio.ensure_future(again())
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _offer(self, began: float, rate: float) -> None:
        offered = 0
        while time.time() < began + self.plan.seconds and not self._enough():
            while began + offered / rate <= time.time():
                self._post(began + offered / rate)
                offered += 1
            await asyncio.sleep(max(0.0, began + offered / rate - time.time()))

    def _post(self, due: float) -> None:
        if self.free:
            self.free.popleft().post(due)
        else:
            self.due.append(due)

    def _enough(self) -> bool:
        return self.plan.posts is not None and self.sent >= self.plan.posts

    def answered(self, client: Client, due: float, head: bytes, body: bytes) -> None:
        """Write an answer down and let its connection go on."""
        found = ORDER_ID.search(body)
        order_id = found[1].decode() if found else None
        self.done.append(Post(due, time.time(), int(head[9:12]), order_id, b"\r\nretry-after:" in head))
        self.unanswered -= 1
        self.go_on(client)

    def go_on(self, client: Client) -> None:
        """Give a connection that is free its next post, if one is due."""
        if self.due:
            client.post(self.due.popleft())
        elif self.plan.rate or self.ended or self._enough():
            self.free.append(client)
        else:
            client.post(time.time())

    def request(self, host: str) -> bytes:
        """The next order: two lines over two different skus, with a key of its own."""
        self.sent += 1
        self.unanswered += 1
        user = self.plan.users[self.sent % len(self.plan.users)]
        half = SKUS // 2
        first = 0 if self.plan.hot else random.randrange(half)
        lines = ((first, 1, FIRST_PRICE), (half + random.randrange(half), 2, OTHER_PRICE))
        body = json.dumps(
            {
                "currency": "EUR",
                "payment_method": "mock_ok",
                "items": [
                    {"sku": f"bench-{sku}", "quantity": quantity, "unit_price": price} for sku, quantity, price in lines
                ],
            }
        )
        return (
            f"POST /api/orders HTTP/1.1\r\nHost: {host}\r\n{user}\r\nIdempotency-Key: {self.plan.run}-{self.sent}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        ).encode()


class Client(asyncio.Protocol):
    """One connection, which holds at most one post."""

    def __init__(self, load: Load, url: str) -> None:
        self.load, self.url, self.host = load, url, urlsplit(url).netloc
        self.unread = b""
        self.due = 0.0  # when the post was due that is not answered yet

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        if self.load.began:
            self.load.go_on(self)
        else:
            self.load.free.append(self)

    def post(self, due: float) -> None:
        """Send the next order."""
        self.due = due
        self.transport.write(self.load.request(self.host))

    def data_received(self, data: bytes) -> None:
        self.unread += data
        end = self.unread.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.unread[:end].lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        if len(self.unread) < end + 4 + length:
            return
        body, self.unread = self.unread[end + 4 :], b""
        due, self.due = self.due, 0.0
        self.load.answered(self, due, head, body)

    def connection_lost(self, error: Exception | None) -> None:
        if self in self.load.free:
            self.load.free.remove(self)
        if self.due:
            self.load.done.append(Post(self.due, time.time(), NO_ANSWER, None, False))
            self.load.unanswered -= 1
        if not self.load.ended:
            self.load.reconnect(self.url)


def main(plan: Path, result: Path) -> None:
    """Run one plan."""
    load = Load(Plan(**json.loads(plan.read_text())))
    uvloop.run(load.run())
    result.write_text(json.dumps(load.done))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
