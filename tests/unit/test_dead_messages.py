"""Dead messages as they lie in their DLQ: nothing in them is trusted, nothing of them is lost."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID, uuid4

import amqp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.dlq.dead_messages import (
    CRASHED,
    Content,
    check,
    content_of,
    dead_letter_of,
    edited,
    event_of,
    from_line,
    id_of,
    outgoing,
    returning,
    to_line,
)
from ops.domain import CRASH, NEVER, UNKNOWN
from shared.edge.publisher import fits
from shared.errors import Poison, UnknownType, ValidationFailed
from shared.failures import Delivery, FailedDelivery, classify_failure
from shared.schema import encode
from tests.integration.support import emitted, order_created
from topology.table import QUEUES

QUEUE = "q.inventory.order-created"
DLQ = f"{QUEUE}.dlq"


def content(body=b"{}", headers=None, properties=None, queue=DLQ, key=None):
    """A message in a DLQ."""
    return Content(queue, "", key or queue, properties or {}, headers or {}, body)


def judged(event, error, headers=None, body=None):
    """A message that its consumer sent to the DLQ, as it lies there."""
    delivery = Delivery(1, body or event.to_json().encode(), "order.created", str(event.message_id), headers or {})
    failure = classify_failure(FailedDelivery(delivery, None if body else event, error), "inventory", QUEUE)
    assert failure.dead
    sent = failure.body.encode() if isinstance(failure.body, str) else failure.body
    return content(sent, failure.headers, {"message_id": str(failure.message_id), "type": failure.type})


def death(reason="delivery_limit", at=datetime(2026, 1, 14, 10, 30), keys=("order.created",), queue=QUEUE):
    """What the broker writes when it dead-letters a message."""
    return {
        "reason": reason,
        "time": at,
        "routing-keys": [*keys],
        "queue": queue,
        "exchange": "ecom.events",
        "count": 1,
    }


def crashed(body, **properties):
    """A message that ended its process each time it was delivered."""
    headers = {"x-death": [death()], "x-first-death-reason": "delivery_limit", "x-delivery-count": 21}
    return content(body, headers, properties)


EVENT = emitted(order_created())


# What py-amqp reads from a table, at any depth; a name that is no UTF-8 it leaves as bytes.
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(), max_size=20),  # with halves of surrogate pairs
    st.binary(max_size=20),
    st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31)),
    st.integers(-(2**31), 2**31 - 1).map(lambda number: Decimal(number) / Decimal(10**5)),
)
names = st.one_of(
    st.text(st.characters(), max_size=9),
    st.binary(max_size=9),
    st.sampled_from(["$time", "$bytes", "$decimal", "$float", "$table"]),
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3))
PROPERTIES = ("content_type", "content_encoding", "correlation_id", "reply_to", "message_id", "type", "app_id")
properties = st.dictionaries(st.sampled_from(PROPERTIES), st.text(st.characters(), max_size=9)) | st.fixed_dictionaries(
    {"priority": st.integers(0, 255), "timestamp": st.integers(0, 2**64 - 1)}
)
contents = st.builds(
    Content,
    st.sampled_from([f"{queue.name}.dlq" for queue in QUEUES]),
    st.text(st.characters(), max_size=9),
    st.text(st.characters(), max_size=9),
    properties,
    st.dictionaries(names, values, max_size=5),
    st.binary(max_size=60) | st.text(max_size=60).map(str.encode),
)


@given(contents)
def test_a_line_holds_all_of_a_message(message):
    line = to_line(message)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    read = from_line(line)
    assert read == message
    assert to_line(read) == line


def test_a_line_is_json_for_every_program():
    line = to_line(content(headers={"x": [float("nan"), float("inf"), -float("inf")]}))
    assert json.loads(line, parse_constant=pytest.fail)["headers"]["x"][1] == {"$float": "inf"}
    nan, inf, minus = from_line(line).headers["x"]
    assert (nan != nan, inf, minus) == (True, float("inf"), -float("inf"))


def test_a_body_that_is_text_can_be_edited_and_any_other_is_kept():
    assert json.loads(to_line(content("grün".encode())))["body"] == "grün"
    assert json.loads(to_line(content(b"\xff\x00")))["body_base64"] == "/wA="


def test_a_header_that_looks_like_a_type_mark_of_the_export_survives():
    """Read as a mark it would make the whole DLQ unreadable."""
    headers = {"x": {"$time": "soon"}, "y": {"$decimal": "x"}, "z": {"$table": 1, "a": 2}}
    assert from_line(to_line(content(headers=headers))).headers == headers


GOOD = json.loads(to_line(content()))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        *(
            json.dumps({**GOOD, **bad}).encode()
            for bad in (
                {"queue": QUEUE},
                {"queue": "q.nope.dlq"},
                {"queue": None},
                {"properties": []},
                {"headers": "x"},
                {"body": 5},
                {"body": {"order_id": 1}},
                {"body": "\ud800"},
                {"body": None},
                {"body": None, "body_base64": "%"},
                {"headers": {"x": {"$time": "soon"}}},
                {"headers": {"x": {"$time": 5}}},
                {"headers": {"x": {"$decimal": "x"}}},
                {"headers": {"x": {"$bytes": "%"}}},
                {"headers": {"x": {"$float": []}}},
                {"headers": {"x": {"$table": [[[], 1]]}}},
                {"headers": {"x": {"$table": [1]}}},
            )
        ),
        *(json.dumps({k: v for k, v in GOOD.items() if k != name}).encode() for name in GOOD if name != "message_id"),
    ],
)
def test_a_line_that_is_not_from_an_export_is_refused(line):
    with pytest.raises(ValidationFailed, match="not a line of an export"):
        from_line(line)


@given(
    contents,
    st.dictionaries(
        st.sampled_from(
            [
                "x-reason",
                "x-attempt",
                "x-replays",
                "x-error-class",
                "x-error-message",
                "x-first-failed-at",
                "x-last-failed-at",
                "x-death",
                "x-original-routing-key",
                "x-first-death-reason",
                "traceparent",
            ]
        ),
        values,
    ),
)
def test_nonsense_in_any_header_is_read_as_something_that_can_be_kept(message, nonsense):
    headers = {**message.headers, **nonsense}
    letter = dead_letter_of(content(message.body, headers, message.properties))
    for text in (letter.reason, letter.error_class, letter.error_message, letter.event_type, letter.trace_id):
        text.encode()
        assert "\0" not in text
        assert len(text) <= 1024
    assert letter.reason
    for number in (letter.attempts, letter.replays):
        assert type(number) is int
        assert 0 <= number < 2**31
    for moment in (letter.first_failed_at, letter.last_failed_at, letter.born_at):
        assert moment.tzinfo is UTC
        assert moment.timestamp() is not None


@given(contents)
def test_any_message_in_a_dlq_can_be_replayed_and_imported(message):
    back, again = outgoing(message), returning(message)
    check(again)
    assert fits(back)
    assert UUID(back.message_id) == UUID(again.message_id) == id_of(message)
    assert again.body == message.body


def test_the_reason_is_read_from_the_headers_of_the_consumer():
    letter = dead_letter_of(judged(EVENT, UnknownType("what is that"), {"x-replays": 2}))
    assert (letter.reason, letter.error_class, letter.error_message) == ("unknown_type", "UnknownType", "what is that")
    assert (letter.attempts, letter.replays) == (1, 2)
    assert letter.message_id == EVENT.message_id
    assert letter.order_id == EVENT.payload.order_id
    assert letter.trace_id == EVENT.trace_id
    assert letter.born_at == datetime.fromisoformat(json.loads(EVENT.to_json())["occurred_at"])
    assert letter.event_type == "order.created"
    assert NEVER < letter.first_failed_at == letter.last_failed_at


def test_a_crash_is_recognised_by_the_x_death_header():
    letter = dead_letter_of(crashed(EVENT.to_json().encode()))
    assert (letter.reason, letter.error_message) == (CRASH, CRASHED)
    assert letter.first_failed_at == letter.last_failed_at == datetime(2026, 1, 14, 10, 30, tzinfo=UTC)


def test_a_crash_after_a_retry_is_still_a_crash():
    """The first death of a retried message is the end of its wait."""
    headers = {
        "x-death": [death(), death("expired", datetime(2026, 1, 14, 10, 29), queue=f"{QUEUE}.retry")],
        "x-first-death-reason": "expired",
        "x-attempt": 1,
        "x-error-class": "ProviderTimeout",
        "x-error-message": "an earlier try",
        "x-first-failed-at": "2026-01-14T10:28:00Z",
        "x-last-failed-at": "2026-01-14T10:28:00Z",
    }
    letter = dead_letter_of(content(EVENT.to_json().encode(), headers))
    assert (letter.reason, letter.error_class, letter.error_message) == (CRASH, "", CRASHED)
    assert letter.first_failed_at == datetime(2026, 1, 14, 10, 28, tzinfo=UTC)
    assert letter.last_failed_at == datetime(2026, 1, 14, 10, 30, tzinfo=UTC)


def test_an_expired_retry_wait_alone_is_no_crash():
    assert dead_letter_of(content(headers={"x-death": [death("expired")]})).reason == UNKNOWN


A, B = str(uuid4()), str(uuid4())


@pytest.mark.parametrize(
    ("named", "written", "reason", "found"),
    [
        (A, None, None, A),
        (None, B, None, B),
        (A, B, None, B),  # its consumer will know it by its body
        (A, B, "poison", A),  # its consumer could not read its body
        ("nonsense", B, "poison", B),
        (A, "nonsense", None, A),
        ("nonsense", "nonsense", None, None),
        (None, None, "poison", None),
    ],
)
def test_the_id_is_the_one_by_which_its_consumer_knows_it(named, written, reason, found):
    body = json.dumps({"message_id": written} if written else {"x": 1}).encode()
    message = content(body, {"x-reason": reason} if reason else {}, {"message_id": named} if named else {})
    assert id_of(message) == id_of(message)
    if found:
        assert id_of(message) == UUID(found)


def test_bodies_without_an_id_have_different_ones():
    assert id_of(content(b"a")) != id_of(content(b"b"))


def test_the_id_in_a_readable_body_wins():
    """Or a replay would wait for ever for an id that no inbox will ever hold."""
    message = content(EVENT.to_json().encode(), {"x-reason": "by hand"}, {"message_id": A})
    assert id_of(message) == EVENT.message_id
    assert outgoing(message).message_id == str(EVENT.message_id)


def test_an_event_that_its_queue_does_not_take_keeps_the_id_it_was_judged_under():
    message = content(
        EVENT.to_json().encode(), {"x-reason": "unknown_type"}, {"message_id": A}, "q.order.payment-result.dlq"
    )
    assert id_of(message) == UUID(A)
    assert outgoing(message).message_id == A


DEATH_HEADERS = {
    "x-death": [death()],
    "x-first-death-queue": QUEUE,
    "x-first-death-reason": "delivery_limit",
    "x-last-death-reason": "delivery_limit",
    "x-delivery-count": 21,
    "x-acquired-count": 22,
    "x-reason": "exhausted",
    "x-attempt": 4,
    "x-error-class": "E",
    "x-error-message": "m",
    "x-service": "inventory",
    "x-source-queue": QUEUE,
    "x-last-failed-at": "2026-01-14T10:30:00Z",
    "of a stranger": 1,
}


def test_a_replay_goes_to_its_queue_alone_with_clean_headers():
    keeps = {"x-first-failed-at": "2026-01-14T10:29:00Z", "x-original-routing-key": "order.created"}
    message = content(EVENT.to_json().encode(), {**DEATH_HEADERS, **keeps, "x-replays": 1})
    sent = outgoing(message)
    assert (sent.exchange, sent.routing_key, sent.mandatory) == ("ecom.failed.inventory", QUEUE, True)
    assert sent.body == message.body
    assert sent.message_id == str(EVENT.message_id)
    assert sent.type == "order.created"
    traceparent = sent.headers["traceparent"]
    assert EVENT.trace_id in traceparent
    kept = {**keeps, "of a stranger": 1}
    assert sent.headers == {
        **kept,
        "x-replays": 2,
        "x-publisher": "unsigned",
        "event-contract-version": "v1",
        "traceparent": traceparent,
    }


def test_a_replay_keeps_what_the_publisher_wrote_of_the_body():
    written = {"content_encoding": "gzip", "content_type": "text/x", "app_id": "shop"}
    message = content(b"\x1f\x8b", {"version": 7}, {**written, "message_id": A, "user_id": "ann", "expiration": "1"})
    assert outgoing(message).properties == written
    assert outgoing(message).headers["version"] == 7
    bare = content(json.dumps(encode(EVENT.payload)).encode(), {}, {**written, "type": "order.created"})
    assert outgoing(bare).properties == {"app_id": "shop"}, "the body is written anew, as JSON"
    corrected = edited(replace(message, body=EVENT.to_json().encode()))
    assert {name for name in corrected.properties if name in written} == {"app_id"}


@pytest.mark.parametrize(("before", "after"), [(None, 1), (0, 1), (2, 3), (-5, 1), ("2", 1), (True, 1), ({}, 1)])
def test_replays_are_counted_whatever_was_there(before, after):
    assert outgoing(content(headers={"x-replays": before})).headers["x-replays"] == after


def test_a_body_that_cannot_be_read_goes_back_as_it_is():
    sent = outgoing(content(b"\xff not json", {"x-reason": "poison"}, {"message_id": A, "type": "t"}))
    assert (sent.body, sent.message_id, sent.type) == (b"\xff not json", A, "t")


def test_a_bare_payload_that_crashed_goes_back_as_the_event_it_is():
    """Its type was the routing key of its first publish, which only the broker's own words still tell."""
    bare = json.dumps(encode(EVENT.payload)).encode()
    message = crashed(bare, message_id=A)
    assert event_of(message).type == "order.created"
    sent = outgoing(message)
    assert json.loads(sent.body)["message_id"] == sent.message_id == A
    assert json.loads(sent.body)["payload"] == encode(EVENT.payload)
    again = from_line(to_line(arrived(returning(message))))
    assert event_of(again).type == "order.created"


def arrived(sent):
    """What was sent, as it lies in the DLQ."""
    named = {"message_id": sent.message_id, "type": sent.type}
    return content(sent.body, sent.headers, {**sent.properties, **named}, sent.routing_key)


@pytest.mark.parametrize(
    "message",
    [
        judged(EVENT, UnknownType()),
        judged(EVENT, Poison(), body=b"\xff"),
        crashed(EVENT.to_json().encode()),
        crashed(b"x", message_id=A),
        content(b"stranger's"),
    ],
    ids=["judged", "poison", "crash", "crash of no event", "stranger's"],
)
def test_an_imported_message_is_the_same_dead_message(message):
    returned = returning(message)
    assert (returned.exchange, returned.routing_key) == ("ecom.failed.inventory", DLQ)
    assert not {name for name in returned.headers if name.startswith(("x-death", "x-first-death", "x-delivery"))}
    assert dead_letter_of(arrived(returned)) == dead_letter_of(message)


def test_an_imported_message_keeps_its_properties_except_those_that_would_end_it():
    kept = {"content_type": "text/plain", "correlation_id": "c", "priority": 3, "timestamp": 5}
    ends = {"expiration": "1000", "user_id": "guest", "cluster_id": "x", "delivery_mode": 1}
    assert returning(content(properties={**kept, **ends})).properties == kept


@pytest.mark.parametrize(
    "bad",
    [
        {"properties": {"priority": "high"}},
        {"properties": {"priority": 256}},
        {"properties": {"timestamp": -1}},
        {"properties": {"content_type": "x" * 256}},
        {"properties": {"body": "x"}},
        {"headers": {"x" * 256: 1}},
        {"headers": {"x": 2**63}},
        {"headers": {"x": Decimal("1E+9")}},
        {"headers": {"x": Decimal("1E-999999999")}},
        {"headers": {"large": "x" * 125_000}},
    ],
)
def test_headers_that_amqp_cannot_carry_are_refused_before_sending(bad):
    with pytest.raises(ValidationFailed, match="AMQP cannot carry"):
        check(returning(content(**bad)))


def test_a_corrected_message_is_another_one_and_the_same_at_each_run():
    message = judged(EVENT, UnknownType(), {"x-replays": 3})
    one, two = edited(message), edited(message)
    assert id_of(one) == id_of(two) != EVENT.message_id
    event = event_of(one)
    assert event.message_id == id_of(one)
    assert event.causation_id == EVENT.message_id
    assert (event.payload, event.trace_id) == (EVENT.payload, EVENT.trace_id)
    assert dead_letter_of(one).replays == 0
    assert id_of(arrived(returning(one))) == id_of(one)


def test_another_correction_is_another_message():
    message = judged(EVENT, UnknownType())
    other = Content(**{**message.__dict__, "body": message.body.replace(b"apple", b"pears")})
    assert id_of(edited(other)) != id_of(edited(message))


def test_a_correction_that_its_consumer_could_not_read_is_refused():
    with pytest.raises(Poison):
        edited(judged(EVENT, Poison(), body=b"still no json"))


@pytest.mark.parametrize("body", [b"\xff", "grün", memoryview(b"x"), bytearray(b"x"), "\ud800"])
def test_the_body_is_bytes_however_it_comes(body):
    message = amqp.Message(body, message_id=A, application_headers={"x": 1})
    message.delivery_info = {"exchange": "e", "routing_key": "k"}
    found = content_of(DLQ, message)
    assert type(found.body) is bytes
    assert found == Content(DLQ, "e", "k", {"message_id": A}, {"x": 1}, found.body)
