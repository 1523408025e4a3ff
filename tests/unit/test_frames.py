"""The frames of a message are those that py-amqp makes."""

from types import SimpleNamespace

import amqp
import pytest
from amqp import spec
from amqp.exceptions import FrameSyntaxError
from amqp.method_framing import frame_writer
from amqp.serialization import dumps
from hypothesis import given
from hypothesis import strategies as st

from shared.edge import frames

FRAME_MAX = 4096


def written_by_library(channel, exchange, routing_key, mandatory, properties, body):
    written = bytearray()
    connection = SimpleNamespace(frame_max=FRAME_MAX, bytes_sent=0)
    write = frame_writer(connection, SimpleNamespace(write=written.extend))
    arguments = dumps("Bssbb", (0, exchange, routing_key, mandatory, False))
    write(1, channel, spec.Basic.Publish, arguments, amqp.Message(body, **properties))
    return bytes(written)


def short_texts():
    return st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def headers():
    values = st.one_of(short_texts(), st.integers(-(2**62), 2**62), st.booleans(), st.none())
    return st.dictionaries(st.text("abcdefgh-", min_size=1, max_size=20), values, max_size=5)


USUAL = {
    "content_type": st.just("application/json"),
    "content_encoding": st.just("utf-8"),
    "application_headers": headers(),
    "delivery_mode": st.sampled_from([1, 2]),
    "message_id": short_texts(),
    "timestamp": st.integers(0, 2**40),
    "type": short_texts(),
}
SIZES = [0, 1, 100, FRAME_MAX - 8, FRAME_MAX - 7, 3 * FRAME_MAX]


@pytest.mark.parametrize("size", SIZES)
@given(
    st.integers(1, 65535),
    short_texts(),
    short_texts(),
    st.booleans(),
    st.fixed_dictionaries(USUAL, optional={"user_id": short_texts()}),
)
def test_a_message_with_the_usual_properties_is_written_as_py_amqp_writes_it(
    size, channel, exchange, key, mandatory, properties
):
    ours = frames.frames(
        channel,
        FRAME_MAX,
        frames.publish_method(exchange, key, mandatory),
        frames.usual_properties(properties),
        b"x" * size,
    )

    assert ours == written_by_library(channel, exchange, key, mandatory, properties, b"x" * size)


def test_other_properties_are_written_as_py_amqp_writes_them():
    properties = {"app_id": "a", "priority": 3, "content_type": "text/plain", "application_headers": {"n": 1}}
    ours = frames.frames(1, FRAME_MAX, frames.publish_method("", "q", True), frames.any_properties(properties), b"x")

    assert ours == written_by_library(1, "", "q", True, properties, b"x")


def test_a_text_that_is_too_long_for_amqp_is_refused():
    properties = {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "application_headers": {},
        "delivery_mode": 2,
        "message_id": "m" * 256,
        "timestamp": 0,
        "type": "",
    }
    with pytest.raises(FrameSyntaxError):
        frames.usual_properties(properties)
