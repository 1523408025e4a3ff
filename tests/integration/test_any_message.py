"""Any message whatever, on every queue, with a handler that fails: it ends in a retry level or in the DLQ, as it came.

The messages cross the real broker, so that what the client library makes of odd properties is part of the test.
"""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from shared.decoding import read_event
from shared.edge.deliveries import delivery_of
from shared.edge.publisher import Outgoing, fits
from shared.edge.tx import Events, Tx
from shared.errors import DeadMessage, UnexpectedEvent
from shared.events import CATALOGUE
from shared.schema import MAX_AMOUNT
from tests.databases import Databases
from tests.integration.support import Bench, Mail
from tests.messages import body, places
from topology.table import QUEUES, dead_letter_queue, hears, retry_queues

# What a layer behind the decoder might not hold: PostgreSQL, JSON, a datetime in UTC, an AMQP table, a stack.
NESTED = "nested 900 times"
TIMES = ["0001-01-01T00:00:00+01:00", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "9999-12-31T23:59:59-14:00"]
NUMBERS = [0, -1, 1, 10**6, 10**9, 10**12, MAX_AMOUNT, MAX_AMOUNT + 1, 2**63, -(2**63), 10**400, 1.5, 1e308]
TEXTS = ["", "\0", "\ud800", "é" * 200, "x" * 201, "=1+1", "1E5", "00042", "\ufeff", "\r\n", NESTED]
OTHERS = [None, True, [], {}, [None]]
UNREADABLE = [b"", b"{", b"[]", b"\xff\xfe\x00", b'{"a": NaN}', b"[" * 100_000, "\ufeff{}".encode(), b"{}"]

HEADERS = [
    {},
    {"x-attempt": 2},
    {"x-attempt": "3", "x-replays": 2**62, "x-first-failed-at": "0001-01-01T00:00:00+01:00"},
    {"x-held-up": 3, "x-held-up-since": "9999-12-31T23:59:59-14:00"},
    {"x-original-routing-key": {"a": ["b"]}},
    {"x-original-routing-key": "k" * 70_000, "large": "x" * 60_000},
    {"name": None, "\ud800": "\ud800", "list": [1.5, True, {"a": b"\xff"}], "CC": ["q.order.payment-result"]},
]
PROPERTIES = [{}, {"content_encoding": "utf-16", "app_id": "\ud800"}, {"timestamp": 2**64 - 1, "priority": 255}]
ERRORS = [ValueError("no"), UnexpectedEvent("no"), OverflowError("\0" * 2000), KeyError("\ud800")]


@st.composite
def bodies(draw: st.DrawFn, types: list[str]) -> bytes:
    """A good message, one with extreme values in some of its fields, or no message at all."""
    if draw(st.integers(0, 5)) == 0:
        return draw(st.sampled_from(UNREADABLE) | st.binary(max_size=40))
    message = body(draw(st.sampled_from(types)))
    for _ in range(draw(st.integers(0, 3))):
        place, name = draw(st.sampled_from(places(message)))
        alike = TIMES if name == "occurred_at" else NUMBERS if isinstance(place[name], int) else TEXTS
        place[name] = draw(st.sampled_from(alike) | st.sampled_from([*TIMES, *NUMBERS, *TEXTS, *OTHERS]))
    return json.dumps(message).replace(f'"{NESTED}"', "[" * 900 + "]" * 900).encode()


@st.composite
def messages(draw: st.DrawFn, queue: str, types: list[str]) -> Outgoing:
    """A message in a queue, with its own message_id or another one, and any headers and properties."""
    content = draw(bodies(types))
    message_id = draw(st.sampled_from([_id_in(content), str(uuid4()), "", "none of ours"]))
    key = draw(st.sampled_from([*types, "x"]))
    headers = {**draw(st.sampled_from(HEADERS)), "test-number": draw(st.integers(0, 2**62))}
    headers.setdefault("x-original-routing-key", key)
    outgoing = Outgoing("", queue, content, message_id, headers=headers, properties=draw(st.sampled_from(PROPERTIES)))
    assume(fits(outgoing))
    return outgoing


def _id_in(content: bytes) -> str:
    try:
        return str(json.loads(content)["message_id"])[:200].replace("\ud800", "")
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""


@pytest.mark.parametrize("queue", QUEUES, ids=lambda queue: queue.name)
def test_any_message_ends_in_a_retry_level_or_in_the_dlq_as_it_came(
    queue: Any, bench: Callable[..., Bench], mail: Mail, database: Databases, long: bool
) -> None:
    service = bench(queue.service)
    types = [type_ for type_ in CATALOGUE if hears(queue, type_)]
    targets = [*retry_queues(queue.name), dead_letter_queue(queue.name)]

    @settings(
        max_examples=300 if long else 25,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],  # a shrunk example says no more here, and each costs a round trip
        suppress_health_check=list(HealthCheck),
        derandomize=not long,
    )
    @given(st.lists(messages(queue.name, types), min_size=1, max_size=6), st.sampled_from(ERRORS))
    def check(sent: list[Outgoing], error: Exception) -> None:
        def fail(events: Events, tx: Tx) -> None:
            for _ in events:
                raise error

        mail.send(sent)
        came = [delivery_of(mail.take(queue.name)) for _ in sent]
        assert [delivery.body for delivery in came] == [message.body for message in sent]

        service.batch(queue.name, handle=fail, ask=None).handle_batch(came)

        ended = [message.body for target in targets for message in mail.all(target)]
        assert Counter(_as_read(queue.name, body) for body in ended) == Counter(
            _as_read(queue.name, message.body) for message in sent
        )

    check()


def _as_read(queue: str, content: Any) -> str | bytes:
    """The event in it, written anew: an event whose message has another id is sent on like that. Else its bytes."""
    raw = content.encode() if isinstance(content, str) else bytes(content)
    try:
        return read_event(queue, raw, "").to_json()
    except DeadMessage:
        return raw
