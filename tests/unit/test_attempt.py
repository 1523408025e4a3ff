"""One transaction over some events, tried again: only what happens in a try counts in it."""

from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest

from shared.edge import attempt
from shared.edge.attempt import Attempt
from shared.envelope import envelope
from shared.events import Identity, OrderCancelled

EVENTS = [
    envelope("order_service", OrderCancelled(uuid4(), "deadline"), uuid4().hex, Identity("ann", ())) for _ in range(2)
]


class Sessions:
    @contextmanager
    def begin(self) -> Any:
        yield None


def test_an_error_after_the_handler_names_no_event_even_if_an_earlier_try_did(monkeypatch: pytest.MonkeyPatch) -> None:
    def handle(events: Any, tx: Any) -> None:
        for _ in events:
            if one.tries == 1:
                raise ConnectionError("a conflict")

    def emit(session: Any, events: Any) -> None:
        raise ValueError("at emit")

    monkeypatch.setattr(attempt.inbox, "claim", lambda session, queue, ids: set(ids))
    monkeypatch.setattr(attempt.outbox, "emit", emit)
    one: Any = Attempt("q.payment.order-cancelled", "payment_service", Sessions, handle, EVENTS, {})  # type: ignore[arg-type]
    one.tries = 1
    with pytest.raises(ConnectionError):
        one.run()
    assert one.in_work is EVENTS[0]

    one.tries = 2
    with pytest.raises(ValueError, match="at emit"):
        one.run()
    assert one.in_work is None
