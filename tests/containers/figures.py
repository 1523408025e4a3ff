"""What a run measures, for docs/measurements.md: printed at its end and kept in .run/containers/figures.txt."""

from __future__ import annotations

import re
from datetime import datetime

import psutil

from tests.containers.site import Site, eventually
from topology.services import NAMES

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
IS_UP = re.compile(r"(?m)^(\S+) .* is up on ")


class Figures:
    """Figures by what they are about."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, str]] = {}

    def note(self, about: str, name: str, value: str) -> None:
        """Keep a figure."""
        self.found.setdefault(about, {})[name] = value

    def lines(self) -> list[str]:
        """The figures, a line for each thing."""
        return [
            f"{about}: {', '.join(f'{name} {value}' for name, value in row.items())}"
            for about, row in self.found.items()
        ]


def memory_mb(site: Site) -> dict[str, float]:
    """The memory of each service's container now, as the engine counts it."""
    found = {}
    for name in ("rabbitmq", "postgres", *NAMES):
        (container,) = site.containers(name)
        said = site.run(f"docker stats --no-stream --format '{{{{.MemUsage}}}}' {container}")
        number, unit = re.findall(r"^([\d.]+)([KMG])iB", said)[0]
        found[name] = float(number) * UNITS[unit] / 1e6
    return found


def seconds_to_start(site: Site, container: str) -> float:
    """Start a container: the time until its service answers."""
    site.run(f"docker start {container}")
    started = site.inspect(container)["State"]["StartedAt"]

    def said() -> list[str]:
        return IS_UP.findall(site.run(f"docker logs --timestamps --since {started} {container}"))

    return (_time(eventually(said)[0]) - _time(started)).total_seconds()


def processor_seconds(site: Site, container: str) -> float:
    """What the processes of a container have used so far."""
    first = psutil.Process(site.inspect(container)["State"]["Pid"])
    times = [process.cpu_times() for process in (first, *first.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def _time(text: str) -> datetime:
    """A time as Docker writes it, to the microsecond."""
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d*Z$", r"\1+00:00", text))
