"""Decoding a message of a queue: one function for its consumer and for the operator's tools that foretell a replay."""

from __future__ import annotations

import logging

from shared.envelope import Envelope, decode
from shared.errors import DeadMessage, Poison, UnknownType
from topology.table import BY_NAME, hears

log = logging.getLogger(__name__)


def read_event(queue: str, body: bytes, routing_key: str) -> Envelope:
    """The event in a message that lies in a main queue. Raises DeadMessage, whatever is wrong with the message.

    A defect in the decoder counts as the message's fault: it goes to the DLQ, and the others go on.
    """
    try:
        event = decode(body, routing_key)
    except DeadMessage:
        raise
    except Exception as error:
        log.exception("%s: a message cannot be decoded, which is a defect of the decoder", queue)
        raise Poison(f"it cannot be decoded: {type(error).__name__}") from error
    if not hears(BY_NAME[queue], event.type):
        raise UnknownType(f"{queue} does not take {event.type}")
    return event
