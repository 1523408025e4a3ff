"""Post, follow and cancel an order with the client that openapi-python-client generates (here in package `shop`)."""

import os
import uuid
from typing import TypeVar

from shop import AuthenticatedClient, Client
from shop.api.auth import token
from shop.api.menu import put_offer
from shop.api.ops import dead_letters, queues, start_replay
from shop.api.orders import cancel_order, create_order, get_order, timeline
from shop.api.stocks import put_stock
from shop.models import (
    ErrorAnswer,
    ErrorCode,
    OfferRequest,
    OfferRequestCurrency,
    Order,
    OrderEvent,
    OrderItem,
    OrderReason,
    OrderRequest,
    OrderRequestCurrency,
    OrderStatus,
    PasswordLogin,
    PostedOrder,
    ReplayAll,
    StockRequest,
)

API = os.environ.get("API", "http://127.0.0.1:8000")

T = TypeVar("T")


def good(answer: ErrorAnswer | T | None) -> T:
    """The answer, if it is no error."""
    assert answer is not None
    assert not isinstance(answer, ErrorAnswer), answer
    return answer


def sign_in(name: str) -> AuthenticatedClient:
    """A client with the token of a user of development."""
    answer = good(token.sync(client=Client(API), body=PasswordLogin(name, f"demo-{name}")))
    return AuthenticatedClient(API, answer.access_token)


def wait(client: AuthenticatedClient, order_id: uuid.UUID, *states: OrderStatus) -> Order:
    """The order as soon as it is in one of these states."""
    while True:
        order = good(get_order.sync(order_id, client=client, wait=",".join(states), timeout=3))
        if order.status in states:
            return order


admin = sign_in("admin")
good(put_offer.sync("lamp", client=admin, body=OfferRequest(OfferRequestCurrency.EUR, 1999)))
good(put_stock.sync("lamp", client=admin, body=StockRequest(on_hand=1000)))

shop = sign_in("customer")
request = OrderRequest(OrderRequestCurrency.EUR, [OrderItem("lamp", 1, 1999)], payment_method="mock_ok")
posted = create_order.sync(client=shop, body=request, idempotency_key=str(uuid.uuid4()))
assert isinstance(posted, PostedOrder), posted
assert posted.status is OrderStatus.PENDING

assert wait(shop, posted.order_id, OrderStatus.PAID, OrderStatus.CANCELLED).status is OrderStatus.PAID

cancelled = good(cancel_order.sync(posted.order_id, client=shop, idempotency_key=str(uuid.uuid4())))
assert cancelled.status in (OrderStatus.REFUND_PENDING, OrderStatus.CANCELLED)

ended = wait(shop, posted.order_id, OrderStatus.CANCELLED)
assert ended.reason is OrderReason.ORDER_CANCELLED

steps = good(timeline.sync(posted.order_id, client=shop)).steps
assert [step.event for step in steps][:2] == [OrderEvent.ORDER_CREATED, OrderEvent.INVENTORY_RESERVED]
assert steps[0].from_ is None

operator = sign_in("operator")
for queue in good(queues.sync(client=operator)).items:
    good(dead_letters.sync(queue.queue, client=operator))
replay = good(start_replay.sync(queue.dlq, client=operator, body=ReplayAll(all_=True)))
assert replay.queue is queue.dlq

refused = queues.sync(client=shop)
assert isinstance(refused, ErrorAnswer)
assert refused.error.code is ErrorCode.FORBIDDEN

print("ended", ended.status)
