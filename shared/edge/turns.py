"""Taking turns: many requests that arrive at the same moment do not hold up whatever else the process does."""

from __future__ import annotations

from collections import deque

from shared.edge import green
from shared.edge.green import Event

# A request costs about a millisecond until its first call to another service.
BEGIN_AT_ONCE = 16


class Turns:
    """At most `at_once` begin in one round of the hub, the addresses in turn, each in the order of its requests.

    A round serves every socket that is ready. Without a limit, a probe that comes now would wait for hundreds of them.
    """

    def __init__(self, at_once: int = BEGIN_AT_ONCE) -> None:
        self.at_once = at_once
        self._left = at_once
        self._waiting: dict[str, deque[Event]] = {}  # by address, the one whose turn is next first

    def wait(self, address: str) -> None:
        """Return in the round in which it is the turn of this request: at once, unless many came before."""
        if self._left == self.at_once:
            green.spawn_n(self._next_rounds)
        if self._left:
            self._left -= 1
            return
        turn = Event()
        self._waiting.setdefault(address, deque()).append(turn)
        turn.wait()

    def _next_rounds(self) -> None:
        """Runs from the round after the first until one in which nobody begins."""
        while True:
            turns = self._next()
            self._left = self.at_once - len(turns)
            for turn in turns:
                turn.send()
            if not turns:
                return
            green.sleep(0)

    def _next(self) -> list[Event]:
        turns: list[Event] = []
        while self._waiting and len(turns) < self.at_once:
            address = next(iter(self._waiting))
            line = self._waiting.pop(address)
            turns.append(line.popleft())
            if line:
                self._waiting[address] = line
        return turns
