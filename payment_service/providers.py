"""The payment providers by the names that PAYMENT_PROVIDER can have."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Engine

from payment_service.http_provider import HttpProvider
from payment_service.mock_provider import MockProvider
from payment_service.provider import Provider
from shared.config import Settings
from shared.errors import ConfigurationFault


def _mock(ledger: Engine, settings: Settings) -> Provider:
    return MockProvider(ledger, settings.payment_mode, settings.provider_timeout_s)


def _http(ledger: Engine, settings: Settings) -> Provider:
    settings.require("PAYMENT_PROVIDER_URL")
    return HttpProvider(settings.payment_provider_url, settings.provider_timeout_s)


# How each provider is made from the mock provider's ledger and the settings.
PROVIDERS: dict[str, Callable[[Engine, Settings], Provider]] = {"mock": _mock, "http": _http}


def provider_of(ledger: Engine, settings: Settings) -> Provider:
    """The provider that PAYMENT_PROVIDER names. Raises ConfigurationFault if there is none of that name."""
    name = settings.payment_provider
    if name not in PROVIDERS:
        raise ConfigurationFault(f"PAYMENT_PROVIDER must be {' or '.join(PROVIDERS)}, not {name!r}")
    return PROVIDERS[name](ledger, settings)
