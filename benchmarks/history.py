"""Orders that are there already: rows as this project would have left them, written by SQL in a few minutes.

The outbox stays empty, because what is published is deleted after a week. The inbox keeps its messages for 90 days.
"""

from __future__ import annotations

import time

from benchmarks.rig import Rig


def _uuid7(noise: str) -> str:
    """SQL of an id that begins with the time `at`, as ours do; `noise` is SQL of a text with 32 hexadecimal digits."""
    time = "lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0')"
    return f"({time} || '7' || left({noise}, 3) || '8' || substr({noise}, 4, 15))::uuid"


# Order number n, one a second, the newest a second ago.
_OLD = f"""
    WITH numbers AS (
        SELECT n, to_timestamp(%(now)s) - (%(newest)s - n) * interval '1 second' AS at, md5(n::text) AS noise
        FROM generate_series(%(first)s::bigint, %(until)s - 1) n
    ), old AS (
        SELECT n, at, noise, {_uuid7("noise")} AS order_id FROM numbers
    )
"""
_RESERVATION, _PAYMENT = _uuid7("md5('reservation' || n)"), _uuid7("md5('payment' || n)")
_MESSAGE = _uuid7("md5(type || n)")

FILL = {
    "order": (
        f"""INSERT INTO orders (order_id, user_id, status, currency, total, payment_method, reservation_id, payment_id,
            trace_id, idempotency_key, fingerprint, version, created_at, updated_at)
        SELECT order_id, 'bench-' || n %% 200, 'PAID', 'EUR', 600, 'mock_ok', {_RESERVATION}, {_PAYMENT},
            noise, 'old-' || n, noise || noise, 4, at, at FROM old""",
        """INSERT INTO order_items (order_id, line, sku, quantity, unit_price)
        SELECT order_id, line, 'bench-' || (500 * (line - 1) + n %% 500), line, 100 * line
        FROM old, generate_series(1, 2) line""",
        f"""INSERT INTO order_events (order_id, type, subject_id, from_status, to_status, source, user_id, message_id,
            details, at)
        SELECT order_id, type, CASE WHEN place > 1 THEN {_MESSAGE} END, before, after, source, 'bench-' || n %% 200,
            CASE WHEN place > 1 THEN {_MESSAGE} END, '{{}}', at
        FROM old, (VALUES
            (1, 'order.created', NULL, 'PENDING', 'order_service'),
            (2, 'inventory.reserved', 'PENDING', 'RESERVED', 'inventory_service'),
            (3, 'payment.succeeded', 'RESERVED', 'PAID', 'payment_service'),
            (4, 'inventory.committed', 'PAID', 'PAID', 'inventory_service')
        ) step (place, type, before, after, source) ORDER BY n, place""",
        f"""INSERT INTO consumed_messages (consumer, message_id, consumed_at)
        SELECT consumer, {_MESSAGE}, at FROM old, (VALUES
            ('q.order.inventory-result', 'inventory.reserved'),
            ('q.order.payment-result', 'payment.succeeded'),
            ('q.order.inventory-result', 'inventory.committed')
        ) heard (consumer, type)""",
    ),
    "inventory": (
        f"""INSERT INTO reservations (order_id, reservation_id, state, created_at, updated_at)
        SELECT order_id, {_RESERVATION}, 'COMMITTED', at, at FROM old""",
        """INSERT INTO reservation_items (order_id, sku, quantity)
        SELECT order_id, 'bench-' || (500 * (line - 1) + n %% 500), line FROM old, generate_series(1, 2) line""",
        """INSERT INTO stock_movements (sku, change, cause, order_id, moved_by, trace_id, moved_at)
        SELECT 'bench-' || (500 * (line - 1) + n %% 500), -line, 'sold', order_id, 'bench-' || n %% 200, noise, at
        FROM old, generate_series(1, 2) line""",
        f"""INSERT INTO consumed_messages (consumer, message_id, consumed_at)
        SELECT 'q.inventory.' || type, {_MESSAGE}, at
        FROM old, (VALUES ('order-created'), ('commit-requested')) heard (type)""",
    ),
    "payment": (
        f"""INSERT INTO payments (order_id, payment_id, status, amount, currency, method, reference, user_id, roles,
            trace_id, created_at, updated_at)
        SELECT order_id, {_PAYMENT}, 'SUCCEEDED', 600, 'EUR', 'mock_ok', noise, 'bench-' || n %% 200,
            '{{customer}}', noise, at, at FROM old""",
        f"""INSERT INTO consumed_messages (consumer, message_id, consumed_at)
        SELECT 'q.payment.inventory-reserved', {_MESSAGE}, at FROM old, (VALUES ('inventory-reserved')) heard (type)""",
    ),
}
AT_ONCE = 50_000


def fill(rig: Rig, databases: dict[str, str], first: int, until: int) -> None:
    """Write the orders from number `first` to before `until`, and let PostgreSQL look at what it has."""
    now = time.time()  # the ids of all databases are made of it
    for service, statements in FILL.items():
        cursor = rig.cursor(databases[service])
        for start in range(first, until, AT_ONCE):
            for statement in statements:
                cursor.execute(
                    _OLD + statement,
                    {"first": start, "until": min(start + AT_ONCE, until), "newest": until, "now": now},
                )
        cursor.execute("VACUUM ANALYZE")
        rig.progress.done(f"{until:,} old orders in {service}")
    rig.cursor("postgres").execute("CHECKPOINT")
