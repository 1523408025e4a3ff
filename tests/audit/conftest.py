"""The release audit at sizes that no order ever made: rows are written straight into its table, as the superuser.

They belong to no reservation, so the books would not agree: these tests have processes of their own, and what they
leave behind is emptied by whoever starts next.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import refuse_patched_process
from tests.e2e.system import System, eventually


@pytest.fixture(scope="package")
def system(servers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One replica of every service; at the end nothing is left and no log holds a fault."""
    refuse_patched_process()
    system = System(tmp_path_factory.mktemp("audit-logs"), replicas=1)
    system.start()
    yield system
    wrong = system.stop()
    assert not wrong, "\n".join(wrong[:20])


@pytest.fixture(autouse=True)
def ready(system: System) -> Iterator[None]:
    """Before and after every test all is ready."""
    system.wait_ready()
    yield
    eventually(system.troubles, lambda troubles: not troubles, 60, "not ready")
