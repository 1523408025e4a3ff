"""Releases for auditors: linked to the operations of operators, and streamed as a CSV without holding a worker.

A failure before the first byte of an export is an error like any other. A later failure is retried for a while; then
the connection is broken off, so that the client notices: the transfer is incomplete and the file has no manifest.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from werkzeug.wrappers import Request, Response

from gateway.api.answering import respond
from gateway.api.http import Call, Holding
from shared.edge import green
from shared.edge.green import MINIMUM_WRITE_CHUNK_SIZE
from shared.edge.rpc_proxy import CALL_TIMEOUT_S, Replies
from shared.errors import CannotWork, ServiceUnavailable
from shared.exports import Reader, header_line, manifest_line, release_lines

log = logging.getLogger(__name__)

# Rows read in one call: larger pages are no faster and would delay the other requests of both processes.
ROWS_PER_PAGE = 1000
# After each piece the export checks whether the client has gone or the service stops. A slow client takes one by one.
PIECE_BYTES = 32 * 1024
# A service that restarts is back within this time.
RETRY_TIMEOUT_S = 30.0
PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
# When the gateway stops, running exports have this long to finish; the server drains a little longer.
STOP_S = 10.0

# A longer name of a file is cut: most systems allow 255 bytes.
MAX_NAME = 150
# The filters that the name of a file tells, beside the time range.
NAMED = ("sku", "reason", "user_id", "order_id", "trace_id")

_PREPARED = "ecom.prepared"

Release = Mapping[str, Any]
Operations = Mapping[str, Sequence[Mapping[str, Any]]]


class BrokenOff(Exception):
    """An export ends before its last row."""


class Export(Holding):
    """A route that answers with a CSV of releases. Its method opens the export and returns {export_id}.

    The query parameter `for` says who reads the file; without it, `reader` does.
    """

    content_type = "text/csv; charset=utf-8"
    answer_headers: ClassVar[dict[str, tuple[str, dict[str, Any]]]] = {
        "Content-Disposition": ("The name of the file.", {"type": "string"})
    }
    replies = Replies()
    reader = Reader.PROGRAMS
    stops_at = math.inf

    def stop(self) -> None:
        self.stops_at = time.monotonic() + STOP_S
        super().stop()

    def handle_request(self, request: Request) -> Response:
        if request.method != "HEAD":
            return super().handle_request(request)
        try:  # without opening an export, because every export is recorded
            self.prepare(request)
            return self._head(request)
        except Exception as error:
            return self.refuse(request, error)

    def prepare(self, request: Request) -> tuple[tuple[Call], dict[str, Any]]:
        (call,), context = super().prepare(request)
        request.environ[_PREPARED] = call, context
        return (call,), context

    def answer(self, request: Request, result: Any) -> Response:
        call, context = request.environ[_PREPARED]
        running = Running(result["export_id"], partial(self._ask, context), partial(self._check, call), call.trace_id)
        running.reader = self._reader(call)
        running.read()  # an error of the first page still gets its status
        response = self._head(request)
        response.response = running.file()
        request.environ[MINIMUM_WRITE_CHUNK_SIZE] = 0  # from here on an error breaks the connection
        return response

    def _head(self, request: Request) -> Response:
        call, _ = request.environ[_PREPARED]
        headers = [("Content-Disposition", f'attachment; filename="{filename(call.query, self._reader(call))}"')]
        response = respond(request.environ, self.status, "", headers, self.content_type)
        del response.headers["Content-Length"]
        return response

    def _reader(self, call: Call) -> Reader:
        return Reader(call.query.get("for", self.reader))

    def _ask(self, context: dict[str, Any], method: str, *args: Any) -> Any:
        return self.replies.call(method, args, {}, context, CALL_TIMEOUT_S)

    def _check(self, call: Call) -> None:
        """Raises BrokenOff when the client has gone, its token was revoked or the time to stop is over."""
        if call.has_gone():
            raise BrokenOff("its client has gone")
        if self.is_shut_out(call):
            raise BrokenOff("its token was revoked")
        if time.monotonic() > self.stops_at:
            raise BrokenOff("the service stops")


export = Export.decorator


class Running:
    """An export in progress. It holds one page at a time in memory.

    `ask(method, *args)` calls another service. `check()` raises BrokenOff when the export must end.
    """

    def __init__(self, export_id: str, ask: Callable[..., Any], check: Callable[[], None], trace_id: str) -> None:
        self.export_id = export_id
        self.trace_id = trace_id
        self.reader = Reader.PROGRAMS
        self.rows = 0
        self._ask = ask
        self._check = check
        self._releases: list[dict[str, Any]] = []
        self._cursor: str | None = None

    def read(self) -> None:
        """Read the next page. Raises ServiceUnavailable, CannotWork."""
        page = self._ask("inventory_service.release_export_page", self.export_id, ROWS_PER_PAGE, self._cursor)
        operations = self._ask("ops_service.operations_of", orders_in(page["items"]))
        self._releases, self._cursor = linked(page["items"], operations), page["next_cursor"]

    def file(self) -> Iterator[bytes]:
        """The file in pieces, from the page already read on. An exception is logged and ends it in the middle."""
        try:
            for lines in self._lines():
                for first in range(0, len(lines), PIECE_BYTES):
                    self._check()
                    yield lines[first : first + PIECE_BYTES]
        except (BrokenOff, GeneratorExit) as error:
            log.warning("%s was broken off: %s", self, error or "its client has gone")
            raise
        except Exception:
            log.exception("%s failed", self)
            raise

    def __str__(self) -> str:
        return f"export {self.export_id}, after {self.rows} rows, under trace {self.trace_id},"

    def _lines(self) -> Iterator[bytes]:
        checksum = hashlib.sha256()
        lines = header_line(self.reader)
        while True:
            lines += release_lines(self._releases, self.reader)
            self.rows += len(self._releases)
            checksum.update(lines)
            yield lines
            if self._cursor is None:
                break
            lines = b""
            self._with_retries(self.read)
        end = "inventory_service.close_release_export", self.export_id, self.rows, checksum.hexdigest()
        yield manifest_line(self._with_retries(partial(self._ask, *end)))

    def _with_retries(self, ask: Callable[[], Any]) -> Any:
        """The result of `ask`, which is retried while the service is unavailable. Raises BrokenOff."""
        until, pause = time.monotonic() + RETRY_TIMEOUT_S, PAUSE_S
        while True:
            self._check()
            try:
                return ask()
            except (CannotWork, ServiceUnavailable) as error:
                if time.monotonic() + pause > until:
                    raise BrokenOff(str(error)) from error
            green.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)


def linked(releases: Sequence[Release], operations: Operations | None) -> list[dict[str, Any]]:
    """Releases, each with the `operations` on its order before it; None if the operations are not known."""
    return [
        {**release, "operations": None if operations is None else _before(release, operations)} for release in releases
    ]


def _before(release: Release, operations: Operations) -> list[Mapping[str, Any]]:
    return [
        operation for operation in operations.get(release["order_id"], ()) if operation["at"] <= release["released_at"]
    ]


def orders_in(releases: Sequence[Release]) -> list[str]:
    """The order ids of releases, without repetition."""
    return list(dict.fromkeys(release["order_id"] for release in releases))


def filename(filters: Mapping[str, Any], reader: Reader) -> str:
    """The name of the file, with its filters and its reader, in characters that are safe on every system.

    Files with other filters or another reader have another name: filters that had to be changed are followed by a hash
    of what they were, and a file for spreadsheets says so.
    """
    since, until = (_compact(filters[name]) if name in filters else "" for name in ("from", "to"))
    span = [f"{since or 'begin'}_{until or 'now'}"] if since or until else []
    name = "_".join([*span, *(f"{name}-{filters[name]}" for name in NAMED if name in filters)]) or "all"
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:MAX_NAME]
    changed = "" if safe == name else f"-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    made_for = "" if reader is Reader.PROGRAMS else f"_for-{reader}"
    return f"release-events_{safe}{changed}{made_for}.csv"


def _compact(at: str) -> str:
    return at.removesuffix("Z").removesuffix(".000").replace("-", "").replace(":", "") + "Z"
