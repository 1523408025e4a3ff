"""Unit tests need no servers; they import services, which need eventlet's patches first."""

import tests.patched  # noqa: F401  # isort: skip

import pytest

from gateway.account_export import AccountExport
from gateway.export import Export
from shared.edge.hint_listener import HintListener
from shared.edge.revocation_feed import RevocationFeed
from shared.edge.watch import Watch
from tests.unit.serving import ORDERS, REVOKED


@pytest.fixture(scope="session", autouse=True)
def no_broker():
    """A gateway's watches and exports look for no broker: watches ask ORDERS, and tests bring their hints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watch, "replies", ORDERS)
        patch.setattr(HintListener, "start", lambda self: None)
        patch.setattr(RevocationFeed, "replies", REVOKED)
        for export in (Export, AccountExport):
            patch.setattr(export, "replies", None)
        yield
