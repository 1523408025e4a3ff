"""`@handles(queue)`: the method handles the messages of one queue in batches, and loses none.

Nameko's own consumer acks messages that it cannot decode or whose handler raised, loses acks on SIGTERM, dies of a
broken socket and hangs on a frozen broker. This one has a connection and a channel of its own.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import UUID

import amqp
from nameko.exceptions import ContainerBeingKilled
from nameko.extensions import Entrypoint

from shared.edge import green
from shared.edge.batch import Batch, Unsettled
from shared.edge.broker import BrokerConnection, run_connected
from shared.edge.caution import Caution
from shared.edge.database import Database
from shared.edge.deliveries import delivery_of
from shared.edge.gathering import ENOUGH, Gathering
from shared.edge.pausing import Stopping
from shared.edge.publisher import Publisher
from shared.edge.settings import sender_rules, settings_of
from shared.edge.subscription import PREFETCH, PREFETCH_CAREFUL, Subscription
from shared.edge.tx import Events, Tx
from shared.edge.worker import Abandoned, run_in_worker
from shared.failures import Delivery
from shared.metrics import BATCH_SECONDS, OLDEST_UNSETTLED

log = logging.getLogger(__name__)

# At 50 a batch costs a third of what single messages cost; larger ones gain little and hold their locks longer.
BATCH_SIZE = 50

# How often to look whether a call has ended for which a batch did not wait.
LOOK_S = 0.05

# On a graceful stop the messages already delivered are handled within this; the rest goes back to the queue, and calls
# to the outside that still wait for an answer are abandoned.
FINISH_S = 5.0


class Handles(Entrypoint):
    """The messaging entrypoint. `ask` names a method of the service that runs before the transaction is opened."""

    def __init__(self, queue: str, ask: str | None = None) -> None:
        self.queue = queue
        self.ask = ask
        # This entrypoint logs a failing handler itself: Nameko need not report it as unexpected too.
        super().__init__(expected_exceptions=(Exception,))

    def setup(self) -> None:
        self.settings = settings_of(self.container)
        database = next(item for item in self.container.dependencies if isinstance(item, Database))
        self._stopping, self._stop_by = False, math.inf
        self._broker_fault: str | None = "not connected yet"
        self._held: deque[Delivery] = deque()
        self._in_work: list[Delivery] = []
        self._going_on: list[Unsettled] = []
        self._gathering = Gathering(self.settings.batch_wait_ms / 1000)
        self._subscription = Subscription(self.queue, self._receive, in_turn=self.ask is not None)
        self._publisher = Publisher(self.settings.amqp_uri, self.settings.heartbeat_s)
        self.batch = Batch(
            self.queue,
            lambda: database.sessions,
            self._publisher,
            handle=lambda events, tx: self._work(self, events, tx),
            ask=self._asker(),
            stopping=lambda: self._stopping,
            senders=sender_rules(self.settings),
        )
        OLDEST_UNSETTLED.labels(self.queue).set_function(self.oldest_unsettled_s)

    def not_ready_reason(self) -> str | None:
        """Why this consumer is not ready, or None."""
        return self._broker_fault or self.batch.pausing.not_ready_reason

    def warnings(self) -> list[str]:
        """What holds up some messages while the others go on, for people."""
        return self.batch.warnings()

    def oldest_unsettled_s(self) -> float:
        """The age of the oldest message that came and is not settled, in seconds; 0 if all are."""
        going_on = [item.delivery for item in self._going_on]
        waiting = [delivery.unsettled_since for delivery in (*self._held, *self._in_work, *going_on)]
        moments = [*waiting, self.batch.held_up_since() or math.inf]
        return max(0.0, time.time() - min(moments))

    def start(self) -> None:
        self._thread = self.container.spawn_managed_thread(self.run, identifier=f"consumer of {self.queue}")

    def stop(self) -> None:
        self._stop_by = time.monotonic() + FINISH_S
        self._stopping = True
        self._thread.wait()

    def kill(self) -> None:
        """Leave the thread to the container, which kills its workers first: they may share a connection with it.

        In the other order this thread would roll back while a worker's query runs. psycopg2 holds a mutex meanwhile:
        in one thread that is a deadlock, and the process neither works nor exits.
        """
        self._stopping = True

    def _asker(self) -> Callable[[Events], dict[UUID, Any]] | None:
        if self.ask is None:
            return None
        step = copy.copy(self)
        step.method_name = self.ask
        return lambda events: self._work(step, events)

    def _work(self, entrypoint: Handles, *args: Events | Tx) -> Any:
        """Run the service's method. Raises Stopping when there is no time left for it: nothing is acked then."""
        try:
            return run_in_worker(entrypoint, args, give_up_at=lambda: self._stop_by)
        except (Abandoned, ContainerBeingKilled):
            raise Stopping from None

    def run(self) -> None:
        """Consume until stopped."""
        run_connected(
            self.settings.amqp_uri,
            self.settings.heartbeat_s,
            self._serve,
            lambda: self._stopping,
            partial(setattr, self, "_broker_fault"),
            self.queue,
        )
        self._publisher.close()

    def _serve(self, connection: BrokerConnection) -> None:
        try:
            self._consume(connection)
        except Stopping:
            log.info("%s stops while paused; what it held goes back to the queue", self.queue)

    def _consume(self, connection: BrokerConnection) -> None:
        self._connection = connection
        self._held.clear()
        self._going_on.clear()
        self._caution = Caution(self.queue, BATCH_SIZE)
        self._subscription.forget()
        self._subscribe(PREFETCH_CAREFUL)
        self._broker_fault = None
        while not self._stopping:
            self._take_back()
            at_once = bool(self._held) or connection.read(timeout_s=0)
            if at_once or connection.read(timeout_s=LOOK_S if self._going_on else 0.5):
                self._gather(connection, at_once)
                self._handle_and_ack(self._take())
        self._cancel()
        while (self._held or self._going_on) and time.monotonic() < self._stop_by:
            if not self._held:
                green.sleep(LOOK_S)
                self._take_back()
            self._handle_and_ack(self._take())

    def _gather(self, connection: BrokerConnection, at_once: bool) -> None:
        """Hold what has arrived, and what arrives while it is worth to wait for a fuller batch."""
        self._read_waiting(connection)
        careful = self._subscription.prefetch == PREFETCH_CAREFUL  # no second message comes before the first is settled
        until = time.monotonic() + (0.0 if careful else self._gathering.wait_s(len(self._held), at_once))
        while len(self._held) < ENOUGH and (left_s := until - time.monotonic()) > 0:
            connection.read(left_s)
            self._read_waiting(connection)

    def _read_waiting(self, connection: BrokerConnection) -> None:
        while len(self._held) + len(self._going_on) < PREFETCH and connection.read(timeout_s=0):
            pass

    def _take_back(self) -> None:
        """Hold the messages again whose calls have ended, before the others."""
        ended = [item for item in self._going_on if item.call.ended]
        if ended:
            self._going_on = [item for item in self._going_on if not item.call.ended]
            self._held.extendleft(item.delivery for item in reversed(ended))

    def _subscribe(self, prefetch: int) -> None:
        if not self._stopping:
            self._subscription.take(self._connection, prefetch)

    def _cancel(self) -> None:
        self._subscription.cancel(self._connection, self._stop_by)

    def _receive(self, message: amqp.Message) -> None:
        self._gathering.note(1)
        self._held.append(delivery_of(message))

    def _take(self) -> list[Delivery]:
        """The next messages to handle together: up to BATCH_SIZE, or one while a message may be killing the process."""
        self._caution.look(self._held)
        if self._caution.holds and self._subscription.prefetch != PREFETCH_CAREFUL:
            self._subscribe(PREFETCH_CAREFUL)
        return self._caution.take(self._held)

    def _handle_and_ack(self, deliveries: list[Delivery]) -> None:
        if not deliveries:
            return
        self._in_work = deliveries
        try:
            with BATCH_SECONDS.labels(self.batch.service, self.queue).time():
                going_on = self.batch.handle_batch(deliveries)
        finally:
            self._in_work = []
        self._going_on += going_on
        self._caution.settled()
        opens = not self._caution.holds and self._subscription.prefetch != PREFETCH
        if opens or self._stopping:
            # Before the ack: an ack makes room for messages that a cancelled consumer would get and be charged for.
            self._cancel()
        unsettled = {item.delivery.tag for item in going_on}
        self._ack([item.tag for item in deliveries if item.tag not in unsettled])
        self._connection.reset_silence()
        if opens:
            self._subscribe(PREFETCH)

    def _ack(self, tags: list[int]) -> None:
        """One ack for all where nothing older is unsettled: the channel is this consumer's alone."""
        channel, last = self._connection.channel, max(tags, default=0)
        unsettled = [item.tag for item in self._held] + [item.delivery.tag for item in self._going_on]
        if tags and all(tag > last for tag in unsettled):
            channel.basic_ack(last, multiple=True)
        else:
            for tag in tags:
                channel.basic_ack(tag)


handles = Handles.decorator
