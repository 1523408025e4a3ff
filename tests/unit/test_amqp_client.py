"""Frames are read from and written to the broker's socket many at once, and each stays whole."""

import struct
from itertools import pairwise

import pytest
from amqp.exceptions import RecoverableConnectionError, UnexpectedFrame
from hypothesis import given
from hypothesis import strategies as st

from shared.edge.amqp_client import Connection, _TcpTransport

FRAMES = [(1, 1, b"method"), (2, 1, b""), (3, 65535, bytes(range(256))), (8, 0, b"")]


def written(kind, channel, payload, end=0xCE):
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + bytes([end])


class Socket:
    """A socket that receives given pieces, and keeps what is sent."""

    def __init__(self, pieces):
        self.pieces = list(pieces)
        self.sent = []

    def recv(self, size):
        if not self.pieces:
            return b""
        piece = self.pieces.pop(0)
        if piece is None:
            raise TimeoutError
        if len(piece) > size:
            self.pieces.insert(0, piece[size:])
        return piece[:size]

    def sendall(self, piece):
        self.sent.append(bytes(piece))


def transport(*pieces):
    made = _TcpTransport("broker:5672")
    made.sock = Socket(pieces)
    made._setup_transport()
    return made


@given(st.lists(st.integers(0, len(b"".join(written(*frame) for frame in FRAMES))), max_size=8))
def test_frames_are_the_same_however_the_bytes_arrive(cuts):
    stream = b"".join(written(*frame) for frame in FRAMES)
    places = [0, *sorted(set(cuts) - {0, len(stream)}), len(stream)]
    reader = transport(*(stream[begin:end] for begin, end in pairwise(places)))

    assert [reader.read_frame() for _ in FRAMES] == FRAMES
    assert reader.next_frame() is None


def test_frames_that_came_together_are_read_from_the_socket_once():
    reader = transport(b"".join(written(*frame) for frame in FRAMES))
    reader.read_frame()

    assert [reader.next_frame() for _ in FRAMES[1:]] == FRAMES[1:]


def test_what_came_of_a_frame_stays_when_the_wait_is_broken_off():
    whole = written(*FRAMES[0])
    reader = transport(whole[:9], None, whole[9:])

    with pytest.raises(TimeoutError):
        reader.read_frame()
    assert reader.read_frame() == FRAMES[0]


def test_a_closed_connection_is_an_error_also_within_a_frame():
    reader = transport(written(*FRAMES[0])[:9])

    with pytest.raises(OSError, match="closed"):
        reader.read_frame()


def test_a_frame_that_does_not_end_as_frames_do_is_an_error():
    with pytest.raises(UnexpectedFrame):
        transport(written(1, 1, b"method", end=0)).read_frame()


def test_what_is_written_in_one_piece_goes_to_the_socket_once_and_in_order():
    writer = transport()
    memory = bytearray(b"one")
    with writer.in_one_piece():
        writer.write(memoryview(memory))
        memory[:] = b"two"  # py-amqp writes each frame from the same memory
        with writer.in_one_piece():
            writer.write(memoryview(memory))
        writer.write(b"three")
    writer.write(b"four")

    assert writer.sock.sent == [b"onetwothree", b"four"]


def test_what_was_written_before_an_error_is_sent():
    """The broker counts it, and so does its sender, who waits for as many confirms as there were messages."""
    writer = transport()

    def write_two():
        with writer.in_one_piece():
            writer.write(b"one")
            raise ValueError("the second cannot be encoded")

    with pytest.raises(ValueError, match="the second"):
        write_two()

    assert writer.sock.sent == [b"one"]


def test_a_connection_that_was_closed_does_not_connect_again_by_itself():
    connection = Connection("127.0.0.1:1")
    connection.collect()
    for use in (connection.in_one_piece, connection.blocking_read):
        with pytest.raises(RecoverableConnectionError, match="the connection is closed"):
            use()
