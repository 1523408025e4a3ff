"""The payment provider of the benchmark: one HTTP server with a durable ledger, the same for every contender.

    POST /charges, POST /refunds   header Idempotency-Key, JSON {order_id, amount, currency, method, customer}
    GET  /operations/{key}         what became of a key, or 404

Both answer {done, reference, reason}. An answer is sent when its line is on the disk; lines that arrive while the disk
writes share the next write. Runs in the benchmark's own virtual environment:

    python -m benchmarks.provider PORT LEDGER
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import deque
from pathlib import Path

import uvloop

OK, NOT_FOUND, BAD_REQUEST = b"200 OK", b"404 Not Found", b"400 Bad Request"


class Ledger:
    """What became of each key. A key that comes again gets the answer it got before."""

    def __init__(self, path: Path) -> None:
        self.answers: dict[str, bytes] = {}
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._waiting: list[tuple[bytes, asyncio.Future[bytes]]] = []
        self._asked: dict[str, asyncio.Future[bytes]] = {}
        self._more = asyncio.Event()

    def move(self, kind: str, key: str, request: bytes) -> asyncio.Future[bytes]:
        """Move money once for a key; the future has the answer when it is on the disk."""
        if key in self._asked:
            return self._asked[key]
        future = self._asked[key] = asyncio.get_running_loop().create_future()
        if key in self.answers:
            future.set_result(self.answers[key])
            return future
        answer = json.dumps({"done": True, "reference": f"{kind}-{key}", "reason": ""}).encode()
        self._waiting.append((b"%s %s %s %s\n" % (kind.encode(), key.encode(), request, answer), future))
        self.answers[key] = answer
        self._more.set()
        return future

    async def write(self) -> None:
        """Write what waits, all of it with one fsync, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await self._more.wait()
            self._more.clear()
            batch, self._waiting = self._waiting, []
            os.write(self._file, b"".join(line for line, _ in batch))
            await loop.run_in_executor(None, os.fdatasync, self._file)
            for line, future in batch:
                self._asked.pop(line.split(b" ", 2)[1].decode(), None)
                future.set_result(line[line.rindex(b'{"done"') : -1])


class Connection(asyncio.Protocol):
    """One client. Requests may follow each other without waiting; answers keep their order."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.unread = b""
        self.owed: deque[asyncio.Future[bytes] | bytes] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.unread += data
        while (end := self.unread.find(b"\r\n\r\n")) >= 0:
            head = self.unread[:end].split(b"\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in head[1:])}
            length = int(headers.get(b"content-length", b"0"))
            if len(self.unread) < end + 4 + length:
                return
            body, self.unread = self.unread[end + 4 : end + 4 + length], self.unread[end + 4 + length :]
            answer = self.answer(head[0], headers.get(b"idempotency-key", b"").decode(), body)
            self.owed.append(answer)
            if isinstance(answer, asyncio.Future):
                answer.add_done_callback(self.pay)
        self.pay()

    def answer(self, line: bytes, key: str, body: bytes) -> asyncio.Future[bytes] | bytes:
        """The answer, whole, or the future of a body that goes out with 200."""
        method, path, _ = line.split(b" ", 2)
        if method == b"POST" and path in (b"/charges", b"/refunds") and key:
            return self.ledger.move(path[1:-1].decode(), key, body)
        if method == b"GET" and path.startswith(b"/operations/"):
            known = self.ledger.answers.get(path.removeprefix(b"/operations/").decode())
            return response(OK, known) if known else response(NOT_FOUND, b"{}")
        return response(BAD_REQUEST, b"{}")

    def pay(self, _: object = None) -> None:
        """Send the answers that are there, up to the first that is not."""
        ready = []
        while self.owed:
            first = self.owed[0]
            if isinstance(first, bytes):
                ready.append(first)
            elif first.done():
                ready.append(response(OK, first.result()))
            else:
                break
            self.owed.popleft()
        if ready and not self.transport.is_closing():
            self.transport.write(b"".join(ready))


def response(status: bytes, body: bytes) -> bytes:
    """An HTTP answer."""
    return b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


async def serve(port: int, path: Path) -> None:
    """Serve until killed."""
    ledger = Ledger(path)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(ledger), "127.0.0.1", port)
    async with server:
        await ledger.write()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), Path(sys.argv[2])))
