"""Counts sign-ins that fail. All replicas count in one table, by the clock of the database."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import text
from sqlalchemy.orm import Session

from auth_service.signing_in.domain import seconds_of

_PAUSES = text(
    "SELECT bucket, coalesce(extract(epoch FROM paused_until - now()), 0) AS left_s FROM sign_in_failures"
    " WHERE bucket = ANY(:buckets)"
)

# Two that fail at once count one after the other, in one order of their buckets: they cannot deadlock. What fails
# during a pause was under way when it began, and counts no more. A pause that begins within the time of the limit after
# the end of the last one follows it.
_FAILED = text(
    """
    WITH limits AS (
        SELECT * FROM unnest(CAST(:kinds AS text[]), CAST(:failures AS int[]), CAST(:within AS float8[]),
                             CAST(:pause AS float8[]), CAST(:longest AS float8[]))
                      AS given (kind, failures, within, pause, longest)
    )
    INSERT INTO sign_in_failures AS had (bucket, failures, since)
    SELECT bucket, 1, now() FROM unnest(CAST(:buckets AS text[])) AS failed (bucket) ORDER BY bucket
    ON CONFLICT (bucket) DO UPDATE SET (failures, pauses, since, paused_until) = (
        SELECT CASE WHEN stands.paused THEN had.failures WHEN stands.full THEN 0 ELSE stands.counted END,
               CASE WHEN stands.paused THEN had.pauses ELSE stands.pauses + CAST(stands.full AS int) END,
               CASE WHEN stands.paused OR stands.counted > 1 AND NOT stands.full THEN had.since ELSE now() END,
               CASE WHEN stands.paused OR NOT stands.full THEN had.paused_until
                    ELSE now() + make_interval(secs => least(limits.longest, limits.pause * 2 ^ stands.pauses)) END
        FROM limits
        CROSS JOIN LATERAL (SELECT make_interval(secs => limits.within) AS within) AS lasts
        CROSS JOIN LATERAL (
            SELECT coalesce(had.paused_until > now(), false) AS paused,
                   CASE WHEN had.since + lasts.within > now() THEN had.failures + 1 ELSE 1 END AS counted,
                   CASE WHEN had.paused_until + lasts.within > now() THEN least(had.pauses, 30) ELSE 0 END AS pauses
        ) AS counts
        CROSS JOIN LATERAL (
            SELECT counts.*, counts.counted >= limits.failures AS full
        ) AS stands
        WHERE limits.kind = split_part(had.bucket, ':', 1)
    )
    RETURNING bucket, failures = 0 AND since = now() AS begins
    """
)

_FORGET = text("DELETE FROM sign_in_failures WHERE bucket = :bucket")


def pauses_left(session: Session, buckets: Sequence[str]) -> dict[str, float]:
    """For how many seconds still each of these buckets that has failures is paused; not above 0: it is not paused."""
    return {row.bucket: float(row.left_s) for row in session.execute(_PAUSES, {"buckets": list(buckets)})}


def count_failure(session: Session, buckets: Sequence[str]) -> list[str]:
    """Count a failure in each of these buckets; those that it pauses."""
    rows = session.execute(_FAILED, {"buckets": list(buckets), **seconds_of()}).all()
    return [row.bucket for row in rows if row.begins]


def forget(session: Session, bucket: str) -> None:
    """Forget the failures of a bucket."""
    session.execute(_FORGET, {"bucket": bucket})
