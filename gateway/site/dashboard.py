"""The pages of the release audit, made from the answers of the services. This module calls no service."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from types import MappingProxyType
from typing import Any
from urllib.parse import urlencode

from werkzeug.wrappers import Request

from gateway.api.answering import Answer
from gateway.api.errors import STATUS
from gateway.api.fields import PAGE, filters_in
from gateway.api.reading import query_of
from gateway.export import linked
from gateway.site.chart import chart, series_of
from gateway.site.filters import DATE, WITHOUT_ZONE, default_filters
from gateway.site.pages import readable
from gateway.site.sessions import HOME, SessionPage, Visitor, show
from shared.edge.http import Environ
from shared.errors import BadRequest, EcomError, UnknownParameter

# Seals are made every second, and the operators' ledger follows within seconds. After this time something is stuck.
STUCK = timedelta(minutes=1)
EXPORTS_SHOWN = 5

GOOD, NOTE, WARNING, ALARM, UNKNOWN = "good", "note", "warning", "alarm", "unknown"


@dataclass(frozen=True)
class Finding:
    """One finding about the chain of seals: its level, its subject, and the text to show."""

    level: str
    about: str
    text: str


@dataclass(frozen=True)
class Field:
    """One filter of the form: the typed value and its problem, if any."""

    name: str
    label: str
    kind: str
    value: str
    hint: str
    problem: str


FILTERS = {
    "from": "From (UTC)",
    "to": "To (UTC)",
    "sku": "Sku",
    "reason": "Reason",
    "user_id": "Requested by",
    "order_id": "Order",
    "trace_id": "Trace",
}
MOMENTS = {"from", "to"}


class Filtered(SessionPage):
    """A page with filters. The problem of a filter is shown at its field."""

    def read_query(self, request: Request) -> dict[str, Any]:
        return super().read_query(request) | default_filters(query_of(request).keys())

    def error_page(self, environ: Environ, status: int, error: EcomError) -> Answer:
        if status != STATUS[BadRequest] or isinstance(error, UnknownParameter):
            return super().error_page(environ, status, error)
        typed = {name: values[0] for name, values in query_of(Request(environ)).items()}
        fields = form(typed, error.details)
        message = "" if any(field.problem for field in fields) else error.message
        return self.show(environ, "filters.html", fields=fields, message=message, reasons=[])


filtered_page = Filtered.decorator


@dataclass(frozen=True)
class Audit:
    """What the services answered for one overview. `operations` and `witness` are None while ops_service is away."""

    releases: Mapping[str, Any]
    operations: Mapping[str, Any] | None
    totals: Sequence[Mapping[str, Any]]
    chain: Mapping[str, Any]
    witness: Mapping[str, Any] | None
    exports: Sequence[Mapping[str, Any]]


def overview(visitor: Visitor, query: Mapping[str, Any], audit: Audit) -> Answer:
    """The first page: the releases that pass the filters of the query, their totals and the state of the seals."""
    now = datetime.now(UTC)
    filters = filters_in(query)
    typed = as_typed(filters)
    # An empty `from` keeps an open range open: without any filter the page would show only the last days.
    address = {"from": "", **typed}
    if query["limit"] != PAGE:
        address |= {"limit": query["limit"]}
    first = _day(filters["from"]) if "from" in filters else None
    last = _day(filters["to"], just_before=True) if "to" in filters else now.date()
    next_cursor = audit.releases["next_cursor"]
    return show(
        "dashboard.html",
        visitor=visitor,
        fields=form(typed),
        message="",
        findings=findings(audit.chain, audit.witness, now),
        reasons=by_reason(audit.totals),
        chart=chart(audit.totals, first, last),
        releases=linked(audit.releases["items"], audit.operations),
        is_first=query["cursor"] is None,
        first_page=_address(address),
        next_page=_address(address | {"cursor": next_cursor}) if next_cursor else None,
        export=f"{HOME}/export?{urlencode(typed)}",
        exports=audit.exports,
    )


def release_page(
    visitor: Visitor,
    release: Mapping[str, Any],
    operations: Mapping[str, Any] | None,
    timeline: Mapping[str, Any] | None,
    timeline_missing: str,
) -> Answer:
    """The page of one release. Without a timeline, `timeline_missing` says why there is none."""
    (release,) = linked([release], operations)
    return show(
        "release.html",
        visitor=visitor,
        release=release,
        timeline=timeline,
        timeline_missing=timeline_missing,
        of_order=_address({"from": "", "order_id": release["order_id"]}),
    )


def findings(chain: Mapping[str, Any], witness: Mapping[str, Any] | None, now: datetime) -> list[Finding]:
    """The state of the chain of seals. `witness` is what the operators' ledger knows; it was read before the chain."""
    return [_sealed(chain), _waiting(chain, now), _agreement(chain["newest"], witness, now), _verified(witness)]


def _sealed(chain: Mapping[str, Any]) -> Finding:
    newest = chain["newest"]
    if newest is None:
        return Finding(NOTE, "Newest seal", "Nothing is sealed yet.")
    made = f"No. {newest['seq']:,}, made {readable(newest['sealed_at'])}."
    return Finding(GOOD, "Newest seal", f"{made} {_count(chain['rows'], 'release')} sealed in total.")


def _waiting(chain: Mapping[str, Any], now: datetime) -> Finding:
    about = "Waiting for a seal"
    if chain["trouble"]:
        return Finding(ALARM, about, _sentence(chain["trouble"]))
    if not chain["waiting"]:
        return Finding(GOOD, about, "None.")
    since = chain["oldest_waiting_at"]
    text = f"{_count(chain['waiting'], 'release')}, the oldest of {readable(since)}."
    if now - datetime.fromisoformat(since) > STUCK:
        return Finding(WARNING, about, f"{text} Sealing has stopped, or a transaction is held open.")
    return Finding(NOTE, about, text)


def _agreement(newest: Mapping[str, Any] | None, witness: Mapping[str, Any] | None, now: datetime) -> Finding:
    about = "Operators' ledger"
    if witness is None:
        return Finding(UNKNOWN, about, "Unknown: the operators' service is unavailable.")
    if witness["trouble"]:
        return Finding(ALARM, about, _sentence(witness["trouble"]))
    head = witness["head"]
    at = newest["seq"] if newest else 0
    if head is None:
        return Finding(NOTE, about, "It has not recorded a seal yet.")
    knows = f"It knows seal {head['seq']:,}"
    if head["seq"] > at:
        here = f"the newest one here is {at:,}" if at else "there is none here"
        return Finding(ALARM, about, f"{knows}, and {here}: seals were removed, and their releases with them.")
    if newest is not None and head["seq"] == at:
        if head["mac"] != newest["mac"]:
            return Finding(ALARM, about, f"{knows} with other contents than here: the chain was rewritten.")
        return Finding(GOOD, about, f"Agrees: {knows[3:]}, and it is the same here.")
    if newest is not None and now - datetime.fromisoformat(newest["sealed_at"]) > STUCK:
        return Finding(WARNING, about, f"{knows}, and the newest one here is {at:,}: it has stopped following.")
    return Finding(GOOD, about, f"{knows} of {at:,}; it follows within seconds.")


def _verified(witness: Mapping[str, Any] | None) -> Finding:
    about = "Last verification"
    if witness is None:
        return Finding(UNKNOWN, about, "Unknown: the operators' service is unavailable.")
    last = witness["verification"]
    if last is None:
        return Finding(NOTE, about, "There has been none. An operator can run: ecom audit verify")
    by = f"by {last['actor']}, {readable(last['finished_at'])}"
    if not last["intact"]:
        return Finding(ALARM, about, f"The audit is not intact: {last['outcome']} Verified {by}.")
    return Finding(GOOD, about, f"Intact: {_count(last['rows'], 'release')} in {_count(last['seals'], 'seal')}, {by}.")


def form(typed: Mapping[str, str], problems: Mapping[str, Sequence[str]] = MappingProxyType({})) -> list[Field]:
    """The fields of the form. Text that is not a date stays as typed, in a field that can hold it."""
    return [
        Field(
            name,
            label,
            _kind(typed.get(name, "")) if name in MOMENTS else "text",
            typed.get(name, ""),
            _included(typed.get(name, "")) if name == "to" else "",
            " ".join(problems.get(name, ())),
        )
        for name, label in FILTERS.items()
    ]


def _included(typed: str) -> str:
    return "that day is included" if _kind(typed) == "date" else "that time is not included"


def _kind(typed: str) -> str:
    if not typed or DATE.fullmatch(typed):
        return "date"
    return "datetime-local" if WITHOUT_ZONE.fullmatch(typed) else "text"


def by_reason(totals: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Releases, units and chart colour of each reason, the reason with the most units first."""
    totals = list(totals)
    releases: Counter[str] = Counter()
    units: Counter[str] = Counter()
    for row in totals:
        releases[row["reason"]] += row["releases"]
        units[row["reason"]] += row["quantity"]
    series = series_of(totals)
    return [
        {
            "reason": reason,
            "releases": releases[reason],
            "units": units[reason],
            "series": series.index(reason) if reason in series else len(series) - 1,
        }
        for reason in sorted(units, key=lambda name: (-units[name], name))
    ]


def as_typed(filters: Mapping[str, Any]) -> dict[str, str]:
    """Filters as the form shows them: whole days become dates. Reading the form gives the same filters again."""
    typed = {name: str(filters[name]) for name in FILTERS if name in filters}
    for name in MOMENTS & typed.keys():
        moment = datetime.fromisoformat(typed[name])
        if typed[name].endswith("T00:00:00.000Z") and (name == "from" or moment.date() > date.min):
            typed[name] = _day(typed[name], just_before=name == "to").isoformat()
        else:
            typed[name] = typed[name].removesuffix("Z").removesuffix(".000")
    return typed


def _day(moment: str, just_before: bool = False) -> date:
    found = datetime.fromisoformat(moment)
    return (found - timedelta(microseconds=1) if just_before and found > EARLIEST else found).date()


EARLIEST = datetime.min.replace(tzinfo=UTC)


def _address(parameters: Mapping[str, Any]) -> str:
    return f"{HOME}?{urlencode(parameters)}"


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")
