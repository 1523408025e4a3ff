"""A flood of sign-ins with wrong passwords, as a process of its own: so many a second, from many addresses.

It reads what to do as JSON from its first argument, prints a line when the flood has begun, and goes on until its input
ends. Then it prints as JSON how many sign-ins it began, and how many there were of each answer.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from typing import Any

# Whoever guesses tries a few names again and again.
NAMES = 200
PATIENCE_S = 20.0


class SignInFlood:
    """A sign-in begins when it is due, whether those before it have been answered or not."""

    def __init__(self, gateways: list[tuple[str, int]], rate: float, addresses: int) -> None:
        self.gateways, self.rate, self.addresses = gateways, rate, addresses
        self.began = 0
        self.outcomes: Counter[str] = Counter()

    async def run(self) -> None:
        """Flood until standard input ends, and wait for the answers that are due."""
        loop = asyncio.get_running_loop()
        over = loop.run_in_executor(None, sys.stdin.read)
        first, under_way = loop.time(), set()
        print("begun", flush=True)
        while not over.done():
            task = asyncio.create_task(self._sign_in(self.began))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            self.began += 1
            await asyncio.sleep(max(0.0, first + self.began / self.rate - loop.time()))
        await asyncio.gather(*under_way, return_exceptions=True)

    async def _sign_in(self, n: int) -> None:
        host, port = self.gateways[n % len(self.gateways)]
        body = json.dumps({"login": f"guessed-{n % NAMES}@example.net", "password": f"a wrong guess {n}"})
        request = (
            f"POST /api/auth/login HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        )
        try:
            source = (f"127.0.1.{1 + n % self.addresses}", 0)
            reader, writer = await asyncio.open_connection(host, port, local_addr=source)
            try:
                writer.write(request.encode())
                head = await asyncio.wait_for(reader.read(4096), PATIENCE_S)
                self.outcomes[head.split()[1].decode() if head else "closed"] += 1
            finally:
                writer.close()
        except (OSError, TimeoutError) as error:
            self.outcomes[type(error).__name__] += 1


def main(work: dict[str, Any]) -> None:
    """Flood, and print how many there were of each outcome."""
    flood = SignInFlood([tuple(one) for one in work["gateways"]], work["rate"], work["addresses"])
    asyncio.run(flood.run())
    print(json.dumps({"began": flood.began, "outcomes": flood.outcomes}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
