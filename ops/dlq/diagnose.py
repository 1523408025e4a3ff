"""What a replay of each dead message would do now: the services' own rules, applied to their databases of now.

Read only. A prediction is true at its moment: a message that would apply now was stopped by a fault that may still
be there.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy.orm import Session

from ops.dlq.dead_messages import event_of, publishing_user
from ops.dlq.operator_session import CHUNK, OperatorSession
from ops.dlq.selection import Held
from ops.domain import Filter, dlq_of
from shared.database_errors import is_conflict, is_hold_up, is_outage
from shared.envelope import Envelope
from shared.errors import DeadMessage, EcomError, Forged
from shared.predictions import Prediction, Predictor, Verdict
from topology import services
from topology.table import BY_NAME, CONSUMERS

# By queue, from predict.py of each service that consumes. A queue without a predictor fails a test.
PREDICTORS: dict[str, Predictor] = {
    queue: predictor
    for service in CONSUMERS
    for queue, predictor in importlib.import_module(f"{services.BY_NAME[service].package}.predict").PREDICTORS.items()
}


@dataclass(frozen=True)
class Group:
    """Messages with one prediction, and one of them as an example."""

    prediction: Prediction
    why: str
    reason: str
    event_type: str


@dataclass
class Diagnosis:
    """How many messages of a DLQ have which prospect; copies of a message are one."""

    queue: str
    groups: Counter[Group] = field(default_factory=Counter)
    examples: dict[Group, UUID] = field(default_factory=dict)


def diagnose(operator: OperatorSession, queue: str, chosen: Filter) -> Diagnosis:
    """Predict for the messages that a filter chooses. Raises Conflict if an operator works on the DLQ, CannotWork."""
    main, _ = dlq_of(queue)
    diagnosis = Diagnosis(main)
    with operator.look_into(queue, chosen) as selection:
        while held := selection.take(CHUNK):
            verdicts = predict(operator, main, held)
            for item in held:
                prediction, why = verdicts[item.slot.message_id]
                group = Group(prediction, why, item.dead_letter.reason, item.dead_letter.event_type)
                diagnosis.groups[group] += 1
                diagnosis.examples.setdefault(group, item.slot.message_id)
    return diagnosis


def predict(operator: OperatorSession, main: str, held: Sequence[Held]) -> dict[UUID, Verdict]:
    """Predict for some messages. It takes a few statements, whatever the number of messages."""
    verdicts: dict[UUID, Verdict] = {}
    events: list[Envelope] = []
    applied = operator.databases.consumed(main, [item.slot.message_id for item in held])
    for item in held:
        message_id = item.slot.message_id
        try:
            event = event_of(item.content)
            operator.senders.check_event(publishing_user(item.content), event.type)
        except Forged as error:
            verdicts[message_id] = (Prediction.POISON, f"{error.code}: {error}")
        except DeadMessage as error:
            verdicts[message_id] = (Prediction.POISON, error.code)
        else:
            if message_id in applied:
                verdicts[message_id] = (Prediction.APPLIED, "in the inbox")
            else:
                events.append(event)
    if events:
        with operator.databases.read(BY_NAME[main].service) as session:
            verdicts |= _ask(PREDICTORS[main], session, events)
    return verdicts


def _ask(predictor: Predictor, session: Session, events: Sequence[Envelope]) -> dict[UUID, Verdict]:
    """Ask for all together, or singly if one of them makes the rule fail: its handler would fail as well."""
    try:
        return predictor(session, events)
    except Exception as error:
        if isinstance(error, EcomError) or is_outage(error) or is_conflict(error) or is_hold_up(error):
            raise  # nothing is wrong with the message
        if len(events) == 1:
            return {events[0].message_id: (Prediction.POISON, type(error).__name__)}
        return {key: verdict for event in events for key, verdict in _ask(predictor, session, [event]).items()}
