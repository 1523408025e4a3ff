"""One order as an operator needs it: its state, its steps, what it waits for and until when."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.orm import defer

from ops.dlq.service_databases import ServiceDatabases
from order_service.domain import Status
from order_service.models import OrderRow
from order_service.queries import order_bodies, timeline
from shared.errors import NotFound
from shared.order_states import UNPAID
from shared.times import timestamp


def order_now(databases: ServiceDatabases, order_id: UUID, deadline_s: float) -> dict[str, Any]:
    """The order as clients see it, without notes, with user_id, trace_id, deadline, awaits and steps.

    `deadline`: when order_service cancels it, if it is not paid by then; None once it is paid or cancelled. This is
    right if ORDER_DEADLINE_S is the same here as for order_service. Raises NotFound, CannotWork.
    """
    with databases.read("order") as session:
        row = session.get(OrderRow, order_id, options=[defer(OrderRow.note)])
        if row is None:
            raise NotFound(f"there is no order {order_id}")
        (body,) = order_bodies(session, [row], notes=False)
        story = timeline(session, row)
    waits_until = row.created_at + timedelta(seconds=deadline_s) if Status(row.status) in UNPAID else None
    return {
        **body,
        "user_id": row.user_id,
        "trace_id": row.trace_id,
        "deadline": timestamp(waits_until) if waits_until else None,
        "awaits": story["awaits"],
        "steps": story["steps"],
    }
