"""A flood of one client, as a process of its own: connections that send nothing, streams of one order, and sign-ins.

It reads what to do as JSON from its first argument, prints a line when all of it is open or was refused, and holds it
until its input ends. Then it prints as JSON how many there were of each outcome.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from collections import Counter
from typing import Any

WRONG = json.dumps({"username": "admin", "password": "not this one"})
# A connection that was closed is opened again after this time: the server closes silent ones after 5 s.
AGAIN_S = 5.0


class Flood:
    """Everything is opened at once."""

    def __init__(self, host: str, port: int, token: str, path: str) -> None:
        self.host, self.port = host, port
        self.stream = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n"
        self.sign_in = (
            "POST /api/auth/token HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(WRONG)}\r\n\r\n{WRONG}"
        )
        self.outcomes: Counter[str] = Counter()
        self._unopened = 0

    async def run(self, idle: int, streams: int, sign_ins: int) -> None:
        """Open so many of each and hold them until standard input ends."""
        self._unopened = idle + streams + sign_ins
        texts = {"idle": ("", idle), "stream": (self.stream, streams), "sign-in": (self.sign_in, sign_ins)}
        holding = [asyncio.create_task(self._hold(kind, text)) for kind, (text, n) in texts.items() for _ in range(n)]
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        for task in holding:
            task.cancel()
        await asyncio.gather(*holding, return_exceptions=True)

    async def _hold(self, kind: str, text: str) -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection(self.host, self.port)
            except OSError as error:
                self.outcomes[f"{kind} {type(error).__name__}"] += 1
                await asyncio.sleep(AGAIN_S)
                continue
            try:
                writer.write(text.encode())
                self._opened()
                if head := await reader.read(4096):
                    self.outcomes[f"{kind} {head.split()[1].decode()}"] += 1
                while await reader.read(4096):
                    pass
                self.outcomes[f"{kind} closed"] += 1
            except OSError:
                self.outcomes[f"{kind} reset"] += 1
            finally:
                writer.close()
            await asyncio.sleep(AGAIN_S)

    def _opened(self) -> None:
        self._unopened -= 1
        if self._unopened == 0:
            print("open", flush=True)


def main(work: dict[str, Any]) -> None:
    """Flood, and print the outcomes."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    flood = Flood(work["host"], work["port"], work["token"], work["path"])
    asyncio.run(flood.run(work["idle"], work["streams"], work["sign_ins"]))
    print(json.dumps(flood.outcomes))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
