"""py-amqp, changed where it would lose a message or a frame, or keep silent about an alarm of the broker."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, ClassVar

import amqp
from amqp import serialization, spec

from shared.errors import IN_ALARM
from shared.logs import Reminder, in_a_line

log = logging.getLogger(__name__)


def _decode_properties(frame: Any, offset: int) -> tuple[dict[str, Any], int]:
    """Decode the properties and headers of a message; return none when they cannot be read.

    py-amqp expects UTF-8 text and times within Python's calendar. For a message with other values it raises in the
    middle of the connection: the message would return and end each connection that delivers it.
    """
    try:
        properties: tuple[dict[str, Any], int] = serialization.decode_properties_basic(frame, offset)
    except Exception as error:
        log.warning("a message came whose properties cannot be read: %s", in_a_line(error))
        return {}, offset
    return properties


serialization.PROPERTY_CLASSES[amqp.spec.Basic.CLASS_ID] = _decode_properties


_alarms = Reminder()  # of the whole process: an alarm reaches each connection that publishes


class Channel(amqp.Channel):
    """A channel whose messages say who sent them, if its connection has a user to name."""

    def _basic_publish(self, msg: amqp.Message, *args: Any, **kwargs: Any) -> Any:
        if self.connection.sender is not None:
            # The broker refuses any other user than the connection's own, so that a receiver can rely on it.
            msg.properties["user_id"] = self.connection.sender
        return super()._basic_publish(msg, *args, **kwargs)

    basic_publish = _basic_publish


class Connection(amqp.Connection):
    """A connection that hears of the broker's alarms, and from which only its reader reads.

    `sender` is the user_id of all that is published on it, or None.
    """

    Channel = Channel

    # py-amqp does not pass on the reason of an alarm, such as `low on memory`.
    _METHODS: ClassVar[dict[Any, Any]] = {
        **amqp.Connection._METHODS,
        spec.Connection.Blocked: spec.method(spec.Connection.Blocked, "s"),
    }
    sender: str | None = None
    alarm: str | None = None
    on_alarm: Callable[[str | None], None] | None = None

    def connect(self, callback: Any = None) -> Any:
        super().connect(callback)
        # The broker knows by now that we hear of alarms. py-amqp would also read from the connection before each
        # publish, in the publishing greenlet: a frame that arrives then never reaches the reader that waits for it.
        self.client_properties.get("capabilities", {})["connection.blocked"] = False

    def _on_blocked(self, reason: str) -> None:
        self._set_alarm(f"{IN_ALARM}: {reason.removeprefix('low on ')}")
        if _alarms.due(str(self.alarm)):
            log.warning("%s; it takes no message until it has more", self.alarm)

    def _on_unblocked(self) -> None:
        self._set_alarm(None)
        if _alarms.due("over"):
            log.info("the alarm of the broker is over")

    def _set_alarm(self, alarm: str | None) -> None:
        self.alarm = alarm
        if self.on_alarm is not None:
            self.on_alarm(alarm)
