"""Following orders: waiting for a state, and streaming steps as they happen. None of it holds a worker."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any, ClassVar

from werkzeug.wrappers import Request, Response

from gateway.api.answering import EVENT_STREAM, as_json, respond
from gateway.api.http import Call, Holding
from shared.edge.green import MINIMUM_WRITE_CHUNK_SIZE
from shared.edge.rpc_proxy import CALL_TIMEOUT_S
from shared.edge.watch import HintedWatch, Watch, wait_for
from shared.errors import BadRequest, CannotWork, ServiceUnavailable
from shared.feed import BEGINNING, NOW, STREAM_PAGE

# Proxies and phones close connections that are silent for too long, so the stream sends a comment.
KEEP_ALIVE_S = 15.0
# Then the client reconnects with the id of the last event it received.
MAX_STREAM_S = 600.0
# The pause before order_service is asked again after it was unavailable.
RETRY_S = 1.0
RECONNECT = b"retry: 1000\n\n"
KEEP_ALIVE = b": still here\n\n"
# The event after the last step of an order at rest.
END = "end"

EVENT_ID = re.compile("[0-9]{1,18}")

# A position in the feed.
POSITION = re.compile(f"(?:{BEGINNING}|[0-9]{{1,18}}-[0-9]{{1,18}})")

_PREPARED = "ecom.prepared"

# Clients that a test runs, shown by /docs and docs/streams.md.
SAMPLES = Path(__file__).with_name("samples")
CLIENTS = {"Python": "stream.py", "JavaScript": "stream.mjs"}


class Following(Holding):
    """A route whose clients wait for an order to change."""

    watch: Watch = HintedWatch("order_service.changed_orders", "order_id")

    def stop(self) -> None:
        self.watch.release()
        super().stop()


class Waiting(Following):
    """Answers when the order is in one of the states of `wait` or `timeout` has passed; at once without `wait`."""

    def holds(self, request: Request, call: Call) -> bool:
        return bool(call.query.get("wait"))

    def _in_a_worker(self, args: Any, kwargs: Any, context: dict[str, Any]) -> Any:
        call: Call = args[0]
        ask = super()._in_a_worker
        if not call.query.get("wait"):
            return ask(args, kwargs, context)
        wanted = call.query["wait"].split(",")
        return wait_for(
            self.watch,
            str(kwargs["order_id"]),
            lambda: ask(args, kwargs, context),
            lambda order: order["status"] in wanted,
            call.query["timeout"],
            call.has_gone,
        )


waiting = Waiting.decorator


class Streaming(Following):
    """Server-Sent Events until the stream has lasted for MAX_STREAM_S, or its token expires or is revoked.

    A stream looks at least each KEEP_ALIVE_S whether its token was revoked.
    """

    def stream(self, request: Request, events: Iterable[bytes]) -> Response:
        """The answer that sends these events, each at once."""
        # Otherwise nginx holds events back until a buffer is full.
        headers = [("X-Accel-Buffering", "no")]
        response = respond(request.environ, self.status, "", headers, EVENT_STREAM)
        del response.headers["Content-Length"]
        response.response = events
        request.environ[MINIMUM_WRITE_CHUNK_SIZE] = 0
        return response

    def ask(self, method: str, args: list[Any], context: dict[str, Any]) -> dict[str, Any] | None:
        """What order_service answers, or None while it is unavailable.

        The stream goes on then: a browser that reconnects and gets a 503 gives up for good.
        """
        try:
            answer: dict[str, Any] = self.watch.replies.call(method, args, {}, context, CALL_TIMEOUT_S)
        except (CannotWork, ServiceUnavailable):
            return None
        return answer


class Stream(Streaming):
    """The steps of one order so far, or those after Last-Event-ID, then each new step, and `end` when none is due."""

    content_type = EVENT_STREAM
    samples: ClassVar[dict[str, str]] = {
        language: (SAMPLES / file).read_text(encoding="utf-8") for language, file in CLIENTS.items()
    }
    reads_headers: ClassVar[dict[str, tuple[str, dict[str, Any]]]] = {
        "Last-Event-ID": (
            "the id of the last event received: the stream continues after it",
            {"type": "string", "pattern": f"^{EVENT_ID.pattern}$", "examples": ["0"]},
        )
    }

    def prepare(self, request: Request) -> tuple[tuple[Call], dict[str, Any]]:
        (call,), context = super().prepare(request)
        call = replace(call, query={"after": int(last_event_id(request, EVENT_ID) or 0)})
        request.environ[_PREPARED] = call, context
        return (call,), context

    def answer(self, request: Request, result: Any) -> Response:
        has_all = result.get("ended") and not result["steps"]
        if has_all and last_event_id(request, EVENT_ID) is not None:
            # An EventSource reconnects when a stream ends. This status alone stops it.
            response = respond(request.environ, HTTPStatus.NO_CONTENT, "")
            del response.headers["Content-Type"]
            return response
        order_id = str(request.path_values["order_id"])  # type: ignore[attr-defined]
        return self.stream(request, self._events(order_id, result, *request.environ[_PREPARED]))

    def _events(self, order_id: str, known: dict[str, Any], call: Call, context: dict[str, Any]) -> Iterator[bytes]:
        until, last = _end_of(call), call.query["after"]
        behind = False
        with self.watch.waiter(order_id, call.has_gone) as waiter:
            waiter.know({"version": known["version"]})
            yield RECONNECT
            while True:
                for step in known["steps"]:
                    last = step["id"]
                    yield _event(step["event"], step, last)
                if known.get("ended"):
                    yield _event(END, {"status": known["status"]})
                    return
                known = {"steps": []}
                timeout_s = RETRY_S if behind else KEEP_ALIVE_S
                moved = waiter.wait(min(timeout_s, max(0.0, until - time.monotonic())))
                if waiter.ended or time.monotonic() >= until or self.is_shut_out(call):
                    return
                if not (moved or behind):
                    yield KEEP_ALIVE
                    continue
                read = self.ask("order_service.steps", [order_id, last], context)
                behind = read is None
                if read is None:
                    yield KEEP_ALIVE
                else:
                    known = read
                    waiter.know({"version": known["version"]})


stream = Stream.decorator


class FeedRoute(Streaming):
    """A page of the steps of all orders; or, for `Accept: text/event-stream`, these steps and then each new one.

    Streams that have read everything wait at the same position. One question a second brings the next page to all.
    """

    watch = Watch("order_service.next_steps", "position")  # hints name orders, not positions
    streams = True
    reads_headers: ClassVar[dict[str, tuple[str, dict[str, Any]]]] = {
        "Last-Event-ID": (
            "for a stream, instead of `after`: the id of the last event received",
            {"type": "string", "pattern": f"^{POSITION.pattern}$", "examples": [BEGINNING]},
        )
    }

    def holds(self, request: Request, call: Call) -> bool:
        return wants_stream(request)

    def prepare(self, request: Request) -> tuple[tuple[Call], dict[str, Any]]:
        (call,), context = super().prepare(request)
        after = last_event_id(request, POSITION)
        if wants_stream(request):
            call = replace(call, query={"after": after or call.query["after"], "limit": STREAM_PAGE})
        request.environ[_PREPARED] = call, context
        return (call,), context

    def answer(self, request: Request, result: Any) -> Response:
        if not wants_stream(request):
            return super().answer(request, result)
        return self.stream(request, self._events(result, *request.environ[_PREPARED]))

    def _events(self, page: dict[str, Any], call: Call, context: dict[str, Any]) -> Iterator[bytes]:
        until, begins = _end_of(call), call.query["after"]
        # So that a client that began at NOW and is cut off before the first step goes on from here.
        yield f"id: {page['after'] if begins == NOW else begins}\n".encode() + RECONNECT
        while time.monotonic() < until and not self.watch.stopped and not self.is_shut_out(call):
            if page["items"]:
                yield b"".join(_event(step["event"], step, step["position"]) for step in page["items"])
            after = page["after"]
            if page["more"] and (read := self.ask("order_service.all_steps", [after, STREAM_PAGE], context)):
                page = read
                continue
            # The watch also brings the page that order_service could not give just now.
            with self.watch.waiter(after, call.has_gone) as waiter:
                waiter.know({"version": 1})
                moved = waiter.wait(min(KEEP_ALIVE_S, max(0.0, until - time.monotonic())))
            if waiter.ended:
                return
            page = waiter.state["page"] if moved else {"items": [], "after": after, "more": False}
            if not moved:
                yield KEEP_ALIVE


feed = FeedRoute.decorator


def wants_stream(request: Request) -> bool:
    """Whether the client prefers Server-Sent Events to JSON."""
    return request.accept_mimetypes.best_match(["application/json", EVENT_STREAM]) == EVENT_STREAM


def last_event_id(request: Request, shape: re.Pattern[str]) -> str | None:
    """The id of the last event that the client has received, or None. Raises BadRequest."""
    given: str | None = request.environ.get("HTTP_LAST_EVENT_ID")
    if given is not None and not shape.fullmatch(given):
        raise BadRequest("Last-Event-ID must be the id of an event.")
    return given


def _end_of(call: Call) -> float:
    """When a stream that begins now must end, by time.monotonic()."""
    return time.monotonic() + min(MAX_STREAM_S, call.expires_at - time.time())


def _event(name: str, data: dict[str, Any], id_: int | str | None = None) -> bytes:
    numbered = f"id: {id_}\n" if id_ is not None else ""
    return f"{numbered}event: {name}\ndata: {as_json(data)}\n\n".encode()
