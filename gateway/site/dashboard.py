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
from gateway.api.fields import PAGE
from gateway.api.reading import query_of
from gateway.export import linked
from gateway.site.chart import chart, colour_of
from gateway.site.filters import DATE, WITHOUT_ZONE, dashboard_filters, default_filters
from gateway.site.pages import readable
from gateway.site.sessions import HOME, SessionPage, Visitor, show
from shared.edge.http import Environ
from shared.errors import BadRequest, EcomError, UnknownParameter

# Seals are made every second, and the operators' ledger follows within seconds. After this time something is stuck.
STUCK = timedelta(minutes=1)
# A verification of every release is good for this long: `ecom audit verify` is meant to run every day.
RECENT = timedelta(days=1, hours=1)
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
    "sku": "SKU",
    "reason": "Reason",
    "user_id": "Requested by",
    "order_id": "Order",
    "trace_id": "Trace",
}
MOMENTS = {"from", "to"}
# Filters by a text, in which upper and lower case are different.
TEXTS = {"sku", "reason", "user_id"}


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
        return self.show(environ, "filters.html", fields=fields, filtered="", message=message, reasons=[])


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
    filters = dashboard_filters(query)
    typed = as_typed(filters)
    # An empty `from` keeps an open range open: without any filter the page would show only the last days.
    address = {"from": "", **typed}
    if query["limit"] != PAGE:
        address |= {"limit": query["limit"]}
    reasons = by_reason(audit.totals)
    total = sum(row["releases"] for row in reasons)
    return show(
        "dashboard.html",
        visitor=visitor,
        fields=form(typed),
        filtered=described(filters),
        message="",
        findings=findings(audit.chain, audit.witness, now),
        reasons=reasons,
        chart=chart(audit.totals, *_days(filters, now)),
        releases=linked(audit.releases["items"], audit.operations),
        case_counts=not TEXTS.isdisjoint(filters),
        pages=_pages(audit.releases, total, query, address),
        export=f"{HOME}/export?{urlencode(typed)}",
        export_name=_export_name(total, is_filtered=bool(filters)),
        exports=[{**export, "filters": described(export["filters"])} for export in audit.exports],
    )


@dataclass(frozen=True)
class Pages:
    """The number of this page, of all pages, and the addresses of the others; None for one that does not exist."""

    number: int
    of: int
    first: str | None
    previous: str | None
    next: str | None


def _pages(releases: Mapping[str, Any], total: int, query: Mapping[str, Any], address: Mapping[str, Any]) -> Pages:
    # Newer releases may have come since this address was made, so a later page never counts as the first one.
    number = 1 if releases["is_first"] else max(query["page"], 2)
    has_previous = not releases["is_first"] and releases["items"]
    before = {"before": releases["items"][0]["id"], "page": max(number - 1, 1)} if has_previous else {}
    after = {"cursor": releases["next_cursor"], "page": number + 1}
    return Pages(
        number,
        max(number, -(-total // query["limit"])),
        None if releases["is_first"] else _address(address),
        _address({**address, **before}) if before else None,
        _address({**address, **after}) if releases["next_cursor"] else None,
    )


def _days(filters: Mapping[str, Any], now: datetime) -> tuple[date | None, date | None]:
    """The first and the last day of the chart. Without filters of its user, the chart has the days of the releases."""
    if filters == default_filters():
        return None, None
    first = _day(filters["from"]) if "from" in filters else None
    return first, _day(filters["to"], just_before=True) if "to" in filters else now.date()


def _export_name(total: int, is_filtered: bool) -> str:
    if total < 2:
        return "Download this one as CSV" if total else "Download the empty list as CSV"
    return f"Download {'these' if is_filtered else 'all'} {total:,} as CSV"


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
    return [
        _sealed(chain),
        _waiting(chain, now),
        _agreement(chain["newest"], witness, now),
        _verified(chain, witness, now),
    ]


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


def _verified(chain: Mapping[str, Any], witness: Mapping[str, Any] | None, now: datetime) -> Finding:
    about = "Last verification"
    if witness is None:
        return Finding(UNKNOWN, about, "Unknown: the operators' service is unavailable.")
    last = witness["verification"]
    if last is None:
        return Finding(NOTE, about, "There has been none. An operator can run: ecom audit verify")
    by = f"Verified by {last['actor']}, {readable(last['finished_at'])}."
    if not last["intact"]:
        return Finding(ALARM, about, f"The audit is not intact: {last['outcome']} {by}")
    total = chain["rows"] + chain["waiting"]
    newer = total - last["rows"]
    if newer > 0:
        are = "newer one is" if newer == 1 else "newer ones are"
        verified = (
            f"{last['rows']:,} of {_count(total, 'release')} verified and intact; {newer:,} {are} not yet verified."
        )
        return Finding(NOTE, about, f"{verified} {by}")
    age = now - datetime.fromisoformat(last["finished_at"])
    text = f"All of {_count(last['rows'], 'release')} verified and intact. {by}"
    return (
        Finding(GOOD, about, text)
        if age <= RECENT
        else Finding(NOTE, about, f"{text} That was {_count(age.days, 'day')} ago.")
    )


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
    return [
        {
            "reason": reason,
            "releases": releases[reason],
            "units": units[reason],
            "colour": colour_of(reason),
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


def described(filters: Mapping[str, Any]) -> str:
    """Filters in words, in the order of the form; empty without a filter."""
    typed = as_typed(filters)
    return ", ".join(
        f"{label.removesuffix(' (UTC)')} {typed[name]}" for name, label in FILTERS.items() if name in typed
    )


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
