"""Following an order: waiting for a state, and streaming its steps as they happen. Neither holds a worker."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

from werkzeug.wrappers import Request, Response

from gateway.api.answering import as_json, respond
from gateway.api.http import Api, Call
from shared.edge.green import MINIMUM_WRITE_CHUNK_SIZE
from shared.edge.rpc_proxy import CALL_TIMEOUT_S
from shared.edge.watch import Watch, wait_for
from shared.errors import BadRequest, CannotWork, ServiceUnavailable

# Proxies and phones close connections that are silent for too long, so the stream sends a comment.
KEEP_ALIVE_S = 15.0
# Then the client reconnects with the id of the last event it received.
MAX_STREAM_S = 600.0
# The pause before order_service is asked again after it was unavailable.
RETRY_S = 1.0
RECONNECT = b"retry: 1000\n\n"
KEEP_ALIVE = b": still here\n\n"

EVENT_ID = re.compile("[0-9]{1,18}")

_PREPARED = "ecom.prepared"


class Following(Api):
    """A route whose clients wait for an order to change."""

    watch = Watch("order_service.changed_orders", "order_id")

    def stop(self) -> None:
        self.watch.release()
        super().stop()


class Waiting(Following):
    """Answers when the order is in one of the states of `wait` or `timeout` has passed; at once without `wait`."""

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
    """Server-Sent Events: the steps of the order so far, or those after Last-Event-ID, and then each new step."""

    content_type = "text/event-stream"
    reads_headers: ClassVar[dict[str, tuple[str, dict[str, Any]]]] = {
        "Last-Event-ID": (
            "the id of the last event received: the stream continues after it",
            {"type": "string", "pattern": f"^{EVENT_ID.pattern}$", "examples": ["0"]},
        )
    }

    def prepare(self, request: Request) -> tuple[tuple[Call], dict[str, Any]]:
        (call,), context = super().prepare(request)
        call = replace(call, query={"after": last_event_id(request)})
        request.environ[_PREPARED] = call, context
        return (call,), context

    def answer(self, request: Request, result: Any) -> Response:
        # Otherwise nginx holds events back until a buffer is full.
        headers = [("X-Accel-Buffering", "no")]
        response = respond(request.environ, self.status, "", headers, self.content_type)
        del response.headers["Content-Length"]
        order_id = str(request.path_values["order_id"])  # type: ignore[attr-defined]
        response.response = self._events(order_id, result, *request.environ[_PREPARED])
        request.environ[MINIMUM_WRITE_CHUNK_SIZE] = 0  # each event is sent at once
        return response

    def _events(self, order_id: str, known: dict[str, Any], call: Call, context: dict[str, Any]) -> Iterator[bytes]:
        until = time.monotonic() + min(MAX_STREAM_S, call.expires_at - time.time())
        last, steps, behind = call.query["after"], known["steps"], False
        with self.watch.waiter(order_id, call.has_gone) as waiter:
            waiter.know({"version": known["version"]})
            yield RECONNECT
            while True:
                for step in steps:
                    last = step["id"]
                    yield f"id: {last}\nevent: {step['event']}\ndata: {as_json(step)}\n\n".encode()
                steps = []
                timeout_s = RETRY_S if behind else KEEP_ALIVE_S
                moved = waiter.wait(min(timeout_s, max(0.0, until - time.monotonic())))
                if waiter.ended or time.monotonic() >= until:
                    return
                if not (moved or behind):
                    yield KEEP_ALIVE
                    continue
                try:
                    known = self.watch.replies.call(
                        "order_service.steps", [order_id, last], {}, context, CALL_TIMEOUT_S
                    )
                except (CannotWork, ServiceUnavailable):
                    # The stream goes on: a browser that reconnects and gets a 503 gives up for good.
                    behind = True
                    yield KEEP_ALIVE
                else:
                    behind, steps = False, known["steps"]
                    waiter.know({"version": known["version"]})


stream = Stream.decorator


def last_event_id(request: Request) -> int:
    """The id of the last step that the client has received; 0 for none. Raises BadRequest."""
    given = request.environ.get("HTTP_LAST_EVENT_ID", "0")
    if not EVENT_ID.fullmatch(given):
        raise BadRequest("Last-Event-ID must be the id of an event.")
    return int(given)
