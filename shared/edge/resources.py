"""Dependencies built from the settings, once for each process: clients of other systems, and other objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nameko.containers import WorkerContext
from nameko.extensions import DependencyProvider
from sqlalchemy import Engine

from shared.config import Settings
from shared.edge.postgres import connect
from shared.edge.settings import settings_of

POOL_SIZE = 20


class ExternalClient(DependencyProvider):
    """Injects the client that `make(engine, settings)` builds. Each statement of the engine commits by itself."""

    def __init__(self, make: Callable[[Engine, Settings], Any]) -> None:
        self.make = make

    def setup(self) -> None:
        settings = settings_of(self.container)
        (url,) = self.container.config["DB_URIS"].values()
        engine = connect(url, f"{self.container.service_name} provider", pool_size=POOL_SIZE)
        self.engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self.outside = self.make(self.engine, settings)

    def get_dependency(self, worker_ctx: WorkerContext) -> Any:
        return self.outside

    def stop(self) -> None:
        self.engine.dispose()

    kill = stop


class FromSettings(DependencyProvider):
    """Injects the object that `make(settings)` builds. It holds nothing that must be closed."""

    def __init__(self, make: Callable[[Settings], Any]) -> None:
        self.make = make

    def setup(self) -> None:
        self.made = self.make(settings_of(self.container))

    def get_dependency(self, worker_ctx: WorkerContext) -> Any:
        return self.made


class ProcessResource(FromSettings):
    """Injects the object that `make(settings)` builds, and closes it when the service stops."""

    def stop(self) -> None:
        self.made.close()

    kill = stop
