"""The whole system on one machine: installs it, starts it, shows it, tests it, stops it.

    python3 ops/stack.py up | down | status | demo | test | exec | check | install | clean

Runs on a bare Python, before anything is installed, and as a module behind `ecom up` and the others: `main(argv)`
returns the exit code (0 done, 1 found something, 2 misuse or something to install first, 3 could not be done).
What runs lives in `.run/<name>/`: data, logs, ports and passwords; `main` is the stack of `up` and `demo` and keeps
its data, `test-*` are those of `test` and leave nothing.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

if sys.version_info < (3, 11):  # noqa: UP036 - older ones run this line and no further
    for _newer in ("python3.13", "python3.12", "python3.11"):
        if shutil.which(_newer):
            os.execvp(_newer, [_newer, *sys.argv])
    print("ecom: Python 3.11 or later is needed", file=sys.stderr)
    sys.exit(2)

from ops.local.install import ROOT, RUN, VENV, install, packages
from ops.local.processes import Process, StackFault, adopt_orphans, end, end_descendants, tail, tie, wait_until
from ops.local.servers import LOOPBACK, MAIN_VHOST, PORT_RANGE, Servers, is_free, write_private
from ops.local.supervisor import Child, Supervisor
from shared.config import DATABASES, FIRST_PORT, PORTS_BETWEEN_REPLICAS
from shared.config import SERVICES as ALL_SERVICES
from topology.services import SERVICES as SERVICE_ROWS
from topology.services import START_ORDER

MAIN = "main"
# The settings that a stack chooses where the user has not.
SETTINGS = (
    "AMQP_URI",
    "DATABASE_ADMIN_URL",
    "READER_PASSWORD",
    *(f"{name.upper()}_DATABASE_URL" for name in DATABASES),
    *(f"{service.upper()}_PORT" for service in ALL_SERVICES),
)
STACK_FILE_VARIABLE = "ECOM_TEST_STACK"  # where a test finds the servers, see ops.local.servers.Servers.attach

# Stopping takes at most 15 s for the gateway, 15 s for the services and 30 s for each server.
DOWN_PATIENCE_S = 100.0
START_PATIENCE_S = 300.0  # for a stack that somebody else is starting; its first time installs everything
PYTEST_PATIENCE_S = 15.0

# Playwright and real threads do not belong in a process patched by eventlet; and of the others some want one replica of
# each service and some two. Who is last takes longest.
TEST_RUNS = {
    "patched": ("tests/unit", "tests/integration"),
    "single": ("tests/smoke", "tests/audit"),
    "plain": ("tests/e2e", "tests/chaos"),
}
TEST_REPLICAS = 3  # the most that a test starts
BROWSER_TESTS = "tests/e2e/test_dashboard.py"
PYTEST_NO_TESTS = 5
TYPED = ("topology", "shared", *(service.package for service in SERVICE_ROWS))
CHECKS = {
    "format": ("ruff", "format", "--check", "."),
    "lint": ("ruff", "check", "."),
    "types": ("mypy", *TYPED),
    "imports": ("lint-imports",),
}


class Interrupted(BaseException):
    """Somebody asked this process to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.exit_code = 128 + number


class Progress:
    """Says what is done, with the seconds since the start and those of the step."""

    def __init__(self) -> None:
        self.began = self.step_began = time.monotonic()

    def __call__(self, text: str) -> None:
        """Say something in the middle of a step."""
        print(f"[{time.monotonic() - self.began:6.1f} s] {text}", flush=True)

    def done(self, text: str) -> None:
        """Say what the step that ends here did."""
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
        """What the project's processes find in their environment beside what the user put there."""
        return dict(self.state.get("environment", {}))

    def keep(self, **facts: Any) -> None:
        """Remember something for the next start and for other processes."""
        self.state.update(facts)
        write_private(self.file, json.dumps(self.state, indent=1))

    @contextmanager
    def owned(self) -> Iterator[bool]:
        """Hold the stack's lock, if nobody does: whether we have it is what the block is told.

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
        """Write down the environment of the project's processes; what the user has set stays the user's.

        The `suffix` of the databases' names keeps apart what uses the same server.
        """
        passwords = self.state.setdefault("passwords", {})
        chosen = {f"{service.upper()}_PORT": str(port) for service, port in ports.items()}
        if self.servers.broker:
            chosen["AMQP_URI"] = self.servers.broker.amqp_uri_of(MAIN_VHOST)
        if self.servers.postgres:
            chosen["DATABASE_ADMIN_URL"] = self.servers.postgres.admin_url
            chosen["READER_PASSWORD"] = passwords.setdefault("reader", secrets.token_hex(16))
            for name in DATABASES:
                password = passwords.setdefault(name, secrets.token_hex(16))
                place = f"{LOOPBACK}:{self.servers.postgres.port}/{name}{suffix}"
                chosen[f"{name.upper()}_DATABASE_URL"] = f"postgresql://{name}_app:{password}@{place}"
        chosen = {name: value for name, value in chosen.items() if not given(name)}
        # The user's are kept too: `status` and `exec` may be called where these variables are not set.
        brought = {spelling: os.environ[spelling] for name in SETTINGS for spelling in _spellings(name)}
        self.keep(environment=brought | chosen, passwords=passwords)

    def start(self, progress: Progress, replicas: int) -> None:
        """Start everything and return when every service is ready."""
        self.keep(ready=False, children={})
        install(progress, broker=self.servers.broker is not None, postgres=self.servers.postgres is not None)
        progress.step_began = time.monotonic()
        self.start_servers(progress)
        ports = choose_ports(replicas, progress)
        self.choose_environment(ports)
        self._ecom(progress, "databases are migrated", "migrate")  # while the broker is still starting
        self.wait_broker(progress)
        self._ecom(progress, "the broker looks like the topology", "topology", "apply")
        children = [
            Child(
                service, replica, ports[service] + PORTS_BETWEEN_REPLICAS * replica, self._log(f"{service}-{replica}")
            )
            for service in START_ORDER
            for replica in range(replicas)
        ]
        self.supervisor = Supervisor(children, _run_command, self._full_environment(), ROOT, _died, self._keep_children)
        self.supervisor.start()
        self.supervisor.wait_ready()
        progress.done(f"{len(children)} processes are ready: {', '.join(START_ORDER)}")
        self.keep(ready=True)

    def watch(self, until: Callable[[], bool]) -> None:
        """Keep the services running until the condition holds."""
        assert self.supervisor is not None
        self.supervisor.run(until)

    def stop(self) -> None:
        """Stop the services, then the broker, then the database server. Nothing of them is left."""
        self.keep(ready=False)
        if self.supervisor:
            self.supervisor.stop()
        self.servers.stop()
        self.keep(children={})

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

    def gateway_url(self) -> str:
        """Where clients post orders."""
        return self.urls()["gateway-0"]

    def _full_environment(self) -> dict[str, str]:
        return project_environment(self.environment)

    def _log(self, name: str) -> Path:
        return self.directory / "log" / f"{name}.log"

    def _keep_children(self) -> None:
        assert self.supervisor is not None
        children = {}
        for child in self.supervisor.children:
            process = Process.of(child.popen.pid) if child.popen else None
            pid, started = (process.pid, process.started) if process else (0, "")
            children[child.name] = {"url": child.url, "pid": pid, "started": started}
        self.keep(children=children)

    def _ecom(self, progress: Progress, done: str, *arguments: str) -> None:
        log = self._log(arguments[0])
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            command = [str(VENV / "bin" / "ecom"), *arguments]
            code = subprocess.call(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self._full_environment(), cwd=ROOT
            )
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
    """A port for the first replica of each service: from `first` on, or elsewhere when one of those is taken.

    The ports of each replica are 100 above those of the replica before it. A port that the user names is taken as it
    is, and must be free.
    """
    named = {service: int(os.environ.get(f"{service.upper()}_PORT") or 0) for service in ALL_SERVICES}
    for service, port in named.items():
        if port and not is_free(port):
            raise StackFault(f"{service.upper()}_PORT: port {port} is taken", exit_code=2)

    def block(start: int) -> dict[str, int]:
        return {service: named[service] or start + place for place, service in enumerate(ALL_SERVICES)}

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


def _died(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def _run_command(child: Child) -> list[str | Path]:
    return [VENV / "bin" / "ecom", "run", child.service, "--replica", str(child.replica)]


# --- commands: each returns its exit code --------------------------------------------------------------------------


def up(replicas: int) -> int:
    """Start everything and stay in the foreground until Ctrl-C or `down`."""
    stack = Stack(MAIN)
    progress = Progress()
    with stack.owned() as ours:
        if not ours:
            return show_running()
        with stopping(stack):
            stack.start(progress, replicas)
            print_urls(stack)
            progress(f"ready; Ctrl-C or `make down` stops it; logs in {stack.directory / 'log'}")
            try:
                stack.watch(until=lambda: False)
            except Interrupted:
                print("\nstopping", flush=True)
    print("stopped", flush=True)
    return 0


def down() -> int:
    """Stop what `up` runs, wherever it was started. Nothing running is fine."""
    stack = Stack(MAIN)
    owner = stack.owner()
    if owner is None:
        stack.end_leftovers()
        print("nothing is running")
        return 0
    owner.send(signal.SIGTERM)
    if not wait_until(lambda: stack.owner() is None, DOWN_PATIENCE_S, pause_s=0.1):
        raise StackFault(f"process {owner.pid} does not stop; its log is in the terminal it runs in")
    print("stopped")
    return 0


def status(as_json: bool) -> int:
    """Show what runs. Passwords are shown by --json only."""
    stack = Stack(MAIN)
    if stack.owner() is None:
        print(json.dumps({"running": False}) if as_json else "nothing is running; `make up` starts it")
        return 1
    if as_json:
        environment = project_environment(stack.environment)
        urls = {name: environment.get(f"{name.upper()}_DATABASE_URL", "") for name in DATABASES}
        servers = {server.name: process.pid for server in stack.servers.each() if (process := server.process)}
        children = {name: child["pid"] for name, child in stack.state.get("children", {}).items()}
        shown = {
            "running": True,
            "ready": bool(stack.state.get("ready")),
            "urls": stack.urls(),
            "amqp_uri": environment.get("AMQP_URI", ""),
            "database_urls": {name: url for name, url in urls.items() if url},
            "database_admin_url": environment.get("DATABASE_ADMIN_URL", ""),
            "pids": servers | children,
        }
        print(json.dumps(shown, indent=1))
    else:
        print_urls(stack)
    return 0


def demo() -> int:
    """Run the demonstration on the running stack, or on one started for it and stopped after it."""
    stack = Stack(MAIN)
    with stack.owned() as ours:
        if not ours:
            stack = wait_ready()
            return _run_demo(stack).wait()
        with stopping(stack):
            stack.start(Progress(), replicas=1)
            show = _run_demo(stack)
            stack.watch(until=lambda: show.poll() is not None)
        return show.returncode


def test(arguments: Sequence[str]) -> int:
    """Run all tests: the longest run beside the others, each on servers of its own.

    On servers that the user brings they run one after the other: there they would meet.
    """
    sweep()
    progress = Progress()
    paths = {kind: found for kind in TEST_RUNS if (found := _paths(kind, arguments))}
    stacks = {kind: Stack(f"test-{kind}-{os.getpid()}") for kind in paths}
    codes = dict.fromkeys(TEST_RUNS, PYTEST_NO_TESTS)
    with ExitStack() as held:
        for stack in stacks.values():
            held.enter_context(stack.owned())
        try:
            wanted = Servers(RUN, broker=not given("AMQP_URI"), postgres=not databases_given())
            install(
                progress,
                broker=wanted.broker is not None,
                postgres=wanted.postgres is not None,
                browser=wants_browser(paths.get("plain", [])),
            )
            progress.step_began = time.monotonic()
            for stack in stacks.values():
                stack.start_servers(progress)
            share = len(PORT_RANGE) // len(TEST_RUNS)
            starts = share - TEST_REPLICAS * PORTS_BETWEEN_REPLICAS
            for place, (kind, stack) in enumerate(stacks.items()):
                # Not from 8000 on: a stack that is up must neither be hit by a test nor come into its way.
                ports = choose_ports(TEST_REPLICAS, first=PORT_RANGE[place * share + secrets.randbelow(starts)])
                stack.wait_broker(progress)
                stack.choose_environment(ports, suffix=f"_{kind}")
            beside = wanted.broker and wanted.postgres and len(stacks) > 1
            codes |= _side_by_side(stacks, paths, arguments) if beside else _in_turn(stacks, paths, arguments)
        finally:
            stopping_now()
            for stack in stacks.values():
                stack.servers.stop()
            end_descendants()
            for stack in stacks.values():
                stack.remove()
    return judge(codes, narrowed=any(word != "--long" for word in arguments))


def wants_browser(paths: Sequence[str]) -> bool:
    """Whether what is run of the tests looks at pages with a real browser."""
    return any(BROWSER_TESTS.startswith(path.partition("::")[0]) for path in paths)


def _in_turn(stacks: Mapping[str, Stack], paths: Mapping[str, list[str]], arguments: Sequence[str]) -> dict[str, int]:
    """One run after the other, in the terminal. Their exit codes."""
    return {kind: _ended(_pytest(stack, paths[kind], arguments)) for kind, stack in stacks.items()}


def _side_by_side(
    stacks: Mapping[str, Stack], paths: Mapping[str, list[str]], arguments: Sequence[str]
) -> dict[str, int]:
    """The last run, which mostly waits for what it has killed, in the terminal; beside it the others, one after the
    other, and what they print after it.
    """
    *beside, longest = stacks
    print(f"{' and '.join(beside)} tests run beside these; what they print follows", flush=True)
    shown = _pytest(stacks[longest], paths[longest], arguments)
    codes, logs = {}, [stacks[kind].directory / "pytest.log" for kind in beside]
    for kind, log in zip(beside, logs, strict=True):
        with log.open("wb") as output:
            codes[kind] = _ended(_pytest(stacks[kind], paths[kind], ["--color=no", *arguments], output))
    codes[longest] = _ended(shown)
    for log in logs:
        print(log.read_text(encoding="utf-8", errors="replace"), flush=True)
    return codes


def execute(command: Sequence[str]) -> int:
    """Become a command that finds the running stack in its environment."""
    if not command:
        raise StackFault("exec: which command?", exit_code=2)
    stack = Stack(MAIN)
    if stack.owner() is None:
        raise StackFault("nothing is running; `make up` starts it")
    environment = project_environment(stack.environment) | {"GATEWAY_URL": stack.gateway_url()}
    if shutil.which(command[0], path=environment["PATH"]) is None:
        raise StackFault(f"exec: {command[0]}: no such command", exit_code=2)
    os.execvpe(command[0], list(command), environment)


def check() -> int:
    """Format, lint, types, import rules: all run, and one that fails fails the whole."""
    packages(Progress())
    failed = []
    for what, words in CHECKS.items():
        print(f"$ {' '.join(words)}", flush=True)
        if subprocess.call([str(VENV / "bin" / words[0]), *words[1:]], cwd=ROOT):
            failed.append(what)
    if failed:
        raise StackFault(f"failed: {', '.join(failed)}", exit_code=1)
    return 0


def prepare() -> int:
    """Make .venv; no servers."""
    packages(Progress())
    return 0


def clean() -> int:
    """Stop everything and delete its data and logs; .venv stays."""
    down()
    sweep()
    Stack(MAIN).remove()
    shutil.rmtree(RUN, ignore_errors=True)
    return 0


# --- what the commands share ----------------------------------------------------------------------------------------


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
    """Stop the stack at the end of the block, whatever ended it."""
    try:
        yield
    finally:
        stopping_now()
        stack.stop()
        end_descendants()


def wait_ready() -> Stack:
    """The main stack that somebody else runs, once it is ready."""
    deadline = time.monotonic() + START_PATIENCE_S
    while time.monotonic() < deadline:
        stack = Stack(MAIN)
        if stack.state.get("ready"):
            return stack
        if stack.owner() is None:
            raise StackFault("the stack that was starting has stopped")
        time.sleep(0.2)
    raise StackFault(f"the stack is not ready after {START_PATIENCE_S:.0f} s")


def show_running() -> int:
    """A second `up`: show the first one's addresses."""
    stack = wait_ready()
    print("already running")
    print_urls(stack)
    return 0


def print_urls(stack: Stack) -> None:
    """Every address, without passwords, and a first call to try."""
    urls = stack.urls()
    for name, url in urls.items():
        print(f"  {name:14} {url}")
    for server in stack.servers.each():
        if server.process is None:  # the user's own is used
            continue
        print(f"  {server.title:14} {LOOPBACK}:{server.port}   (password: make status ARGS=--json)")
    if "gateway-0" in urls:
        print(f"  {'try':14} curl -s {urls['gateway-0']}/api/auth/token -H 'Content-Type: application/json' \\")
        print(f'  {"":14}   -d \'{{"username": "customer", "password": "demo-customer"}}\'', flush=True)


def sweep() -> None:
    """Remove the stacks of test runs that were killed."""
    for directory in RUN.glob("test-*"):
        stack = Stack(directory.name)
        with stack.owned() as ours:
            if ours:
                stack.end_leftovers()
                stack.remove()


def judge(codes: Mapping[str, int], narrowed: bool) -> int:
    """The exit code of all runs of pytest. No test at all is a failure, unless the user narrowed the choice."""

    def failed(kind: str, code: int) -> bool:
        if code != PYTEST_NO_TESTS:
            return code != 0
        nothing_anywhere = all(other == PYTEST_NO_TESTS for other in codes.values())
        return nothing_anywhere or (not narrowed and any(_test_files(kind)))

    wrong = [f"the {kind} run ended with {code}" for kind, code in codes.items() if failed(kind, code)]
    if wrong:
        raise StackFault("; ".join(wrong), exit_code=1)
    return 0


def _test_files(kind: str) -> Iterator[Path]:
    for folder in TEST_RUNS[kind]:
        yield from (ROOT / folder).rglob("test_*.py")


def _paths(kind: str, arguments: Sequence[str]) -> list[str]:
    """What one run of pytest is about: all its folders, or what the user named of them."""
    named = _named(arguments)
    if named:
        return [path for path in named if _kind_of(path) == kind]
    folders = [folder for folder in TEST_RUNS[kind] if any((ROOT / folder).rglob("test_*.py"))]
    if kind == "patched":
        folders += [str(path.relative_to(ROOT)) for path in sorted((ROOT / "tests").glob("test_*.py"))]
    return folders


def _named(arguments: Sequence[str]) -> list[str]:
    return [word for word in arguments if word.startswith("tests") and (ROOT / word.partition("::")[0]).exists()]


def _pytest(
    stack: Stack, paths: Sequence[str], arguments: Sequence[str], output: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """Start one run of pytest, in the terminal or into a file."""
    environment = project_environment(stack.environment) | {STACK_FILE_VARIABLE: str(stack.file)}
    options = [word for word in arguments if word not in _named(arguments)]
    return subprocess.Popen(
        [str(VENV / "bin" / "python"), "-m", "pytest", *options, *paths],
        cwd=ROOT,
        env=environment,
        stdout=output,
        stderr=output,
        preexec_fn=tie(signal.SIGINT),
    )


def _ended(run: subprocess.Popen[bytes]) -> int:
    """The exit code of a run of pytest."""
    try:
        return run.wait()
    except Interrupted as interrupted:
        if interrupted.number != signal.SIGINT:  # that one the terminal sends to pytest too, and two are one too many
            run.send_signal(signal.SIGINT)  # let it take down what its fixtures put up
        wait_until(lambda: run.poll() is not None, PYTEST_PATIENCE_S)
        raise


def _kind_of(path: str) -> str:
    return next((kind for kind, folders in TEST_RUNS.items() if path.startswith(folders)), "patched")


def _run_demo(stack: Stack) -> subprocess.Popen[bytes]:
    environment = project_environment(stack.environment) | {"GATEWAY_URL": stack.gateway_url()}
    return subprocess.Popen([str(VENV / "bin" / "python"), "-m", "ops.local.demo"], cwd=ROOT, env=environment)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. An error is one line on standard error, with the end of a log if there is one."""
    parser = argparse.ArgumentParser(prog="ops/stack.py", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    up_parser = commands.add_parser("up", help="start everything; stay in the foreground")
    up_parser.add_argument("--replicas", type=int, default=1, choices=range(1, 10), metavar="N", help="of each service")
    commands.add_parser("down", help="stop everything")
    status_parser = commands.add_parser("status", help="every URL; exit 1 when nothing runs")
    status_parser.add_argument("--json", action="store_true", help="with passwords")
    commands.add_parser("demo", help="start, show an order's way, stop")
    test_parser = commands.add_parser("test", help="run all tests on servers of their own", add_help=False)
    test_parser.add_argument("arguments", nargs=argparse.REMAINDER, help="--long, and whatever pytest takes")
    exec_parser = commands.add_parser("exec", help="run a command in the running stack's environment")
    exec_parser.add_argument("words", nargs=argparse.REMAINDER)
    commands.add_parser("check", help="format, lint, types, import rules")
    commands.add_parser("install", help="make .venv")
    commands.add_parser("clean", help="stop everything and delete its data")
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        # argparse takes an unknown first option for its own, REMAINDER or not
        chosen, rest = (
            parser.parse_known_args(words) if words[:1] != ["test"] else (parser.parse_args(["test"]), words[1:])
        )
        if rest and chosen.command != "test":
            parser.error(f"unknown: {' '.join(rest)}")
    except SystemExit as refused:
        return int(refused.code or 0)
    run: dict[str, Callable[[], int]] = {
        "up": lambda: up(chosen.replicas),
        "down": down,
        "status": lambda: status(chosen.json),
        "demo": demo,
        "test": lambda: test(rest),
        "exec": lambda: execute(chosen.words),
        "check": check,
        "install": prepare,
        "clean": clean,
    }
    if chosen.command in ("up", "demo", "test"):
        adopt_orphans()
        catch_signals()
    try:
        return run[chosen.command]()
    except StackFault as fault:
        print(f"ecom: {fault}", file=sys.stderr, flush=True)
        return fault.exit_code
    except Interrupted as interrupted:
        end_descendants()
        return interrupted.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
