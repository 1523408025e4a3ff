"""A plugin of pytest that writes the ids of the chosen tests into the file that ECOM_COLLECTED names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def pytest_collection_finish(session: Any) -> None:
    """Called when pytest has chosen the tests."""
    ids = "".join(f"{item.nodeid}\n" for item in session.items)
    Path(os.environ["ECOM_COLLECTED"]).write_text(ids, encoding="utf-8")
