"""Who sent a message, and who may: an event comes from the service that publishes its type, a call from one that calls.

RabbitMQ vouches for the property user_id: it refuses a message whose user_id is not the user of the connection.
A consumer that sends a message on, and ops when it replays one, write into `x-publisher` whose message it was. From
anybody else this header means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared.envelope import SHELL
from shared.errors import Forbidden, Forged
from shared.events import CATALOGUE
from topology.services import SERVICES, publisher_of
from topology.users import broker_user

# The header that says who published a message that a consumer or ops has sent on.
PUBLISHER = "x-publisher"

# What it says of a message without user_id. A consumer writes it of a message that it accepted, and ops of one that an
# operator replays: both vouch for it.
UNSIGNED = "unsigned"

# The user of a developer's shell. It exists in development only.
SHELL_USER = broker_user(SHELL)

# The users who say by user_id that a message is theirs.
USERS = frozenset({SHELL_USER, *(broker_user(service.name) for service in SERVICES)})

# By event type, the one user that publishes it.
PUBLISHERS = {type_: broker_user(service) for type_ in CATALOGUE if (service := publisher_of(type_))}

# By the name under which a service is called, its user, and the users that may call it.
CALLEES = {service.rpc_name: broker_user(service.name) for service in SERVICES}
CALLERS = {
    service.rpc_name: frozenset(broker_user(caller.name) for caller in SERVICES if service.name in caller.calls)
    for service in SERVICES
}

_REPLAYERS = frozenset(broker_user(service.name) for service in SERVICES if service.replays)


def sender_of(user_id: object, headers: Mapping[str, Any], consumer: str) -> str | None:
    """The user who published a message of a consumer's queue, whoever has sent it on; None if it has no user_id.

    UNSIGNED if it had none when the consumer accepted it, or when an operator replayed it.
    """
    if not isinstance(user_id, str) or not user_id:
        return None
    if user_id == broker_user(consumer) or user_id in _REPLAYERS:
        told = headers.get(PUBLISHER)
        return told if isinstance(told, str) and told else user_id
    return user_id


def known(sender: str | None) -> str:
    """The sender as the label of a metric, of which there are few: our users, `unsigned`, or `other`."""
    if sender is None or sender == UNSIGNED:
        return UNSIGNED
    return sender if sender in USERS else "other"


def is_by_hand(source: str, event_type: str, key: str) -> bool:
    """Whether an event may be of a stock nameko shell, which sends no user_id.

    The broker lets none but the publisher and the shell write with an event's type as the routing key. RabbitMQ 3.10
    does not check the further keys in the headers CC and BCC, but then the message comes with another key.
    """
    return source == SHELL and key == event_type


@dataclass(frozen=True)
class SenderRules:
    """From whom one process accepts messages."""

    checked: bool  # False: it does not connect as a service's user, so that nothing can be known
    unsigned: bool  # whether messages without user_id are accepted: those of a version before there were users
    shell: bool  # whether a developer's shell may send events and calls

    def check_event(self, sender: str | None, event_type: str, by_hand: bool = False) -> None:
        """Raise Forged unless this sender may publish this type. `by_hand`: it may be of a stock nameko shell."""
        if not self.checked or sender == PUBLISHERS[event_type] or sender == UNSIGNED:
            return
        if sender is None and (self.unsigned or (self.shell and by_hand)):
            return
        if sender == SHELL_USER and self.shell:
            return
        who = f"by {sender}" if sender else "without user_id"
        raise Forged(f"{event_type} was sent {who}, and {PUBLISHERS[event_type]} publishes it")

    def check_caller(self, user_id: str | None, rpc_name: str, key: str) -> None:
        """Raise Forbidden unless this user may call this service. `key` is the routing key with which the call came."""
        if not self.checked or user_id in CALLERS[rpc_name]:
            return
        # A stock nameko shell sends no user_id. The broker lets none but a caller and the shell write with such a key.
        if user_id is None and key.startswith(f"{rpc_name}.") and (self.unsigned or self.shell):
            return
        if user_id == SHELL_USER and self.shell:
            return
        raise Forbidden(f"{user_id or 'A caller without user_id'} may not call {rpc_name} by {key}.")

    def believes_answer(self, user_id: str | None, rpc_name: str) -> bool:
        """Whether a reply may be that of the service that was called."""
        return not self.checked or user_id == CALLEES.get(rpc_name, "") or (user_id is None and self.unsigned)
