"""What a person takes away: one JSON document, made page by page."""

import json
from typing import Any

import pytest

from gateway.account_export import PARTS, ROWS, begun, document
from shared.errors import NotFound, ServiceUnavailable

ACCOUNT = {"id": "u-ann", "email": "ann@example.com"}


class Services:
    """Fakes of the services behind the gateway, which answer in pages of two."""

    def __init__(self, orders: int, sessions: int = 3) -> None:
        self.rows: dict[str, list[Any]] = {
            "sessions": [{"id": number} for number in range(sessions)],
            "identities": [],
            "events": [{"at": number} for number in range(5)],
        }
        self.orders = [
            {"order_id": f"o-{number}", "payment_id": f"p-{number}" if number else None} for number in range(orders)
        ]
        self.asked: list[Any] = []
        self.fails_at = 10**6

    def ask(self, method: str, *args: Any) -> Any:
        self.asked.append((method, *args))
        if len(self.asked) > self.fails_at:
            raise ServiceUnavailable
        if method == "payment_service.get_payment":
            if args == ("p-1",):
                raise NotFound
            return {"payment_id": args[0]}
        if method == "order_service.list_orders":
            limit, cursor, filters = args
            assert filters == {"user": "u-ann"}
            return self._page(self.orders, limit, cursor)
        part, limit, cursor = args
        assert method == "auth_service.export_me"
        return self._page(self.rows[part], limit, cursor)

    def _page(self, rows: list[Any], limit: int, cursor: str | None) -> dict[str, Any]:
        assert limit == ROWS
        first = int(cursor or 0)
        return {"items": rows[first : first + 2], "next_cursor": str(first + 2) if first + 2 < len(rows) else None}


@pytest.mark.parametrize("orders", [0, 1, 2, 5])
def test_the_document_holds_every_page_of_every_part(orders: int) -> None:
    services = Services(orders)
    read = json.loads(b"".join(document(services.ask, ACCOUNT)))
    assert list(read) == ["account", *PARTS, "orders"]
    assert read["account"] == ACCOUNT
    assert {part: read[part] for part in PARTS} == services.rows
    assert [order["order_id"] for order in read["orders"]] == [order["order_id"] for order in services.orders]


def test_an_order_without_a_payment_has_none() -> None:
    read = json.loads(b"".join(document(Services(3).ask, ACCOUNT)))
    assert [order["payment"] for order in read["orders"]] == [None, None, {"payment_id": "p-2"}]


def test_one_page_at_a_time_is_asked_for() -> None:
    services = Services(5)
    pieces = document(services.ask, ACCOUNT)
    for _ in range(3):
        next(pieces)
    assert len(services.asked) == 1


def test_a_document_that_ends_early_is_no_json() -> None:
    services = Services(5)
    whole = sum(1 for _ in document(services.ask, ACCOUNT))
    asked = len(services.asked)
    for fails_at in range(asked):
        services.asked, services.fails_at = [], fails_at
        pieces: list[bytes] = []
        with pytest.raises(ServiceUnavailable):
            pieces.extend(document(services.ask, ACCOUNT))
        assert len(pieces) < whole
        with pytest.raises(json.JSONDecodeError):
            json.loads(b"".join(pieces))


def test_an_error_of_the_first_page_is_raised_before_the_document_begins() -> None:
    services = Services(5)
    services.fails_at = 0
    with pytest.raises(ServiceUnavailable):
        begun(document(services.ask, ACCOUNT))
    services = Services(5)
    assert json.loads(b"".join(begun(document(services.ask, ACCOUNT))))["account"] == ACCOUNT
