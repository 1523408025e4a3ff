"""What belongs together goes to the broker's socket with one call."""

from contextlib import contextmanager
from types import SimpleNamespace

import amqp
import pytest

from shared.edge.publisher import WRITTEN_TOGETHER, Outgoing, Publisher
from shared.edge.rpc import RpcServer


class Line:
    """A connection that notes what is sent in each piece. Its broker confirms everything."""

    alarm = None

    def __init__(self):
        self.pieces = []
        self.channel = SimpleNamespace(
            basic_publish=lambda *_: self.pieces[-1].append("reply"),
            basic_ack=lambda _: self.pieces[-1].append("ack"),
            publish=lambda *_: self.pieces[-1].append("message"),
            signed=lambda properties: properties,
        )

    @contextmanager
    def in_one_piece(self):
        self.pieces.append([])
        yield

    def reset_silence(self):
        pass


def test_a_reply_and_the_ack_of_its_call_are_one_piece(monkeypatch):
    monkeypatch.setattr("shared.edge.rpc.may_answer", lambda user, reply_to: True)
    server, line = RpcServer(), Line()
    server._user = "order"
    call = amqp.Message("{}", reply_to="rpc.reply", correlation_id="1")
    call.delivery_info = {"routing_key": "order_service.get_order", "delivery_tag": 1}

    server._reply(line, call, None, {"status": "PAID"}, None)

    assert line.pieces == [["reply", "ack"]]


@pytest.mark.parametrize("count", [1, WRITTEN_TOGETHER, WRITTEN_TOGETHER + 1])
def test_the_messages_of_a_batch_are_few_pieces(count, monkeypatch):
    publisher, line = Publisher("amqp://nobody", 10), Line()
    monkeypatch.setattr(publisher, "_open", lambda: line)
    line.read = lambda timeout_s: publisher._settle(publisher._next_tag - 1, True, None)

    outcomes = publisher.publish_all([Outgoing("events", "order.paid", "{}", str(place)) for place in range(count)])

    assert outcomes == [None] * count
    assert [len(piece) for piece in line.pieces] == [WRITTEN_TOGETHER] * (count // WRITTEN_TOGETHER) + (
        [count % WRITTEN_TOGETHER] if count % WRITTEN_TOGETHER else []
    )
