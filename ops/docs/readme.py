"""Writes the table of processes in README.md from the table of services. `python -m ops.docs.contracts` calls it."""

from __future__ import annotations

import re
from pathlib import Path

from topology.services import SERVICES

FILE = Path(__file__).resolve().parents[2] / "README.md"

_HEAD = "| process | what it does |\n|---|---|\n"


def processes() -> str:
    """The table: one line for each service."""
    return _HEAD + "".join(f"| {service.name} | {service.purpose} |\n" for service in SERVICES)


def with_processes(text: str) -> str:
    """README.md with the table of processes as it must be. Raises ValueError when there is no such table."""
    changed, count = re.subn(re.escape(_HEAD) + r"(\|.*\n)*", lambda _: processes(), text)
    if count != 1:
        raise ValueError("README.md must have one table of processes")
    return changed


def main() -> None:
    """Bring README.md up to date."""
    FILE.write_text(with_processes(FILE.read_text(encoding="utf-8")), encoding="utf-8")
