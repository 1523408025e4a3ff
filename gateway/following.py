"""Following an order: waiting for a state, and hearing of its steps as they happen. Neither holds a worker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from werkzeug.wrappers import Request, Response

from gateway.http import Api, Call, as_json, respond
from shared.edge.rpc_proxy import CALL_TIMEOUT_S
from shared.edge.watch import Watch, wait_for
from shared.errors import BadRequest, EcomError

# A proxy or a phone gives up a connection on which nothing happens.
STILL_HERE_S = 15.0
# Shorter than a token lives. The client comes again and says what it has seen.
LONGEST_S = 600.0
COME_AGAIN = b"retry: 1000\n\n"
STILL_HERE = b": still here\n\n"

_CONTEXT = "ecom.context"


class Following(Api):
    """A route whose clients wait for an order to change."""

    watch = Watch("order_service.changed_orders", "order_id")

    def stop(self) -> None:
        self.watch.release()
        super().stop()


class Waiting(Following):
    """Answers at once, or as soon as the order is in one of the states of `wait`, or when `timeout` is over."""

    def _in_a_worker(self, args: Any, kwargs: Any, context: dict[str, Any]) -> Any:
        call: Call = args[0]
        ask = super()._in_a_worker
        wanted = call.query.get("wait")
        if not wanted:
            return ask(args, kwargs, context)
        return wait_for(
            self.watch,
            str(kwargs["order_id"]),
            lambda: ask(args, kwargs, context),
            lambda order: order["status"] in wanted,
            call.query["timeout"],
        )


waiting = Waiting.decorator


class Stream(Following):
    """Server-Sent Events: each step of the order, those so far first, or those after Last-Event-ID."""

    content_type = "text/event-stream"

    def prepare(self, request: Request) -> tuple[tuple[Call], dict[str, Any]]:
        (call,), context = super().prepare(request)
        request.environ[_CONTEXT] = context
        return (replace(call, query={"after": last_event_id(request)}),), context

    def answer(self, request: Request, result: Any) -> Response:
        response = respond(request.environ, self.status, "", content_type=self.content_type)
        order_id = str(request.path_values["order_id"])  # type: ignore[attr-defined]
        response.response = self._events(order_id, result, last_event_id(request), request.environ[_CONTEXT])
        del response.headers["Content-Length"]
        request.environ["eventlet.minimum_write_chunk_size"] = 0  # each event goes out by itself
        return response

    def _events(self, order_id: str, known: dict[str, Any], last: int, context: dict[str, Any]) -> Iterator[bytes]:
        until = time.monotonic() + LONGEST_S
        with self.watch.waiter(order_id) as waiter:
            waiter.see({"version": known["version"]})
            yield COME_AGAIN
            while True:
                for step in known["steps"]:
                    last = step["id"]
                    yield f"id: {last}\nevent: {step['event']}\ndata: {as_json(step)}\n\n".encode()
                moved = waiter.wait(STILL_HERE_S)
                if self.watch.stopped or time.monotonic() > until:
                    return
                if not moved:
                    yield STILL_HERE
                try:
                    known = self.watch.replies.call(
                        "order_service.steps", [order_id, last], {}, context, CALL_TIMEOUT_S
                    )
                except EcomError:
                    return  # the client comes again, and hears why


stream = Stream.decorator


def last_event_id(request: Request) -> int:
    """The last step that the client has seen; 0 for none. Raises BadRequest."""
    given = request.environ.get("HTTP_LAST_EVENT_ID", "0")
    if not (given.isascii() and given.isdecimal() and len(given) < 19):
        raise BadRequest("Last-Event-ID must be the id of an event.")
    return int(given)
