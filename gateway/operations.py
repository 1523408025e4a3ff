"""Operations: dead messages and their replay."""

from __future__ import annotations

import re
from typing import Any, ClassVar
from uuid import UUID

from marshmallow import fields, validate

from gateway.api.answering import Answer
from gateway.api.enumerations import DLQ_NAME, OPERATION_STATUS, QUEUE_NAME
from gateway.api.fields import (
    EXAMPLE_ID,
    EXAMPLE_TIME,
    OTHER_ID,
    TRACE_ID,
    AnswerSchema,
    Flag,
    Id,
    OneOf,
    PageQuery,
    RequestSchema,
    Text,
    Timestamp,
    TraceId,
    WholeNumber,
    Word,
    cursor_field,
    datetime_field,
    field_metadata,
    filters_in,
    integer_field,
    list_field,
    text_field,
    uuid_field,
    word_field,
)
from gateway.api.http import OPERATORS, Call, api
from shared.edge.rpc_proxy import RpcProxy
from shared.enumerations import OperationStatus
from shared.errors import Conflict, NotFound
from shared.replays import DEFAULT_RATE, MAX_IDS, MAX_MESSAGES, MAX_WORDS, RAMP, RATE

QUEUE = re.compile(r"[a-z][a-z0-9.-]{0,99}")


def queue_field() -> Word:
    """The name of a queue in a path."""
    return Word(
        QUEUE_NAME, DLQ_NAME, metadata=field_metadata("q.inventory.commit-requested", "a main queue or its .dlq")
    )


def queue_in(name: str) -> str:
    """The queue of a path. Raises NotFound for an impossible name; ops_service knows which queues exist."""
    if not QUEUE.fullmatch(name):
        raise NotFound
    return name


# The next classes document replay requests. ops_service validates them, as it does for its other callers.


def ids_field(description: str, **kwargs: Any) -> fields.List:
    """The ids of messages."""
    return fields.List(Id(), validate=validate.Length(1, MAX_IDS), metadata={"description": description}, **kwargs)


class ReplayOptions(RequestSchema):
    """The filters of a replay, which must all match, and its pace."""

    reasons = fields.List(
        Text("unknown_order"),
        validate=validate.Length(1, MAX_WORDS),
        metadata={"description": "only messages that died for one of these reasons"},
    )
    error = Text("no reservation", "only messages whose error class or error text contains this")
    types = fields.List(
        Text("inventory.commit.requested"),
        validate=validate.Length(1, MAX_WORDS),
        metadata={"description": "only messages of these event types"},
    )
    order_id = Id("only messages of this order")
    trace_id = TraceId()
    since = Timestamp("first failed at this time or later; with a zone")
    until = Timestamp("first failed before this time; with a zone")
    rate = Text(DEFAULT_RATE, "10/s, 30/m, 100/h, or max for no limit", pattern=RATE, load_default=DEFAULT_RATE)
    ramp = Text("1,2,5,20", "replay in waves of these sizes, one after the other", pattern=RAMP)
    stop_on_redeath = Flag("stop when a replayed message dies again")
    force = Flag("also replay messages that are too old or were replayed too often", example=False)
    why = Text("the orders are there now", "the reason, recorded in the ledger")


class ReplayAll(ReplayOptions):
    """Replay all messages that match."""

    openapi: ClassVar[dict[str, Any]] = {
        "examples": [
            {
                "reasons": ["unknown_order"],
                "all": True,
                "rate": "10/s",
                "ramp": "1,2,5,20",
                "stop_on_redeath": True,
                "why": "the orders are there now",
            },
        ],
    }

    all = Flag("replay all messages that match", validate=validate.Equal(True), required=True)
    ids = ids_field("only these messages")


class ReplayAtMost(ReplayOptions):
    """Replay the oldest messages that match."""

    openapi: ClassVar[dict[str, Any]] = {
        "examples": [
            {
                "error": "no reservation",
                "types": ["inventory.commit.requested"],
                "order_id": EXAMPLE_ID,
                "trace_id": EXAMPLE_ID,
                "since": EXAMPLE_TIME,
                "until": "2026-01-15T00:00:00Z",
                "max": 100,
                "force": False,
            },
        ],
    }

    max = WholeNumber(1, MAX_MESSAGES, 100, "replay at most this many, oldest first", required=True)
    ids = ids_field("only these messages")


class ReplayIds(ReplayOptions):
    """Replay these messages."""

    openapi: ClassVar[dict[str, Any]] = {"examples": [{"ids": [EXAMPLE_ID], "why": "the orders are there now"}]}

    ids = ids_field("replay these messages", required=True)


class ReplayRequest(OneOf):
    """Which dead messages to replay, and how fast: `all`, at most `max`, or those with these `ids`."""

    shapes = (ReplayAll, ReplayAtMost, ReplayIds)


class DeadLetterQuery(PageQuery):
    """Filters of dead messages."""

    reason = Text("unknown_order", "why the message died")
    event_type = Text("inventory.commit.requested", "the event type", data_key="type")
    order_id = Id()
    trace_id = TraceId()


class ReasonCount(AnswerSchema):
    """How many messages died for one reason, copies included."""

    reason = text_field("unknown_order")
    count = integer_field(3)


class QueueHolder(AnswerSchema):
    """Who works on a DLQ."""

    actor = text_field("operator")
    command = text_field("ecom dlq replay", "what they do; empty for an older version of the program")
    operation_id = uuid_field(
        "the operation in the ledger, /api/ops/replays/{replay_id} of a replay; null while they only read",
        allow_none=True,
    )
    since = datetime_field("null for an older version of the program", allow_none=True)


class DeadLetterQueue(AnswerSchema):
    """One working queue and its dead-letter queue: as counted by the broker, and as recorded by the services."""

    queue = word_field(QUEUE_NAME, "q.inventory.commit-requested")
    ready = integer_field(0, "messages that wait in the working queue; not those that a consumer holds")
    retrying = integer_field(0, "messages that wait to be tried again")
    consumers = integer_field(1, "consumers of the working queue")
    dlq = word_field(DLQ_NAME, "q.inventory.commit-requested.dlq")
    service = text_field("inventory", "the service that consumes the queue")
    messages = integer_field(3, "counted by the broker; while somebody works on the DLQ, by what is recorded")
    recorded = integer_field(3, "recorded in the services' databases, each message once")
    copies = integer_field(0, "messages beyond these that are copies of them; a crash of the broker can make copies")
    oldest = datetime_field("when the oldest first failed", allow_none=True)
    newest = datetime_field("when the newest died", allow_none=True)
    reasons = list_field(ReasonCount)
    busy = text_field(None, "the operator who works on it now", allow_none=True)
    holder = fields.Nested(
        QueueHolder, required=True, allow_none=True, metadata=field_metadata(None, "what that operator does")
    )


class QueueList(AnswerSchema):
    """Every working queue with its DLQ."""

    items = list_field(DeadLetterQueue)


class DeadLetter(AnswerSchema):
    """One dead message as recorded by its service."""

    message_id = uuid_field()
    queue = word_field(QUEUE_NAME, "q.inventory.commit-requested")
    event_type = text_field("inventory.commit.requested", allow_none=True)
    order_id = uuid_field(example=OTHER_ID, allow_none=True)
    trace_id = text_field(TRACE_ID, allow_none=True)
    reason = text_field("unknown_order", "why the message died")
    error_class = text_field("UnknownOrder")
    error_message = text_field("order 01a1fcf8-0a3c-7d01-8f2e-3b1c9d5e7f60 has no reservation to commit")
    attempts = integer_field(1, "how often it was attempted")
    replays = integer_field(0, "how often it was replayed")
    copies = integer_field(1, "how many messages in the DLQ are this one; a replay sends one and removes all")
    first_failed_at = datetime_field()
    died_at = datetime_field()


class DeadLetterPage(AnswerSchema):
    """Dead messages; the last one to die comes first."""

    items = list_field(DeadLetter)
    next_cursor = cursor_field()


class Replay(AnswerSchema):
    """A replay as recorded in the ledger."""

    replay_id = uuid_field()
    queue = word_field(DLQ_NAME, "q.inventory.commit-requested.dlq")
    status = word_field(OPERATION_STATUS, "done")
    outcome = text_field("2 applied, 1 without effect", "in words; empty while it runs")
    counts = fields.Dict(
        required=True,
        metadata=field_metadata(
            {"chosen": 3, "applied": 2, "without_effect": 1},
            "chosen messages and how many had each outcome: applied, already_applied, without_effect (the order had "
            "moved on), dead_again, refused, sent (not consumed yet); their copies; vouched (they do not say who "
            "published them); reasons of the dead and refused",
        ),
    )
    actor = text_field("operator", "the operator who started it")
    why = text_field("the orders are there now", "the reason given")
    filter = fields.Dict(
        required=True, metadata=field_metadata({"reasons": ["unknown_order"]}, "the filters of the request")
    )
    options = fields.Dict(
        required=True,
        metadata=field_metadata({"rate": 10.0, "ramp": [1, 2, 5, 20]}, "the pace and the other options of the request"),
    )
    started_at = datetime_field()
    finished_at = datetime_field("null while it runs", allow_none=True)


class Operations:
    """Routes under /api/ops."""

    ops = RpcProxy("ops_service")

    @api("GET", "/api/ops/queues", roles=OPERATORS, answer=QueueList, summary="Count waiting and dead messages")
    def queues(self, call: Call) -> dict[str, Any]:
        """Every working queue with its DLQ, also the empty ones."""
        return {"items": self.ops.queues()}

    @api(
        "GET",
        "/api/ops/dlq/<queue>",
        in_path={"queue": queue_field()},
        roles=OPERATORS,
        query=DeadLetterQuery,
        answer=DeadLetterPage,
        summary="List dead messages",
    )
    def dead_letters(self, call: Call, queue: str) -> dict[str, Any]:
        """A page of the messages in a DLQ that match every filter."""
        filters = filters_in(call.query)
        return self.ops.dead_letters(queue_in(queue), filters, call.query["limit"], call.query["cursor"])

    @api(
        "POST",
        "/api/ops/dlq/<queue>/replays",
        in_path={"queue": queue_field()},
        roles=OPERATORS,
        body=ReplayRequest,
        passed_on=True,
        answer=Replay,
        status=202,
        located=True,
        fails=(Conflict,),
        summary="Replay dead messages",
        example={"status": OperationStatus.STARTED, "outcome": "", "counts": {"chosen": 0}, "finished_at": None},
    )
    def start_replay(self, call: Call, queue: str) -> Answer:
        """Send dead messages back to the queue they died in, oldest first. Location has the progress of the replay.

        While another operator works on the DLQ the answer is 409 and names that operator and their operation.
        """
        replay = self.ops.start_replay(queue_in(queue), call.body)
        return Answer(replay, headers=(("Location", f"/api/ops/replays/{replay['replay_id']}"),))

    @api("GET", "/api/ops/replays/<uuid:replay_id>", roles=OPERATORS, answer=Replay, summary="Follow a replay")
    def get_replay(self, call: Call, replay_id: UUID) -> dict[str, Any]:
        """The current state of a replay."""
        return self.ops.get_replay(str(replay_id))
