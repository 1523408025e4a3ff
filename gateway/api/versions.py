"""The versions of the API, when each of them ends, and what answers say about it.

A version is made only for a breaking change. Routes say `since=` which version is their first; a route of a later
version with the same method and path takes over there. All versions call the same RPC methods.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from email.utils import format_datetime
from typing import Any, Protocol
from urllib.parse import quote

from marshmallow import Schema, fields
from werkzeug.wrappers import Response

from shared.edge.http import Environ
from shared.errors import VersionGone, VersionMismatch
from shared.metrics import DEPRECATED_REQUESTS
from shared.version import VERSION

log = logging.getLogger(__name__)

ROOT = "/api"
# Where people read what changes.
DOCS = "/docs"


@dataclass(frozen=True)
class Version:
    """One version: its routes are under /api/v<number>, those of version 1 also under /api.

    From the day `deprecated` on, clients are asked to move; from the day `sunset` on, every request is 410. Days are
    those of UTC.
    """

    number: int
    released: date
    deprecated: date | None = None
    sunset: date | None = None


@dataclass(frozen=True)
class Part:
    """A route or a field that ends while its version goes on.

    `name` is a route as documents show it, `GET /api/orders/{order_id}`, or a field of a schema,
    `OrderRequest.currency`. `instead` is what replaces it: of a route the path, `/api/orders/{order_id}/timeline`, of a
    field some words. A route is 410 from the day `sunset` on; a field may be removed from that day on.
    """

    name: str
    deprecated: date
    sunset: date
    instead: str


VERSIONS = (Version(1, released=date(2026, 11, 28)),)
DEPRECATED: tuple[Part, ...] = ()

_VERSIONED = re.compile(rf"{ROOT}/v([1-9][0-9]{{0,3}})(?=/|$)")
_HEADER = re.compile(r"([1-9][0-9]{0,3})(?:\.[0-9]{1,6})?")
# Of this release: the second number of X-API-Version.
_RELEASE = VERSION.split(".")[1]

# Past so many users in one day no further one is logged, so that memory stays bounded.
MAX_USERS = 10_000
DAY_S = 86_400

_ENDING = "ecom.ending"
_OLD_FIELDS = "ecom.deprecated_fields"


class Served(Protocol):
    """What is asked of a route here."""

    method: str
    url: str
    since: int


@dataclass(frozen=True)
class Ending:
    """When something ends that a request asked for, and the address of what replaces it, if there is one."""

    what: str
    deprecated: date
    sunset: date | None
    successor: str

    def __str__(self) -> str:
        until = f" and ends on {self.sunset}" if self.sunset else ""
        instead = f" Use `{self.successor}`." if self.successor else ""
        return f"{self.what} is deprecated since {self.deprecated}{until}.{instead}"

    def headers(self) -> list[tuple[str, str]]:
        """As RFC 9745 and RFC 8594 want it told."""
        told = [("Deprecation", _seconds(self.deprecated)), ("Link", f'<{DOCS}>; rel="deprecation"; type="text/html"')]
        if self.sunset is not None:
            told.append(("Sunset", format_datetime(_midnight(self.sunset), usegmt=True)))
            told.append(("Link", f'<{DOCS}>; rel="sunset"; type="text/html"'))
        if self.successor:
            told.append(("Link", f'<{quote(self.successor)}>; rel="successor-version"'))
        return told


class Versions:
    """The versions of one service. `now()` is the time in seconds since 1970."""

    def __init__(
        self,
        table: Iterable[Version] = VERSIONS,
        parts: Iterable[Part] = DEPRECATED,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.table = tuple(table)
        self.parts = {part.name: part for part in parts}
        self.newest = self.table[-1]
        self._now = now
        self._by_number = {version.number: version for version in self.table}
        self._label = {version.number: f"{version.number}.{_RELEASE}" for version in self.table}
        self._first = self._label[self.table[0].number]
        self._day = 0
        self._users: set[str] = set()

    def asked(self, path: str) -> Version | None:
        """The version of a path; None outside of the API, and for a version that never was."""
        if path == ROOT or path.startswith(f"{ROOT}/"):
            found = _VERSIONED.match(path)
            return self._by_number.get(int(found[1]) if found else 1)
        return None

    def serving(self, route: Served, routes: Iterable[Served]) -> list[Version]:
        """The versions in which a route answers its path: from its first on, until another of the `routes` takes over.

        Of those that are past their sunset the answer is 410.
        """
        later = (
            other.since
            for other in routes
            if (other.method, other.url) == (route.method, route.url) and other.since > route.since
        )
        until = min(later, default=self.newest.number + 1)
        return [version for version in self.table if route.since <= version.number < until]

    def begin(self, environ: Environ, name: str, values: Mapping[str, Any]) -> None:
        """A request has come to a route: note what ends. Raises VersionGone past its sunset.

        `name` is the route as in a Part, `values` what stands for the names in its path.
        """
        path = environ["PATH_INFO"]
        version = self.asked(path)
        ending = version and self.ending(version.number, path, name, values)
        if ending:
            environ[_ENDING] = ending
            self._check(ending)

    def check_unmatched(self, environ: Environ) -> None:
        """A request has come to no route. Raises VersionGone if its version is past its sunset."""
        path = environ.get("PATH_INFO", "")
        version = self.asked(path)
        ending = version and self.ending(version.number, path)
        if ending:
            self._check(ending)

    def check_header(self, environ: Environ) -> None:
        """Raises VersionMismatch for a request whose X-API-Version is not that of its path."""
        given = environ.get("HTTP_X_API_VERSION")
        if given is None:
            return
        version = self.asked(environ["PATH_INFO"])
        match = _HEADER.fullmatch(given.strip())
        if version is not None and (match is None or int(match[1]) != version.number):
            raise VersionMismatch(details={"path": version.number, "header": given[:20]})

    def note_use(self, environ: Environ, route: str, user: str, old_fields: Iterable[Part] = ()) -> None:
        """Count a request for what is deprecated, and log the first of each user and day."""
        sent = list(old_fields)
        if sent:
            environ[_OLD_FIELDS] = ", ".join(
                f'"{part.name.partition(".")[2]}";deprecated={_seconds(part.deprecated)};sunset={_seconds(part.sunset)}'
                for part in sent
            )
        ending: Ending | None = environ.get(_ENDING)
        if ending is None and not sent:
            return
        version = self.asked(environ["PATH_INFO"]) or self.table[0]
        DEPRECATED_REQUESTS.labels(route, str(version.number)).inc()
        day = int(self._now() // DAY_S)
        if day != self._day:
            self._day, self._users = day, set()
        if user not in self._users and len(self._users) < MAX_USERS:
            self._users.add(user)
            what = [*([ending.what] if ending else []), *(part.name for part in sent)]
            log.warning("%s uses what is deprecated, by %s: %s", user, route, ", ".join(what))

    def forget(self) -> None:
        """Forget who was logged today."""
        self._users.clear()

    def finish(self, response: Response, environ: Environ) -> None:
        """Say in an answer which version it is of; and of what ends, when it ends and what replaces it."""
        path = environ.get("PATH_INFO", "")
        version = self.asked(path)
        response.headers.add("X-API-Version", self._label[version.number] if version else self._first)
        ending = environ.get(_ENDING) or (version and self.ending(version.number, path))
        if ending:
            response.headers.extend(ending.headers())
        if _OLD_FIELDS in environ:
            response.headers.add("X-Deprecated-Fields", environ[_OLD_FIELDS])

    def ending(self, number: int, path: str, name: str = "", values: Mapping[str, Any] | None = None) -> Ending | None:
        """What ends first: a version, or its route of this name. `values` stand for the names in the route's path."""
        version, part = self._by_number[number], self.parts.get(name)
        ends: Ending | None = None
        if version.deprecated is not None:
            later = next((other for other in self.table if other.number > number), None)
            successor = in_version(later.number, _VERSIONED.sub(ROOT, path, count=1)) if later else ""
            ends = Ending(f"version {number}", version.deprecated, version.sunset, successor)
        if part is not None and (ends is None or ends.sunset is None or part.sunset < ends.sunset):
            instead = part.instead if values is None else part.instead.format_map(values)
            ends = Ending(name, part.deprecated, part.sunset, in_version(number, instead))
        return ends

    def _check(self, ending: Ending) -> None:
        if ending.sunset is not None and self._now() >= _midnight(ending.sunset).timestamp():
            details = {"sunset": ending.sunset.isoformat(), "successor": ending.successor}
            raise VersionGone(f"{ending.what[0].upper()}{ending.what[1:]} has ended.", details)


def in_version(number: int, path: str) -> str:
    """A path of the API, written without a version, as it is in a version. Other paths are the same in all."""
    return path if number == 1 else path.replace(f"{ROOT}/", f"{ROOT}/v{number}/", 1) if is_api(path) else path


def is_api(path: str) -> bool:
    """Whether a path belongs to the API, which has versions."""
    return path.startswith(f"{ROOT}/")


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _seconds(day: date) -> str:
    """A day as RFC 9651 writes a date: seconds since 1970."""
    return f"@{_midnight(day).timestamp():.0f}"


def deprecated_in(schema: Schema | None, parts: Mapping[str, Part]) -> list[tuple[tuple[str, ...], Part]]:
    """The deprecated fields of a body or a query, each with the names that lead to it."""
    return [(names, parts[name]) for name, names in _fields(schema) if name in parts] if schema and parts else []


def _fields(schema: Schema, before: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...]]]:
    for shape in getattr(schema, "shapes", ()):
        yield from _fields(shape(), before)
    for attribute, item in schema.fields.items():
        names = (*before, item.data_key or attribute)
        yield f"{type(schema).__name__}.{names[-1]}", names
        inner = item.inner if isinstance(item, fields.List) else item
        if isinstance(inner, fields.Nested):
            yield from _fields(inner.schema, names)


def is_sent(content: Any, names: tuple[str, ...]) -> bool:
    """Whether a body has the field to which the names lead, in any item of the lists on the way."""
    if not names:
        return True
    if isinstance(content, list):
        return any(is_sent(item, names) for item in content)
    return isinstance(content, Mapping) and names[0] in content and is_sent(content[names[0]], names[1:])
