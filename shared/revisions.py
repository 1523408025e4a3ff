"""The revisions of each service's database: which there are, in which phase each belongs, which one the code needs.

They are read from the files of the migrations, without Alembic: every service asks for them when it starts.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from shared.errors import ConfigurationFault
from topology.services import BY_NAME

ROOT = Path(__file__).resolve().parents[1]

# An expand migration adds what this version needs, and the version before works on beside it. A contract migration
# takes away or tightens what neither of the two needs.
EXPAND, CONTRACT = PHASES = ("expand", "contract")

_PHASE = re.compile(rf'^phase = "({"|".join(PHASES)})"$', re.MULTILINE)


class Revision(NamedTuple):
    """One migration of a service."""

    name: str  # 0012: Alembic's name of it, with which its file's name begins
    phase: str


@cache
def revisions_of(service: str) -> tuple[Revision, ...]:
    """Every revision of a service's database, oldest first. Raises ConfigurationFault for one that names no phase."""
    files = sorted((ROOT / BY_NAME[service].package / "migrations" / "versions").glob("[0-9]*.py"))
    if not files:
        raise ConfigurationFault(f"the migrations of {service} are not installed")
    return tuple(Revision(file.name.partition("_")[0], _phase(file)) for file in files)


def _phase(file: Path) -> str:
    found = _PHASE.search(file.read_text(encoding="utf-8"))
    if found is None:
        raise ConfigurationFault(f"{file.relative_to(ROOT)} does not say its phase: {' or '.join(PHASES)}")
    return found[1]


def is_newer(service: str, found: str | None) -> bool:
    """Whether a revision is one of a newer version than this."""
    return found is not None and found not in {revision.name for revision in revisions_of(service)}


def pending(service: str, found: str | None) -> tuple[Revision, ...]:
    """The revisions that a database at this one has not had yet, oldest first; none where it is newer."""
    if is_newer(service, found):
        return ()
    return tuple(revision for revision in revisions_of(service) if found is None or revision.name > found)


def needed_revision(service: str) -> str:
    """The oldest revision that this version of a service can work with: its newest expand migration."""
    return [revision.name for revision in revisions_of(service) if revision.phase == EXPAND][-1]


def lacking(service: str, found: str | None) -> str | None:
    """What a service's database at this revision lacks, and what helps; None if the service can work with it.

    A revision that is not among those of the code is of a newer version, which the code is compatible with.
    """
    if found is None:
        return "the database is not migrated; `ecom migrate` does it"
    if all(revision.phase == CONTRACT for revision in pending(service, found)):
        return None
    needed = needed_revision(service)
    return f"the database is at revision {found}, this version needs {needed}; `ecom migrate` does it"
