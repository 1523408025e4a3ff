"""The commands of deploy/README.md in their order, each with what it needs here and how it may end.

A command is a line that is indented by four spaces. `<!-- scene: NAME -->` between them is a step that the page only
tells, or a look at what the commands before it did.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.containers.site import ROOT

PAGE = ROOT / "deploy" / "README.md"
PASSWORD = "correct horse battery"


@dataclass(frozen=True)
class Step:
    """A command or, without one, a scene; and the section it stands in."""

    section: str
    command: str = ""
    scene: str = ""


# What a person types, and the exit codes that are right where no registry and no database of faults can be asked.
SAID = {r"ecom user add": f"{PASSWORD}\n"}
CODES = {
    r"pin_images\.py$": (0, 3),
    r"pin_images\.py --check$": (0, 1),
    r"make audit$": (0, 2),  # make says 2, whatever its command says
    r"ecom config --check": (1,),  # it lists what production refuses
}


def steps(text: str) -> list[Step]:
    """The commands and scenes of a page. What follows a `#` in a command's line is its remark."""
    found, section = [], ""
    for line in text.splitlines():
        if line.startswith("#"):
            section = line.lstrip("# ")
        elif scene := re.fullmatch(r"<!-- scene: (\w+) -->", line):
            found.append(Step(section, scene=scene[1]))
        elif line.startswith("    "):
            found.append(Step(section, re.sub(r"\s+# .*", "", line.strip())))
    return found


def said_to(command: str) -> str:
    """What is typed when it asks."""
    return next((said for pattern, said in SAID.items() if re.search(pattern, command)), "")


def codes_of(command: str) -> tuple[int, ...]:
    """The exit codes that are right."""
    return next((codes for pattern, codes in CODES.items() if re.search(pattern, command)), (0,))


def page() -> str:
    """The text of the page."""
    return Path(PAGE).read_text(encoding="utf-8")
