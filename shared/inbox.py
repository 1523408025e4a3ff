"""The inbox: which messages of a batch this consumer has not handled before.

The rows are written in the transaction of the effect, never before it and never in another one: if the effect is
rolled back, so is the memory of the message.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast
from uuid import UUID

from sqlalchemy import Table, bindparam, delete, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.bulk import unnest
from shared.tables import ConsumedMessage

# Longer than any DLQ is expected to wait for its operator: a replay of an older message is refused without --force.
KEEP_DAYS = 90

_given = unnest(ConsumedMessage, "message_id")
_CLAIM = (
    insert(cast(Table, ConsumedMessage.__table__))
    .execution_options(prepared=True)  # of the table: the ORM takes parameters for rows
    .from_select(
        ["consumer", "message_id"],
        # One order for everybody, so that two replicas with the same messages cannot deadlock.
        select(bindparam("consumer", type_=ConsumedMessage.consumer.type), _given.c.message_id).order_by(
            _given.c.message_id
        ),
    )
    .on_conflict_do_nothing()
    .returning(ConsumedMessage.message_id)
)


def claim(session: Session, consumer: str, message_ids: Iterable[UUID]) -> set[UUID]:
    """Save these messages and return those that were not saved before. One statement.

    If a concurrent transaction has saved one of them, wait for it and leave that message to it.
    """
    parameters = {"consumer": consumer, "given_message_id": list(set(message_ids))}
    return set(session.scalars(_CLAIM, parameters))


def forget(session: Session, consumer: str, message_ids: Sequence[UUID]) -> None:
    """Forget messages that this transaction claimed and that failed after all."""
    session.execute(
        delete(ConsumedMessage).where(ConsumedMessage.consumer == consumer, ConsumedMessage.message_id.in_(message_ids))
    )


PURGE = text("SELECT deleted, ready FROM purge_consumed_messages(:most)")
