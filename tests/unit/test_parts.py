"""Services that are made of parts: each part has names of its own, or one would silently take the place of another."""

from __future__ import annotations

import inspect
from collections import defaultdict

import pytest

from auth_service.service import AuthService
from gateway.service import GatewayService
from inventory_service.service import InventoryService


def repeated(service: type) -> dict[str, list[str]]:
    """The methods that several parts of a service define, with these parts."""
    parts = defaultdict(list)
    for part in service.__mro__[:-1]:
        for name, value in vars(part).items():
            if inspect.isfunction(value) or isinstance(value, property):
                parts[name].append(part.__name__)
    return {name: found for name, found in parts.items() if len(found) > 1}


@pytest.mark.parametrize("service", [AuthService, GatewayService, InventoryService])
def test_no_part_of_a_service_replaces_a_method_of_another(service: type) -> None:
    assert repeated(service) == {}


def test_a_repeated_name_is_found() -> None:
    class One:
        def _mail(self) -> None: ...

    class Other:
        def _mail(self) -> None: ...

    assert repeated(type("Service", (One, Other), {})) == {"_mail": ["One", "Other"]}
