"""The settings of the process as a dependency: `settings = Setting()`."""

from __future__ import annotations

from typing import Any, cast

from nameko.containers import WorkerContext
from nameko.extensions import DependencyProvider

from shared.config import Settings
from shared.senders import SenderRules
from topology.users import service_of


def settings_of(container: Any) -> Settings:
    """The settings with which a container was started."""
    return cast(Settings, container.config["settings"])


def own_name(container: Any) -> str:
    """The name of a container's service in the table of services: its Nameko name without `_service`."""
    return str(container.service_name).removesuffix("_service")


def sender_rules(settings: Settings) -> SenderRules:
    """From whom a process with these settings accepts messages."""
    return SenderRules(
        checked=service_of(settings.broker_user) is not None,
        unsigned=settings.accept_unsigned,
        shell=not settings.production,
    )


class Setting(DependencyProvider):
    """Injects the Settings."""

    def get_dependency(self, worker_ctx: WorkerContext) -> Settings:
        return settings_of(self.container)
