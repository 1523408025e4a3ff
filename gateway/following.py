"""Following an order: waiting for a state, and hearing of its steps as they happen. Neither holds a worker."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

from werkzeug.wrappers import Request, Response

from gateway.api.answering import as_json, respond
from gateway.api.http import Api, Call
from shared.edge.rpc_proxy import CALL_TIMEOUT_S
from shared.edge.watch import Watch, wait_for
from shared.errors import BadRequest, CannotWork, ServiceUnavailable

# A proxy or a phone gives up a connection on which nothing happens.
STILL_HERE_S = 15.0
# The client comes again and says what it has seen.
LONGEST_S = 600.0
# When the order service could not say what is new.
AGAIN_S = 1.0
COME_AGAIN = b"retry: 1000\n\n"
STILL_HERE = b": still here\n\n"

EVENT_ID = re.compile("[0-9]{1,18}")

_ASKED = "ecom.asked"


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
            call.has_gone,
        )


waiting = Waiting.decorator


class Stream(Following):
    """Server-Sent Events: each step of the order, those so far first, or those after Last-Event-ID."""

    content_type = "text/event-stream"
    reads_headers: ClassVar[dict[str, tuple[str, dict[str, Any]]]] = {
        "Last-Event-ID": (
            "the id of the last event that was heard: those after it follow",
            {"type": "string", "pattern": f"^{EVENT_ID.pattern}$", "examples": ["0"]},
        )
    }

    def prepare(self, request: Request) -> tuple[tuple[Call], dict[str, Any]]:
        (call,), context = super().prepare(request)
        call = replace(call, query={"after": last_event_id(request)})
        request.environ[_ASKED] = call, context
        return (call,), context

    def answer(self, request: Request, result: Any) -> Response:
        # nginx would keep events back until a buffer is full.
        headers = [("X-Accel-Buffering", "no")]
        response = respond(request.environ, self.status, "", headers, self.content_type)
        del response.headers["Content-Length"]
        order_id = str(request.path_values["order_id"])  # type: ignore[attr-defined]
        response.response = self._events(order_id, result, *request.environ[_ASKED])
        request.environ["eventlet.minimum_write_chunk_size"] = 0  # each event goes out by itself
        return response

    def _events(self, order_id: str, known: dict[str, Any], call: Call, context: dict[str, Any]) -> Iterator[bytes]:
        until = time.monotonic() + min(LONGEST_S, call.expires_at - time.time())
        last, steps, behind = call.query["after"], known["steps"], False
        with self.watch.waiter(order_id, call.has_gone) as waiter:
            waiter.know({"version": known["version"]})
            yield COME_AGAIN
            while True:
                for step in steps:
                    last = step["id"]
                    yield f"id: {last}\nevent: {step['event']}\ndata: {as_json(step)}\n\n".encode()
                steps = []
                patience = AGAIN_S if behind else STILL_HERE_S
                moved = waiter.wait(min(patience, max(0.0, until - time.monotonic())))
                if waiter.ended or time.monotonic() >= until:
                    return
                if not (moved or behind):
                    yield STILL_HERE
                    continue
                try:
                    known = self.watch.replies.call(
                        "order_service.steps", [order_id, last], {}, context, CALL_TIMEOUT_S
                    )
                except (CannotWork, ServiceUnavailable):
                    # Not the end: a browser that comes again and meets a 503 gives up for good.
                    behind = True
                    yield STILL_HERE
                else:
                    behind, steps = False, known["steps"]
                    waiter.know({"version": known["version"]})


stream = Stream.decorator


def last_event_id(request: Request) -> int:
    """The last step that the client has seen; 0 for none. Raises BadRequest."""
    given = request.environ.get("HTTP_LAST_EVENT_ID", "0")
    if not EVENT_ID.fullmatch(given):
        raise BadRequest("Last-Event-ID must be the id of an event.")
    return int(given)
