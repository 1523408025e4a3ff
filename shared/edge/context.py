"""The caller and their trace, carried through RPC in Nameko's context data."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nameko.containers import WorkerContext
from nameko.extensions import DependencyProvider

from shared.envelope import SHELL
from shared.events import Identity
from shared.ids import new_trace_id

_TRACE_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class RequestContext:
    """The trace and the identity a worker acts under."""

    trace_id: str
    identity: Identity


class Context(DependencyProvider):
    """Injects the RequestContext; a call from a bare `nameko shell` is the user `shell` in a trace of its own."""

    def get_dependency(self, worker_ctx: WorkerContext) -> RequestContext:
        data = worker_ctx.data
        trace_id = str(data.get("trace_id") or "")
        return RequestContext(
            trace_id if _TRACE_ID.fullmatch(trace_id) else new_trace_id(),
            Identity(str(data.get("user_id") or SHELL), tuple(data.get("roles") or ())),
        )
