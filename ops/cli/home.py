"""The settings of `ecom`: those of the environment and, in a checkout, those of the stack that `make up` runs there.

The production image has no ops/local and therefore no such stack: only the environment counts there. Standard library
only; ops.local writes the files that are read here.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path

from shared import unsafe
from shared.config import Settings

ROOT = Path(__file__).resolve().parents[2]
# Names the directory of another stack. Tests name one that does not exist, so that they never touch a running stack.
STACK_VARIABLE = "ECOM_STACK"
HINT = "`make up` starts a stack that this command finds"


def read(role: str) -> Settings:
    """The settings of a role, each from the environment if it is set there, else from the running stack.

    Raises ConfigurationFault, also for what production refuses.
    """
    return unsafe.read_safe(role, environment())


def environment() -> Mapping[str, str]:
    """The environment, completed one by one by the settings of the running stack if there is one."""
    found = running_stack()
    missing = {name: value for name, value in found.items() if not _is_set(name.removesuffix("_FILE"))}
    if _is_set("AMQP_URI"):  # the stack's users are those of the stack's broker
        missing = {name: value for name, value in missing.items() if not _names_a_user(name)}
    return missing | os.environ


def _names_a_user(name: str) -> bool:
    return name.removesuffix("_FILE").endswith(("_AMQP_URI", "AMQP_ADMIN_URI"))


def running_stack() -> dict[str, str]:
    """The settings that the running stack gives to its processes; none if no stack runs.

    A stack is for development unless it says otherwise. One that an earlier version started says nothing.
    """
    directory = _directory()
    if directory is None or not _is_locked(directory / "lock"):
        return {}
    try:
        found = json.loads((directory / "state.json").read_text(encoding="utf-8")).get("environment", {})
    except (OSError, ValueError):
        return {}
    return {"ECOM_ENV": "development"} | {str(name): str(value) for name, value in found.items()}


def hint() -> str:
    """What to do about a missing setting: in a checkout where no stack runs, start one. Otherwise empty."""
    return HINT if _directory() is not None and not running_stack() else ""


def _directory() -> Path | None:
    """The directory of the stack that belongs to this checkout; None outside a checkout."""
    if not (ROOT / "ops" / "local").is_dir():
        return None
    return Path(os.environ.get(STACK_VARIABLE) or ROOT / ".run" / "main")


def _is_set(name: str) -> bool:
    return bool(os.environ.get(name) or os.environ.get(f"{name}_FILE"))


def _is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a stack. The kernel drops the lock when that process ends."""
    try:
        with path.open("rb") as file:
            # Shared, so that two commands do not take each other for a stack.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
