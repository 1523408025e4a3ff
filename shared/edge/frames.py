"""The frames in which a message is published, as bytes.

py-amqp makes the same bytes in three times the time: it looks at each of the 14 properties that a message may have, and
makes the method frame of each message anew.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from amqp import Message, spec
from amqp.exceptions import FrameSyntaxError
from amqp.serialization import dumps

METHOD, HEADER, BODY = 1, 2, 3

_HEAD = struct.Struct(">BHI")  # type, channel, size of the payload
_END = b"\xce"
_METHOD = struct.Struct(">HH")  # class and method
_CONTENT = struct.Struct(">HHQ")  # class, weight, size of the body
_PUBLISH = _METHOD.pack(*spec.Basic.Publish)

# Beside its payload a frame has a head of 7 bytes and an end of 1.
FRAME_OVERHEAD = 8

MAX_SHORT_TEXT = 255

# Which properties follow: content type, content encoding, headers, delivery mode, message id, timestamp, type, user id.
_FLAGS = struct.pack(">H", 1 << 15 | 1 << 14 | 1 << 13 | 1 << 12 | 1 << 7 | 1 << 6 | 1 << 5 | 1 << 4)
_FLAGS_WITHOUT_USER = struct.pack(">H", 1 << 15 | 1 << 14 | 1 << 13 | 1 << 12 | 1 << 7 | 1 << 6 | 1 << 5)
_TIME = struct.Struct(">Q")


@lru_cache(1024)
def publish_method(exchange: str, routing_key: str, mandatory: bool) -> bytes:
    """The payload of the method frame of basic.publish."""
    arguments: bytes = dumps("Bssbb", (0, exchange, routing_key, mandatory, False))
    return _PUBLISH + arguments


@lru_cache(1024)
def _short(text: str) -> bytes:
    """A text that many messages have."""
    return _short_once(text)


def _short_once(text: str) -> bytes:
    encoded = text.encode()
    if len(encoded) > MAX_SHORT_TEXT:
        raise FrameSyntaxError(f"a text of {len(encoded)} bytes, and AMQP allows {MAX_SHORT_TEXT}")
    return bytes((len(encoded),)) + encoded


def usual_properties(properties: Mapping[str, Any]) -> bytes:
    """Properties of a message that has exactly those of _FLAGS, of which `user_id` may be missing.

    Raises FrameSyntaxError for what AMQP cannot carry.
    """
    user = properties.get("user_id")
    return b"".join(
        (
            _FLAGS_WITHOUT_USER if user is None else _FLAGS,
            _short(properties["content_type"]),
            _short(properties["content_encoding"]),
            dumps("F", [properties["application_headers"]]),
            bytes((properties["delivery_mode"],)),
            _short_once(properties["message_id"]),
            _TIME.pack(properties["timestamp"]),
            _short(properties["type"]),
            b"" if user is None else _short(user),
        )
    )


def any_properties(properties: Mapping[str, Any]) -> bytes:
    """Any properties of a message, as py-amqp writes them."""
    serialized: bytes = Message(b"", **properties)._serialize_properties()
    return serialized


def frames(channel: int, frame_max: int, method: bytes, properties: bytes, body: bytes) -> bytes:
    """All frames of a message, one after another. None is larger than `frame_max` for its body."""
    room = frame_max - FRAME_OVERHEAD
    content = _CONTENT.pack(spec.Basic.CLASS_ID, 0, len(body)) + properties
    pieces = [
        _HEAD.pack(METHOD, channel, len(method)),
        method,
        _END,
        _HEAD.pack(HEADER, channel, len(content)),
        content,
        _END,
    ]
    for begin in range(0, len(body), room):
        piece = body[begin : begin + room]
        pieces += (_HEAD.pack(BODY, channel, len(piece)), piece, _END)
    return b"".join(pieces)
