"""The filters of the dashboard, in the forms that people type."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from marshmallow import ValidationError, validates_schema

from gateway.api.fields import MAX_ROW_ID, PageQuery, Timestamp, WholeNumberInQuery, filters_in
from gateway.releases import ReleaseQuery
from shared.times import timestamp

DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
WITHOUT_ZONE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d{1,6})?)?", re.ASCII)
SHAPE = re.compile(rf"{DATE.pattern}([T ]\d\d:\d\d(:\d\d([.,]\d+)?)?(Z|[+-]\d\d:?\d\d)?)?", re.ASCII)
DEFAULT_DAYS = 30


class Day(Timestamp):
    """A date or a time. Without a zone it is UTC. A date as the end of a range is included."""

    def __init__(self, description: str, is_end: bool = False, **kwargs: Any) -> None:
        super().__init__(description, **kwargs)
        self.is_end = is_end

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        if not SHAPE.fullmatch(value):
            raise ValidationError("Must be a date such as 2026-01-14, or a time such as 2026-01-14T10:30Z.")
        is_date = bool(DATE.fullmatch(value))
        full = f"{value}T00:00:00Z" if is_date else f"{value}Z" if WITHOUT_ZONE.fullmatch(value) else value
        try:
            datetime.fromisoformat(full)
        except ValueError:
            raise ValidationError("There is no such day or time.") from None
        moment: str = super()._deserialize(full, attr, data, **kwargs)
        included = timedelta(days=1 if is_date and self.is_end else 0)
        try:
            return timestamp(datetime.fromisoformat(moment) + included)
        except OverflowError:
            raise ValidationError("Is out of range.") from None


class DashboardFilters(ReleaseQuery):
    """The filters of the API, which also take dates."""

    from_ = Day("released on this day or later", data_key="from", attribute="from")
    to = Day("released on this day or earlier", is_end=True)


class DashboardPage(PageQuery):
    """The page of the dashboard: the one after a cursor, or the one before a release. `page` is its number to show."""

    before = WholeNumberInQuery(1, MAX_ROW_ID, 7, "the page of newer releases before this one", load_default=None)
    page = WholeNumberInQuery(1, MAX_ROW_ID, 2, "the number of the page", load_default=1)

    @validates_schema
    def begins_once(self, data: Mapping[str, Any], **kwargs: Any) -> None:
        if data["before"] is not None and data["cursor"] is not None:
            raise ValidationError("Must not be given together with cursor.", "before")


class DashboardQuery(DashboardFilters, DashboardPage):
    """The filters and the page of the dashboard."""


PAGING = frozenset(DashboardPage().fields)


def dashboard_filters(query: Mapping[str, Any]) -> dict[str, Any]:
    """The filters among the parameters of the dashboard. Raises BadRequest when `to` is before `from`."""
    return filters_in({name: value for name, value in query.items() if name not in PAGING})


def default_filters(given: Collection[str] = ()) -> dict[str, str]:
    """The default filter, the last days, when a request has none. A field that was sent empty counts as a filter."""
    if not PAGING.issuperset(given):
        return {}
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return {"from": timestamp(today - timedelta(days=DEFAULT_DAYS - 1))}
