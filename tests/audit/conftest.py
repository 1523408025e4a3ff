"""The release audit at sizes too large to make by orders: rows are inserted into its table as the superuser.

They belong to no reservation, so the books do not agree any more: these tests come after all others of their system,
and the next run deletes what they leave behind.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import refuse_patched_process
from tests.e2e.system import System, Systems, eventually


@pytest.fixture(scope="package")
def system(systems: Systems) -> Iterator[System]:
    """One replica of every service; at the end no log may have an error."""
    refuse_patched_process()
    system = systems.like(1)
    yield system
    wrong = system.faults()
    assert not wrong, "\n".join(wrong[:20])


@pytest.fixture(autouse=True)
def ready(system: System) -> Iterator[None]:
    """Make the system ready for the next test."""
    yield
    eventually(system.troubles, lambda troubles: not troubles, 60, "not ready")
