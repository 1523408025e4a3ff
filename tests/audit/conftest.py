"""The release audit at sizes that no order ever made: rows are written straight into its table, as the superuser.

They belong to no reservation, so the books do not agree any more: these tests come after all others of their system,
and what they leave behind is emptied by whoever starts next.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import refuse_patched_process
from tests.e2e.system import System, Systems, eventually


@pytest.fixture(scope="package")
def system(systems: Systems) -> Iterator[System]:
    """One replica of every service; at the end no log holds a fault."""
    refuse_patched_process()
    system = systems.like(1)
    yield system
    wrong = system.faults()
    assert not wrong, "\n".join(wrong[:20])


@pytest.fixture(autouse=True)
def ready(system: System) -> Iterator[None]:
    """After every test all is ready for the next one."""
    yield
    eventually(system.troubles, lambda troubles: not troubles, 60, "not ready")
