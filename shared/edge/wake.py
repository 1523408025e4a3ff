"""A signal that can be sent and waited for again and again."""

from __future__ import annotations

from shared.edge import green
from shared.edge.green import Event


class Wake:
    """An event that can be sent again after it was waited for."""

    def __init__(self) -> None:
        self._event = Event()

    def send(self) -> None:
        """Wake the greenlet that waits, or the next one that does."""
        if not self._event.ready():
            self._event.send()

    @property
    def sent(self) -> bool:
        """Whether the next wait returns at once."""
        return bool(self._event.ready())

    def clear(self) -> None:
        """Forget that it was sent."""
        if self._event.ready():
            self._event = Event()

    def wait(self, seconds: float) -> bool:
        """Whether it was sent within the time."""
        with green.Timeout(seconds, False):
            self._event.wait()
            self._event = Event()
            return True
        return False
