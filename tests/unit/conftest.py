"""Unit tests need no servers; they import services, which need eventlet's patches first."""

import tests.patched  # noqa: F401  # isort: skip

import pytest

from gateway.export import Export
from shared.edge.watch import HintedWatch, Watch
from tests.unit.serving import ORDERS


@pytest.fixture(scope="session", autouse=True)
def no_broker():
    """A gateway's watches and exports look for no broker: watches ask ORDERS, and tests bring their hints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watch, "replies", ORDERS)
        patch.setattr(HintedWatch, "start", Watch.start)
        patch.setattr(Export, "replies", None)
        yield
