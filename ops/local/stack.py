"""The stack on this machine: servers and services that run under one name, in `.run/<name>/`.

That folder holds data, logs, ports and passwords. `main` is the stack of `make up` and `make demo` and keeps its data;
the stacks `test-*` belong to `make test`, which deletes them. Standard library only.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ops.local.broker import MAIN_VHOST
from ops.local.install import ROOT, RUN, VENV, install
from ops.local.processes import Process, StackFault, end, end_descendants, private_log, tail
from ops.local.server import LOOPBACK, PORT_RANGE, is_free, reachable, write_private
from ops.local.servers import Servers
from ops.local.supervisor import Child, Supervisor
from shared.config import DATABASES, FIRST_PORT, PORTS, PORTS_BETWEEN_REPLICAS, PROBES, SERVICES, environment_of
from topology.services import START_ORDER
from topology.users import SHELL, broker_user

MAIN = "main"
# The settings that a stack chooses where the user has not.
SETTINGS = (
    "ECOM_ENV",
    "AMQP_URI",
    "AMQP_ADMIN_URI",
    *(f"{name.upper()}_AMQP_URI" for name in (*SERVICES, SHELL)),
    "DATABASE_ADMIN_URL",
    "READER_PASSWORD",
    "OPERATOR_PASSWORD",
    *(f"{name.upper()}_DATABASE_URL" for name in DATABASES),
    *(f"{name.upper()}_PORT" for name in PORTS),
)


class Interrupted(BaseException):
    """A signal asked this process to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.exit_code = 128 + number


class Progress:
    """Prints progress, with the seconds since the start and those of the step."""

    def __init__(self) -> None:
        self.began = self.step_began = time.monotonic()

    def __call__(self, text: str) -> None:
        """Print a line in the middle of a step."""
        print(f"[{time.monotonic() - self.began:6.1f} s] {text}", flush=True)

    def begin_step(self) -> None:
        """Count the seconds of the next step from here."""
        self.step_began = time.monotonic()

    def done(self, text: str) -> None:
        """Print what the step that ends here did."""
        self(f"{text} ({time.monotonic() - self.step_began:.1f} s)")
        self.step_began = time.monotonic()


class Stack:
    """Everything that runs under one name, and the folder `.run/<name>/` in which it lives."""

    def __init__(self, name: str) -> None:
        self.directory = RUN / name
        self.file = self.directory / "state.json"
        self.state: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.servers = Servers(self.directory, broker=not given("AMQP_URI"), postgres=not databases_given())
        self.supervisor: Supervisor | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The settings that the stack adds to the environment of the project's processes."""
        return dict(self.state.get("environment", {}))

    def keep(self, **facts: Any) -> None:
        """Save facts for the next start and for other processes."""
        self.state.update(facts)
        write_private(self.file, json.dumps(self.state, indent=1))

    @contextmanager
    def owned(self) -> Iterator[bool]:
        """Hold the lock of the stack if it is free; yields whether this process holds it.

        The kernel drops the lock with its process, however that ends, so no stale file can claim that a stack runs.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield True

    def owner(self) -> Process | None:
        """The process that holds the stack's lock."""
        path = self.directory / "lock"
        if not path.exists():
            return None
        with path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return None
            except BlockingIOError:
                file.seek(0)
                return Process.of(int(file.read() or 0))

    def start_servers(self, progress: Progress) -> None:
        """Start the broker and the database server side by side and choose the ports of everything else.

        Returns when the database server answers; the broker takes longer and is waited for by `wait_broker`.
        """
        self.end_leftovers()
        broker, postgres = self.servers.broker, self.servers.postgres
        if broker:
            broker.prepare()
            broker.launch(dies_with_us=True)
        else:
            progress("using the broker of AMQP_URI")
        if postgres:
            postgres.prepare(VENV)
            postgres.launch(dies_with_us=True)
            postgres.wait()
            progress.done(f"PostgreSQL answers on {LOOPBACK}:{postgres.port}")
        else:
            progress("using the databases of the *_DATABASE_URLs")

    def wait_broker(self, progress: Progress) -> None:
        """Return when the broker serves clients."""
        if self.servers.broker:
            self.servers.broker.wait()
            progress.done(f"RabbitMQ answers on {LOOPBACK}:{self.servers.broker.port}")

    def choose_environment(self, ports: Mapping[str, int], suffix: str = "") -> None:
        """Save the environment of the project's processes; settings of the user stay as they are.

        The `suffix` of the databases' names separates the stacks that use the same server.
        """
        passwords = self.state.setdefault("passwords", {})
        chosen = {f"{name.upper()}_PORT": str(port) for name, port in ports.items()}
        if self.servers.broker:
            chosen["AMQP_URI"] = self.servers.broker.amqp_uri_of(MAIN_VHOST)  # the administrator's
            for name in (*SERVICES, SHELL):
                uri = self.servers.broker.amqp_uri_of(MAIN_VHOST, broker_user(name))
                chosen[f"{name.upper()}_AMQP_URI"] = uri
        if self.servers.postgres:
            chosen["DATABASE_ADMIN_URL"] = self.servers.postgres.admin_url
            for role in ("reader", "operator"):
                chosen[f"{role.upper()}_PASSWORD"] = passwords.setdefault(role, secrets.token_hex(16))
            for name in DATABASES:
                password = passwords.setdefault(name, secrets.token_hex(16))
                place = f"{LOOPBACK}:{self.servers.postgres.port}/{name}{suffix}"
                chosen[f"{name.upper()}_DATABASE_URL"] = f"postgresql://{name}_app:{password}@{place}"
        # Queues may hold messages of the version that ran here before, which do not say who sent them.
        is_upgrade = bool(self.environment) and not self.state.get("signs")
        if is_upgrade:
            chosen["ACCEPT_UNSIGNED"] = "1"
        chosen |= {"ECOM_ENV": "development", "SMTP_URL": f"file:{self.directory / 'mail'}"}
        chosen = {name: value for name, value in chosen.items() if not given(name)}
        # The user's settings are saved too: `status` and `exec` may be called where these variables are not set.
        brought = {spelling: os.environ[spelling] for name in SETTINGS for spelling in _spellings(name)}
        self.keep(environment=brought | chosen, passwords=passwords, signs=not is_upgrade)

    def start(self, progress: Progress, replicas: int) -> None:
        """Start everything and return when every service is ready."""
        ports = self.prepare(progress, replicas)
        self.start_services(progress, ports, dict.fromkeys(START_ORDER, replicas))

    def prepare(self, progress: Progress, replicas: int, first_port: int = FIRST_PORT) -> dict[str, int]:
        """Start everything but the services; the ports of their first replicas, which begin at `first_port` if free."""
        self.keep(ready=False, children={}, servers=[server.name for server in self.servers.each()])
        install(progress, broker=self.servers.broker is not None, postgres=self.servers.postgres is not None)
        progress.begin_step()
        self.start_servers(progress)
        ports = choose_ports(replicas, progress, first_port)
        self.choose_environment(ports)
        own = ["--own-cluster"] if self.servers.postgres else []
        self._ecom(progress, "databases are migrated", "migrate", *own)  # while the broker is still starting
        self.wait_broker(progress)
        self._ecom(progress, "the broker looks like the topology", "topology", "apply")
        return ports

    def start_services(self, progress: Progress, ports: Mapping[str, int], replicas: Mapping[str, int]) -> None:
        """Start so many replicas of each service and return when all are ready."""
        children = [
            Child(
                service,
                replica,
                ports[service] + PORTS_BETWEEN_REPLICAS * replica,
                self._log(f"{service}-{replica}"),
                host=reachable(os.environ.get("HOST", "")),
                probe_port=ports[PROBES.get(service, service)] + PORTS_BETWEEN_REPLICAS * replica,
                scheme="https" if service == "gateway" and given("GATEWAY_TLS_CERT") else "http",
            )
            for service in START_ORDER
            for replica in range(replicas[service])
        ]
        self.supervisor = Supervisor(
            children, _run_command, self._full_environment(), ROOT, self._say, self._keep_children, self.servers.each()
        )
        self.supervisor.start()
        self.supervisor.wait_ready()
        progress.done(f"{len(children)} processes are ready: {', '.join(START_ORDER)}")
        self.keep(ready=True, signs=True)

    def stop_services(self) -> None:
        """Stop the services; the servers stay."""
        self.keep(ready=False)
        if self.supervisor:
            self.supervisor.stop()
        self.supervisor = None
        self.keep(children={})

    def watch(self, until: Callable[[], bool]) -> None:
        """Keep services and servers running until the condition holds."""
        assert self.supervisor is not None
        self.supervisor.run(until)

    def stop(self) -> None:
        """Stop the services, then the broker, then the database server. Nothing of them is left."""
        self.stop_services()
        self.servers.stop()

    def end_leftovers(self) -> None:
        """End what a killed supervisor left running, services and servers."""
        left = [Process(child["pid"], child["started"]) for child in self.state.get("children", {}).values()]
        end(left)
        Servers(self.directory).stop()

    def remove(self) -> None:
        """Delete the data of a stopped stack."""
        Servers(self.directory).remove()
        shutil.rmtree(self.directory, ignore_errors=True)

    def urls(self) -> dict[str, str]:
        """Where each running process listens."""
        return {name: child["url"] for name, child in self.state.get("children", {}).items()}

    def own_servers(self) -> Servers:
        """The servers that the running stack started, whatever the settings of this process say."""
        if "servers" not in self.state:  # an earlier version started it
            return self.servers
        names = self.state["servers"]
        return Servers(self.directory, broker="broker" in names, postgres="postgres" in names)

    def gateway_url(self) -> str:
        """Where clients post orders."""
        return self.urls()["gateway-0"]

    def _full_environment(self) -> dict[str, str]:
        return project_environment(self.environment)

    def _log(self, name: str) -> Path:
        return self.directory / "log" / f"{name}.log"

    def _say(self, text: str) -> None:
        """Print who died, and log it: the console may be closed by the time somebody asks."""
        with private_log(self._log("up")) as log:
            log.write(f"{time.strftime('%F %T')} {text}\n".encode())
        print(time.strftime("%T"), text, flush=True)

    def _keep_children(self) -> None:
        assert self.supervisor is not None
        children = {}
        for child in self.supervisor.children:
            process = Process.of(child.popen.pid) if child.popen else None
            pid, started = (process.pid, process.started) if process else (0, "")
            facts = {"url": child.url, "probe_url": child.probe_url, "pid": pid, "started": started}
            children[child.name] = facts
        self.keep(children=children)

    def _ecom(self, progress: Progress, done: str, *arguments: str) -> None:
        log = self._log(arguments[0])
        with private_log(log) as output:
            output.truncate(0)
            command = [str(VENV / "bin" / "ecom"), *arguments]
            env = environment_of(arguments[0], self._full_environment())
            code = subprocess.call(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env, cwd=ROOT)
        if code:
            raise StackFault(f"`ecom {' '.join(arguments)}` failed with {code}; log: {log}\n{tail(log)}")
        progress.done(done)


def given(name: str) -> bool:
    """Whether the user has set this setting, or its file."""
    return bool(_spellings(name))


def _spellings(name: str) -> list[str]:
    return [spelling for spelling in (name, f"{name}_FILE") if os.environ.get(spelling)]


def databases_given() -> bool:
    """Whether the user brings the databases along. Some of them but not all is a mistake."""
    needed = [f"{name.upper()}_DATABASE_URL" for name in DATABASES]
    missing = [name for name in needed if not given(name)]
    if missing and len(missing) < len(needed):
        raise StackFault(f"set all of the databases' URLs or none; missing: {', '.join(missing)}", exit_code=2)
    return not missing


def project_environment(chosen: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of a process of the project: the user's, ours, and the virtual env's programs first."""
    path = os.pathsep.join([str(VENV / "bin"), os.environ.get("PATH", os.defpath)])
    settled = {f"{name}{ending}" for name in SETTINGS for ending in ("", "_FILE")} if chosen else set()
    inherited = {name: value for name, value in os.environ.items() if name not in settled}
    return inherited | {"VIRTUAL_ENV": str(VENV), "PATH": path, "PYTHONUNBUFFERED": "1"} | dict(chosen)


def choose_ports(replicas: int, say: Callable[[str], None] | None = None, first: int = FIRST_PORT) -> dict[str, int]:
    """The ports of the first replicas, by name as in PORTS: from `first` on, or elsewhere when one of those is taken.

    The ports of each replica are 100 above those of the replica before it. A port that the user names is taken as it
    is, and must be free.
    """
    named = {name: int(os.environ.get(f"{name.upper()}_PORT") or 0) for name in PORTS}
    for name, port in named.items():
        if port and not is_free(port):
            raise StackFault(f"{name.upper()}_PORT: port {port} is taken", exit_code=2)

    def block(start: int) -> dict[str, int]:
        return {name: named[name] or start + port - FIRST_PORT for name, port in PORTS.items()}

    def taken(start: int) -> list[int]:
        wanted = [port + PORTS_BETWEEN_REPLICAS * n for port in block(start).values() for n in range(replicas)]
        return [port for port in wanted if not is_free(port)]

    if busy := taken(first):
        for start in PORT_RANGE[secrets.randbelow(100) * PORTS_BETWEEN_REPLICAS :: PORTS_BETWEEN_REPLICAS]:
            if not taken(start):
                if say:
                    say(f"port {busy[0]} is taken: listening from {start} on")
                return block(start)
        raise StackFault("no free ports for the services")
    return block(first)


def probe_url_of(child: Mapping[str, Any]) -> str:
    """Where a process of the saved state answers /readyz. An earlier version saved its only address."""
    return str(child.get("probe_url") or child["url"])


def _run_command(child: Child) -> list[str | Path]:
    return [VENV / "bin" / "ecom", "run", child.service, "--replica", str(child.replica)]


def catch_signals() -> None:
    """Turn the first signal that ends a program into Interrupted; later ones are ignored, so cleaning up is whole."""

    def interrupt(number: int, _frame: object) -> None:
        stopping_now()
        raise Interrupted(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


def stopping_now() -> None:
    """From here on nothing interrupts."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def stopping(stack: Stack) -> Iterator[None]:
    """Stop the stack at the end of the block, also after an exception."""
    try:
        yield
    finally:
        stopping_now()
        stack.stop()
        end_descendants()


def sweep() -> None:
    """Remove the stacks of test runs that were killed."""
    for directory in RUN.glob("test-*"):
        stack = Stack(directory.name)
        with stack.owned() as ours:
            if ours:
                stack.end_leftovers()
                stack.remove()
