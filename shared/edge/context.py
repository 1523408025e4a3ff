"""The caller and their trace, carried through RPC in Nameko's context data."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nameko.containers import WorkerContext
from nameko.extensions import DependencyProvider

from shared.edge.settings import settings_of
from shared.envelope import SHELL
from shared.errors import RoleMissing
from shared.events import Identity
from shared.ids import new_trace_id
from shared.roles import ROLES

_TRACE_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class RequestContext:
    """The trace and the identity a worker acts under."""

    trace_id: str
    identity: Identity

    def require(self, rule: Callable[..., bool], *facts: str) -> None:
        """Ask a rule of a domain.py whether the caller may do this; `facts` follow the caller. Raises RoleMissing."""
        if not rule(self.identity, *facts):
            raise RoleMissing


class Context(DependencyProvider):
    """Injects the RequestContext.

    A call that names no user, as from a bare `nameko shell`, is made by the user `shell` in a trace of its own. In
    development that user has every role, in production none.
    """

    def get_dependency(self, worker_ctx: WorkerContext) -> RequestContext:
        data = worker_ctx.data
        trace_id = str(data.get("trace_id") or "")
        return RequestContext(
            trace_id if _TRACE_ID.fullmatch(trace_id) else new_trace_id(),
            self._caller(data),
        )

    def _caller(self, data: Mapping[str, Any]) -> Identity:
        if not data.get("user_id"):
            return Identity(SHELL, () if settings_of(self.container).production else ROLES)
        return Identity(str(data["user_id"]), tuple(data.get("roles") or ()))
