"""The broker's users: one for each service, with the least that it needs. `rights()` derives them from the tables.

Only the administrator, as whom `ecom topology apply` runs, declares exchanges and lasting queues. A service may declare
only what is named for its own replies and hints. Each pattern begins with ^ and ends with $, so that RabbitMQ matches
the whole name or routing key. RabbitMQ 3.10 does not compare the keys of a message's CC and BCC headers with these
patterns; therefore consumers look at the user_id of a message as well, which no user can forge.

Pure data: standard library and the other tables only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from topology.services import BY_NAME, NAMES, SERVICES, Service, publisher_of
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

# `make shell` connects as a user of its own, in development only.
SHELL = "shell"

NOTHING = "^$"

# Stock Nameko names its reply queues and their keys so. So do gateways of the version before this table.
_UUID = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_STOCK_REPLY_QUEUE = rf"rpc\.reply-standalone_rpc_proxy-{_UUID}"


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


def may_answer(user: str, key: str) -> bool:
    """Whether the broker takes replies with this key from this user. For one it does not take, it closes the channel,
    with all other calls on it. True for a user who is not a service's: there is no pattern for him.
    """
    service = service_of(user)
    return service is None or _answers(service).fullmatch(key) is not None


def reply_key(service: str, connection_id: str) -> str:
    """The routing key, and the queue's name, of the replies to one connection of a service that calls others."""
    return f"reply.{service}.{connection_id}"


def hints_queue(service: str, connection_id: str) -> str:
    """The queue of one connection that waits for hints."""
    return f"hints.{service}.{connection_id}"


def rights(event_types: Iterable[str], with_shell: bool = False) -> dict[str, Rights]:
    """The rights of every service's user, by user name. `event_types` are those of the catalogue of events."""
    types = sorted(event_types)
    found = {broker_user(service.name): _rights(service, types) for service in SERVICES}
    return found | ({broker_user(SHELL): _rights_of_shell(types)} if with_shell else {})


def _rights(service: Service, types: Iterable[str]) -> Rights:
    name = service.name
    own = [rf"reply\.{name}\..+"] if service.calls else []
    own += [rf"hints\.{name}\..+"] if service.hints == "hears" else []
    writes = [RPC_EXCHANGE] if service.calls or service.has_rpc else []
    writes += [EVENTS_EXCHANGE] if service.publishes else []
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
    return Rights(
        configure=_any_of(own),
        write=_any_of([*map(re.escape, writes), *own]),
        read=_any_of([*map(re.escape, reads), *own]),
        topics={
            EVENTS_EXCHANGE: TopicRights(write=_any_of(published), read=NOTHING),
            RPC_EXCHANGE: TopicRights(
                write=_any_of([*_calls(service.calls), *_reply_keys(name)]),
                read=_any_of([rf"reply\.{name}\..+"] if service.calls else []),
            ),
        },
    )


def _rights_of_shell(types: Iterable[str]) -> Rights:
    """What a stock Nameko shell needs. It declares both exchanges, although they are there, so it could delete them."""
    exchanges = [re.escape(RPC_EXCHANGE), re.escape(EVENTS_EXCHANGE)]
    return Rights(
        configure=_any_of([*exchanges, _STOCK_REPLY_QUEUE]),
        write=_any_of([*exchanges, _STOCK_REPLY_QUEUE]),
        read=_any_of([re.escape(RPC_EXCHANGE), _STOCK_REPLY_QUEUE]),
        topics={
            EVENTS_EXCHANGE: TopicRights(write=_any_of(map(re.escape, types)), read=NOTHING),
            RPC_EXCHANGE: TopicRights(write=_any_of(_calls(NAMES)), read=_any_of([_UUID])),
        },
    )


def _calls(services: Iterable[str]) -> list[str]:
    return [rf"{BY_NAME[called].rpc_name}\..+" for called in services if BY_NAME[called].has_rpc]


def _reply_keys(service: str) -> list[str]:
    """The keys of the replies to those who may call a service."""
    callers = [caller.name for caller in SERVICES if service in caller.calls]
    return [*(rf"reply\.{caller}\..+" for caller in callers), _UUID] if callers else []


@cache
def _answers(service: str) -> re.Pattern[str]:
    return re.compile(_any_of(_reply_keys(service)))


def _any_of(patterns: Iterable[str]) -> str:
    """A pattern that matches what one of the patterns matches as a whole."""
    joined = "|".join(patterns)
    return f"^({joined})$" if joined else NOTHING
