"""Prints the part of requirements.lock that runs the services: without test, dev and rootless tools.

    python deploy/requirements.py setup.cfg requirements.lock [PACKAGE...]

It prints the packages named, or all that the services need if none is named. The lock says under each package which
others require it (`# via`), and setup.cfg says what the services themselves require. pip then runs with
--require-hashes, which refuses an incomplete list. Standard library only.
"""

from __future__ import annotations

import configparser
import re
import sys
from pathlib import Path


def runtime(setup: str, lock: str) -> dict[str, str]:
    """The entries of the lock, with hashes and by name, that install_requires needs directly or indirectly."""
    entries = {_name(entry): entry for entry in re.split(r"\n(?=\w)", lock) if "==" in entry.partition("\n")[0]}
    asked_by = {name: set(re.findall(r"^ *#(?: via)? +(\S+)", entry, re.M)) for name, entry in entries.items()}
    config = configparser.ConfigParser(inline_comment_prefixes=("#",))
    config.read_string(setup)
    needed = {_name(line) for line in config["options"]["install_requires"].split("\n") if line.strip()}
    while more := {name for name in entries if asked_by[name] & needed} - needed:
        needed |= more
    return {name: entry for name, entry in entries.items() if name in needed}


def _name(requirement: str) -> str:
    (name,) = re.findall(r"^[\w.-]+", requirement)
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    _, setup_cfg, requirements_lock, *only = sys.argv
    found = runtime(Path(setup_cfg).read_text(encoding="utf-8"), Path(requirements_lock).read_text(encoding="utf-8"))
    print("\n".join(found[name] for name in only or found))
