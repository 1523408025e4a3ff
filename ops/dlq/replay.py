"""Replay: sends dead messages back to their main queue at a chosen pace and follows what happens to them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from ops import domain
from ops.dlq.dead_messages import outgoing, publishing_user
from ops.dlq.diagnose import predict
from ops.dlq.operator_session import CHUNK, OperatorSession, Run
from ops.dlq.replay_request import ReplayRequest
from ops.dlq.selection import Held, Selection
from ops.dlq.service_databases import REPLAYED
from ops.domain import DeadLetter, Fate, Filter, Kind, Status, dlq_of
from shared.edge import green
from shared.inbox import KEEP_DAYS
from shared.predictions import Prediction
from shared.senders import UNSIGNED
from topology.table import main_queue

# A replay sends in steps of at most this long, so that its rate is even.
STEP_S = 0.1
# The most messages that are sent and not yet consumed: then the replay waits, so that it does not fill the queue.
IN_FLIGHT = 2000
# How often the replay looks for sent messages, and how long without any change until it stops: a message that fails
# again takes 7 s for its retries, and longer if its handler is slow.
LOOK_EVERY_S = 0.1
TIMEOUT_S = 60.0


def replay(operator: OperatorSession, queue: str, request: ReplayRequest) -> Run:
    """Send dead messages back to their main queue, oldest first, and follow what happens to them there.

    Raises Conflict if an operator works on the DLQ, CannotWork if broker or database is away: messages that were sent
    are then in the main queue, the others in the DLQ, and at most CHUNK of them in both.
    """
    _, dlq = dlq_of(queue)
    most, pace = request.most, request.pace
    options = {"max": most, **pace.as_dict(), "force": request.force, "stop_on_redeath": request.stop_on_redeath}
    with (
        operator.operation(Kind.REPLAY, dlq, request.chosen, options) as run,
        operator.select(dlq, request.chosen) as selection,
    ):
        run.tally.chosen = selection.count if most is None else min(most, selection.count)
        Replay(operator, run, selection, request).go()
    return run


def plan(
    operator: OperatorSession, queue: str, chosen: Filter, most: int | None, force: bool = False
) -> dict[str, Any]:
    """The plan of a replay: {queue, in_queue, ids, chosen, reasons, refused}. Changes nothing.

    `in_queue` has copies in it; `ids` and all others count each message once.

    Raises Conflict if an operator works on the DLQ, CannotWork.
    """
    reasons: Counter[str] = Counter()
    guarded: Counter[str] = Counter()
    with operator.look_into(queue, chosen) as selection:
        left = count = selection.count if most is None else min(most, selection.count)
        total, ids = selection.total, selection.ids
        while held := selection.take(min(CHUNK, left)):
            left -= len(held)
            reasons.update(item.dead_letter.reason for item in held)
            guarded.update(refused(held, force).values())
    shown = {"reasons": dict(reasons.most_common()), "refused": dict(guarded.most_common())}
    return {"queue": dlq_of(queue)[1], "in_queue": total, "ids": ids, "chosen": count, **shown}


def refused(dead_letters: list[Held], force: bool) -> dict[UUID, str]:
    """The messages that a guard refuses to replay, and why."""
    now = datetime.now(UTC)
    found = (
        {}
        if force
        else {item.slot.message_id: domain.refusal(item.dead_letter, now, KEEP_DAYS) for item in dead_letters}
    )
    return {message_id: why for message_id, why in found.items() if why is not None}


@dataclass(frozen=True)
class Sent:
    """Messages of one id that were sent, and what it means if their consumer takes them."""

    dead_letters: list[DeadLetter]
    fate: Fate


# What it means if a message is consumed after its service's rules said this of it.
EXPECTED = {Prediction.APPLIED: Fate.ALREADY_APPLIED, Prediction.STALE: Fate.WITHOUT_EFFECT}


class Replay:
    """One replay under way: sends a wave, sees what becomes of it, sends the next.

    Never more than IN_FLIGHT are out at one time, so that it goes no faster than their consumer does.
    """

    def __init__(self, operator: OperatorSession, run: Run, selection: Selection, request: ReplayRequest) -> None:
        self.operator = operator
        self.run = run
        self.queue = main_queue(run.queue)
        self.selection = selection
        self.pace = request.pace
        self.force = request.force
        self.stop_on_redeath = request.stop_on_redeath
        self.out: dict[UUID, Sent] = {}  # sent, and not seen again
        self.dead: Counter[str] = Counter()  # seen again in the DLQ, by why

    def go(self) -> None:
        """All of it, or as much as may be."""
        left = self.run.tally.chosen
        sizes = domain.waves(self.pace.ramp or (left,))
        while left > 0 and not self.run.must_stop():
            wave = min(next(sizes), left)
            left -= wave
            self._send_wave(wave)
            self._await_at_most(0 if self.pace.ramp or not left else IN_FLIGHT)

    def _send_wave(self, size: int) -> None:
        rate = self.pace.per_second
        step = CHUNK if rate is None else max(1, min(CHUNK, int(rate * STEP_S)))
        while size > 0 and not self.run.must_stop():
            began = time.monotonic()
            held = self.selection.take(min(step, size))
            if not held:
                return
            size -= len(held)
            # One message of an order at a time: what the next would do depends on what this one does.
            for turn in domain.turns(self._guarded(held), lambda item: item.dead_letter.order_id):
                self._await_orders({item.dead_letter.order_id for item in turn})
                if self.run.must_stop():
                    return
                self._send(turn)
            self._await_at_most(IN_FLIGHT)
            if rate is not None and size > 0:
                self._pause(until=began + len(held) / rate)

    def _guarded(self, held: list[Held]) -> list[Held]:
        """Those that may be replayed; the others are recorded as refused."""
        why = refused(held, self.force)
        for reason in sorted(set(why.values())):
            dead_letters = [item.dead_letter for item in held if why.get(item.slot.message_id) == reason]
            self.run.count(Fate.REFUSED, dead_letters, reason)
        return [item for item in held if item.slot.message_id not in why]

    def _send(self, held: list[Held]) -> None:
        """Publish with confirms, then remove with all copies from the DLQ, then record that they left."""
        dead_letters = [item.dead_letter for item in held]
        expected = predict(self.operator, self.queue, held)
        self.run.count(Fate.STARTED, dead_letters)
        died_before = self.operator.databases.now(self.queue)
        self.operator.publish([outgoing(item.content) for item in held])
        self.selection.reader.ack([tag for item in held for tag in item.slot.tags])
        self.operator.databases.leave(
            self.queue, [dead_letter.message_id for dead_letter in dead_letters], REPLAYED, died_before
        )
        self.run.tally.copies += sum(len(item.slot.tags) - 1 for item in held)
        if self.operator.senders.checked:
            self.run.tally.vouched += sum(publishing_user(item.content) == UNSIGNED for item in held)
        self.run.count(Fate.SENT, dead_letters)
        for dead_letter in dead_letters:
            fate = EXPECTED.get(expected[dead_letter.message_id][0], Fate.APPLIED)
            self.out.setdefault(dead_letter.message_id, Sent([], fate)).dead_letters.append(dead_letter)

    def _pause(self, until: float) -> None:
        """Keep the rate. Meanwhile follow the messages sent, and look whether to stop."""
        while (left := until - time.monotonic()) > 0 and not self.run.must_stop():
            green.sleep(min(left, LOOK_EVERY_S))
            if left > LOOK_EVERY_S:
                self._look()

    def _await_at_most(self, count: int) -> None:
        """Look until at most so many are still out, or the replay must not go on."""
        self._await(lambda: len(self.out) <= count)

    def _await_orders(self, order_ids: set[UUID | None]) -> None:
        """Look until no message of these orders is still out, or the replay must not go on."""

        def none_is_out() -> bool:
            orders = {dead_letter.order_id for sent in self.out.values() for dead_letter in sent.dead_letters}
            return not (orders & order_ids) - {None}

        if not none_is_out():
            self._await(none_is_out)

    def _await(self, is_enough: Callable[[], bool]) -> None:
        quiet_since = time.monotonic()
        while not self.run.must_stop():
            before = len(self.out)
            self._look()
            if is_enough():
                return
            if len(self.out) < before:
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since > TIMEOUT_S:
                self.run.stop(
                    Status.STOPPED,
                    f"{len(self.out)} were sent and not consumed for {TIMEOUT_S:.0f} s: is their service running?",
                )
            green.sleep(LOOK_EVERY_S)

    def _look(self) -> None:
        """Follow the messages that were sent: the inbox shows those that took effect, the DLQ those that died again."""
        if self.out:
            consumed: dict[Fate, list[DeadLetter]] = {}
            for message_id in self.operator.databases.consumed(self.queue, list(self.out)):
                sent = self.out.pop(message_id)
                consumed.setdefault(sent.fate, []).extend(sent.dead_letters)
            for fate in sorted(consumed):
                self.run.count(fate, consumed[fate])
        for item in self.selection.arrivals():
            if item.slot.message_id in self.out:
                sent = self.out.pop(item.slot.message_id)
                self.dead[
                    f"{item.dead_letter.reason} ({item.dead_letter.error_message or item.dead_letter.error_class})"
                ] += 1
                self.run.count(Fate.DEAD_AGAIN, sent.dead_letters, item.dead_letter.reason)
        if self.dead and self.stop_on_redeath and not self.run.must_stop():
            ((why, _),) = self.dead.most_common(1)
            self.run.stop(Status.STOPPED, f"{self.dead.total()} died again, as {why}")
