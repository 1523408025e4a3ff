"""Unit tests need no servers; they import services, which need eventlet's patches first."""

import tests.patched  # noqa: F401  # isort: skip

import pytest

from gateway.export import Export
from gateway.following import Feed, Following
from tests.unit.serving import Unconnected


@pytest.fixture(scope="session", autouse=True)
def no_broker():
    """A gateway's watch and its exports look for no broker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Following, "watch", Unconnected("order_service.changed_orders", "order_id"))
        patch.setattr(Feed, "watch", Unconnected("order_service.next_steps", "position"))
        patch.setattr(Export, "replies", None)
        yield
