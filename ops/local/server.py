"""What a private RabbitMQ node and a private PostgreSQL cluster have in common: process, port, file of facts.

Standard library only; no threads.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ops.local.processes import Process, StackFault, kill, spawn, tail

LOOPBACK = "127.0.0.1"
# Below the range from which systems take the ports of outgoing connections: a server that is killed and started again
# must find its port free.
PORT_RANGE = range(20000, 32000)
START_TIMEOUT_S = 60.0
BREW_PREFIXES = ("/opt/homebrew", "/usr/local", "/home/linuxbrew/.linuxbrew")


def reachable(host: str) -> str:
    """The host by which this machine reaches a service that listens on `host`, as a URL writes it.

    A service that listens on every address is reached on the loopback interface.
    """
    bare = host.strip("[]")
    if bare in ("", "0.0.0.0", "::"):
        return LOOPBACK
    return f"[{bare}]" if ":" in bare else bare


def free_port(taken: Iterable[int] = ()) -> int:
    """A free port of the loopback interface."""
    avoid = set(taken)
    while True:
        port = random.choice(PORT_RANGE)
        if port not in avoid and is_free(port):
            return port


def is_free(port: int) -> bool:
    """Whether a server could listen on this port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(fresh, path)


def search_path() -> str:
    more = ["/usr/sbin", "/usr/bin", "/sbin", "/bin", *(f"{prefix}/bin" for prefix in BREW_PREFIXES)]
    return os.pathsep.join([os.environ.get("PATH", os.defpath), *more])


@dataclass(frozen=True)
class ServerTls:
    """The PEM files of a server that speaks TLS: it lets in whoever has a certificate of the CA."""

    ca: Path
    certificate: Path
    key: Path


class Server:
    """What RabbitMQ and PostgreSQL have in common: one process, one port, one JSON file that remembers them."""

    name: ClassVar[str]
    title: ClassVar[str]
    stop_signal: ClassVar[int]
    stop_patience_s: ClassVar[float]
    # Each finds in its log, in one group, words that say why it cannot work.
    complaints: ClassVar[tuple[str, ...]]

    def __init__(self, directory: Path) -> None:
        """Take up the server that lives in a stack's directory, running or not. Touches nothing."""
        self.directory = directory
        self.file = directory / f"{self.name}.json"
        self.log = directory / "log" / f"{self.name}.log"
        self.facts: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.popen: subprocess.Popen[bytes] | None = None  # of the process that was launched from here
        self.log_began_at = 0  # where its log began to speak of that process

    @property
    def port(self) -> int:
        """Where clients connect, on 127.0.0.1."""
        return int(self.facts["port"])

    @property
    def process(self) -> Process | None:
        """The running process, also one started by an earlier run; None when it is down."""
        self.facts = json.loads(self.file.read_text()) if self.file.exists() else self.facts
        return alive(self.facts.get("process"))

    def prepare(self) -> None:
        """Prepare a first start, and choose other ports where another program has taken ours."""
        raise NotImplementedError

    def launch(self, dies_with_us: bool = False) -> None:
        """Start the process without waiting for it. One that runs already is left alone."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether it serves clients now."""
        raise NotImplementedError

    @property
    def home(self) -> Path:
        """The folder in which it works and keeps its data."""
        raise NotImplementedError

    def _environment(self) -> dict[str, str]:
        raise NotImplementedError

    def wait(self, patience_s: float = START_TIMEOUT_S) -> None:
        """Return once it serves clients. Raises StackFault with the end of its log when it dies or takes too long."""
        deadline = time.monotonic() + patience_s
        while not self.answers():
            dead = self.process is None
            if dead or time.monotonic() > deadline:
                what = "does not start" if dead else f"does not answer after {patience_s:.0f} s"
                said = self.complaint() or "its log does not say why"
                advice = (
                    f"`make clean`, as the last resort, deletes all data of the stack and {self.title} starts afresh"
                )
                raise StackFault(f"{self.title} {what}: {said}\nlog: {self.log}\n{tail(self.log)}\n{advice}")
            time.sleep(0.05)

    def complaint(self) -> str:
        """What its log says last, since its last launch, about why it cannot work; empty if it says nothing."""
        try:
            with self.log.open("rb") as log:
                log.seek(self.log_began_at)
                text = log.read().decode("utf-8", "replace")
        except OSError:
            return ""
        found = [matches[-1] for pattern in self.complaints if (matches := re.findall(pattern, text))]
        return ". ".join(found)

    def start(self) -> None:
        """Start it, on the ports it had before, and wait until it serves clients."""
        self.launch()
        self.wait()

    def stop(self) -> None:
        """Shut it down in its own way; kill what is left after that. One that is down is no error."""
        process = self.process
        if process:
            process.end(self.stop_signal, self.stop_patience_s)
        self._forget()

    def kill(self) -> None:
        """SIGKILL it and everything it started, as a power cut would."""
        process = self.process
        if process:
            kill(process.family())
        self._forget()

    def restart(self) -> None:
        """Stop in its own way, then start on the same ports with the same data."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze it (SIGSTOP): sockets stay open and nothing answers."""
        if process := self.process:
            process.send_to_family(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen one go on."""
        if process := self.process:
            process.send_to_family(signal.SIGCONT)

    def remove(self) -> None:
        """Delete the data of a stopped server."""
        self.file.unlink(missing_ok=True)

    def keep(self, **facts: Any) -> None:
        """Remember something across processes."""
        self.facts.update(facts)
        self.directory.mkdir(parents=True, exist_ok=True)
        write_private(self.file, json.dumps(self.facts, indent=1))

    def _spawn(self, argv: Sequence[str | Path], dies_with_us: bool, user: str | None = None) -> None:
        """Start the server's process."""
        self.log_began_at = self.log.stat().st_size if self.log.exists() else 0
        self.popen = spawn(
            argv,
            log=self.log,
            env=self._environment(),
            cwd=self.home,
            user=user,
            dies_with_us=self.stop_signal if dies_with_us else None,
        )
        self.keep(process=identity_of(self.popen))

    def _forget(self) -> None:
        if self.facts:
            self.keep(process=None)

    def _move(self, *names: str) -> None:
        """Give each named port a number, keeping the one it has while that is free."""
        taken: list[int] = []
        for name in names:
            port = self.facts.get(name)
            if not port or not is_free(port):
                port = free_port(taken)
            taken.append(port)
            self.facts[name] = port


def identity_of(child: subprocess.Popen[bytes]) -> dict[str, Any] | None:
    process = Process.of(child.pid)
    return {"pid": process.pid, "started": process.started} if process else None


def alive(identity: dict[str, Any] | None) -> Process | None:
    process = Process(**identity) if identity else None
    return process if process and process.alive() else None
