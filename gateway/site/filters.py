"""The filters of the dashboard, as people type them."""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any

from marshmallow import ValidationError

from gateway.api.fields import PageQuery, Timestamp
from gateway.releases import ReleaseQuery
from shared.events import timestamp

DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
WITHOUT_ZONE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d{1,6})?)?", re.ASCII)
FIRST_LOOK_DAYS = 30


class Day(Timestamp):
    """A date in UTC or, as everywhere, a time; one without its zone is UTC. A date as an end is itself included."""

    def __init__(self, description: str, is_end: bool = False, **kwargs: Any) -> None:
        super().__init__(description, **kwargs)
        self.is_end = is_end

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        is_date = bool(DATE.fullmatch(value))
        full = f"{value}T00:00:00Z" if is_date else f"{value}Z" if WITHOUT_ZONE.fullmatch(value) else value
        try:
            moment: str = super()._deserialize(full, attr, data, **kwargs)
            included = timedelta(days=1 if is_date and self.is_end else 0)
            return timestamp(datetime.fromisoformat(moment) + included)
        except (ValidationError, OverflowError):
            raise ValidationError("Must be a date such as 2026-01-14, or an RFC 3339 time.") from None


class DashboardFilters(ReleaseQuery):
    """The filters of the API, with dates as people type them."""

    from_ = Day("released on this day or later", data_key="from", attribute="from")
    to = Day("released on this day or earlier", is_end=True)


class DashboardQuery(DashboardFilters, PageQuery):
    """What the dashboard shows."""


def first_look(given: Collection[str]) -> dict[str, str]:
    """The filter of who has chosen none: the last days. A field that was sent empty was chosen so."""
    if set(given) - PageQuery().fields.keys():
        return {}
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return {"from": timestamp(today - timedelta(days=FIRST_LOOK_DAYS - 1))}
