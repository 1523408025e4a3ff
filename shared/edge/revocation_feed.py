"""The feed of what is revoked: each gateway keeps it in memory, so that no request asks anybody.

It asks every 1.5 s and at once on a hint. A token that was revoked is refused within about 50 ms, at most 2 s, while
auth_service and the broker answer. While they do not, what is known goes on counting and nothing new is heard.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from nameko.exceptions import MethodNotFound
from nameko.extensions import SharedExtension

from shared.edge import green
from shared.edge.hint_listener import HintListener
from shared.edge.rpc_proxy import Replies
from shared.edge.wake import Wake
from shared.errors import CannotWork, ServiceUnavailable
from shared.logs import Reminder
from shared.metrics import REVOCATIONS_AGE
from shared.revocations import REVOKED, Revocations
from shared.roles import SYSTEM

log = logging.getLogger(__name__)

METHOD = "auth_service.revocations"
ASKER = {"user_id": "system:gateway", "roles": [SYSTEM]}
HINT = str(REVOKED)

# Somebody who is shut out may go on for 2 s at most, of which the answer takes some.
ASK_EVERY_S = 1.5
# Many who sign out at once are asked about together. Each answer holds all of the last minute once more.
GAP_S = 0.1
# After a question without an answer: what was revoked meanwhile is to be known soon after the outage.
AGAIN_S = 0.25
# An answer that takes longer has been lost.
ASK_TIMEOUT_S = 1.5
# A gateway that starts while auth_service is away is of more use than none: the tokens live 15 minutes.
START_S = 10.0
WARN_AFTER_S = 60.0


class RevocationFeed(SharedExtension):
    """What is revoked, for all routes of a process: `is_revoked(user_id, version, session_id)`, two look-ups."""

    replies = Replies()
    hints = HintListener()

    def __init__(self) -> None:
        super().__init__()
        self._known = Revocations(time.monotonic)
        self.is_revoked = self._known.is_revoked
        self.loaded = False
        self._since: str | None = None
        self._asking: Any = None
        self._stopped = False
        self._wake = Wake()
        self._reminder = Reminder()

    def setup(self) -> None:
        self._heard_at = self._started_at = time.monotonic()
        self.hints.callbacks.append(self._hear)

    def start(self) -> None:
        if self._asking is None:
            REVOCATIONS_AGE.labels(self.container.service_name).set_function(self.age_s)
            self._asking = self.container.spawn_managed_thread(self._run, identifier="feed of revocations")

    def stop(self) -> None:
        self.kill()
        if self._asking is not None:
            with green.Timeout(ASK_TIMEOUT_S, False):
                self._asking.wait()

    def kill(self) -> None:
        self._stopped = True
        self._wake.send()

    def age_s(self) -> float:
        """How long ago everything was known that was revoked; since the start if it never was."""
        return time.monotonic() - self._heard_at

    def not_ready_reason(self) -> str | None:
        """Until the revocations are loaded a token that was revoked would count; but nobody waits longer than 10 s."""
        if self.loaded or time.monotonic() - self._started_at > START_S:
            return None
        return "what is revoked is not loaded yet"

    def warnings(self) -> list[str]:
        """That it has not heard for long what is revoked."""
        if not self.loaded and self.not_ready_reason() is None:
            return ["auth_service has not said yet what is revoked: tokens of before count until they end"]
        if self.age_s() > WARN_AFTER_S:
            return [f"auth_service has not said for {int(self.age_s())} s what is revoked"]
        return []

    def _hear(self, ids: Sequence[str]) -> None:
        if HINT in ids:
            self._wake.send()

    def _run(self) -> None:
        while not self._stopped:
            began = time.monotonic()
            pause = ASK_EVERY_S if self.ask() else AGAIN_S
            self._wake.wait(max(0.0, began + pause - time.monotonic()))
            green.sleep(max(0.0, began + GAP_S - time.monotonic()))

    def ask(self) -> bool:
        """Read everything that was revoked since the last time; whether it was answered."""
        began = time.monotonic()
        position, following = self._since, None
        try:
            while True:
                page = self.replies.call(METHOD, [position], {}, ASKER, ASK_TIMEOUT_S)
                self._known.take(page["items"])
                following = following or page["since"]
                position = page["next"]
                if position is None:
                    break
        except (CannotWork, ServiceUnavailable, MethodNotFound) as error:  # the version before does not know the method
            if self._reminder.due("nobody says what is revoked"):
                log.warning("nobody says what is revoked: %s", error)
            return False
        except Exception:  # theirs, and no reason to stop asking
            if self._reminder.due("a fault"):
                log.exception("%s failed", METHOD)
            return False
        self._reminder.forget()
        self._since, self._heard_at, self.loaded = following, began, True
        return True
