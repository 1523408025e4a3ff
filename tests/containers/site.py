"""A copy of this checkout as an operator has it, with the stack that docker-compose.yml starts from it.

It has a project name and a port of its own, so that it disturbs no other stack of this machine.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ops.cli.flow import Flow
from tests.containers.engine import Engine

ROOT = Path(__file__).resolve().parent.parent.parent
PROJECT = "ecom-compose-test"
COMMAND_S = 300
# `make` installs into the checkout, which has everything already.
IN_THE_CHECKOUT = "make "


class Site:
    """The folder, and what is run in it."""

    def __init__(self, folder: Path, engine: Engine) -> None:
        self.folder = folder
        self.port, self.proxy_port = _free_ports(2)
        self._copy()
        self.environment = {
            **engine.environment,
            "COMPOSE_PROJECT_NAME": PROJECT,
            "GATEWAY_PORT": str(self.port),
            "PROXY_PORT": str(self.proxy_port),
        }
        self.environment.pop("ECOM_ENV")  # that of the tests

    def _copy(self) -> None:
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"]
        names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout
        there = b"\0".join(name for name in names.split(b"\0") if name and (ROOT / os.fsdecode(name)).exists())
        self.folder.mkdir(parents=True)
        packed = subprocess.run(
            ["tar", "--null", "-T", "-", "-c"], cwd=ROOT, input=there, capture_output=True, check=True
        )
        subprocess.run(["tar", "-x", "-C", str(self.folder)], input=packed.stdout, check=True)

    def run(self, command: str, said: str = "", codes: Sequence[int] = (0,), patience_s: float = COMMAND_S) -> str:
        """Run a line of shell, with `said` as its standard input; what it printed. Fails at another exit code."""
        ended = subprocess.run(
            ["bash", "-c", command],
            cwd=ROOT if command.startswith(IN_THE_CHECKOUT) else self.folder,
            env=self.environment,
            input=said,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=patience_s,
            check=False,
        )
        assert ended.returncode in codes, f"$ {command}\nexit {ended.returncode}\n{ended.stdout[-4000:]}"
        return ended.stdout

    def compose(self, words: str, **how: Any) -> str:
        """`docker compose` with these words."""
        return self.run(f"docker compose {words}", **how)

    def containers(self, service: str) -> list[str]:
        """The ids of a service's containers, running or not."""
        return self.compose(f"ps --all --quiet {service}").split()

    def inspect(self, container: str) -> dict[str, Any]:
        """What the engine knows of a container."""
        (found,) = json.loads(self.run(f"docker inspect {container}"))
        return dict(found)

    def health(self, service: str) -> list[str]:
        """The health of each container of a service: `healthy`, `starting` or `unhealthy`."""
        return [self.inspect(one)["State"]["Health"]["Status"] for one in self.containers(service)]

    def set(self, name: str, value: str | None) -> None:
        """Set a variable in .env, or with None take it out."""
        path = self.folder / ".env"
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if not line.startswith(f"{name}=")]
        path.write_text("".join(f"{line}\n" for line in [*kept, *([f"{name}={value}"] if value is not None else [])]))

    @property
    def version(self) -> str:
        """The version that the next build will have."""
        return re.findall(r"(?m)^version = (\S+)$", (self.folder / "setup.cfg").read_text())[0]

    def next_version(self) -> str:
        """Write another version number into the checkout, which makes another image; the number."""
        path, new = self.folder / "setup.cfg", f"{self.version}.1"
        path.write_text(re.sub(r"(?m)^version = \S+$", f"version = {new}", path.read_text(), count=1))
        return new

    def flow(self, port: int | None = None) -> Flow:
        """A client of the gateway, or of the proxy if this is its port."""
        return Flow(f"http://127.0.0.1:{port or self.port}", timeout_s=30)


def eventually(read: Callable[[], Any], good: Callable[[Any], bool] = bool, patience_s: float = 60.0) -> Any:
    """Read until it is good; what was read. Fails with what was read last."""
    deadline = time.monotonic() + patience_s
    while not good(seen := read()):
        assert time.monotonic() < deadline, f"after {patience_s:.0f} s it is still {seen!r}"
        time.sleep(0.1)
    return seen


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        taken = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(one.getsockname()[1]) for one in taken]
