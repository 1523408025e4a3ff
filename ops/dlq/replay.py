"""Replay: dead letters back to the queue they died in, at a pace, and what becomes of them there."""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from ops import domain
from ops.dlq.books import REPLAYED
from ops.dlq.desk import CHUNK, Desk, Run
from ops.dlq.letters import outgoing
from ops.dlq.selection import Held, Selection
from ops.domain import Fate, Filter, Kind, Letter, Pace, Status, dlq_of
from shared.edge import green
from shared.inbox import KEEP_DAYS
from topology.table import main_queue

# A replay goes by steps of at most this, so that its rate is even.
STEP_S = 0.1
# Sent and not seen again: the replay waits for its consumer rather than fill its queue.
IN_FLIGHT = 2000
# What was sent is looked for so often, and given up when nothing more happens for so long: a message that fails
# again takes 7 s for its retries, and more where its handler is slow.
LOOK_EVERY_S = 0.1
PATIENCE_S = 60.0


def replay(
    desk: Desk,
    queue: str,
    chosen: Filter,
    most: int | None,
    pace: Pace,
    force: bool = False,
    stop_on_redeath: bool = False,
) -> Run:
    """Send dead letters back to their main queue, oldest first, and see what becomes of them.

    Raises Conflict when somebody works on the DLQ, CannotWork when broker or database is away: what was sent is then
    in its main queue, what was not is in the DLQ, and at most CHUNK messages are in both.
    """
    _, dlq = dlq_of(queue)
    options = {"max": most, **pace.as_dict(), "force": force, "stop_on_redeath": stop_on_redeath}
    with desk.operation(Kind.REPLAY, dlq, chosen, options) as run, desk.select(dlq, chosen) as selection:
        run.tally.chosen = selection.count if most is None else min(most, selection.count)
        Replay(desk, run, selection, pace, force, stop_on_redeath).go()
    return run


def plan(desk: Desk, queue: str, chosen: Filter, most: int | None, force: bool = False) -> dict[str, Any]:
    """What a replay would be about: {queue, in_queue, chosen, reasons, refused}. Changes nothing.

    Raises Conflict when somebody works on the DLQ, CannotWork.
    """
    reasons: Counter[str] = Counter()
    guarded: Counter[str] = Counter()
    with desk.look_into(queue, chosen) as selection:
        left = count = selection.count if most is None else min(most, selection.count)
        total = selection.total
        while held := selection.take(min(CHUNK, left)):
            left -= len(held)
            reasons.update(item.letter.reason for item in held)
            guarded.update(refused(held, force).values())
    shown = {"reasons": dict(reasons.most_common()), "refused": dict(guarded.most_common())}
    return {"queue": dlq_of(queue)[1], "in_queue": total, "chosen": count, **shown}


def refused(letters: list[Held], force: bool) -> dict[UUID, str]:
    """Those that a guard keeps from being replayed, and why."""
    now = datetime.now(UTC)
    found = {} if force else {item.slot.message_id: domain.refusal(item.letter, now, KEEP_DAYS) for item in letters}
    return {message_id: why for message_id, why in found.items() if why is not None}


class Replay:
    """One replay under way: sends a wave, sees what becomes of it, sends the next.

    Never more than IN_FLIGHT are out at one time, so that it goes no faster than their consumer does.
    """

    def __init__(
        self, desk: Desk, run: Run, selection: Selection, pace: Pace, force: bool, stop_on_redeath: bool
    ) -> None:
        self.desk = desk
        self.run = run
        self.queue = main_queue(run.queue)
        self.selection = selection
        self.pace = pace
        self.force = force
        self.stop_on_redeath = stop_on_redeath
        self.out: dict[UUID, list[Letter]] = {}  # sent, and not seen again; copies of one message together
        self.dead: Counter[str] = Counter()  # seen again in the DLQ, by why

    def go(self) -> None:
        """All of it, or as much as may be."""
        left = self.run.tally.chosen
        sizes = domain.waves(self.pace.ramp or (left,))
        while left > 0 and not self.run.must_stop():
            wave = min(next(sizes), left)
            left -= wave
            self._send_wave(wave)
            self._await(0 if self.pace.ramp or not left else IN_FLIGHT)

    def _send_wave(self, size: int) -> None:
        rate = self.pace.per_second
        step = CHUNK if rate is None else max(1, min(CHUNK, int(rate * STEP_S)))
        while size > 0 and not self.run.must_stop():
            began = time.monotonic()
            held = self.selection.take(min(step, size))
            if not held:
                return
            size -= len(held)
            self._send(self._guarded(held))
            self._await(IN_FLIGHT)
            if rate is not None and size > 0:
                self._pause(until=began + len(held) / rate)

    def _guarded(self, held: list[Held]) -> list[Held]:
        """Those that may be replayed; the others are written down as refused."""
        why = refused(held, self.force)
        for reason in sorted(set(why.values())):
            letters = [item.letter for item in held if why.get(item.slot.message_id) == reason]
            self.run.count(Fate.REFUSED, letters, reason)
        return [item for item in held if item.slot.message_id not in why]

    def _send(self, held: list[Held]) -> None:
        """Publish, confirmed; then take from the DLQ; then say that they left."""
        if not held:
            return
        letters = [item.letter for item in held]
        self.run.count(Fate.STARTED, letters)
        died_before = self.desk.books.now(self.queue)
        self.desk.publish([outgoing(item.content) for item in held])
        self.selection.mailbox.ack([item.slot.tag for item in held])
        self.desk.books.leave(self.queue, [letter.message_id for letter in letters], REPLAYED, died_before)
        self.run.count(Fate.SENT, letters)
        for letter in letters:
            self.out.setdefault(letter.message_id, []).append(letter)

    def _pause(self, until: float) -> None:
        """Keep the rate, and look meanwhile: at what became of those sent, and whether to stop."""
        while (left := until - time.monotonic()) > 0 and not self.run.must_stop():
            green.sleep(min(left, LOOK_EVERY_S))
            if left > LOOK_EVERY_S:
                self._look()

    def _await(self, at_most: int) -> None:
        """Look until at most so many are still out, or the replay must not go on."""
        quiet_since = time.monotonic()
        while not self.run.must_stop():
            before = len(self.out)
            self._look()
            if len(self.out) <= at_most:
                return
            if len(self.out) < before:
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since > PATIENCE_S:
                self.run.stop(
                    Status.STOPPED,
                    f"{len(self.out)} were sent and not consumed for {PATIENCE_S:.0f} s: is their service running?",
                )
            green.sleep(LOOK_EVERY_S)

    def _look(self) -> None:
        """What has become of those that were sent: taken effect, by the inbox; or dead again, by the DLQ."""
        if self.out:
            applied = self.desk.books.consumed(self.queue, list(self.out))
            self.run.count(Fate.APPLIED, [letter for message_id in applied for letter in self.out.pop(message_id)])
        for item in self.selection.arrivals():
            letters = self.out.pop(item.slot.message_id, [])
            if letters:
                self.dead[f"{item.letter.reason} ({item.letter.error_message or item.letter.error_class})"] += 1
                self.run.count(Fate.DEAD_AGAIN, letters, item.letter.reason)
        if self.dead and self.stop_on_redeath and not self.run.must_stop():
            ((why, _),) = self.dead.most_common(1)
            self.run.stop(Status.STOPPED, f"{self.dead.total()} died again, as {why}")
