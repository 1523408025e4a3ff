"""The filters of the dashboard, in the forms that people type."""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any

from marshmallow import ValidationError

from gateway.api.fields import PageQuery, Timestamp
from gateway.releases import ReleaseQuery
from shared.times import timestamp

DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
WITHOUT_ZONE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d{1,6})?)?", re.ASCII)
DEFAULT_DAYS = 30


class Day(Timestamp):
    """A date or a time. Without a zone it is UTC. A date as the end of a range is included."""

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
    """The filters of the API, which also take dates."""

    from_ = Day("released on this day or later", data_key="from", attribute="from")
    to = Day("released on this day or earlier", is_end=True)


class DashboardQuery(DashboardFilters, PageQuery):
    """The filters and the page of the dashboard."""


def default_filters(given: Collection[str]) -> dict[str, str]:
    """The default filter, the last days, when a request has none. A field that was sent empty counts as a filter."""
    if set(given) - PageQuery().fields.keys():
        return {}
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return {"from": timestamp(today - timedelta(days=DEFAULT_DAYS - 1))}
