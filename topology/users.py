"""The broker's users: one for each service, with the least that it needs. `rights()` derives them from the tables.

Only the administrator, as whom `ecom topology apply` runs, declares exchanges and lasting queues. A service may declare
only queues of its own that end with its connection. Each pattern begins with ^ and ends with $, so that
RabbitMQ matches the whole name or routing key.

Pure data: standard library and the other tables only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from topology.services import BY_NAME, SERVICES, Service, publisher_of
from topology.table import (
    CONSUMERS,
    EVENTS_EXCHANGE,
    HINTS_EXCHANGE,
    QUEUES,
    RPC_EXCHANGE,
    dead_letter_queue,
    failed_exchange,
    rpc_queue,
)

# Users belong to a whole broker, not to a vhost: the prefix keeps them apart from those of other programs.
PREFIX = "ecom-"

NOTHING = "^$"


@dataclass(frozen=True)
class TopicRights:
    """The routing keys of one topic exchange that a user may publish with, and bind queues with."""

    write: str
    read: str


@dataclass(frozen=True)
class Rights:
    """What one user of the broker may do, as patterns. Without a topic's row RabbitMQ would allow all of its keys."""

    configure: str
    write: str
    read: str
    topics: Mapping[str, TopicRights]


def broker_user(service: str) -> str:
    """The user as whom a service connects to the broker."""
    return f"{PREFIX}{service}"


def service_of(user: str) -> str | None:
    """The service that connects as this user; None for any other user."""
    name = user.removeprefix(PREFIX)
    return name if user.startswith(PREFIX) and name in BY_NAME else None


def reply_key(service: str, connection_id: str) -> str:
    """The routing key, and the queue's name, of the replies to one connection of a service that calls others."""
    return f"reply.{service}.{connection_id}"


def hints_queue(service: str, connection_id: str) -> str:
    """The queue of one connection that waits for hints."""
    return f"hints.{service}.{connection_id}"


def rights(event_types: Iterable[str]) -> dict[str, Rights]:
    """The rights of every service's user, by user name. `event_types` are those of the catalogue of events."""
    types = sorted(event_types)
    return {broker_user(service.name): _rights(service, types) for service in SERVICES}


def _rights(service: Service, types: Iterable[str]) -> Rights:
    name = service.name
    own = [rf"reply\.{name}\..+"] if service.calls else []
    own += [rf"hints\.{name}\..+"] if service.hints == "hears" else []
    writes = [RPC_EXCHANGE, *([EVENTS_EXCHANGE] if service.publishes else [])]
    writes += [HINTS_EXCHANGE] if service.hints == "publishes" else []
    reads = [rpc_queue(service.rpc_name)] if service.has_rpc else []
    reads += [queue.name for queue in QUEUES if queue.service == name]
    reads += [RPC_EXCHANGE] if service.calls else []
    reads += [HINTS_EXCHANGE] if service.hints == "hears" else []
    if name in CONSUMERS:
        writes.append(failed_exchange(name))
    if service.replays:
        writes += [failed_exchange(consumer) for consumer in CONSUMERS]
        reads += [dead_letter_queue(queue.name) for queue in QUEUES]
    published = [re.escape(type_) for type_ in types if publisher_of(type_) == name]
    calls = [rf"{BY_NAME[called].rpc_name}\..+" for called in service.calls]
    replies = [rf"reply\.{caller.name}\..+" for caller in SERVICES if name in caller.calls]
    return Rights(
        configure=_any_of(own),
        write=_any_of([*map(re.escape, writes), *own]),
        read=_any_of([*map(re.escape, reads), *own]),
        topics={
            EVENTS_EXCHANGE: TopicRights(write=_any_of(published), read=NOTHING),
            RPC_EXCHANGE: TopicRights(
                write=_any_of([*calls, *replies]),
                read=_any_of([rf"reply\.{name}\..+"] if service.calls else []),
            ),
        },
    )


def _any_of(patterns: Iterable[str]) -> str:
    """A pattern that matches what one of the patterns matches as a whole."""
    joined = "|".join(patterns)
    return f"^({joined})$" if joined else NOTHING
